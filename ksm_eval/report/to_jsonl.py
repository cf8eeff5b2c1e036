"""Report as JSON Lines, one object a row: docs/json-schema.md, `$defs/line` of schema.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ksm_eval.report.model import Report, Run
from ksm_eval.report.plain import document

_LISTS = {"processes": "process", "vmas": "vma", "timeline": "pass"}
_DECISION_LISTS = {"groups": "group", "madvise": "madvise", "pairs": "pair"}


def to_jsonl(report: Report, run: Run | None) -> str:
    """ASCII; first the report without its long lists, then a line for each of their rows."""
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in _lines(report, run))


def _lines(report: Report, run: Run | None) -> Iterator[dict[str, Any]]:
    whole = document(report, run)
    rows = [(kind, whole.pop(name)) for name, kind in _LISTS.items()]
    decision = whole["decision"]
    if decision is not None:
        rows += [(kind, decision.pop(name)) for name, kind in _DECISION_LISTS.items()]
    yield {"kind": "report", **whole}
    for kind, members in rows:
        for member in members:
            yield {"kind": kind, **member}
