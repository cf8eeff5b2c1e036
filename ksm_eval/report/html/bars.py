"""Bars: parts of a whole, and amounts one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ksm_eval.report.blocks import percent
from ksm_eval.report.html.markup import Child, Html, element, joined
from ksm_eval.report.html.svg import figure, rect, stretched, swatch

LENGTH = 1000


@dataclass(frozen=True)
class Part:
    name: str
    style: str
    count: int
    meaning: str = ""


@dataclass(frozen=True)
class Bar:
    """`value` of `whole`, which is drawn behind it."""

    label: Child
    value: int
    text: Child
    title: str
    whole: int = 0


def stacked(caption: str, parts: Sequence[Part], unit: str = "pages") -> Html | None:
    """One bar, and a legend with the numbers."""
    total = sum(part.count for part in parts)
    if total <= 0:
        return None
    shapes, entries, done = [], [], 0
    for part in parts:
        if part.count <= 0:
            continue
        start, end = LENGTH * done / total, LENGTH * (done + part.count) / total
        done += part.count
        share = percent(part.count / total)
        text = f"{part.name}: {part.count} {unit}, {share}"
        shapes.append(rect(start, 0, end - start, 10, part.style, text))
        entries.append(
            element(
                "li",
                swatch(part.style),
                element("b", part.name),
                element("span", f"{part.count} ({share})", class_="q"),
                element("small", part.meaning) if part.meaning else None,
            )
        )
    title = f"{caption}: {total} {unit} in {len(shapes)} parts"
    return figure(caption, stretched(title, *shapes), element("ul", *entries, class_="parts"))


def bars(caption: str, rows: Sequence[Bar], style: str, note: str = "") -> Html | None:
    """As long as their values; less than nothing has no length."""
    longest = max((max(row.value, row.whole) for row in rows), default=0)
    if longest <= 0:
        return None
    items = [element("li", _bar(row, longest, style)) for row in rows]
    return figure(
        caption,
        element("ol", *items, class_="bars"),
        element("p", note, class_="more") if note else None,
    )


def _bar(row: Bar, longest: int, style: str) -> Html:
    behind = rect(0, 0, LENGTH * row.whole / longest, 10, "track") if row.whole > 0 else None
    width = LENGTH * max(row.value, 0) / longest
    return joined(
        (
            element("span", row.label, class_="label"),
            stretched(row.title, behind, rect(0, 0, width, 10, style)),
            element("span", row.text, class_="value"),
        )
    )
