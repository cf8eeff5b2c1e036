"""Report for a person at a terminal: 80 columns, what is missing first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timezone
from io import StringIO

from rich.console import Console

from ksm_eval.report.advice import (
    cost,
    kinds,
    next_steps,
    security,
    verdict,
    what_if,
    where,
    why_not,
)
from ksm_eval.report.blocks import (
    counted,
    fit,
    hanging,
    human_bytes,
    more,
    or_dash,
    percent,
    plain,
    table_of,
    title,
)
from ksm_eval.report.model import Completeness, ProcessRow, Report, Run
from ksm_eval.report.names import BYTES, FREED_BY, ORDER, PAGES, QUESTIONS, phase_of
from ksm_eval.report.passes import stillness, timeline, verification
from ksm_eval.report.ranking import by_gain
from ksm_eval.report.text import printable

WIDTH = 80
TOP_PROCESSES = 20


def to_terminal(
    report: Report,
    run: Run | None = None,
    *,
    width: int = WIDTH,
    color: bool = False,
    actual: Mapping[str, int] | None = None,
    actual_label: str = "real ksmd",
) -> str:
    """`report` as text, with `actual` counters (of the same pages) beside the predicted ones.

    No line is longer than `width`. Strings from the target are escaped: nothing they contain
    reaches the terminal as a control character.
    """
    file = StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    _heading(console, report)
    _completeness(console, report.completeness)
    advised = report.decision
    if advised is None:
        _verdict(console, report)
    else:
        verdict(console, advised, report)
        next_steps(console, advised.next_steps)
    _counters(console, report, actual, printable(actual_label))
    verification(console, report.verify)
    timeline(console, report.timeline)
    stillness(console, report)
    _savings(console, report)
    if advised is not None:
        where(console, advised)
    _processes(console, report)
    if advised is None:
        _ineligible(console, report)
    else:
        kinds(console, advised, report.target.page_size)
        why_not(console, advised.why_not)
        security(console, advised.security, report.target.page_size)
        cost(console, advised.cost)
        what_if(console, advised)
    _settings(console, report)
    if run is not None and report.target.kind != "vmcore" and run.snapshot is None:
        _cost(console, run)
    if report.notes:
        title(console, "Notes")
        for note in report.notes:
            console.print(hanging("- ", note))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _heading(console: Console, report: Report) -> None:
    target = report.target
    processes = counted(len(report.processes), "process", "processes")
    console.print(
        f"{processes} of {printable(target.release)} {printable(target.arch)}, "
        f"{printable(target.kind)} {printable(target.path)}".rstrip()
    )
    when = datetime.fromtimestamp(target.time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    console.print(f"Read {when}; debug info: {printable(report.debug_info)}")
    if report.selection:
        console.print("Selected: " + " ".join(printable(word) for word in report.selection))
    question = QUESTIONS.get(report.question, printable(report.question))
    console.print(f"Question: {question}")


def _completeness(console: Console, complete: Completeness) -> None:
    console.print()
    if not (complete.frames_unreadable or complete.entries_lost or complete.processes_lost):
        console.print(
            f"Complete: all {complete.mappings} candidate pages "
            f"({complete.frames} frames) were read."
        )
        return
    console.print(
        f"INCOMPLETE: {percent(complete.share_unreadable)} could not be read: "
        f"{complete.frames_unreadable} of {complete.frames} frames, with "
        f"{complete.mappings_unreadable} of {complete.mappings} candidate pages, and "
        f"{complete.entries_lost} page-table entries. Pages that could not be read are counted "
        "as pages that never merge.",
        style="bold red",
    )
    for process in complete.processes_lost:
        console.print(hanging("  ", f"not evaluated at all: {printable(process)}"))
    for reason, pages in sorted(complete.reasons.items(), key=lambda item: -item[1]):
        console.print(hanging("  ", f"{pages} pages: {reason}"))


def _verdict(console: Console, report: Report) -> None:
    savings = report.savings
    cost = human_bytes(savings.bytes_freed - savings.net_bytes)
    more = "more " if savings.frames_merged_now else ""
    console.print()
    if savings.frames_merged_now:
        console.print(
            f"ksmd has run here: {counted(savings.frames_merged_now, 'frame', 'frames')} of these "
            "processes and of those it scans already are KSM pages.",
            style="bold",
        )
    calm = report.calm
    if not report.completeness.mappings:
        text = "None of these processes has a page that ksmd would look at."
    elif not savings.frames_freed:
        text = (
            f"KSM would free nothing {more or 'here'}".rstrip() + f", and cost {cost} of its own."
        )
    elif calm is not None and calm.frames_freed != savings.frames_freed:
        text = (
            f"KSM would free {calm.frames_freed} to {savings.frames_freed} {more}page frames "
            f"({human_bytes(calm.bytes_freed)} to {human_bytes(savings.bytes_freed)}) and cost "
            f"{cost} of its own: {human_bytes(calm.net_bytes)} to "
            f"{human_bytes(savings.net_bytes)} gained."
        )
    else:
        frames = counted(savings.frames_freed, f"{more}page frame", f"{more}page frames")
        text = (
            f"KSM would free {frames} "
            f"({human_bytes(savings.bytes_freed)}) and cost {cost} of its own: "
        )
        if savings.net_bytes > 0:
            text += f"{human_bytes(savings.net_bytes)} gained."
        else:
            text += f"not worth it, {human_bytes(-savings.net_bytes)} lost."
    console.print(text, style="bold")
    if calm is not None and savings.frames_freed:
        over = "" if calm.seconds is None else f" in {calm.seconds:.1f} s"
        still = f"stood still over {calm.samples} samples{over}"
        if calm.frames_freed == savings.frames_freed:
            console.print(f"All of these {still}.")
        else:
            console.print(
                f"The first is of the pages that {still}, the second if all pages stay as they "
                "are from here on."
            )
    profit = report.system.counters.get("general_profit")
    if profit is not None and profit > max(savings.net_bytes, 0):
        console.print(
            f"(general_profit will say {human_bytes(profit)}: it counts every mapping as saved, "
            "also those that share a frame since fork, or with others that were not selected.)"
        )


def _counters(
    console: Console, report: Report, actual: Mapping[str, int] | None, label: str
) -> None:
    title(console, "/sys/kernel/mm/ksm once settled")
    # A target where ksmd never ran has only zeros to show.
    observed = report.observed if any(report.observed.values()) else {}
    table = table_of(("file", False), ("predicted", True), ("", True))
    if observed:
        table.add_column("target now", justify="right")
        if actual is None:  # both would not fit
            table.add_column("added", justify="right")
    if actual is not None:
        table.add_column(fit(label, 14), justify="right")
        table.add_column()
    system = report.system
    phases = system.phases or {}
    observed_phase = phase_of(observed, phases) or system.phase
    actual_phase = phase_of(actual or {}, phases) or system.phase

    def row(name: str, value: int, phase: str) -> None:
        cells = [printable(f"{name} ({phase})" if phase else name), str(value)]
        size = value if name in BYTES else value * report.target.page_size
        cells.append(human_bytes(size) if name in BYTES or name in PAGES else "")
        if observed:
            now = observed.get(name) if phase in ("", observed_phase) else None
            cells.append(or_dash(now))
            if actual is None:
                cells.append("-" if now is None else f"{value - now:+}")
        if actual is not None:
            real = actual.get(name) if phase in ("", actual_phase) else None
            cells.append(or_dash(real))
            cells.append("" if real is None else "=" if real == value else "differs")
        table.add_row(*map(plain, cells))

    counters = system.counters
    for name in (*ORDER, *sorted(set(counters) - set(ORDER))):
        if name not in counters:
            continue
        if phases and name in ("pages_unshared", "pages_volatile"):
            for phase, values in phases.items():
                row(name, getattr(values, name), phase)
        else:
            row(name, counters[name], "")
    console.print(table)
    if phases:
        console.print(
            hanging(
                "",
                "Smart scan skips pages that do not merge in more and more passes: after a pass "
                "that visits all (scan) the two counters differ from one that skips (skip).",
            )
        )


def _savings(console: Console, report: Report) -> None:
    savings = report.savings
    page_size = report.target.page_size
    title(console, "Memory really gained")
    table = table_of(("", False), ("frames", True), ("", True))

    def row(name: str, frames: int | None, size: int) -> None:
        table.add_row(*map(plain, (name, "" if frames is None else str(frames), human_bytes(size))))

    for kind, frames in savings.frames_freed_by.items():
        row("  " + printable(FREED_BY.get(kind, kind)), frames, frames * page_size)
    row("freed", savings.frames_freed, savings.bytes_freed)
    row("ksmd's own data (rmap_items, stable nodes)", None, savings.net_bytes - savings.bytes_freed)
    row("net", None, savings.net_bytes)
    row("PSS of the candidate pages, before", None, savings.pss_before)
    row("PSS of the candidate pages, after", None, savings.pss_after)
    console.print(table)
    if savings.thps:
        console.print(f"{savings.thps_split} of {savings.thps} THPs would be split for it.")


def _processes(console: Console, report: Report) -> None:
    if not report.processes:
        return
    title(console, "Processes (/proc/PID/ksm_stat), best first")
    table = table_of(
        ("pid", True),
        ("comm", False),
        ("ksm_merging\n_pages", True),
        ("ksm_zero\n_pages", True),
        ("ksm_process\n_profit", True),
        ("PSS\nbefore", True),
        ("PSS\nafter", True),
        *([("calm", True)] if report.calm is not None else []),
        gap=1,
    )

    ranked = by_gain(report.processes)
    for process in ranked[:TOP_PROCESSES]:
        profit = process.ksm_process_profit
        cells = [
            str(process.pid),
            fit(printable(process.comm), 15),
            str(process.ksm_merging_pages),
            or_dash(process.ksm_zero_pages),
            "-" if profit is None else human_bytes(profit),
            human_bytes(process.pss_before),
            human_bytes(process.pss_after),
        ]
        if process.calm_pages is not None:
            cells.append(_calm_share(process))
        table.add_row(*map(plain, cells))
    console.print(table)
    more(console, len(ranked) - TOP_PROCESSES)


def _calm_share(process: ProcessRow) -> str:
    """Of the pages that were there in every sample; 100 % is all of them."""
    old = process.mappings - (process.new_pages or 0)
    if not old:
        return "new" if process.new_pages else "-"
    return f"{math.floor(100 * (process.calm_pages or 0) / old)} %"


def _ineligible(console: Console, report: Report) -> None:
    if report.ineligible:
        title(console, "Not eligible, by reason")
        table = table_of(("reason", False), ("VMAs", True), ("address space", True))
        for row in report.ineligible:
            cells = (fit(printable(row.reason), 50), str(row.vmas), human_bytes(row.bytes))
            table.add_row(*map(plain, cells))
        console.print(table)
    others = {kind: pages for kind, pages in report.entries.items() if pages}
    candidates = others.pop("candidate", 0)
    if candidates or others:
        title(console, "Page-table entries of the eligible VMAs")
        table = table_of(("kind", False), ("pages", True))
        for kind, pages in (("candidate", candidates), *others.items()):
            table.add_row(plain(printable(kind)), plain(str(pages)))
        console.print(table)


def _settings(console: Console, report: Report) -> None:
    if not report.settings:
        return
    title(console, "Settings used")
    table = table_of(("setting", False), ("value", True), ("from", False))
    for name, setting in report.settings.items():
        cells = (printable(name), str(int(setting.value)), printable(setting.source))
        table.add_row(*map(plain, cells))
    console.print(table)


def _cost(console: Console, run: Run) -> None:
    """What it cost the host that runs the workload."""
    title(console, "What this evaluation cost")
    console.print(
        f"{run.cpu_seconds:.1f} s of CPU in {run.duration:.1f} s, {human_bytes(run.bytes_read)} "
        f"read of the target, at most {human_bytes(run.max_rss_bytes)} of memory."
    )
