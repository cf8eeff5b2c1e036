"""Memory really gained: general_profit counts mappings, this counts frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import Kind, in_compound, mappings_of
from ksm_eval.snapshot import I64, U8, Snapshot

F64 = NDArray[np.float64]


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
    frames, compounds, meta = snapshot.frames, snapshot.compounds, snapshot.meta
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

    thp = np.zeros(len(compounds), np.bool_)
    thp[frames.compound[in_compound(snapshot)]] = True
    thp &= compounds.pages == meta.page_size // 8  # HPAGE_PMD_ORDER: a table of 8-byte entries
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
        pss_before=_pss(snapshot, before.astype(np.int64), outside + selected),
        pss_after=_pss(
            snapshot,
            outcome.frame,
            after + np.append(np.where(remapped, 0, outside), np.zeros(len(after) - n, np.int64)),
        ),
    )


def _pss(snapshot: Snapshot, frame: I64, mapcount: I64) -> F64:
    """Each mapped page divided by its mappings (smaps' Pss), in bytes, shape (P,)."""
    share = np.zeros(len(mapcount) + 1)  # the last: the zero page, which does not count
    np.divide(snapshot.meta.page_size, mapcount, out=share[:-1], where=mapcount > 0)
    vmas = snapshot.vmas
    found = np.zeros(len(snapshot.processes))
    filled = vmas.offset[1:] > vmas.offset[:-1]  # reduceat() knows no empty runs
    if filled.any():
        sums = np.add.reduceat(share[np.maximum(frame, -1)], vmas.offset[:-1][filled])
        np.add.at(found, vmas.process[filled], sums)
    return found
