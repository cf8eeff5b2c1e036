"""Who shares with whom, who may, and who cannot."""

from __future__ import annotations

from ksm_eval.report.html.heat import MOST, heat_map
from ksm_eval.report.html.markup import Html, element, joined
from ksm_eval.report.html.section import ELSEWHERE, Section, items, paragraph, section
from ksm_eval.report.html.tables import Cell, Column, amount, count, plain, table, text
from ksm_eval.report.html.words import name
from ksm_eval.report.model import Report

_BY = {"uid": "user", "cgroup": "cgroup", "user_ns": "user namespace"}
_EXPLAINED = (
    "On the diagonal is what a process itself has in several frames. What two map since a fork "
    "does not count."
)


def pairs(report: Report, rows: int) -> Section | None:
    if report.decision is None or not report.decision.pairs:
        return None
    found = report.decision.pairs
    drawn = heat_map(found, report.processes)
    picture, left_out = drawn if drawn else (None, 0)
    caption = "Processes that have equal frames, the most first"
    columns = [Column("process"), Column("shares with"), Column("frames", True)]
    body = [
        [
            _process(report, two.first),
            text("itself") if two.first == two.second else _process(report, two.second),
            count(two.frames),
        ]
        for two in found[:rows]
    ]
    more = f" {left_out} processes with less are not drawn: {MOST} have room." if left_out else ""
    return section(
        "pairs",
        "Who shares with whom",
        element(
            "div",
            picture,
            table(caption, columns, body, total=len(found), where=ELSEWHERE),
            class_="beside",
        ),
        paragraph(_EXPLAINED + more, style="more"),
    )


def _process(report: Report, row: int) -> Cell:
    if not 0 <= row < len(report.processes):
        return plain(f"row {row}", row)
    process = report.processes[row]
    return plain(joined((process.pid, " ", name(process.comm))), process.pid)


def why_not(report: Report, rows: int) -> Section | None:
    advised = report.decision.why_not if report.decision else ()
    return section("why-not", "What is not eligible", _advised(report, rows) if advised else
                   _ineligible(report, rows), _entries(report))  # fmt: skip


def _advised(report: Report, rows: int) -> Html:
    found = report.decision.why_not if report.decision else ()
    columns = [
        Column("reason"),
        Column("VMAs", True),
        Column("bytes", True),
        Column("what could be done"),
    ]
    body = [
        [text(row.reason), count(row.vmas), amount(row.bytes), text(row.advice)]
        for row in found[:rows]
    ]
    return table("By reason, and what could be done about it", columns, body, total=len(found))


def _ineligible(report: Report, rows: int) -> Html | None:
    found = report.ineligible
    if not found:
        return None
    columns = [Column("reason"), Column("VMAs", True), Column("address space", True)]
    body = [[text(row.reason), count(row.vmas), amount(row.bytes)] for row in found[:rows]]
    return table("By reason", columns, body, total=len(found))


def _entries(report: Report) -> Html | None:
    found = {kind: pages for kind, pages in report.entries.items() if pages}
    if not found:
        return None
    ordered = sorted(found.items(), key=lambda item: (item[0] != "candidate", -item[1], item[0]))
    columns = [Column("kind"), Column("pages", True)]
    body = [[text(kind), count(pages)] for kind, pages in ordered]
    return table("Page-table entries of the eligible VMAs", columns, body)


def security(report: Report) -> Section | None:
    if report.decision is None:
        return None
    found = report.decision.security
    columns = [
        Column("if only pages of one … share"),
        Column("of them", True),
        Column("frames freed within", True),
        Column("only across", True),
    ]
    body = [
        [text(_BY.get(row.by, row.by)), count(row.groups), count(row.within), count(row.across)]
        for row in found.splits
    ]
    sources = [element("cite", source) for source in found.sources]
    return section(
        "security",
        "Security: within one user or across",
        table("Frames freed by who shares", columns, body) if body else None,
        paragraph(found.sentence) if found.sentence else None,
        items(sources),
    )
