"""Sums over all mappings, and which of each frame come first, without an array of all.

Where many processes share frames since fork, a process's pages are mostly a few long runs of
frames that follow each other, and a sum over a run is a difference of two prefix sums. Elsewhere
the mappings are gone through a block at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import mappings_of
from ksm_eval.snapshot import I64, U32, Snapshot, Vmas

Bool = NDArray[np.bool_]
F64 = NDArray[np.float64]
Positions: TypeAlias = U32 | I64

_BLOCK = 1 << 18  # mappings at a time: the temporaries stay in cache
_SHARED = 4  # with fewer mappings a frame the prefix sums cost more than they save
_LONG = 8  # mappings a run; with shorter ones there are too many


@dataclass(frozen=True)
class Runs:
    """Mappings that follow each other in one VMA, and so do their frames. R runs."""

    position: I64  # of the first mapping
    frame: I64  # of the first mapping
    length: I64


class Visits:
    """The mappings of a snapshot in scan order."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.frame = snapshot.mappings.frame
        self.frames = len(snapshot.frames)
        self.vmas = snapshot.vmas
        self.shared = len(self.frame) >= _SHARED * self.frames
        self.runs = _runs(self.frame, self.vmas) if self.shared else None
        self.counts = self._counts(snapshot)
        """Mappings of each frame, shape (F,)."""

    def _counts(self, snapshot: Snapshot) -> U32:
        if self.runs is not None:
            change = np.zeros(self.frames + 1, np.uint32)
            np.add.at(change, self.runs.frame, np.uint32(1))
            np.subtract.at(change, self.runs.frame + self.runs.length, np.uint32(1))
            np.cumsum(change, dtype=np.uint32, out=change)
            return change[:-1]
        return mappings_of(snapshot)

    def first(self, wanted: Bool) -> Positions:
        """Position of the first mapping of each wanted frame, shape (F,); of others anything."""
        return self._earliest(wanted, None)

    def second(self, wanted: Bool, first: Positions) -> Positions:
        """Position of the second mapping of each wanted frame; they all have several."""
        return self._earliest(wanted, first)

    def _earliest(self, wanted: Bool, after: Positions | None) -> Positions:
        found: Positions = np.empty(self.frames, np.uint32)
        if len(self.frame) >= 1 << 32:
            found = np.empty(self.frames, np.int64)
        left, pending = int(np.count_nonzero(wanted)), wanted.copy()
        for start in range(0, len(self.frame), _BLOCK):
            block = self.frame[start : start + _BLOCK]
            where = np.flatnonzero(pending.take(block))
            mine = block[where]
            where += start
            if after is not None:
                later = where > after[mine]
                mine, where = mine[later], where[later]
            found[mine[::-1]] = where[::-1]  # of equal frames the last, so the first mapping, stays
            pending[mine] = False
            if self.shared:
                left -= int(np.count_nonzero(found[mine] == where))
                if not left:
                    break  # what comes is mapped since fork
        return found

    def marked(self, frames: Bool) -> I64:
        """How many mappings of each VMA are of a marked frame, shape (V,)."""
        found = np.zeros(len(self.vmas), np.int64)
        if self.runs is None:
            self._add(found, frames)
        else:
            before = np.zeros(self.frames + 1, np.uint32)
            np.cumsum(frames, dtype=np.uint32, out=before[1:])
            self._add_runs(found, before)
        return found

    def shares(self, of_frame: F64) -> F64:
        """Sums over the mappings of each VMA of a number that their frames have, shape (V,)."""
        found = np.zeros(len(self.vmas))
        if self.runs is None:
            self._add(found, of_frame)
        else:
            self._add_runs(found, np.append(0.0, np.cumsum(of_frame)))
        return found

    def _add(self, found: I64 | F64, of_frame: Bool | F64) -> None:
        offset = self.vmas.offset
        for start in range(0, len(self.frame), _BLOCK):
            values = of_frame.take(self.frame[start : start + _BLOCK])
            end = start + len(values)
            first = int(np.searchsorted(offset, start, side="right")) - 1
            last = int(np.searchsorted(offset, end, side="left"))
            bounds = np.maximum(offset[first:last], start)
            filled = np.append(bounds[1:], end) > bounds  # reduceat() knows no empty runs
            sums = np.add.reduceat(values, bounds[filled] - start, dtype=found.dtype)
            found[first:last][filled] += sums

    def _add_runs(self, found: I64 | F64, before: U32 | F64) -> None:
        """`before`: sums over the frames before each."""
        runs = self.runs
        assert runs is not None
        sums = before[runs.frame + runs.length] - before[runs.frame]
        vma = np.searchsorted(self.vmas.offset, runs.position, side="right") - 1
        np.add.at(found, vma, sums.astype(found.dtype))


def _runs(frame: U32, vmas: Vmas) -> Runs | None:
    """None: they are too short to be worth it."""
    if not len(frame):
        return None
    found = [vmas.offset[:-1][vmas.offset[:-1] < len(frame)]]
    count, most = 0, len(frame) // _LONG
    for start in range(0, len(frame), _BLOCK):
        block = frame[start : start + _BLOCK + 1]
        found.append(np.flatnonzero(block[1:] - block[:-1] != 1) + (start + 1))
        count += len(found[-1])
        if count > most:
            return None
    position = np.sort(np.concatenate(found))
    position = position[np.append(True, position[1:] != position[:-1])]
    length = np.diff(position, append=len(frame))
    return Runs(position, frame[position].astype(np.int64), length)
