"""A Comparison for a person, and for a program."""

from __future__ import annotations

import json
from dataclasses import asdict
from io import StringIO
from typing import Final

from rich.console import Console

from ksm_eval.report.blocks import fit, hanging, human_bytes, percent, plain, table_of, title
from ksm_eval.report.comparison import Change, Comparison, GroupChange
from ksm_eval.report.text import encodable, printable

COMPARE_VERSION: Final = 1
WIDTH: Final = 80
MOST_GROUPS: Final = 15  # of each kind; JSON has them all


def compare_json(comparison: Comparison) -> str:
    document = {"compare_version": COMPARE_VERSION, **asdict(comparison)}
    document["differ"] = [
        {"what": what, "old": old, "new": new} for what, old, new in comparison.differ
    ]
    document["groups"] = [{**asdict(group), "what": group.what} for group in comparison.groups]
    return json.dumps(_encodable(document), indent=2, allow_nan=False) + "\n"


def _encodable(value: object) -> object:
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {name: _encodable(part) for name, part in value.items()}
    return [_encodable(part) for part in value] if isinstance(value, list | tuple) else value


def compare_text(comparison: Comparison, *, width: int = WIDTH) -> str:
    """No line is longer than `width`; names from the reports are escaped."""
    file = StringIO()
    console = Console(
        file=file, width=width, color_system=None, highlight=False, markup=False, emoji=False,
        legacy_windows=False,
    )  # fmt: skip
    console.print(hanging("Old: ", comparison.old))
    console.print(hanging("New: ", comparison.new))
    _differ(console, comparison, width)
    title(console, "Memory gained")
    console.print(plain(_verdict(comparison)))
    console.print()
    _figures(console, comparison.savings)
    title(console, "Counters that changed")
    if comparison.counters:
        _figures(console, comparison.counters)
    else:
        console.print("none")
    for by in ("comm", "cgroup"):
        _groups(console, by, [row for row in comparison.groups if row.by == by], width)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _differ(console: Console, comparison: Comparison, width: int) -> None:
    if comparison.differ:
        title(console, "Not the same question: the figures below hardly compare")
        table = table_of(("what differs", False), ("old", False), ("new", False))
        room = (width - 36) // 2
        for what, old, new in comparison.differ:
            cells = (fit(printable(what), 30), fit(printable(old), room), fit(printable(new), room))
            table.add_row(*map(plain, cells))
        console.print(table)
    if comparison.incomplete:
        title(console, "Incomplete")
        for line in comparison.incomplete:
            console.print(hanging("- ", line))


def _verdict(comparison: Comparison) -> str:
    net = comparison.savings[0]
    old, new = human_bytes(net.old or 0), human_bytes(net.new or 0)
    if net.old == net.new:
        return f"The gain is the same: {new}."
    if comparison.fell == 0:
        return f"The gain rose from {old} to {new}."
    by = "" if comparison.fell is None else f" by {percent(comparison.fell)}"
    return f"The gain fell{by}, from {old} to {new}."


def _is_bytes(name: str) -> bool:
    return name.endswith(("_bytes", "_profit")) or name.startswith("pss_") or name == "bytes_freed"


def _figures(console: Console, changes: tuple[Change, ...]) -> None:
    table = table_of(("", False), ("old", True), ("new", True), ("change", True))
    for change in changes:
        table.add_row(*map(plain, (fit(printable(change.name), 36), *_cells(change))))
    console.print(table)


def _cells(change: Change) -> tuple[str, str, str]:
    show = human_bytes if _is_bytes(change.name) or change.name == "gain" else str
    old = "-" if change.old is None else show(change.old)
    new = "-" if change.new is None else show(change.new)
    if change.old is None or change.new is None:
        return old, new, ""
    difference = change.new - change.old
    return old, new, f"{'+' if difference > 0 else ''}{show(difference)}" if difference else "="


def _groups(console: Console, by: str, rows: list[GroupChange], width: int) -> None:
    if not rows:
        return
    title(console, f"Processes by {by}: what appeared, went, changed")
    table = table_of(
        (by, False), ("", False), ("processes", True), ("PSS saved", True), ("change", True), gap=1
    )
    room = width - 56
    for row in rows[:MOST_GROUPS]:
        old, new, change = _cells(row.gain)
        processes = f"{_dash(row.processes.old)} > {_dash(row.processes.new)}"
        name = fit(printable(row.name) or "(none)", room)
        table.add_row(*map(plain, (name, row.what, processes, f"{old} > {new}", change)))
    console.print(table)
    if len(rows) > MOST_GROUPS:
        console.print(f"and {len(rows) - MOST_GROUPS} more: --format json has them all")


def _dash(value: int | None) -> str:
    return "-" if value is None else str(value)
