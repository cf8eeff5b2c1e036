"""Are frames of a running target still mapped where they were found?

Between the walk of page tables and the read of a frame a process may have ended or unmapped
it, and the frame may be another process's by then, even with an equal struct page: a freed
anon_vma is soon used again. A frame counts if one of its mappings was there all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ksm_eval.snapshot import U64
from ksm_eval.tables import table_fits
from ksm_eval.target import Process, Unreadable, Vma, WalkedVmas
from ksm_eval.target.frames import BLOCK


@dataclass(frozen=True)
class Walk:
    """The mappings that one walk found."""

    page: U64  # page number (address / page size), ascending
    pfn: U64


def walk_of(vmas: Sequence[Vma], walked: WalkedVmas, page_size: int) -> Walk:
    first = np.array([vma.start // page_size for vma in vmas], np.uint64)
    return Walk(np.repeat(first, np.diff(walked.offset)) + walked.page, walked.pfn)


def unchanged(before: Walk, now: Walk) -> U64:
    """PFNs of the mappings that are in both."""
    if np.array_equal(before.page, now.page):
        same = before.pfn == now.pfn
    else:
        same = np.zeros(len(before.page), np.bool_)
        for begin in range(0, len(before.page) if len(now.page) else 0, BLOCK):
            part = slice(begin, begin + BLOCK)
            row = np.searchsorted(now.page, before.page[part])
            np.minimum(row, len(now.page) - 1, out=row)
            same[part] = now.page[row] == before.page[part]
            same[part] &= now.pfn[row] == before.pfn[part]
    found: U64 = before.pfn[same]
    return found


class Seen:
    """Which of ascending PFNs were among others, told a part at a time."""

    def __init__(self, pfns: U64) -> None:
        self._pfns = pfns
        self._found = np.zeros(len(pfns), np.bool_)
        top = int(pfns[-1]) + 1 if len(pfns) else 0
        # By number it is ten times as fast.
        self._table = np.zeros(top if table_fits(top, len(pfns)) else 0, np.bool_)

    def add(self, some: U64) -> None:
        if len(self._table):
            self._table[some[some < len(self._table)]] = True
        elif len(self._pfns):
            row = np.minimum(np.searchsorted(self._pfns, some), len(self._pfns) - 1)
            self._found[row[self._pfns[row] == some]] = True

    def rows(self) -> NDArray[np.bool_]:
        if not len(self._table):
            return self._found
        found: NDArray[np.bool_] = self._table[self._pfns]
        return found


@dataclass
class Walks:
    """All walks since the processes were selected."""

    page_size: int
    done: list[tuple[Process, Sequence[Vma], Walk]] = field(default_factory=list)

    def add(self, process: Process, vmas: Sequence[Vma], walked: WalkedVmas) -> None:
        self.done.append((process, vmas, walk_of(vmas, walked, self.page_size)))

    def still_mapped(
        self, pfns: U64, walk: Callable[[Process, Sequence[Vma]], WalkedVmas]
    ) -> NDArray[np.bool_]:
        """Which of ascending PFNs have a mapping that is there again when `walk` is repeated."""
        seen = Seen(pfns)
        for process, vmas, before in self.done:
            with suppress(Unreadable):
                now = walk_of(vmas, walk(process, vmas), self.page_size)
                seen.add(unchanged(before, now))
        return seen.rows()
