"""Will it fit? Asked as early as it can be known, and before the long part in any case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ksm_eval.errors import TargetError
from ksm_eval.footprint import available_bytes, rss_bytes


@dataclass(frozen=True)
class Each:
    """Bytes of memory that collecting and the replay take at most."""

    frame: int
    mapping: int


# Measured with two million frames, each mapped once, where each content is there twice: 185, with
# 3 full scans 385; with 17 mappings a frame 20 a mapping.
SETTLED, EXACT = Each(180, 25), Each(400, 45)
# The same through /proc, with one million: 205 and 384.
PROC_SETTLED, PROC_EXACT = Each(190, 40), Each(360, 70)

BYTES_A_REPLAYED = 200  # beside that; measured 120 to 180
_CODE = 16 << 20  # that is loaded later, and buffers; measured: 9
_NOISE = 1.02  # from one run to the next
_CACHED_PAGES = 1024  # that libkdumpfile keeps of a kdump
_CLEARLY = 1.1  # more than there is


@dataclass(frozen=True)
class Memory:
    """What there was before the first mapping. Pages of a vmcore that libkdumpfile maps are not
    counted: they are page cache, which the kernel takes back when it needs it."""

    left: int  # of the machine
    limit: int  # that this process may have, 0: any
    used: int  # by this process, with what it will take in any case
    each: Each

    def require(self, mappings: int, frames: int = 0, *, clearly: bool = False) -> None:
        """Raise TargetError if there is not enough. `frames`: 0 while they are not known;
        `clearly`: a lower bound, by the kernel's own counts, which may be some pages off."""
        needed = self.each.mapping * mappings + self.each.frame * frames
        factor = _CLEARLY if clearly else 1.0
        about = "at least" if clearly else "about" if frames else "more than"
        if self.limit and self.used + needed > self.limit * factor:
            whole = self.used + needed
            enough = int(whole * _NOISE)
            raise TargetError(
                f"{mappings:,} pages need {about} {_mib(whole)} of memory, --max-memory allows "
                f"{_mib(self.limit)}",
                f"select fewer processes, or give --max-memory {-(-enough >> 20)}M or more",
            )
        if needed > self.left * factor:
            raise TargetError(
                f"{mappings:,} pages need {about} {_mib(needed)} of memory, and this machine has "
                f"only {_mib(self.left)} left",
                "select fewer processes, or evaluate a vmcore on a larger machine",
            )


def _mib(size: int) -> str:
    return f"{-(-size >> 20):,} MiB"


def memory_left(max_memory: int) -> int:
    """Of the machine, and of what this process may have."""
    left = available_bytes()
    return min(left, max(0, max_memory - rss_bytes())) if max_memory else left


def replay_budget(max_memory: int) -> Callable[[int], None]:
    """For replay.budget.limited(): contents that do not merge in the obvious way (above
    max_page_sharing, pinned …) are replayed mapping by mapping."""

    def ask(mappings: int) -> None:
        left, needed = memory_left(max_memory), BYTES_A_REPLAYED * mappings
        if needed > left:
            allowed = "--max-memory leaves" if max_memory else "this machine has"
            raise TargetError(
                f"{mappings:,} pages do not merge in the obvious way: to replay them takes about "
                f"{_mib(needed)} of memory, {allowed} {_mib(left)}",
                "select fewer processes, or allow more memory",
            )

    return ask


def memory(max_memory: int, page_size: int, *, exact: bool, proc: bool = False) -> Memory:
    """As it is now. `page_size`: of the target, 0 if none is open. Raises TargetError if
    `max_memory` is not even enough for no page."""
    used = rss_bytes() + _CODE + _CACHED_PAGES * page_size
    if max_memory and used > max_memory:
        raise TargetError(
            f"without a single page ksm-eval takes about {_mib(used)} of memory here, "
            f"--max-memory allows {_mib(max_memory)}",
            f"give --max-memory {-(-int(used * _NOISE) >> 20)}M, and more for the pages",
        )
    settled, by_passes = (PROC_SETTLED, PROC_EXACT) if proc else (SETTLED, EXACT)
    return Memory(available_bytes(), max_memory, used, by_passes if exact else settled)
