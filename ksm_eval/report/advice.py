"""What a Decision says, in the terminal. No line is cut that is to be copied."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ksm_eval.report.blocks import (
    counted,
    fit,
    hanging,
    human_bytes,
    human_seconds,
    more,
    or_dash,
    percent,
    plain,
    said,
    table_of,
    title,
)
from ksm_eval.report.decision import (
    Choice,
    Cost,
    Decision,
    Kinds,
    Madvise,
    Reason,
    Security,
    Step,
)
from ksm_eval.report.model import Report
from ksm_eval.report.text import copyable, printable

TOP = 8
_MEMBERS = 5
_STYLES = {"yes": "bold green", "little": "bold yellow"}
_BLOCKED = {
    "pinned": "pinned, or a twin in the way is",
    "cap": "more than max_page_sharing allows",
    "outside": "a process that was not selected maps them, too",
    "prot_none": "PROT_NONE pages block the tree",
    "other": "a THP that holds both, mlocked …",
}
_CLASSES = {
    "merged": "merged into a KSM page",
    "zero_page": "mapped to the zero page",
    "thp_zero": "zero, freed by the split of a THP",
    "duplicate": "stays, though others are equal",
    "fork_shared": "shared since fork, no other is equal",
    "unique": "unique",
    "copied": "copied in vain",
    "unreadable": "could not be read",
}


def verdict(console: Console, decision: Decision, report: Report) -> None:
    """The first thing to read."""
    found = decision.verdict
    console.print()
    said(console, found.sentence, _STYLES.get(found.worth, "bold"))
    shares = [
        f"{_signed_percent(share)} of {of}"
        for share, of in (
            (found.share_of_rss, "the RSS of these processes"),
            (found.share_of_ram, "the host's RAM"),
        )
        if share is not None and found.net_bytes > 0
    ]
    if shares:
        said(console, f"Net {human_bytes(found.net_bytes)}: {', '.join(shares)}.")
    calm = report.calm
    if calm is not None:
        over = "" if calm.seconds is None else f" in {calm.seconds:.1f} s"
        said(
            console,
            f"Over {calm.samples} samples{over}: {calm.frames_freed} to "
            f"{report.savings.frames_freed} frames, {human_bytes(calm.net_bytes)} to "
            f"{human_bytes(report.savings.net_bytes)} net; the first is of the pages that stood "
            "still, the second if all stay as they are from here on.",
        )
    merged = report.savings.frames_merged_now
    if merged:
        said(console, f"{counted(merged, 'frame is', 'frames are')} KSM pages already.")
    if found.profit_explained:
        console.print(hanging("", found.profit_explained.rstrip(".") + "."))
    if found.frames_freed and decision.cost.rows:
        said(console, _pace(decision.cost))
    for caveat in found.caveats:
        console.print(hanging("- ", caveat))


def _pace(found: Cost) -> str:
    """What it costs and when it is there, in a sentence."""
    scan = found.rows[0]
    text = (
        f"As ksmd is set here, a full scan takes {human_seconds(scan.seconds)}, at "
        f"{percent(scan.cpu_percent / 100)} of one CPU"
    )
    if "99" in found.seconds_to:
        text += f"; 99 % of the saving is there after {human_seconds(found.seconds_to['99'])}"
    return text + (f" ({scan.note})." if scan.hopeless else ".")


def _signed_percent(share: float) -> str:
    return percent(share) if share >= 0 else f"-{percent(-share)}"


def where(console: Console, decision: Decision) -> None:
    """Which processes and VMAs it comes from."""
    if decision.groups:
        title(console, f"Where, by {printable(decision.group_by)}")
        table = table_of(
            (printable(decision.group_by), False),
            ("processes", True),
            ("ksm_merging\n_pages", True),
            ("PSS\nbefore", True),
            ("PSS\nafter", True),
            ("net", True),
            gap=1,
        )
        for group in decision.groups[:TOP]:
            cells = (
                fit(printable(group.name) or "(none)", 30),
                str(group.processes),
                str(group.ksm_merging_pages),
                human_bytes(group.pss_before),
                human_bytes(group.pss_after),
                human_bytes(group.net_bytes),
            )
            table.add_row(*map(plain, cells))
        console.print(table)
        more(console, len(decision.groups) - TOP)
    for choice in decision.choices:
        _choice(console, choice)
    _madvise(console, decision.madvise)


def _choice(console: Console, choice: Choice) -> None:
    of = {"vmas": "VMAs"}.get(choice.of, printable(choice.of))
    console.print()
    said(
        console,
        f"{choice.size} of {choice.considered} {of} give {percent(choice.share)} of it "
        f"({counted(choice.frames_freed, 'frame', 'frames')}):",
    )
    for member in choice.members[:_MEMBERS]:
        console.print(hanging("  ", member))
    hidden = choice.size - len(choice.members[:_MEMBERS])
    if hidden > 0:
        has = "all" if choice.size <= len(choice.members) else f"the first {len(choice.members)}"
        console.print(f"  {hidden} more; --format json has {has}.")


def _madvise(console: Console, rows: Sequence[Madvise]) -> None:
    if not rows:
        return
    title(console, "Worth madvise(MADV_MERGEABLE), best first")
    table = table_of(
        ("pid", True),
        ("comm", False),
        ("range", False),
        ("name", False),
        ("gain", True),
        ("so far", True),
        gap=1,
    )
    for row in rows[:TOP]:
        cells = (
            str(row.pid),
            fit(printable(row.comm), 15),
            f"{row.start:x}-{row.end:x}",
            fit(printable(row.name), 12),
            human_bytes(row.gain_bytes),
            percent(min(row.covered, 1.0)),
        )
        table.add_row(*map(plain, cells))
    console.print(table)
    more(console, len(rows) - TOP, len(rows) if len(rows) >= 100 else None)


def kinds(console: Console, decision: Decision, page_size: int) -> None:
    """What kind of duplicates there are."""
    found = decision.kinds
    title(console, "What kind")
    table = table_of(("frames freed", False), ("frames", True), ("", True))
    for name, frames in (
        ("zero pages", found.zero_frames),
        ("equal to others of the same process", found.inside_process),
        ("equal to others of other processes only", found.between_processes),
        ("less the copies that ksmd makes in vain", -found.copies),
    ):
        if frames or not name.startswith("less"):
            table.add_row(*map(plain, (name, str(frames), human_bytes(frames * page_size))))
    console.print(table)
    said(
        console,
        f"{counted(found.fork_shared, 'mapping shares its', 'mappings share their')} frame since "
        "fork already: nothing is saved there.",
    )
    if found.thps_split and found.pages_per_split is not None:
        said(
            console,
            f"{counted(found.thps_split, 'THP is', 'THPs are')} split for it, "
            f"{found.pages_per_split:.1f} frames freed for each.",
        )
    _contents(console, found)
    _pages(console, decision, page_size)


def _contents(console: Console, found: Kinds) -> None:
    if not found.top:
        return
    console.print()
    table = table_of(
        ("content (hash)", False),
        ("kind", False),
        ("mappings", True),
        ("frames", True),
        ("processes", True),
    )
    for content in found.top[:TOP]:
        cells = (
            printable(content.hash),
            printable(content.kind),
            str(content.mappings),
            str(content.frames),
            str(content.processes),
        )
        table.add_row(*map(plain, cells))
    console.print(table)
    more(console, found.contents - TOP, len(found.top))
    if found.concentration:
        # Some five points of the curve, its ends among them.
        step = max((len(found.concentration) - 1) // 4, 1)
        points = {*found.concentration[::step], found.concentration[-1]}
        curve = ", ".join(f"{frames} by {best}" for best, frames in sorted(points))
        said(console, f"Frames freed by the best contents alone: {curve}.")


def _pages(console: Console, decision: Decision, page_size: int) -> None:
    """What becomes of each page, and why some stay."""
    for heading, counts, names in (
        ("what becomes of the candidate pages", decision.page_classes, _CLASSES),
        ("frames that have an equal, and stay", decision.kinds.blocked, _BLOCKED),
    ):
        rows = [(name, pages) for name, pages in counts.items() if pages]
        if not rows:
            continue
        console.print()
        table = table_of((heading, False), ("pages", True), ("", True))
        for name, pages in sorted(rows, key=lambda row: -row[1]):
            shown = printable(names.get(name, name))
            table.add_row(*map(plain, (shown, str(pages), human_bytes(pages * page_size))))
        console.print(table)


def why_not(console: Console, reasons: Sequence[Reason]) -> None:
    if not reasons:
        return
    title(console, "Why not: what is not eligible")
    for reason in reasons[:TOP]:
        size = f"{human_bytes(reason.bytes)} in {counted(reason.vmas, 'VMA', 'VMAs')}"
        said(console, f"{reason.reason}: {size}")
        if reason.advice:
            console.print(hanging("    ", reason.advice))
    more(console, len(reasons) - TOP)


def security(console: Console, found: Security, page_size: int) -> None:
    title(console, "Sharing across users")
    if found.splits:
        table = table_of(
            ("frames freed, by", False),
            ("how many", True),
            ("inside one", True),
            ("", True),
            ("across", True),
            ("", True),
        )
        for split in found.splits:
            cells = (
                printable(split.by),
                str(split.groups),
                str(split.within),
                human_bytes(split.within * page_size),
                str(split.across),
                human_bytes(split.across * page_size),
            )
            table.add_row(*map(plain, cells))
        console.print(table)
    if found.sentence:
        said(console, found.sentence)
    if found.sources:
        console.print(hanging("", "Sources: " + "; ".join(found.sources) + "."))


def cost(console: Console, found: Cost) -> None:
    """What ksmd needs for it."""
    title(console, "Cost")
    said(
        console,
        f"{counted(found.pages, 'page', 'pages')} a full scan, "
        f"{1e6 * found.seconds_a_page:.2g} us each ({found.source}).",
    )
    table = table_of(
        ("pages_to\n_scan", True),
        ("sleep\n_millisecs", True),
        ("full scan\ntakes", True),
        ("of one\nCPU", True),
        ("", False),
        gap=1,
    )
    for row in found.rows:
        cells = (
            str(row.pages_to_scan),
            str(row.sleep_millisecs),
            human_seconds(row.seconds),
            percent(row.cpu_percent / 100),
            printable(row.note),
        )
        table.add_row(*map(plain, cells))
    console.print(table)
    reached = [
        f"{printable(share)} % in {human_seconds(found.seconds_to[share])} "
        f"({counted(scans, 'scan', 'scans')})"
        for share, scans in found.passes_to.items()
        if share in found.seconds_to
    ]
    if reached:
        how = f" [{found.settling}]" if found.settling else ""
        said(console, f"As the target is set, of the saving: {', '.join(reached)}{how}.")
    if found.advisor:
        said(console, found.advisor.rstrip(".") + ".")


def what_if(console: Console, decision: Decision) -> None:
    """With --what-if."""
    if decision.what_if:
        title(console, "What if")
        table = table_of(
            ("", False),
            ("pages\n_shared", True),
            ("pages\n_sharing", True),
            ("frames\nfreed", True),
            ("net", True),
            ("difference", True),
            gap=1,
        )
        for row in decision.what_if:
            name = f"{printable(row.name)} (as it is)" if row.current else printable(row.name)
            cells = (
                name,
                or_dash(row.pages_shared),
                or_dash(row.pages_sharing),
                str(row.frames_freed),
                human_bytes(row.net_bytes),
                ("+" if row.difference > 0 else "") + human_bytes(row.difference),
            )
            table.add_row(*map(plain, cells))
        console.print(table)
    for left in decision.what_if_left_out:
        console.print(hanging("- ", f"left out: {left}"))


def next_steps(console: Console, steps: Sequence[Step]) -> None:
    """Commands stand on lines of their own, as long as they are."""
    if not steps:
        return
    title(console, "Next steps")
    for number, step in enumerate(steps, 1):
        console.print(hanging(f"{number}. ", step.title))
        for command in step.commands:
            console.print(plain(f"    {copyable(command)}"), soft_wrap=True, style="cyan")
        if step.why:
            console.print(hanging("   ", step.why))
