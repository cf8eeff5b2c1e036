"""Report as JSON: docs/json-schema.md, schema.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ksm_eval.report.model import (
    SCHEMA_VERSION,
    Pass,
    ProcessRow,
    Report,
    Run,
    System,
    VmaRow,
)
from ksm_eval.report.text import encodable


def to_json(report: Report, run: Run) -> str:
    """One JSON document, ASCII, with a line break at its end.

    Equal reports give equal bytes but for the value of `run`: fields come in the order of the
    model, mappings sorted by key.
    """
    return json.dumps(document(report, run), indent=2, allow_nan=False) + "\n"


def document(report: Report, run: Run) -> dict[str, Any]:
    """What to_json() writes."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": {"tool": "ksm-eval", **_plain(run)},
        **_plain(report),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(key): _plain(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        plain = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
        return _SPECIAL.get(type(value), dict)(plain)
    return value


def _system(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain.pop("counters"), **plain}


def _process(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if value is not None}


def _vma(plain: dict[str, Any]) -> dict[str, Any]:
    """Addresses as strings: readers with 53-bit numbers (jq, JavaScript) would round them."""
    plain["start"] = f"{plain['start']:#x}"
    plain["end"] = f"{plain['end']:#x}"
    return {key: value for key, value in plain.items() if value is not None}


def _pass(plain: dict[str, Any]) -> dict[str, Any]:
    counters = plain.pop("counters")
    return {"pass": plain.pop("number"), **plain, **counters}


_SPECIAL = {Pass: _pass, System: _system, ProcessRow: _process, VmaRow: _vma}
