"""Report as JSON: docs/json-schema.md, schema.json."""

from __future__ import annotations

import json

from ksm_eval.report.model import Report, Run
from ksm_eval.report.plain import document

__all__ = ["document", "to_json"]


def to_json(report: Report, run: Run | None) -> str:
    """One JSON document, ASCII, with a line break at its end.

    Equal reports give equal bytes but for the value of `run`; without it, it is left out, which
    schema.json does not allow.
    """
    return json.dumps(document(report, run), indent=2, allow_nan=False) + "\n"
