"""Pictures with two axes: concentration, passes, scan time."""

from __future__ import annotations

from collections.abc import Sequence

from ksm_eval.report.blocks import human_seconds, percent
from ksm_eval.report.decision import ScanRow
from ksm_eval.report.html.markup import Html, element, joined
from ksm_eval.report.html.scale import Scale, decades, linear
from ksm_eval.report.html.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    axes,
    figure,
    label,
    legend,
    polyline,
    svg,
)
from ksm_eval.report.html.words import compact
from ksm_eval.report.model import Pass

_LINES = (
    ("pages_shared", "s1"),
    ("pages_sharing", "s2"),
    ("pages_unshared", "s3"),
    ("pages_volatile", "s4"),
    ("ksm_zero_pages", "s5"),
)
_TIMES = {
    1e-3: "1 ms",
    1e-2: "10 ms",
    0.1: "0.1 s",
    1: "1 s",
    10: "10 s",
    60: "1 min",
    600: "10 min",
    3600: "1 h",
    36_000: "10 h",
    864_000: "10 d",
    8_640_000: "100 d",
}
"""Seconds that an axis names."""
_DOTS = 40  # more points than this are a line without dots


def concentration(points: Sequence[tuple[int, int]]) -> Html | None:
    """How few contents give how much of what is freed."""
    usable = [(contents, frames) for contents, frames in points if contents > 0]
    if not usable or usable[-1][1] <= 0:
        return None
    total = usable[-1][1]
    x = decades(1, usable[-1][0], LEFT, RIGHT)
    y = linear(100, BOTTOM, TOP)
    placed = [(x(contents), y(100 * frames / total)) for contents, frames in usable]
    half = next(c for c, frames in usable if 2 * frames >= total)
    dots = [
        _dot(px, py, "s1", f"{contents} contents: {frames} frames")
        for (px, py), (contents, frames) in zip(placed, usable, strict=True)
        if len(usable) <= _DOTS
    ]
    title = "Concentration: contents and the share of the frames freed that they give"
    best = "the best one gives" if usable[0][0] == 1 else f"the best {usable[0][0]} give"
    description = (
        f"{half} of {usable[-1][0]} contents, or fewer, give half of the {total} frames; {best} "
        f"{percent(usable[0][1] / total)}."
    )
    picture = svg(
        title,
        description,
        WIDTH,
        HEIGHT,
        axes(x, y, "contents, best first", "% of frames freed", compact, compact),
        polyline(placed, "s1"),
        *dots,
    )
    return figure("How concentrated the saving is", picture, element("p", description))


def passes(timeline: Sequence[Pass], caption: str) -> Html | None:
    """The counters after each full scan."""
    series = [
        Series(
            name,
            style,
            [(p.number, p.counters[name]) for p in timeline if name in p.counters],
        )
        for name, style in _LINES
    ]
    series = [s for s in series if s.points and (s.name != "ksm_zero_pages" or _any(s))]
    if not series:
        return None
    first, last = timeline[0].number, timeline[-1].number
    x = linear(last, LEFT, RIGHT)
    y = linear(max(v for s in series for _, v in s.points), BOTTOM, TOP)
    inexact = {p.number for p in timeline if not p.exact}
    parts = []
    for s in series:
        placed = [(x(n), y(v)) for n, v in s.points]
        parts.append(polyline(placed, s.style))
        if len(timeline) <= _DOTS:
            for (px, py), (n, v) in zip(placed, s.points, strict=True):
                about = "about " if n in inexact else ""
                style = f"{s.style} hollow" if n in inexact else s.style
                parts.append(_dot(px, py, style, f"pass {n:g}: {s.name} {about}{v:g}"))
    description = "; ".join(f"{s.name} from {s.points[0][1]} to {s.points[-1][1]}" for s in series)
    title = f"{caption}, passes {first} to {last}"
    picture = svg(
        title,
        f"{description}. The table has all numbers.",
        WIDTH,
        HEIGHT,
        axes(x, y, "full scans", "pages", compact, compact),
        *parts,
    )
    return figure(caption, picture, legend((s.style, s.name) for s in series))


def scan_times(rows: Sequence[ScanRow]) -> Html | None:
    """pages_to_scan against the time of a full scan, a line for each sleep_millisecs."""
    usable = [row for row in rows if row.pages_to_scan > 0 and row.seconds > 0]
    if not usable:
        return None
    many = [row.pages_to_scan for row in usable]
    took = [row.seconds for row in usable]
    x = decades(min(many), max(many), LEFT + 12, RIGHT - 4)
    y = decades(min(took), max(took), BOTTOM, TOP)
    sleeps = sorted({row.sleep_millisecs for row in usable})
    styles = {sleep: f"s{index % 6 + 1}" for index, sleep in enumerate(sleeps)}
    parts: list[Html] = []
    for sleep in sleeps:
        points = sorted(
            (row.pages_to_scan, row.seconds) for row in usable if row.sleep_millisecs == sleep
        )
        parts.append(polyline(((x(n), y(s)) for n, s in points), styles[sleep]))
    for row in usable:
        text = f"{row.pages_to_scan} pages, {row.sleep_millisecs} ms: {human_seconds(row.seconds)}"
        parts.append(_dot(x(row.pages_to_scan), y(row.seconds), styles[row.sleep_millisecs], text))
    first = usable[0]
    if first is rows[0]:
        parts.append(_mark(x(first.pages_to_scan), y(first.seconds), "this target"))
    description = (
        f"From {human_seconds(min(took))} to {human_seconds(max(took))}, with {min(many)} to "
        f"{max(many)} pages a batch. The table has all numbers."
    )
    picture = svg(
        "Time of a full scan by pages_to_scan, both axes logarithmic",
        description,
        WIDTH,
        HEIGHT,
        axes(x, y, "pages_to_scan", "a full scan takes", compact, _time, _times(y)),
        *parts,
    )
    names = ((styles[sleep], f"sleep_millisecs {sleep}") for sleep in sleeps)
    return figure("Time of a full scan", picture, legend(names))


def _dot(x: float, y: float, style: str, title: str) -> Html:
    return element("circle", element("title", title), cx=x, cy=y, r=3, class_=f"dot {style}")


def _mark(x: float, y: float, text: str) -> Html:
    """A ring with words, on the side that has room."""
    left = x > (LEFT + RIGHT) / 2
    at = x - 11 if left else x + 11
    ring = element("circle", cx=x, cy=y, r=7, class_="ring")
    return joined((ring, label(at, y - 7, text, "mark", "end" if left else "start")))


def _times(scale: Scale) -> list[float]:
    """Of the decades of seconds those that clocks have, if that leaves any two."""
    found = [time for time in _TIMES if scale.low <= time <= scale.high]
    return found if len(found) > 1 else list(scale.ticks())


def _time(seconds: float) -> str:
    return _TIMES.get(seconds) or human_seconds(seconds)


def _any(series: Series) -> bool:
    return any(value for _, value in series.points)
