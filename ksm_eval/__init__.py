"""Predict what Linux KSM would merge, without enabling it.

from ksm_eval import Selection, open_target
from ksm_eval.evaluate import evaluate

report = evaluate(open_target(Path("vmcore")), Selection(comms=("php-fpm*",)))
report.savings.net_bytes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ksm_eval.errors import IncompleteError, KsmEvalError, TargetError, UsageError

if TYPE_CHECKING:
    from ksm_eval.evaluate import evaluate_snapshot, open_target
    from ksm_eval.report.model import Report
    from ksm_eval.snapshot import Snapshot
    from ksm_eval.target import Selection

__version__ = "0.1.0"
__all__ = [
    "IncompleteError",
    "KsmEvalError",
    "Report",
    "Selection",
    "Snapshot",
    "TargetError",
    "UsageError",
    "evaluate_snapshot",
    "open_target",
]

_WHERE = {
    "Report": "report.model",
    "Selection": "target",
    "Snapshot": "snapshot",
    "evaluate_snapshot": "evaluate",
    "open_target": "evaluate",
}


def __getattr__(name: str) -> Any:
    """The rest of the API when it is asked for: `ksm-eval --help` needs none of it.

    Functions that have the name of their module (collect, evaluate, save) are imported from it.
    """
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
