"""What ksmd needs for it, and what other settings would give."""

from __future__ import annotations

from ksm_eval.report.blocks import human_bytes, human_seconds
from ksm_eval.report.decision import Cost, WhatIf
from ksm_eval.report.html.bars import Bar, bars
from ksm_eval.report.html.curves import scan_times
from ksm_eval.report.html.markup import Html
from ksm_eval.report.html.section import Section, items, pair, paragraph, section
from ksm_eval.report.html.tables import MISSING, Column, amount, count, plain, table, text
from ksm_eval.report.html.words import name, size
from ksm_eval.report.model import Report

_BARS = 16


def cost(report: Report, rows: int) -> Section | None:
    if report.decision is None:
        return None
    found = report.decision.cost
    how = found.source or ("measured" if found.measured else "assumed")
    return section(
        "cost",
        "What ksmd needs for it",
        paragraph(
            f"{found.pages} pages a full scan, {1e6 * found.seconds_a_page:.3g} microseconds of "
            f"CPU for each ({how})."
        ),
        pair(scan_times(found.rows), _settling(found)),
        _rows(found, rows),
        paragraph(found.advisor) if found.advisor else None,
    )


def _settling(found: Cost) -> Html | None:
    passes, seconds = found.passes_to, found.seconds_to
    if not passes:
        return None
    body = [
        [
            text(f"{share} %"),
            count(passes[share]),
            plain(human_seconds(seconds[share]), seconds[share]) if share in seconds else MISSING,
        ]
        for share in sorted(passes, key=lambda share: (len(share), share))
    ]
    columns = [Column("of the saving"), Column("full scans", True), Column("time", True)]
    how = f" ({found.settling})" if found.settling else ""
    caption = f"How soon it is there, at the target's own settings{how}"
    return table(caption, columns, body, sortable=False)


def _rows(found: Cost, limit: int) -> Html | None:
    if not found.rows:
        return None
    columns = [
        Column("pages_to_scan", True),
        Column("sleep_millisecs", True),
        Column("full scan", True),
        Column("% of a CPU", True),
        Column("CPU a scan", True),
        Column("note"),
    ]
    body = [
        [
            count(row.pages_to_scan),
            count(row.sleep_millisecs),
            plain(human_seconds(row.seconds), row.seconds),
            plain(f"{row.cpu_percent:.1f}", row.cpu_percent),
            plain(human_seconds(row.cpu_seconds), row.cpu_seconds),
            text(row.note),
        ]
        for row in found.rows[:limit]
    ]
    return table("A full scan at other settings", columns, body, total=len(found.rows))


def what_if(report: Report, limit: int) -> Section | None:
    if report.decision is None:
        return None
    rows, left_out = report.decision.what_if, report.decision.what_if_left_out
    columns = [
        Column("if"),
        Column("kind"),
        Column("pages_shared", True),
        Column("pages_sharing", True),
        Column("frames freed", True),
        Column("net", True),
        Column("difference", True),
    ]
    body = [
        [
            text(_name(row)),
            text(row.kind),
            count(row.pages_shared),
            count(row.pages_sharing),
            count(row.frames_freed),
            amount(row.net_bytes),
            amount(row.difference),
        ]
        for row in rows[:limit]
    ]
    found = [
        Bar(name(_name(row)), row.net_bytes, size(row.net_bytes),
            f"net {human_bytes(row.net_bytes)}")
        for row in rows[:_BARS]
    ]  # fmt: skip
    note = f"The first {_BARS} of {len(rows)}." if len(rows) > _BARS else ""
    return section(
        "what-if",
        "What if",
        bars("Net memory gained, if …", found, "save", note),
        table("The same memory evaluated otherwise", columns, body, total=len(rows))
        if rows
        else None,
        items(f"left out: {reason}" for reason in left_out),
    )


def _name(row: WhatIf) -> str:
    return f"{row.name} (as it is)" if row.current and row.kind != "current" else row.name
