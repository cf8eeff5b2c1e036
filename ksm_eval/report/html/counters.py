"""The kernel's own counters: settled, scan by scan, over samples, verified."""

from __future__ import annotations

from collections.abc import Iterator

from ksm_eval.report.html.curves import passes
from ksm_eval.report.html.markup import Html, element
from ksm_eval.report.html.section import ELSEWHERE, Section, paragraph, section
from ksm_eval.report.html.tables import MISSING, Cell, Column, amount, count, plain, table
from ksm_eval.report.model import Report, Stillness
from ksm_eval.report.names import BYTES, ORDER, PAGES, phase_of

_RANGED = ("pages_shared", "pages_sharing", "ksm_zero_pages", "ksm_rmap_items", "general_profit")


def counters(report: Report, rows: int) -> Section | None:
    ran = any(report.observed.values())  # ksmd that never ran has only zeros to show
    columns = [
        Column("file"),
        Column("predicted", True),
        Column("", True),
        *([Column("target now", True), Column("added", True)] if ran else []),
    ]
    body = [
        [
            _file(f"{name} ({phase})" if phase else name),
            count(value),
            _as_bytes(report, name, value),
            *([count(now), _added(value, now)] if ran else []),
        ]
        for name, phase, value, now in _counters(report)
    ]
    phases = (
        "Smart scan skips pages that do not merge in more and more passes: after a pass that "
        "visits all (scan) pages_unshared and pages_volatile differ from one that skips (skip)."
    )
    return section(
        "counters",
        "/sys/kernel/mm/ksm once settled",
        table("Counters", columns, body) if body else None,
        paragraph(phases) if report.system.phases else None,
        _verified(report, rows),
    )


def _counters(report: Report) -> Iterator[tuple[str, str, int, int | None]]:
    """File, phase, predicted, now."""
    system, observed = report.system, report.observed
    phases = system.phases or {}
    observed_phase = phase_of(observed, phases) or system.phase
    for name in (*ORDER, *sorted(set(system.counters) - set(ORDER))):
        if name not in system.counters:
            continue
        if phases and name in ("pages_unshared", "pages_volatile"):
            for phase, values in phases.items():
                now = observed.get(name) if phase == observed_phase else None
                yield name, phase, getattr(values, name), now
        else:
            yield name, "", system.counters[name], observed.get(name)


def _as_bytes(report: Report, name: str, value: int) -> Cell:
    if name in BYTES:
        return amount(value)
    return amount(value * report.target.page_size) if name in PAGES else plain("")


def _added(value: int, now: int | None) -> Cell:
    return MISSING if now is None else plain(f"{value - now:+}", value - now)


def _file(name: str) -> Cell:
    return plain(element("code", name))


def _verified(report: Report, limit: int) -> Html | None:
    found = report.verify
    if not found:
        return None
    scans = max(len(row.after) for row in found)
    columns = [
        Column("counter"),
        Column("target", True),
        Column("ksmd's records", True),
        Column("difference", True),
        *(Column(f"+{scan}", True) for scan in range(1, scans + 1)),
    ]
    body = [
        [
            _file(row.counter),
            count(row.target),
            count(row.records),
            count(row.difference),
            *map(count, row.after),
            *[count(None)] * (scans - len(row.after)),
        ]
        for row in found[:limit]
    ]
    caption = "Verified: ksmd's records, and what is predicted after so many more full scans"
    return table(caption, columns, body, total=len(found))


def timeline(report: Report, rows: int) -> Section | None:
    found, calm = report.timeline, report.calm
    title = "Scan by scan" if calm is None else "Over time"
    caption = "After each full scan" if calm is None else "After each sample, a full scan each"
    return section(
        "passes",
        title,
        passes(found, caption) if len(found) > 1 else None,
        _timeline(report, caption, rows) if found else None,
        *(_stillness(report, calm) if calm else ()),
    )


def _timeline(report: Report, caption: str, limit: int) -> Html:
    found = report.timeline
    names = [name for name in ORDER if name in found[0].counters]
    names += sorted(set(found[0].counters) - set(names))
    breaks = any(entry.cow_breaks for entry in found)
    columns = [
        Column("pass", True),
        *(Column(name, True) for name in names),
        *([Column("COW breaks", True)] if breaks else []),
    ]
    body = [
        [
            plain(str(entry.number) if entry.exact else f"~{entry.number}", entry.number),
            *(_counter(name, entry.counters.get(name)) for name in names),
            *([count(entry.cow_breaks)] if breaks else []),
        ]
        for entry in found[:limit]
    ]
    inexact = (
        "~ depends on the order of page contents, or on when chains were pruned, which this "
        "snapshot does not tell: some pages may be unshared instead of volatile, or merge a pass "
        "early; chains and dups may be a few off."
    )
    return element(
        "div",
        table(caption, columns, body, total=len(found), where=ELSEWHERE),
        None if all(entry.exact for entry in found) else paragraph(inexact, style="more"),
    )


def _counter(name: str, value: int | None) -> Cell:
    return amount(value) if name in BYTES else count(value)


def _stillness(report: Report, calm: Stillness) -> Iterator[Html]:
    """What the samples leave open: from calm pages only to all of them."""
    columns = [
        Column("once settled, if what merges is"),
        Column("calm pages", True),
        Column("all", True),
    ]
    body = [
        [_file(name), _counter(name, low), _counter(name, report.system.counters[name])]
        for name, low in sorted(calm.counters.items())
        if name in _RANGED and name in report.system.counters
    ]
    saved = report.savings
    body += [
        [plain("frames freed"), count(calm.frames_freed), count(saved.frames_freed)],
        [plain("net"), amount(calm.net_bytes), amount(saved.net_bytes)],
    ]
    yield table("Between the pages that stood still and all", columns, body, sortable=False)
    text = (
        f"{calm.fork_shared} mappings share a frame with another: ksmd calls those that it does "
        "not merge volatile, too, though nothing about them changes."
    )
    if calm.cow_breaks_per_second is not None:
        text += (
            f" Merging would cost the programs {calm.cow_breaks_per_second:.1f} COW faults a "
            "second: writes to pages that are merged by then."
        )
    yield paragraph(text)
