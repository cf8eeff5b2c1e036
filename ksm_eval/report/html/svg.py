"""What all pictures share: the frame, the axes, the legend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ksm_eval.report.html.markup import Child, Html, element, joined, number
from ksm_eval.report.html.scale import Scale

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 386, 26, 208


@dataclass(frozen=True)
class Series:
    name: str
    style: str  # a class of style.css, which gives colour and dashes
    points: Sequence[tuple[float, float]]


def svg(
    title: str,
    description: str,
    width: float,
    height: float,
    *children: Child,
    fixed: bool = False,
) -> Html:
    """A picture that says what it shows to those who do not see it. `fixed`: not scaled."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *children,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width if fixed else None,
        height=height if fixed else None,
        role="img",
    )


def figure(caption: str, *children: Child) -> Html:
    return element("figure", element("figcaption", caption), *children)


def stretched(title: str, *children: Child, length: int = 1000, height: int = 10) -> Html:
    """A bar as wide as its place; the numbers stand beside it."""
    return element(
        "svg",
        element("title", title),
        *children,
        viewBox=f"0 0 {length} {height}",
        preserveAspectRatio="none",
        role="img",
        class_="bar",
    )


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "") -> Html:
    inner = element("title", title) if title else None
    return element("rect", inner, x=x, y=y, width=width, height=height, class_=style)


def label(x: float, y: float, text: Child, style: str = "", anchor: str = "start") -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=style or None)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Html:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=style)


def axes(
    x: Scale,
    y: Scale,
    x_name: str,
    y_name: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    y_ticks: Sequence[float] | None = None,
) -> Html:
    """Grid lines with their values; the names of the axes where they need no turning."""
    parts = [label(LEFT - 48, 12, y_name, "axis"), label(RIGHT, HEIGHT - 4, x_name, "axis", "end")]
    for tick in y.ticks() if y_ticks is None else y_ticks:
        parts.append(line(LEFT, y(tick), RIGHT, y(tick), "grid"))
        parts.append(label(LEFT - 7, y(tick) + 4, y_text(tick), "tick", "end"))
    for tick in x.ticks():
        parts.append(line(x(tick), BOTTOM, x(tick), BOTTOM + 4, "grid"))
        parts.append(label(x(tick), BOTTOM + 18, x_text(tick), "tick", "middle"))
    return joined(parts)


def polyline(points: Iterable[tuple[float, float]], style: str) -> Html:
    return element(
        "polyline",
        points=" ".join(f"{number(x)},{number(y)}" for x, y in points),
        class_=f"line {style}",
    )


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """(style, name) of lines."""
    return element(
        "ul",
        *(
            element("li", _sample(line(1, 5, 27, 5, f"line {style}")), text)
            for style, text in entries
        ),
        class_="legend",
    )


def swatch(style: str) -> Html:
    return _sample(rect(0, 0, 10, 10, style), 10)


def _sample(shape: Html, width: int = 28) -> Html:
    return element(
        "svg", shape, viewBox=f"0 0 {width} 10", width=width, height=10, aria_hidden="true"
    )
