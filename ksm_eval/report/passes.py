"""What single full scans do, in the terminal: timeline, stillness, verification."""

from __future__ import annotations

from rich.console import Console

from ksm_eval.report.blocks import hanging, or_dash, percent, plain, table_of, title
from ksm_eval.report.model import Pass, Report, VerifyRow
from ksm_eval.report.text import printable

_COLUMNS = {
    "pages_shared": "shared",
    "pages_sharing": "sharing",
    "pages_unshared": "unshared",
    "pages_volatile": "volatile",
    "ksm_zero_pages": "zero",
    "stable_node_chains": "chains",
    "stable_node_dups": "dups",
    "general_profit": "profit",
}
_RANGED = ("pages_shared", "pages_sharing", "ksm_zero_pages", "ksm_rmap_items", "general_profit")


def timeline(console: Console, passes: tuple[Pass, ...]) -> None:
    """Counters pass by pass; those that say how ksmd works are left to JSON."""
    if not passes:
        return
    columns = [name for name in _COLUMNS if name in passes[0].counters]
    title(console, "After each full scan")
    table = table_of(("pass", True), *((_COLUMNS[name], True) for name in columns), gap=1)
    for entry in passes:
        number = str(entry.number) if entry.exact else f"~{entry.number}"
        table.add_row(number, *(str(entry.counters[name]) for name in columns))
    console.print(table)
    if not all(entry.exact for entry in passes):
        text = (
            "~ depends on the order of page contents, or on when chains were pruned, which this "
            "snapshot does not tell: some pages may be unshared instead of volatile, or merge a "
            "pass early; chains and dups may be a few off."
        )
        console.print(hanging("", text))


def stillness(console: Console, report: Report) -> None:
    """What was calm over several samples, and the range that this leaves for the counters."""
    calm = report.calm
    if calm is None:
        return
    over = "" if calm.seconds is None else f" in {calm.seconds:.1f} s"
    title(console, f"Over {calm.samples} samples{over}")
    table = table_of(("candidate pages of the last sample", False), ("pages", True), ("", True))
    for name, pages in (
        ("calm: equal in every sample", calm.calm),
        ("changed", calm.changed),
        ("new since the first sample", calm.new),
        ("not read in every sample", calm.unread),
    ):
        if not pages and name.startswith("not"):
            continue
        share = percent(pages / calm.mappings) if calm.mappings else ""
        table.add_row(*map(plain, (name, str(pages), share)))
    console.print(table)
    text = (
        f"{calm.fork_shared} mappings share a frame with another: ksmd calls those that it does "
        "not merge volatile, too, though nothing about them changes."
    )
    console.print(hanging("", text))
    if calm.cow_breaks_per_second is not None:
        text = (
            f"Merging would cost the programs {calm.cow_breaks_per_second:.1f} COW faults a second:"
            " writes to pages that are merged by then."
        )
        console.print(hanging("", text))
    console.print()
    table = table_of(
        ("once settled, if what merges is", False), ("calm pages", True), ("all", True)
    )
    for name, low in calm.counters.items():
        high = report.system.counters.get(name)
        if high is not None and name in _RANGED:
            table.add_row(*map(plain, (name, str(low), str(high))))
    for name, low, high in (
        ("frames freed", calm.frames_freed, report.savings.frames_freed),
        ("net bytes", calm.net_bytes, report.savings.net_bytes),
    ):
        table.add_row(*map(plain, (name, str(low), str(high))))
    console.print(table)


def verification(console: Console, rows: tuple[VerifyRow, ...]) -> None:
    """ksmd's own records beside the counters of the target."""
    if not rows:
        return
    title(console, "Verified: ksmd's own records, and what the replay makes of them")
    scans = [f"+{number}" for number in range(1, len(rows[0].after) + 1)][:4]
    heads = ("counter", "target", "records", "differ", *scans)
    found = table_of(*((head, head != "counter") for head in heads))
    for row in rows:
        after = row.after[: len(scans)]
        cells = (row.target, row.records, row.difference, *after)
        found.add_row(plain(printable(row.counter)), *(plain(or_dash(cell)) for cell in cells))
    console.print(found)
    differing = [row.counter for row in rows if row.difference]
    verdict = f"{', '.join(differing)} differ." if differing else "All counters are equal."
    text = f"{verdict} +1, +2 …: predicted after so many more full scans, if nothing changes."
    if len(rows[0].after) > len(scans):
        text += " The rest is in --format json."
    console.print(hanging("", text))
