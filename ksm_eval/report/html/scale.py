"""From values to coordinates: linear and logarithmic axes, with their ticks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """`low` … `high` of an axis onto `start` … `end` of a picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (self._position(v) for v in (self.low, self.high, value))
        if high == low:
            return self.start
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def _position(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value

    def ticks(self) -> tuple[float, ...]:
        """Round values on the axis, four to eight of them where it is linear."""
        return tuple(self._decades() if self.log else self._steps())

    def _decades(self) -> Iterator[float]:
        first, last = (round(math.log10(v)) for v in (self.low, self.high))
        stride = math.ceil((last - first) / 7) or 1
        for exponent in range(first, last + 1, stride):
            yield 10.0**exponent

    def _steps(self) -> Iterator[float]:
        step = step_of(self.high - self.low)
        first = math.ceil(self.low / step)
        for index in range(first, math.floor(self.high / step + 1e-9) + 1):
            yield index * step


def step_of(span: float) -> float:
    """1, 2 or 5 times a power of ten, four to nine of them in `span`; whole ones of counts."""
    if span <= 4:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    return next(m * magnitude for m in (5, 2, 1) if span / (m * magnitude) >= 4)


def linear(high: float, start: float, end: float, low: float = 0) -> Scale:
    """From 0, or from `low` below it, up to a round value."""
    step = step_of(max(high, 1) - min(low, 0))
    return Scale(
        math.floor(min(low, 0) / step) * step, math.ceil(max(high, 1) / step) * step, start, end
    )


def decades(low: float, high: float, start: float, end: float) -> Scale:
    """Logarithmic, between powers of ten."""
    first = math.floor(math.log10(max(low, 1e-9)) + 1e-12)
    last = math.ceil(math.log10(max(high, 1e-9)) - 1e-12)
    return Scale(10.0**first, 10.0 ** max(last, first + 1), start, end, log=True)
