"""Frames that are equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.grouping import may_repeat
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
    wanted = may_repeat(frames.hash) & ~has(frames.flags, FrameFlag.UNREADABLE)
    zero = has(frames.flags, FrameFlag.ZERO) & ~has(frames.flags, FrameFlag.UNREADABLE)
    rows = np.flatnonzero(wanted | zero)
    node = np.zeros(len(rows), np.uint16) if across_nodes else frames.node[rows]
    order = np.lexsort((node, frames.hash[rows]))
    rows, node = rows[order], node[order]
    hashes = frames.hash[rows]
    starts = np.ones(len(rows) + 1, np.bool_)  # and the end
    starts[1:-1] = (hashes[1:] != hashes[:-1]) | (node[1:] != node[:-1])
    first = np.flatnonzero(starts)
    size = np.diff(first)
    kept = np.repeat(size > 1, size) | zero[rows]
    rows, size = rows[kept], size[(size > 1) | zero[rows[first[:-1]]]]
    return Equal(
        rows=rows,
        bounds=np.concatenate(([0], np.cumsum(size))),
        content=np.repeat(np.arange(len(size)), size),
    )
