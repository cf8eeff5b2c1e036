"""Frames that are equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.grouping import equals
from ksm_eval.replay.plain import nodes
from ksm_eval.snapshot import I64, FrameFlag, Snapshot, has


@dataclass(frozen=True)
class Equal:
    """Frames that have an equal, and zero pages, with or without; those of a content together.

    K frames, N contents."""

    rows: I64  # in Frames, shape (K,)
    bounds: I64  # rows[bounds[c]:bounds[c+1]] have content c; shape (N+1,)
    content: I64  # shape (K,)

    def sizes(self) -> I64:
        """Frames of each content, shape (N,)."""
        return np.diff(self.bounds)

    def sums(self, of_row: NDArray[np.bool_] | I64) -> I64:
        """By content, of a number of each of the K frames, shape (N,)."""
        if not len(self.rows):
            return np.zeros(0, np.int64)
        return np.add.reduceat(of_row, self.bounds[:-1], dtype=np.int64)

    def most(self, of_row: I64) -> I64:
        """The largest by content, shape (N,)."""
        if not len(self.rows):
            return np.zeros(0, np.int64)
        return np.maximum.reduceat(of_row, self.bounds[:-1])


def equal_frames(snapshot: Snapshot, across_nodes: bool) -> Equal:
    """Equal bytes, and unless `across_nodes` of one NUMA node: what one tree of ksmd holds."""
    frames = snapshot.frames
    hidden = has(frames.flags, FrameFlag.UNREADABLE)
    some = np.flatnonzero(~hidden).astype(np.uint32) if hidden.any() else None
    found, bounds = equals(frames.hash, some, nodes(snapshot, across_nodes))
    alone = has(frames.flags, FrameFlag.ZERO) & ~hidden
    alone[found] = False
    more = np.flatnonzero(alone)
    bounds = np.append(bounds, bounds[-1] + 1 + np.arange(len(more)))
    return Equal(
        rows=np.append(found, more).astype(np.int64),
        bounds=bounds,
        content=np.repeat(np.arange(len(bounds) - 1), np.diff(bounds)),
    )
