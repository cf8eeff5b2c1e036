"""A section, and what sections are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ksm_eval.report.html.markup import Child, Html, element

ELSEWHERE = "; the JSON has all of them"
"""Behind the count of what is not shown."""


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    body: tuple[Html, ...]


def section(anchor: str, title: str, *body: Html | None) -> Section | None:
    """None where there is nothing to show."""
    found = tuple(part for part in body if part is not None)
    return Section(anchor, title, found) if found else None


def paragraph(*children: Child, style: str | None = None) -> Html:
    return element("p", *children, class_=style)


def subtitle(text: str) -> Html:
    return element("h3", text)


def pair(*figures: Html | None) -> Html | None:
    """Pictures side by side where there is room."""
    found = [figure for figure in figures if figure is not None]
    return element("div", *found, class_="figures") if found else None


def items(children: Iterable[Child], *, most: int = 50) -> Html | None:
    """A list, of the first `most`."""
    entries = list(children)
    hidden = len(entries) - most
    rows = [element("li", child) for child in entries[:most]]
    if hidden > 0:
        rows.append(element("li", f"and {hidden} more"))
    return element("ul", *rows) if rows else None
