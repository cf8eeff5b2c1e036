"""Memory really gained: general_profit counts mappings, this counts frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import Kind, in_compound, mappings_of
from ksm_eval.snapshot import I64, U8, U32, Snapshot

F64 = NDArray[np.float64]

_BLOCK = 1 << 18  # mappings at a time: the temporaries stay in cache


@dataclass(frozen=True)
class Outcome:
    """What became of each mapping, and of each compound page."""

    kind: U8  # Kind, shape (M,)
    frame: I64  # row in Frames, len(frames)+n for a new copy, or ZERO_PAGE/REMAPPED; shape (M,)
    split: NDArray[np.bool_]  # shape (C,)


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


def savings(snapshot: Snapshot, outcome: Outcome, items: int, stable_nodes: int) -> Savings:
    """What an outcome saves.

    A frame is freed when its last mapping has gone. One that somebody outside the selection
    maps is not, but for zero subpages of a split THP: those go in all processes.
    """
    frames, meta = snapshot.frames, snapshot.meta
    n = len(frames)
    before = snapshot.mappings.frame
    selected = mappings_of(snapshot)
    outside = np.maximum(frames.mapcount.astype(np.int64) - selected, 0)
    placed = outcome.frame[outcome.frame >= 0]
    after = np.bincount(placed, minlength=n)
    copies = int((after[n:] > 0).sum())

    # Only mappings that left their frame can free it.
    moved = outcome.frame != before
    kinds = outcome.kind[moved]
    left = before[moved]
    remapped = np.zeros(n, np.bool_)
    remapped[left[kinds == Kind.REMAPPED]] = True
    to_zero = np.zeros(n, np.bool_)
    to_zero[left[kinds == Kind.ZERO_PAGE]] = True
    freed = (selected > 0) & (after[:n] == 0) & ((outside == 0) | remapped)
    thp_zero = int((freed & remapped).sum())
    zero = int((freed & to_zero & ~remapped).sum())
    merged = int(freed.sum()) - thp_zero - zero - copies

    thp = thps(snapshot)
    size = meta.sizeof
    return Savings(
        frames_freed=merged + zero + thp_zero,
        merged=merged,
        zero=zero,
        thp_zero=thp_zero,
        thps=int(thp.sum()),
        thps_split=int((thp & outcome.split).sum()),
        compounds_split=int(outcome.split.sum()),
        metadata_bytes=items * size["rmap_item"]
        + stable_nodes * size["stable_node"]
        + len(snapshot.processes) * size["mm_slot"],
        pss_before=pss(snapshot, _shares(snapshot, before, outside + selected)),
        pss_after=pss(
            snapshot,
            _shares(
                snapshot,
                outcome.frame,
                after
                + np.append(np.where(remapped, 0, outside), np.zeros(len(after) - n, np.int64)),
            ),
        ),
    )


def thps(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Compounds that have candidates and the size of a PMD, shape (C,)."""
    compounds = snapshot.compounds
    found = np.zeros(len(compounds), np.bool_)
    found[snapshot.frames.compound[in_compound(snapshot)]] = True
    found &= compounds.pages == snapshot.meta.page_size // 8  # a table of 8-byte entries
    return found


def _shares(snapshot: Snapshot, frame: I64 | U32, mapcount: I64) -> Callable[[slice], F64]:
    """Of mappings in a slice: page size by mapcount of the frame; 0 of one without (< 0)."""
    share = np.zeros(len(mapcount) + 1)  # the last: the zero page, which does not count
    np.divide(snapshot.meta.page_size, mapcount, out=share[:-1], where=mapcount > 0)
    if frame.dtype == np.uint32:
        return lambda at: share[frame[at]]
    return lambda at: share[np.maximum(frame[at], -1)]


def pss(snapshot: Snapshot, shares: Callable[[slice], F64]) -> F64:
    """Each mapped page divided by its mappings (smaps' Pss), in bytes, shape (P,). `shares`
    gives them for a slice of the mappings, so that there never is an array of all."""
    vmas, offset = snapshot.vmas, snapshot.vmas.offset
    found = np.zeros(len(snapshot.processes))
    for start in range(0, len(snapshot.mappings), _BLOCK):
        end = min(start + _BLOCK, len(snapshot.mappings))
        first = int(np.searchsorted(offset, start, side="right")) - 1
        last = int(np.searchsorted(offset, end, side="left"))
        bounds = np.maximum(offset[first:last], start)
        filled = np.append(bounds[1:], end) > bounds  # reduceat() knows no empty runs
        sums = np.add.reduceat(shares(slice(start, end)), bounds[filled] - start)
        np.add.at(found, vmas.process[first:last][filled], sums)
    return found
