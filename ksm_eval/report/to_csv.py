"""Processes and VMAs as one table for a spreadsheet (RFC 4180): docs/json-schema.md."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from typing import Any

from ksm_eval.report.model import Report
from ksm_eval.report.plain import plain_of
from ksm_eval.report.text import printable

COLUMNS = (
    "kind", "pid", "comm", "cgroup", "uid", "start", "end", "name", "mappings", "ksm_pages",
    "ineligible", "ksm_rmap_items", "ksm_merging_pages", "ksm_zero_pages", "ksm_process_profit",
    "pss_before", "pss_after", "calm_pages", "new_pages",
)  # fmt: skip
"""`kind` and the fields of JSON's processes and vmas."""

_FORMULAS = frozenset("=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}") | frozenset(
    "\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
"""First characters that make spreadsheets evaluate a cell."""


def to_csv(report: Report) -> str:
    """A row for each process (`kind` "process"), followed by one for each of its VMAs ("vma")
    with the process's pid, comm, cgroup and uid: filter by `kind` before adding up.

    What does not apply is empty. Lines end with CR LF; none is inside a cell.
    """
    file = StringIO()
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for row in _rows(report):
        writer.writerow([_cell(row.get(column)) for column in COLUMNS])
    return file.getvalue()


def _rows(report: Report) -> Iterator[dict[str, Any]]:
    vmas: dict[int, list[dict[str, Any]]] = {}
    for vma in report.vmas:
        vmas.setdefault(vma.pid, []).append({"kind": "vma", **plain_of(vma)})
    for process in report.processes:
        yield {"kind": "process", **plain_of(process)}
        owner = {"comm": process.comm, "cgroup": process.cgroup, "uid": process.uid}
        for row in vmas.pop(process.pid, []):
            yield {**row, **owner}
    for others in vmas.values():
        yield from others


def _cell(value: Any) -> int | float | str:
    if value is None:
        return ""
    if isinstance(value, int | float):
        return value
    text = str(value)
    # A leading apostrophe: what follows is text.
    return ("'" if text[:1] in _FORMULAS else "") + printable(text)
