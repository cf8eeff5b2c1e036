"""Tables that are complete without a script and sortable with one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ksm_eval.report.html.markup import Child, Html, element, joined
from ksm_eval.report.html.words import name, size

TALL = 16
"""Rows from which a table scrolls by itself on a screen."""
PRINTED = 25
"""Rows that paper gets: as many as style.css leaves."""


@dataclass(frozen=True)
class Column:
    heading: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """`key`: what its column is sorted by, the text if None."""

    content: Child
    key: float | None = None
    title: str | None = None


MISSING = Cell("–")  # noqa: RUF001
"""Sorted below all numbers."""


def text(content: str) -> Cell:
    return Cell(name(content))


def count(value: int | None) -> Cell:
    return MISSING if value is None else Cell(str(value), value)


def amount(value: int | None) -> Cell:
    return MISSING if value is None else Cell(size(value), value)


def plain(content: Child, key: float | None = None) -> Cell:
    return Cell(content, key)


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    total: int | None = None,
    where: str = "",
    sortable: bool = True,
) -> Html:
    """`total`: how many there are, if `rows` are only the first; `where`: the rest is to be had."""
    head = element(
        "tr",
        *(
            element("th", _heading(c.heading), scope="col", class_="n" if c.numeric else None)
            for c in columns
        ),
    )
    body = [element("tr", *_cells(columns, row)) for row in rows]
    found = element(
        "table",
        element("thead", head),
        element("tbody", *body),
        class_="sortable" if sortable and len(rows) > 1 else None,
        aria_label=caption,
    )
    tall = " tall" if len(rows) > TALL else ""
    hidden = (len(rows) if total is None else total) - len(rows)
    printed = f"The first {PRINTED} rows are printed." if len(rows) > PRINTED else None
    return element(
        "figure",
        # Not a <caption>: it would be as wide as the table, and scroll with it.
        element("figcaption", caption),
        # What scrolls must be within reach of the keyboard.
        element(
            "div", found, class_=f"scroll{tall}", tabindex=0, role="region", aria_label=caption
        ),
        element("p", f"{hidden} more not shown{where}.", class_="more") if hidden > 0 else None,
        element("p", printed, class_="paper") if printed else None,
    )


def _heading(words: str) -> Html:
    """With places to break a counter's long name at."""
    parts = words.split("_")
    return joined(
        child
        for index, part in enumerate(parts)
        for child in ((f"{part}_", element("wbr")) if index < len(parts) - 1 else (part,))
    )


def _cells(columns: Sequence[Column], row: Sequence[Cell]) -> Iterable[Html]:
    for index, (column, cell) in enumerate(zip(columns, row, strict=True)):
        attributes = {
            "class_": "n" if column.numeric else None,
            "data_v": None if cell.key is None else _key(cell.key),
            "title": cell.title,
        }
        # The first column names the row.
        if index == 0:
            yield element("th", cell.content, scope="row", **attributes)
        else:
            yield element("td", cell.content, **attributes)


def _key(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
