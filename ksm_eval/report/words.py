"""Numbers in sentences."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes with a unit: "41.2 MiB"."""
    if abs(count) < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if abs(value) < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def duration(seconds: float) -> str:
    """In the largest unit of which there are two, below that in seconds: "85 s", "2.4 h"."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            count = seconds / length
            return f"{count:.1f} {unit}" if count < 10 else f"{count:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def percent(share: float) -> str:
    """Never rounded to 0 or 100 %."""
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    if 0.9995 <= share < 1:
        return "more than 99.9 %"
    return f"{100 * share:.1f} %"


def counted(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
