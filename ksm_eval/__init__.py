"""Predict what Linux KSM would merge, without enabling it.

from ksm_eval import Selection, evaluate, open_target

report = evaluate(open_target(Path("vmcore")), Selection(comms=("php-fpm*",)))
report.savings.net_bytes

In a drgn session its Program will do: ksm_eval.evaluate(prog, ksm_eval.Selection(all=True)).
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

    Functions that have the name of their module (collect, save) are imported from it; that of
    evaluate can be called itself.
    """
    from importlib import import_module

    if name == "evaluate":  # a module that can be called as its function
        return import_module(f"{__name__}.evaluate")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
