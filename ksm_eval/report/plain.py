"""A report as plain values: dicts, lists, numbers and strings, as all machine formats show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ksm_eval.report.decision import Madvise
from ksm_eval.report.model import SCHEMA_VERSION, Pass, ProcessRow, Report, Run, System, VmaRow
from ksm_eval.report.text import encodable


def document(report: Report, run: Run | None) -> dict[str, Any]:
    """Without `run`, the same whenever the same snapshot is evaluated."""
    ran = {} if run is None else {"run": {"tool": "ksm-eval", **plain_of(run)}}
    return {"schema_version": SCHEMA_VERSION, **ran, **plain_of(report)}


def plain_of(value: Any) -> Any:
    """Fields in the order of the model, mappings sorted by key."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, Mapping):
        return {encodable(key): plain_of(value[key]) for key in sorted(value)}
    if isinstance(value, tuple | list):
        return [plain_of(item) for item in value]
    if is_dataclass(value):
        plain = {f.name: plain_of(getattr(value, f.name)) for f in fields(value)}
        return _SPECIAL.get(type(value), dict)(plain)
    return value


def _system(plain: dict[str, Any]) -> dict[str, Any]:
    return {**plain.pop("counters"), **plain}


def _process(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if value is not None}


def _addresses(plain: dict[str, Any]) -> dict[str, Any]:
    """As strings: readers with 53-bit numbers (jq, JavaScript) would round them."""
    return {**plain, "start": f"{plain['start']:#x}", "end": f"{plain['end']:#x}"}


def _vma(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in _addresses(plain).items() if value is not None}


def _pass(plain: dict[str, Any]) -> dict[str, Any]:
    counters = plain.pop("counters")
    return {"pass": plain.pop("number"), **plain, **counters}


_SPECIAL = {
    Madvise: _addresses,
    Pass: _pass,
    ProcessRow: _process,
    System: _system,
    VmaRow: _vma,
}
