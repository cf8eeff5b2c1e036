"""A log-log plot as SVG, by hand: a few lines over the number of frames."""

from __future__ import annotations

from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 60, 180, 20, 45
LINE = 14
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad")

Series = dict[str, list[tuple[float, float]]]


def svg(series: Series, x_label: str, y_label: str) -> str:
    """`series`: points by name, all above 0."""
    points = [point for line in series.values() for point in line]
    low_x, high_x = (f(log10(f_(x for x, _ in points))) for f, f_ in ((floor, min), (ceil, max)))
    low_y, high_y = (f(log10(f_(y for _, y in points))) for f, f_ in ((floor, min), (ceil, max)))
    high_x, high_y = max(high_x, low_x + 1), max(high_y, low_y + 1)

    def x(value: float) -> float:
        room = WIDTH - LEFT - RIGHT
        return round(LEFT + room * (log10(value) - low_x) / (high_x - low_x), 1)

    def y(value: float) -> float:
        room = HEIGHT - TOP - BOTTOM
        return round(HEIGHT - BOTTOM - room * (log10(value) - low_y) / (high_y - low_y), 1)

    def text(at_x: float, at_y: float, words: str, anchor: str = "middle", more: str = "") -> str:
        return f'<text x="{at_x}" y="{at_y}" text-anchor="{anchor}"{more}>{escape(words)}</text>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for power in range(low_x, high_x + 1):
        at = x(10.0**power)
        lines.append(f'<path d="M{at} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        lines.append(text(at, HEIGHT - BOTTOM + 16, _power(power)))
    for power in range(low_y, high_y + 1):
        at = y(10.0**power)
        lines.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        lines.append(text(LEFT - 6, at + 4, _power(power), "end"))
    for line, colour in zip(series.values(), COLOURS, strict=False):
        path = "L".join(f"{x(a)} {y(b)}" for a, b in line)
        lines.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [f'<circle cx="{x(a)}" cy="{y(b)}" r="3" fill="{colour}"/>' for a, b in line]
    above = 0.0
    ends = sorted((y(line[-1][1]), x(line[-1][0]), name) for name, line in series.items())
    for at_y, at_x, name in ends:  # names do not cover each other
        above = max(at_y + 4, above + LINE)
        colour = COLOURS[list(series).index(name)]
        lines.append(text(at_x + 8, above, name, "start", f' fill="{colour}"'))
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(text(middle, HEIGHT - 8, x_label))
    turned = f' transform="rotate(-90 14 {HEIGHT / 2})"'
    lines.append(text(14, HEIGHT / 2, y_label, "middle", turned))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _power(power: int) -> str:
    for size, unit in ((9, "G"), (6, "M"), (3, "k")):
        if power >= size:
            return f"{10 ** (power - size)} {unit}"
    return f"{10.0**power:g}"
