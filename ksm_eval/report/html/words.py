"""Numbers and names as a reader wants them."""

from __future__ import annotations

from ksm_eval.report.blocks import human_bytes, percent
from ksm_eval.report.html.markup import Html, element

LONG = 300
"""Characters of a name. The whole of a longer one is in the JSON."""

SHORT = 20
"""Characters of a name that stays on one line; one of twice as many gets room in a table."""


def size(count: int) -> Html:
    """Bytes with a unit; the exact number is its title."""
    return element("span", human_bytes(count), title=f"{count} bytes", class_="q")


def share(part: float) -> str:
    return f"-{percent(-part)}" if part < 0 else percent(part)


def compact(count: float) -> str:
    """For ticks, which are round: "20k", "1.5M"."""
    for unit, length in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= length:
            return f"{count / length:.10g}{unit}"
    return f"{count:.10g}"


def name(text: str) -> Html:
    """What the target named: its direction of writing stays its own, and its length is bounded."""
    if len(text) > LONG:
        return element("bdi", f"{text[:LONG]}… ({len(text)} characters)")
    style = "q" if len(text) <= SHORT else "wide" if len(text) > 2 * SHORT else None
    return element("bdi", text, class_=style)
