"""Building blocks of the terminal report: tables, wrapped text, numbers with units
(report/words.py)."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ksm_eval.report.text import printable
from ksm_eval.report.words import counted, percent
from ksm_eval.report.words import duration as human_seconds
from ksm_eval.report.words import size as human_bytes

__all__ = [
    "counted",
    "fit",
    "hanging",
    "human_bytes",
    "human_seconds",
    "percent",
]


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
