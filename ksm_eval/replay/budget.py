"""Whether there is memory for a replay: how many mappings it has to keep, only the replay knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Ask = Callable[[int], None]
"""Raises if so many mappings are too many."""

_ask: ContextVar[Ask | None] = ContextVar("ask", default=None)


@contextmanager
def limited(ask: Ask) -> Iterator[None]:
    """All replays that begin inside ask first."""
    token = _ask.set(ask)
    try:
        yield
    finally:
        _ask.reset(token)


def begin(mappings: int) -> None:
    ask = _ask.get()
    if ask is not None:
        ask(mappings)
