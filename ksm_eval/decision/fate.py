"""What becomes of each frame: a Prediction as the questions of a decision need it.

Most frames go one way with all their mappings, so what became of them is told by frame, and no
array is as long as the mappings are many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import Kind, mappings_of
from ksm_eval.replay.converged import Prediction
from ksm_eval.snapshot import I64, U8, U32, Snapshot, Vmas

Bool = NDArray[np.bool_]
F64 = NDArray[np.float64]

_BLOCK = 1 << 18  # mappings at a time: the temporaries stay in cache


@dataclass(frozen=True)
class Fate:
    """F frames, T mappings that are told one by one because their frame's go several ways."""

    kind: U8  # Kind of the mappings of each frame, shape (F,)
    target: I64  # their frame now, as in Outcome.frame, shape (F,)
    told: I64  # positions of mappings: all of their frames. Ascending, shape (T,)
    told_kind: U8
    told_target: I64
    one_by_one: Bool  # frames of `told`, for which `kind` and `target` say nothing, shape (F,)
    split: Bool  # compound pages, shape (C,)
    counts: I64  # mappings of each frame, shape (F,)
    outside: I64  # and by processes that are not in the snapshot
    after: I64  # of the snapshot's mappings those that map it now; shape (F + copies,)
    remapped: Bool  # zero pages that a THP split takes from all processes, shape (F,)
    freed: Bool  # nobody maps it any more, shape (F,)
    copies: int  # frames that ksmd made in vain


def fate_of(snapshot: Snapshot, prediction: Prediction) -> Fate:
    """`prediction` is that of this snapshot."""
    frames, mapped = len(snapshot.frames), snapshot.mappings.frame
    placed = prediction.placed
    whole, positions = placed.nodes, placed.positions
    kind, target = np.zeros(frames, np.uint8), np.arange(frames)
    kind[whole.frames] = Kind.MERGED
    target[whole.frames] = np.repeat(whole.ksm, np.diff(whole.bounds))
    told_kind, told_target = placed.told.kind, placed.told.frame
    one_by_one = np.zeros(frames, np.bool_)
    one_by_one[mapped[positions]] = True

    counts = mappings_of(snapshot).astype(np.int64)
    outside = np.maximum(snapshot.frames.mapcount.astype(np.int64) - counts, 0)
    stays = (target >= 0) & ~one_by_one
    copies = max(int(target.max(initial=-1)), int(told_target.max(initial=-1))) + 1 - frames
    after = np.bincount(
        target[stays], weights=counts[stays], minlength=frames + max(copies, 0)
    ).astype(np.int64)
    np.add.at(after, told_target[told_target >= 0], 1)
    remapped = (kind == Kind.REMAPPED) & ~one_by_one
    remapped[mapped[positions[told_kind == Kind.REMAPPED]]] = True
    freed = (counts > 0) & (after[:frames] == 0) & ((outside == 0) | remapped)
    return Fate(
        kind=kind,
        target=target,
        told=positions,
        told_kind=told_kind,
        told_target=told_target,
        one_by_one=one_by_one,
        split=placed.told.split,
        counts=counts,
        outside=outside,
        after=after,
        remapped=remapped,
        freed=freed,
        copies=int((after[frames:] > 0).sum()),
    )


def frames_with(snapshot: Snapshot, fate: Fate, kind: Kind) -> Bool:
    """Frames of which a mapping became that, shape (F,)."""
    found: Bool = (fate.kind == kind) & ~fate.one_by_one & (fate.counts > 0)
    found[snapshot.mappings.frame[fate.told[fate.told_kind == kind]]] = True
    return found


def pss_by_vma(snapshot: Snapshot, fate: Fate) -> tuple[F64, F64]:
    """Each candidate page divided by its mappings (smaps' Pss), in bytes, before and after; shape
    (V,) both."""
    frames, size = len(snapshot.frames), snapshot.meta.page_size
    before = sum_by_vma(snapshot, size / np.maximum(fate.counts + fate.outside, 1))
    mapped = fate.after.copy()
    mapped[:frames] += np.where(fate.remapped, 0, fate.outside)
    share = np.zeros(len(mapped) + 1)  # the last: the zero page, which does not count
    np.divide(size, mapped, out=share[:-1], where=mapped > 0)
    after = sum_by_vma(snapshot, np.where(fate.one_by_one, 0.0, share[np.maximum(fate.target, -1)]))
    if len(fate.told):
        vma = vma_of(snapshot.vmas, fate.told)
        np.add.at(after, vma, share[np.maximum(fate.told_target, -1)])
    return before, after


def items_by_vma(snapshot: Snapshot, fate: Fate) -> I64:
    """rmap_items, shape (V,): zero pages have none."""
    items = np.diff(snapshot.vmas.offset)
    gone = ((fate.kind == Kind.ZERO_PAGE) | (fate.kind == Kind.REMAPPED)) & ~fate.one_by_one
    if gone.any():
        items = items - np.rint(sum_by_vma(snapshot, gone.astype(np.float64))).astype(np.int64)
    gone = (fate.told_kind == Kind.ZERO_PAGE) | (fate.told_kind == Kind.REMAPPED)
    np.subtract.at(items, vma_of(snapshot.vmas, fate.told[gone]), 1)
    return items


def sum_by_vma(snapshot: Snapshot, of_frame: F64) -> F64:
    """Sums over the mappings of each VMA of a number that their frames have, shape (V,)."""
    offset, mapped = snapshot.vmas.offset, snapshot.mappings.frame
    found = np.zeros(len(snapshot.vmas))
    for at in _blocks(len(mapped)):
        first = int(np.searchsorted(offset, at.start, side="right")) - 1
        last = int(np.searchsorted(offset, at.stop, side="left"))
        bounds = np.maximum(offset[first:last], at.start)
        filled = np.append(bounds[1:], at.stop) > bounds  # reduceat() knows no empty runs
        found[first:last][filled] += np.add.reduceat(
            of_frame[mapped[at]], bounds[filled] - at.start
        )
    return found


def largest_by_frame(snapshot: Snapshot, of_vma: I64) -> I64:
    """The largest of a number, at least -1, that the VMAs that map a frame have; shape (F,)."""
    offset, mapped = snapshot.vmas.offset, snapshot.mappings.frame
    found = np.full(len(snapshot.frames), -1)
    for at in _blocks(len(mapped)):
        first = int(np.searchsorted(offset, at.start, side="right")) - 1
        last = int(np.searchsorted(offset, at.stop, side="left"))
        bounds = np.minimum(np.maximum(offset[first : last + 1], at.start), at.stop)
        np.maximum.at(found, mapped[at], np.repeat(of_vma[first:last], np.diff(bounds)))
    return found


def vma_of(vmas: Vmas, positions: I64) -> I64:
    """Row in Vmas of these mappings."""
    return np.searchsorted(vmas.offset, positions, side="right") - 1


def positions_of(mapped: U32, frames: Bool) -> I64:
    """Mappings of marked frames."""
    found = [np.flatnonzero(frames[mapped[at]]) + at.start for at in _blocks(len(mapped))]
    return np.concatenate([np.empty(0, np.int64), *found])


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
