"""Building blocks of the terminal report: tables, wrapped text, numbers with units."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ksm_eval.report.text import printable


def human_bytes(count: int) -> str:
    """At most nine characters up to a petabyte, two of them the unit's: "41.2 MiB"."""
    if abs(count) < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def human_seconds(seconds: float) -> str:
    """In the largest unit of which there are two: "85 s", "2.4 h", "0.038 s"."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def percent(share: float) -> str:
    """Never rounded to 0 or 100 %: those have a meaning of their own."""
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    if 0.9995 <= share < 1:
        return "more than 99.9 %"
    return f"{100 * share:.1f} %"


def counted(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def fit(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 3) + "..."


def plain(cell: str) -> Text:
    """As Text, which no markup is looked for in."""
    return Text(cell)


def hanging(start: str, text: str) -> Table:
    """`text` wrapped beside `start`."""
    table = Table.grid(padding=0)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(plain(start), plain(printable(text)))
    return table


def table_of(*columns: tuple[str, bool], gap: int = 2) -> Table:
    """A borderless table of (heading, numeric) columns."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")
    for heading, numeric in columns:
        table.add_column(plain(heading), justify="right" if numeric else "left", no_wrap=numeric)
    return table


def said(console: Console, text: str, style: str = "") -> None:
    """A sentence that may have words of the target in it."""
    console.print(plain(printable(text)), style=style or None)


def more(console: Console, hidden: int, first: int | None = None) -> None:
    """`first`: JSON itself has only so many, None: all."""
    if hidden > 0:
        has = "all" if first is None else f"the first {first}"
        console.print(f"{hidden} more; --format json has {has}.")


def title(console: Console, title: str) -> None:
    console.print()
    console.print(title, style="bold")
