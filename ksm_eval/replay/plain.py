"""Pages that never merge, counted instead of replayed: most of what a host has.

A frame whose content no other frame has is put into the unstable tree in every pass that visits
it, and changes nothing for the others. So both engines look at the other frames only, and the
plain ones are added to the counters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import any_frame, in_compound
from ksm_eval.replay.grouping import equals
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import I64, U16, U32, FrameFlag, Snapshot, has


@dataclass(frozen=True)
class Contents:
    """The frames that are not plain, those of equal contents together, and could be read."""

    rows: U32  # of the frames, K of them
    bounds: I64  # rows[bounds[c]:bounds[c+1]] have content c
    unreadable: int  # frames of the snapshot
    plain: int  # those that could be read


def tell_apart(snapshot: Snapshot, settings: Settings) -> Contents:
    """Find equal frames: equal content, equal tree and bytes."""
    frames = snapshot.frames
    some, unreadable = None, 0
    if any_frame(snapshot, FrameFlag.UNREADABLE):
        some = np.flatnonzero(~has(frames.flags, FrameFlag.UNREADABLE)).astype(np.uint32)
        unreadable = len(frames) - len(some)
    rows, bounds = equals(frames.hash, some, nodes(snapshot, settings.merge_across_nodes))
    # Of a THP that is split one PMD at a time, any page may tell who maps it.
    of_thps = snapshot.meta.rules.pmd_at_a_time and len(snapshot.compounds) > 0
    if of_thps or any_frame(snapshot, FrameFlag.KSM | FrameFlag.ZERO):
        alone = has(frames.flags, FrameFlag.KSM | FrameFlag.ZERO)
        if of_thps:
            alone |= in_compound(snapshot)
        alone[rows] = False
        alone &= ~has(frames.flags, FrameFlag.UNREADABLE)
        more = np.flatnonzero(alone)
        bounds = np.append(bounds, bounds[-1] + 1 + np.arange(len(more)))
        rows = np.append(rows, more.astype(np.uint32))
    return Contents(rows, bounds, unreadable, len(frames) - unreadable - len(rows))


def nodes(snapshot: Snapshot, across_nodes: bool) -> U16 | None:
    """NUMA node of each frame, where that tells one tree from another."""
    node = snapshot.frames.node
    return None if across_nodes or not len(node) or node.min() == node.max() else node


def positions_of(snapshot: Snapshot, frames: NDArray[np.bool_]) -> I64:
    """Mappings of marked frames."""
    found, block = [np.empty(0, np.int64)], 1 << 18
    for start in range(0, len(snapshot.mappings), block):
        marked = frames.take(snapshot.mappings.frame[start : start + block])
        found.append(np.flatnonzero(marked) + start)
    return np.concatenate(found)
