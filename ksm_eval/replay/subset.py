"""A part of a snapshot, as if ksmd knew nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import in_compound, locked_mappings
from ksm_eval.replay.counters import per_vma
from ksm_eval.replay.grouping import equals
from ksm_eval.snapshot import FrameFlag, Mappings, Snapshot, has

Bool = NDArray[np.bool_]


def subset(snapshot: Snapshot, keep: Bool) -> Snapshot:
    """Only these mappings, shape (M,).

    Who maps their frames besides counts as outside, as Frames.mapcount still has it. Frames
    without a mapping are left out; processes, VMAs and compound pages all have their rows as
    before. What ksmd remembers is left out.
    """
    vmas, mappings, frames = snapshot.vmas, snapshot.mappings, snapshot.frames
    mapped = mappings.frame[keep]
    used = np.zeros(len(frames), np.bool_)
    used[mapped] = True
    new_row = np.cumsum(used, dtype=np.uint32) - np.uint32(1)
    columns = {name: column for name, column in vars(frames).items() if column is not None}
    return replace(
        snapshot,
        mappings=Mappings(
            frame=new_row[mapped], page=mappings.page[keep], flags=mappings.flags[keep]
        ),
        vmas=replace(vmas, offset=np.concatenate(([0], np.cumsum(per_vma(vmas, keep))))),
        frames=replace(frames, **{name: column[used] for name, column in columns.items()}),
        ksmd=None,
    )


def subset_of_vmas(snapshot: Snapshot, keep: Bool) -> Snapshot:
    """Only the mappings of these VMAs, shape (V,)."""
    return subset(snapshot, np.repeat(keep, np.diff(snapshot.vmas.offset)))


def without_plain(snapshot: Snapshot) -> Snapshot:
    """Without pages that cannot change what ksmd frees, in this snapshot or any subset of it, so
    that many predictions cost little. Their counters are not those of the whole.

    Plain are frames whose content no other frame has; but for those that decide about a THP or
    about what the batch of mm/mlock.c holds, and where the shape of ksmd's trees decides.
    """
    frames, mapped, rules = snapshot.frames, snapshot.mappings.frame, snapshot.meta.rules
    if frames.order is not None:
        return snapshot
    matters = np.zeros(len(frames), np.bool_)
    matters[equals(frames.hash)[0]] = True
    matters &= ~has(frames.flags, FrameFlag.UNREADABLE)
    matters |= has(frames.flags, FrameFlag.KSM | FrameFlag.ZERO)
    if rules.pmd_at_a_time:
        matters |= in_compound(snapshot)
    elif rules.mlock_batch:
        locked = mapped[locked_mappings(snapshot)]
        matters[locked[in_compound(snapshot)[locked]]] = True
    return snapshot if matters.all() else subset(snapshot, matters[mapped])
