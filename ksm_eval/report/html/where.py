"""Which processes, groups and VMAs it comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ksm_eval.report.blocks import human_bytes, percent
from ksm_eval.report.decision import Choice, Decision, GroupRow, Madvise
from ksm_eval.report.html.bars import Bar, bars
from ksm_eval.report.html.markup import Html, element, joined
from ksm_eval.report.html.section import ELSEWHERE, Section, items, pair, section
from ksm_eval.report.html.tables import MISSING, Cell, Column, amount, count, plain, table, text
from ksm_eval.report.html.words import name, size
from ksm_eval.report.model import ProcessRow, Report, VmaRow
from ksm_eval.report.ranking import by_gain

_BARS = 12


def where(report: Report, rows: int) -> Section | None:
    ranked = by_gain(report.processes)
    decision = report.decision
    return section(
        "where",
        "Where it comes from",
        pair(_process_bars(ranked), _vma_bars(report)),
        _processes(report, ranked, rows),
        _groups(decision, rows) if decision else None,
        *(_choice(choice) for choice in (decision.choices if decision else ())),
        _madvise(decision.madvise, rows) if decision else None,
        _vmas(report, rows),
    )


def _process_bars(ranked: Sequence[ProcessRow]) -> Html | None:
    best = sorted(ranked, key=lambda p: (p.pss_after - p.pss_before, p.pid))[:_BARS]
    found = []
    for process in best:
        saved = process.pss_before - process.pss_after
        found.append(
            Bar(
                joined((process.pid, " ", name(process.comm))),
                saved,
                joined((size(saved), " of ", size(process.pss_before))),
                f"{human_bytes(saved)} of {human_bytes(process.pss_before)}",
                whole=process.pss_before,
            )
        )
    note = f"The {_BARS} that lose most." if len(ranked) > _BARS else ""
    return bars("PSS that processes would lose, of their candidate pages' PSS", found, "save", note)


def _vma_bars(report: Report) -> Html | None:
    if report.decision and report.decision.madvise:
        rows = report.decision.madvise
        found = [
            Bar(
                joined((row.pid, " ", name(row.name or "anonymous"))),
                row.gain_bytes,
                size(row.gain_bytes),
                f"{row.start:#x}: {human_bytes(row.gain_bytes)}",
            )
            for row in rows[:_BARS]
        ]
        note = f"The first {_BARS} of {len(rows)}." if len(rows) > _BARS else ""
        return bars("VMAs that gain most", found, "save", note)
    merging = [row for row in report.vmas if row.ksm_pages]
    best = sorted(merging, key=lambda row: (-(row.ksm_pages or 0), row.pid, row.start))[:_BARS]
    found = [
        Bar(
            joined((row.pid, " ", name(row.name or "anonymous"))),
            row.ksm_pages or 0,
            str(row.ksm_pages),
            f"{row.start:#x}: {row.ksm_pages} pages",
        )
        for row in best
    ]
    note = f"The first {_BARS} of {len(merging)}." if len(merging) > _BARS else ""
    return bars("VMAs by pages that would be KSM pages", found, "save", note)


def _processes(report: Report, ranked: Sequence[ProcessRow], rows: int) -> Html | None:
    if not ranked:
        return None
    zero = any(process.ksm_zero_pages is not None for process in ranked)
    profit = any(process.ksm_process_profit is not None for process in ranked)
    calm = report.calm is not None
    columns = [
        Column("pid", True),
        Column("comm"),
        Column("cgroup"),
        Column("uid", True),
        Column("candidate pages", True),
        Column("ksm_rmap_items", True),
        Column("ksm_merging_pages", True),
        *([Column("ksm_zero_pages", True)] if zero else []),
        *([Column("ksm_process_profit", True)] if profit else []),
        Column("PSS before", True),
        Column("PSS after", True),
        *([Column("calm", True)] if calm else []),
    ]
    found = [
        [
            count(process.pid),
            text(process.comm),
            text(process.cgroup),
            count(process.uid),
            count(process.mappings),
            count(process.ksm_rmap_items),
            count(process.ksm_merging_pages),
            *([count(process.ksm_zero_pages)] if zero else []),
            *([amount(process.ksm_process_profit)] if profit else []),
            amount(process.pss_before),
            amount(process.pss_after),
            *([_calm(process)] if calm else []),
        ]
        for process in ranked[:rows]
    ]
    return table("Processes, best first", columns, found, total=len(ranked), where=ELSEWHERE)


def _calm(process: ProcessRow) -> Cell:
    """Of the pages that were there in every sample; 100 % is all of them."""
    old = process.mappings - (process.new_pages or 0)
    if process.calm_pages is None or old <= 0:
        return plain("new") if process.new_pages else MISSING
    return plain(f"{math.floor(100 * process.calm_pages / old)} %", process.calm_pages / old)


def _groups(decision: Decision, rows: int) -> Html | None:
    groups: Sequence[GroupRow] = decision.groups
    if not groups:
        return None
    columns = [
        Column(decision.group_by),
        Column("processes", True),
        Column("candidate pages", True),
        Column("ksm_merging_pages", True),
        Column("ksm_process_profit", True),
        Column("PSS before", True),
        Column("PSS after", True),
        Column("ksmd's records", True),
        Column("net", True),
    ]
    found = [
        [
            text(row.name or "none"),
            count(row.processes),
            count(row.mappings),
            count(row.ksm_merging_pages),
            amount(row.ksm_process_profit),
            amount(row.pss_before),
            amount(row.pss_after),
            amount(row.metadata_bytes),
            amount(row.net_bytes),
        ]
        for row in groups[:rows]
    ]
    caption = f"Processes together, by {decision.group_by}"
    return table(caption, columns, found, total=len(groups), where=ELSEWHERE)


def _choice(choice: Choice) -> Html:
    first = len(choice.members)
    more = f" The first {first}:" if first < choice.size else ""
    return element(
        "details",
        element(
            "summary",
            f"{choice.size} of {choice.considered} {choice.of} are enough for "
            f"{percent(choice.share)} of the saving",
        ),
        element("p", f"They free {choice.frames_freed} frames together.{more}"),
        items((name(member) for member in choice.members), most=100),
    )


def _madvise(rows: Sequence[Madvise], limit: int) -> Html | None:
    if not rows:
        return None
    columns = [
        Column("pid", True),
        Column("comm"),
        Column("start"),
        Column("end"),
        Column("name"),
        Column("ksm_pages", True),
        Column("gain", True),
        Column("gain so far", True),
    ]
    found = [
        [
            count(row.pid),
            text(row.comm),
            _address(row.start),
            _address(row.end),
            text(row.name),
            count(row.ksm_pages),
            amount(row.gain_bytes),
            plain(percent(row.covered), row.covered),
        ]
        for row in rows[:limit]
    ]
    caption = "VMAs worth madvise(MADV_MERGEABLE), best first"
    return table(caption, columns, found, total=len(rows), where=ELSEWHERE)


def _vmas(report: Report, limit: int) -> Html | None:
    if not report.vmas:
        return None
    ranked = sorted(report.vmas, key=_vma_key)
    calm = report.calm is not None
    columns = [
        Column("pid", True),
        Column("start"),
        Column("end"),
        Column("size", True),
        Column("name"),
        Column("candidate pages", True),
        Column("ksm_pages", True),
        Column("not eligible"),
        *([Column("calm pages", True)] if calm else []),
    ]
    found = [
        [
            count(row.pid),
            _address(row.start),
            _address(row.end),
            amount(row.end - row.start),
            text(row.name),
            count(row.mappings),
            count(row.ksm_pages),
            text(row.ineligible or ""),
            *([count(row.calm_pages)] if calm else []),
        ]
        for row in ranked[:limit]
    ]
    return table("VMAs, best first", columns, found, total=len(ranked), where=ELSEWHERE)


def _vma_key(row: VmaRow) -> tuple[bool, int, int, int, int]:
    """Most KSM pages first, those that are not eligible last, the largest of them first."""
    return (
        row.ksm_pages is None,
        -(row.ksm_pages or 0),
        row.start - row.end,
        row.pid,
        row.start,
    )


def _address(value: int) -> Cell:
    return Cell(element("code", f"{value:#x}"), value)
