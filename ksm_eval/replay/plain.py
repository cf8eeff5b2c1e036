"""Pages that never merge, counted instead of replayed: most of what a host has.

A frame whose content no other frame has is put into the unstable tree in every pass that visits
it, and changes nothing for the others. So the rest of a snapshot is evaluated without such plain
frames, and they are added to its counters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import Kind, in_compound, locked_mappings, poisoned
from ksm_eval.replay.counters import per_process, per_vma
from ksm_eval.replay.grouping import may_repeat
from ksm_eval.replay.savings import Outcome, Savings, pss, thps
from ksm_eval.snapshot import I64, FrameFlag, Mappings, Snapshot

_WORTH = 0.2  # with a smaller share of plain mappings the copy costs more than it saves


@dataclass(frozen=True)
class Divided:
    """A snapshot, and the part of it that needs a replay."""

    whole: Snapshot
    rest: Snapshot  # `whole` itself if nothing was taken out
    kept: NDArray[np.bool_]  # shape (M,): mappings of `whole` that are in `rest`
    rows: I64  # of the frames of `rest` in `whole`
    mappings: int  # those taken out
    frames: int  # those taken out that could be read, which are unshared

    def items(self) -> I64:
        """Mappings taken out of each process, shape (P,)."""
        counts = np.diff(self.whole.vmas.offset) - np.diff(self.rest.vmas.offset)
        return per_process(self.whole.vmas, counts, len(self.whole.processes))

    def outcome(self, of_rest: Outcome) -> Outcome:
        """Of the whole: plain mappings are where they were."""
        kind = np.full(len(self.kept), Kind.UNMERGED, np.uint8)
        kind[self.kept] = of_rest.kind
        placed, count = of_rest.frame.copy(), len(self.rows)
        placed[placed >= count] += len(self.whole.frames) - count  # copies that ksmd made
        there = (of_rest.frame >= 0) & (of_rest.frame < count)
        placed[there] = self.rows[of_rest.frame[there]]
        frame = self.whole.mappings.frame.astype(np.int64)
        frame[self.kept] = placed
        return Outcome(kind, frame, of_rest.split)

    def savings(self, of_rest: Savings, outcome: Outcome) -> Savings:
        """Of the whole: plain pages go on costing what they cost, and are parts of THPs."""
        if self.whole is self.rest:
            return of_rest
        whole, mappings = self.whole, self.whole.mappings
        share = whole.meta.page_size / np.maximum(whole.frames.mapcount, 1).astype(np.float64)
        plain = pss(whole, lambda at: np.where(self.kept[at], 0, share[mappings.frame[at]]))
        return replace(
            of_rest,
            thps=int(thps(whole).sum()),
            thps_split=int((thps(whole) & outcome.split).sum()),
            pss_before=of_rest.pss_before + plain,
            pss_after=of_rest.pss_after + plain,
        )


def divide(snapshot: Snapshot) -> Divided:
    """Take the plain frames out, where the order of contents does not decide what happens."""
    frames, mappings, rules = snapshot.frames, snapshot.mappings, snapshot.meta.rules
    everything = Divided(
        snapshot, snapshot, np.ones(len(mappings), np.bool_), np.arange(len(frames)), 0, 0
    )
    if frames.order is not None or poisoned(snapshot):
        return everything
    unreadable = (frames.flags & FrameFlag.UNREADABLE) != 0
    plain = unreadable | ~may_repeat(frames.hash)
    plain &= (frames.flags & np.uint8(FrameFlag.KSM | FrameFlag.ZERO)) == 0
    if rules.pmd_at_a_time:  # any page of a THP may tell who maps it
        plain &= ~in_compound(snapshot)
    elif rules.mlock_batch:  # and in an mlocked VMA, that its split empties the batch
        locked = mappings.frame[locked_mappings(snapshot)]
        plain[locked[in_compound(snapshot)[locked]]] = False
    kept = ~plain[mappings.frame]
    left_out = len(kept) - int(np.count_nonzero(kept))
    if left_out < _WORTH * len(kept):
        return everything
    new_row = np.cumsum(~plain, dtype=np.uint32) - np.uint32(1)
    columns = {name: column for name, column in vars(frames).items() if column is not None}
    counts = per_vma(snapshot.vmas, kept)
    rest = replace(
        snapshot,
        mappings=Mappings(
            frame=new_row[mappings.frame[kept]],
            page=mappings.page[kept],
            flags=mappings.flags[kept],
        ),
        vmas=replace(snapshot.vmas, offset=np.concatenate(([0], np.cumsum(counts)))),
        frames=replace(frames, **{name: column[~plain] for name, column in columns.items()}),
    )
    readable = int(np.count_nonzero(plain & ~unreadable))
    return Divided(snapshot, rest, kept, np.flatnonzero(~plain), left_out, readable)
