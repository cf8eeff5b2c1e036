"""Who shares with whom: a matrix of processes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise

from rich.cells import cell_len

from ksm_eval.report.decision import Pair
from ksm_eval.report.html.markup import Html, clip, element, escaped
from ksm_eval.report.html.svg import figure, label, rect, svg, swatch
from ksm_eval.report.model import ProcessRow

MOST = 32
"""Processes, by the frames of their pairs."""
SHADES = 6
_LABEL = 24  # characters of a process's name
_ROOMY = 34  # pixels of a cell that has its number in it


def heat_map(pairs: Sequence[Pair], processes: Sequence[ProcessRow]) -> tuple[Html, int] | None:
    """The picture, and how many processes are left out of it."""
    known = [p for p in pairs if min(p.first, p.second) >= 0 and _last(p) < len(processes)]
    people, left_out = _people(known)
    if not people:
        return None
    frames = {(p.first, p.second): p.frames for p in known}
    frames |= {(second, first): count for (first, second), count in frames.items()}
    size = min(max(480 // len(people), 18), 44)
    names = [clip(_whole(processes[row]), _LABEL) for row in people]
    left = 7.2 * max(map(cell_len, names)) + 34
    top, span = 22, size * len(people)
    parts = []
    for i, row in enumerate(people):
        number, middle = str(i + 1), top + (i + 0.5) * size + 4
        parts.append(label(left - 28, middle, escaped(names[i]), "name", "end"))
        parts.append(label(left - 6, middle, number, "tick", "end"))
        parts.append(label(left + (i + 0.5) * size, top - 7, number, "tick", "middle"))
        parts += _cells(row, people, processes, frames, left, top + i * size, size)
    description = (
        f"A square for each two of {len(people)} processes, darker the more frames they share. "
        "The table below has the numbers."
    )
    title = "Frames of equal contents, process by process"
    width, height = math.ceil(left + span + 2), top + span + 2
    # Not scaled: it scrolls where it is too wide.
    picture = svg(title, description, width, height, *parts, fixed=True)
    region = element("div", picture, class_="scroll", tabindex=0, role="region", aria_label=title)
    return figure(title, region, scale(known)), left_out


def _cells(
    row: int,
    people: Sequence[int],
    processes: Sequence[ProcessRow],
    frames: Mapping[tuple[int, int], int],
    left: float,
    y: float,
    size: int,
) -> list[Html]:
    most = max(frames.values())
    parts = []
    for j, other in enumerate(people):
        count = frames.get((row, other), 0)
        shade = shade_of(count, most)
        what = "inside it" if row == other else f"and {_whole(processes[other])}"
        title = f"{_whole(processes[row])} {what}: {count} frames"
        x = left + j * size
        parts.append(rect(x + 1, y + 1, size - 2, size - 2, f"heat h{shade}", title))
        if count and size >= _ROOMY:
            text = label(x + size / 2, y + size / 2 + 4, short(count), f"in h{shade}", "middle")
            parts.append(text)
    return parts


def bounds(most: int) -> list[int]:
    """The most frames of each shade: steps grow, as few pairs have nearly as much as the best."""
    return [most * step**2 // SHADES**2 for step in range(1, SHADES + 1)]


def shade_of(count: int, most: int) -> int:
    """0 for none, else 1 to SHADES."""
    return bisect_left(bounds(most), count) + 1 if count > 0 else 0


def scale(pairs: Sequence[Pair]) -> Html:
    """What the shades mean."""
    steps = bounds(max(pair.frames for pair in pairs))
    entries = [element("li", swatch("h0"), "none")]
    for shade, (low, high) in enumerate(pairwise((0, *steps)), 1):
        if high > low:
            entries.append(element("li", swatch(f"h{shade}"), f"{low + 1} to {high}"))
    return element("ul", *entries, class_="legend")


def short(count: int) -> str:
    """At most four characters up to 10^15."""
    if count < 1000:
        return str(count)
    for length, unit in ((10**3, "k"), (10**6, "M"), (10**9, "G"), (10**12, "T")):
        if count < 995 * length // 100:
            return f"{count / length:.1f}{unit}"
        if count < 9995 * length // 10:
            return f"{count / length:.0f}{unit}"
    return f"{count:.0e}"


def _people(pairs: Sequence[Pair]) -> tuple[list[int], int]:
    """Rows of processes in the order of the report, and how many are too many."""
    weight: dict[int, int] = {}
    for pair in pairs:
        if pair.frames > 0:
            for row in {pair.first, pair.second}:
                weight[row] = weight.get(row, 0) + pair.frames
    best = sorted(weight, key=lambda row: (-weight[row], row))
    return sorted(best[:MOST]), max(len(best) - MOST, 0)


def _last(pair: Pair) -> int:
    return max(pair.first, pair.second)


def _whole(process: ProcessRow) -> str:
    return f"{process.pid} {process.comm}"
