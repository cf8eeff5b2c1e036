"""Memory really gained: general_profit counts mappings, this counts frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import Kind, in_compound
from ksm_eval.replay.counters import per_process
from ksm_eval.replay.visits import Visits
from ksm_eval.snapshot import I64, U8, U32, Snapshot, Vmas

F64 = NDArray[np.float64]

_BLOCK = 1 << 18  # frames at a time: the temporaries stay in cache


@dataclass(frozen=True)
class Outcome:
    """What became of some mappings, and of each compound page."""

    kind: U8  # Kind, shape (M,)
    frame: I64  # row in Frames, len(frames)+n for a new copy, or ZERO_PAGE/REMAPPED; shape (M,)
    split: NDArray[np.bool_]  # shape (C,)


@dataclass(frozen=True)
class Nodes:
    """Stable nodes that whole frames merge into, with all their mappings. N nodes."""

    frames: U32  # those of one node together
    bounds: I64  # frames[bounds[n]:bounds[n+1]] are of node n
    ksm: U32  # frame of each node, one of its own
    mappings: I64  # of each node

    def marked(self, frames: int) -> NDArray[np.bool_]:
        """Frames that merge, shape (F,)."""
        found = np.zeros(frames, np.bool_)
        found[self.frames] = True
        return found


@dataclass(frozen=True)
class Placed:
    """What became of all mappings: by frames that merge as a whole into one stable node, and one
    by one of frames for which that is not so. All others are where they were."""

    nodes: Nodes
    positions: I64  # mappings that are told one by one: all of their frames
    told: Outcome  # these

    def outcome(self, snapshot: Snapshot) -> Outcome:
        """Of every mapping."""
        frames = len(snapshot.frames)
        kind, target = np.full(frames, Kind.UNMERGED, np.uint8), np.arange(frames)
        kind[self.nodes.frames] = Kind.MERGED
        target[self.nodes.frames] = np.repeat(self.nodes.ksm, np.diff(self.nodes.bounds))
        whole = Outcome(
            kind[snapshot.mappings.frame], target[snapshot.mappings.frame], self.told.split
        )
        whole.kind[self.positions] = self.told.kind
        whole.frame[self.positions] = self.told.frame
        return whole


@dataclass(frozen=True)
class Savings:
    """Frames, bytes and THPs gained and spent by one outcome."""

    frames_freed: int  # merged + zero + thp_zero
    merged: int  # frames of pages that share a KSM frame now, less copies made in vain
    zero: int  # frames replaced by the zero page (use_zero_pages)
    thp_zero: int  # zero subpages of split THPs, replaced by the zero page (6.12+)
    thps: int  # PMD-sized compound pages with candidates
    thps_split: int  # of these; thp_split_page of /proc/vmstat
    compounds_split: int  # of any size
    metadata_bytes: int  # rmap_items, stable nodes, mm_slots
    pss_before: F64  # bytes, of the candidate mappings, shape (P,)
    pss_after: F64  # the same


def savings(
    snapshot: Snapshot, visits: Visits, placed: Placed, items: int, stable_nodes: int
) -> Savings:
    """What an outcome saves.

    A frame is freed when its last mapping has gone. One that somebody outside the selection
    maps is not, but for zero subpages of a split THP: those go in all processes.

    PSS (smaps' Pss): each mapped page divided by its mappings.
    """
    count, size = len(snapshot.processes), snapshot.meta.sizeof
    share = _shares(snapshot, visits.counts)
    pss_before = per_process(snapshot.vmas, visits.shares(share), count)
    merged = _merge(snapshot, visits.counts, placed.nodes, share)
    freed = _Told(0, 0, 0, np.zeros(count))
    if len(placed.positions):
        freed = _told(snapshot, visits.counts, placed, share)
    pss_after = per_process(snapshot.vmas, visits.shares(share), count) + freed.pss
    merged += freed.merged
    thp, split = thps(snapshot), placed.told.split
    return Savings(
        frames_freed=merged + freed.zero + freed.thp_zero,
        merged=merged,
        zero=freed.zero,
        thp_zero=freed.thp_zero,
        thps=int(thp.sum()),
        thps_split=int((thp & split).sum()),
        compounds_split=int(split.sum()),
        metadata_bytes=items * size["rmap_item"]
        + stable_nodes * size["stable_node"]
        + count * size["mm_slot"],
        pss_before=pss_before,
        pss_after=pss_after,
    )


def thps(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Compounds that have candidates and the size of a PMD, shape (C,)."""
    compounds = snapshot.compounds
    found = np.zeros(len(compounds), np.bool_)
    if len(compounds):
        found[snapshot.frames.compound[in_compound(snapshot)]] = True
    found &= compounds.pages == snapshot.meta.page_size // 8  # a table of 8-byte entries
    return found


def _shares(snapshot: Snapshot, counts: U32) -> F64:
    """Page size by mappings of each frame, shape (F,)."""
    found, mapcount = np.empty(len(counts)), snapshot.frames.mapcount
    for start in range(0, len(counts), _BLOCK):
        at = slice(start, start + _BLOCK)
        mapped = np.maximum(np.maximum(mapcount[at], counts[at]), 1)
        np.divide(snapshot.meta.page_size, mapped, out=found[at])
    return found


def _outside(snapshot: Snapshot, counts: U32, rows: U32 | I64) -> I64:
    """Mappings of these frames by processes that are not in the snapshot."""
    found: I64 = snapshot.frames.mapcount[rows].astype(np.int64) - counts[rows]
    return np.maximum(found, 0)


def _merge(snapshot: Snapshot, counts: U32, nodes: Nodes, share: F64) -> int:
    """Frames freed by those that merge as a whole; `share` becomes what it is afterwards."""
    kept = np.zeros(len(counts), np.bool_)  # by somebody outside, or as the KSM frame
    for start in range(0, len(counts), _BLOCK):
        at = slice(start, start + _BLOCK)
        np.greater(snapshot.frames.mapcount[at], counts[at], out=kept[at])
    mappings, strangers = nodes.mappings, bool(kept.any())
    if strangers:
        mappings = mappings + _outside(snapshot, counts, nodes.ksm)
        kept[nodes.ksm] = True
    mapped = snapshot.meta.page_size / mappings
    freed, start = 0 if strangers else -len(mapped), 0
    while start < len(mapped):
        first = nodes.bounds[start]
        end = int(np.searchsorted(nodes.bounds, first + _BLOCK, side="right")) - 1
        end = max(end, start + 1)
        rows = nodes.frames[first : nodes.bounds[end]]
        share[rows] = np.repeat(mapped[start:end], np.diff(nodes.bounds[start : end + 1]))
        freed += len(rows) - (int(np.count_nonzero(kept.take(rows))) if strangers else 0)
        start = end
    return freed


@dataclass(frozen=True)
class _Told:
    """Frames freed among those whose mappings are told one by one, and PSS of these mappings."""

    merged: int
    zero: int
    thp_zero: int
    pss: F64


def _told(snapshot: Snapshot, counts: U32, placed: Placed, share: F64) -> _Told:
    n, told = len(snapshot.frames), placed.told
    before = snapshot.mappings.frame[placed.positions]
    after = np.bincount(told.frame[told.frame >= 0], minlength=n)
    copies = int((after[n:] > 0).sum())
    share[before] = 0.0

    # Only mappings that left their frame can free it.
    moved = told.frame != before
    kinds, left = told.kind[moved], before[moved]
    remapped = np.zeros(n, np.bool_)
    remapped[left[kinds == Kind.REMAPPED]] = True
    to_zero = np.zeros(n, np.bool_)
    to_zero[left[kinds == Kind.ZERO_PAGE]] = True
    mine = np.zeros(n, np.bool_)
    mine[before] = True
    rows = np.flatnonzero(mine)
    outside = np.where(remapped[rows], 0, _outside(snapshot, counts, rows))
    freed = rows[(after[rows] == 0) & (outside == 0)]
    thp_zero = int(remapped[freed].sum())
    zero = int((to_zero & ~remapped)[freed].sum())

    after[rows] += outside
    of_frame = np.zeros(len(after) + 1)  # the last: the zero page, which does not count
    np.divide(snapshot.meta.page_size, after, out=of_frame[:-1], where=after > 0)
    vma = vma_of(snapshot.vmas, placed.positions)
    pss = np.zeros(len(snapshot.processes))
    np.add.at(pss, snapshot.vmas.process[vma], of_frame[np.maximum(told.frame, -1)])
    return _Told(len(freed) - thp_zero - zero - copies, zero, thp_zero, pss)


def vma_of(vmas: Vmas, positions: I64) -> I64:
    """Row in Vmas of these mappings."""
    return np.searchsorted(vmas.offset, positions, side="right") - 1
