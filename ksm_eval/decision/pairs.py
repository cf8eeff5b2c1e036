"""Who shares with whom."""

from __future__ import annotations

import numpy as np

from ksm_eval.decision.equal import equal_frames
from ksm_eval.decision.fate import Fate, fate_of, frames_with
from ksm_eval.decision.mixing import mixed
from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import Prediction
from ksm_eval.report.decision import Pair
from ksm_eval.snapshot import I64, U32, Snapshot

MOST = 32
"""Processes: a bit each of one word."""


def pairs(
    snapshot: Snapshot, prediction: Prediction, fate: Fate | None = None, most: int = MOST
) -> tuple[Pair, ...]:
    """Of the `most` selected processes that gain most: frames that merge, of contents that both
    have, content by content the smaller of the two counts. The largest first, none without any.

    A frame that both map since a fork counts for neither: it saves nothing. A process with itself:
    its frames of a content beyond the first. Equal pages of two NUMA nodes count as equal.
    """
    fate = fate or fate_of(snapshot, prediction)
    people = _most_gaining(snapshot, prediction, min(most, MOST))
    equal = equal_frames(snapshot, across_nodes=True)
    mappers = _mappers(snapshot, people)[equal.rows]
    merging = frames_with(snapshot, fate, Kind.MERGED)[equal.rows] & (mappers != 0)
    alike = _Alike(equal.content[merging], mappers[merging])
    in_report = np.cumsum(snapshot.processes.selected) - 1
    found = []
    for i, first in enumerate(people):
        for j in range(i, len(people)):
            frames = alike.frames(i, j)
            if frames:
                both = sorted((int(in_report[first]), int(in_report[people[j]])))
                found.append(Pair(both[0], both[1], frames))
    return tuple(sorted(found, key=lambda pair: (-pair.frames, pair.first, pair.second)))


def _most_gaining(snapshot: Snapshot, prediction: Prediction, most: int) -> list[int]:
    """Rows of processes, best first."""
    saved, size = prediction.savings, snapshot.meta.sizeof["rmap_item"]
    gain = saved.pss_before - saved.pss_after - prediction.processes.ksm_rmap_items * size
    rows = np.flatnonzero(snapshot.processes.selected)
    best: list[int] = rows[np.argsort(-gain[rows], kind="stable")][:most].tolist()
    return best


def _mappers(snapshot: Snapshot, people: list[int]) -> U32:
    """Which of these processes map each frame, a bit each, shape (F,)."""
    vmas, found = snapshot.vmas, np.zeros(len(snapshot.frames), np.uint32)
    bounds = vmas.offset[np.searchsorted(vmas.process, np.arange(len(snapshot.processes) + 1))]
    for bit, row in enumerate(people):
        found[snapshot.mappings.frame[bounds[row] : bounds[row + 1]]] |= np.uint32(1 << bit)
    return found


class _Alike:
    """Contents of which the same sets of processes have as many frames, together: where many
    processes do the same there are few that differ."""

    def __init__(self, content: I64, mappers: U32) -> None:
        """By frame, those of a content together."""
        starts = np.ones(len(content) + 1, np.bool_)  # and the end
        starts[1:-1] = content[1:] != content[:-1]
        first = np.flatnonzero(starts)
        signature = np.empty(0, np.uint64)
        if len(content):
            # A sum does not depend on the order of a content's frames.
            signature = np.add.reduceat(mixed(mappers.astype(np.uint64)), first[:-1])
        _, kept, self.times = np.unique(signature, return_index=True, return_counts=True)
        number = np.full(len(first) - 1, -1)
        number[kept] = np.arange(len(kept))
        rows = np.repeat(number, np.diff(first))
        inside = rows >= 0
        keys = rows[inside] << 32 | mappers[inside]
        distinct, self.count = np.unique(keys, return_counts=True)
        self.content = distinct >> 32
        self.has = [distinct >> bit & 1 != 0 for bit in range(32)]

    def frames(self, i: int, j: int) -> int:
        """Of bits i and j, as pairs() tells."""
        if i == j:
            found = np.maximum(self._of(self.has[i]) - 1, 0)
        else:
            found = np.minimum(
                self._of(self.has[i] & ~self.has[j]), self._of(self.has[j] & ~self.has[i])
            )
        return int(found @ self.times)

    def _of(self, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> I64:
        counts = np.bincount(
            self.content[chosen], weights=self.count[chosen], minlength=len(self.times)
        )
        return counts.astype(np.int64)
