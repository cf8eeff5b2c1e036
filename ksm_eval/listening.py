"""Progress of steps that do not count: by what the target reads meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ksm_eval.target import WALKING, Progress, Target

PTE_BYTES = 8


@contextmanager
def _listener(target: Target, listener: Callable[[int], None]) -> Iterator[None]:
    """`listener` is told how many bytes have been read since."""
    meter = target.meter
    start = meter.bytes_read
    meter.listener = lambda: listener(meter.bytes_read - start)
    try:
        yield
    finally:
        meter.listener = None


@contextmanager
def heard(target: Target, progress: Progress | None, stage: str) -> Iterator[None]:
    """A stage of which nobody knows how much there is to read."""
    if progress is None:
        yield
        return
    with _listener(target, lambda size: progress(stage, size, 0)):
        yield


@contextmanager
def walked(
    target: Target, progress: Progress | None, done: int, pages: int, total: int
) -> Iterator[None]:
    """The walk of one process of about `pages` pages, when `done` of `total` are behind it. Its
    page tables are most of what is read; where they say more than it has, it is not done yet."""
    if progress is None:
        yield
        return
    progress(WALKING, done, total)
    with _listener(
        target, lambda size: progress(WALKING, done + min(size // PTE_BYTES, pages), total)
    ):
        yield
