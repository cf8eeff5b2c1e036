"""What both engines derive from a snapshot before they replay it."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ksm_eval.errors import TargetError
from ksm_eval.replay.grouping import numbered
from ksm_eval.snapshot import I64, NO_COMPOUND, U8, U32, FrameFlag, MappingFlag, Snapshot, has

VM_LOCKED = 0x2000
"""include/linux/mm.h: the VMA is mlocked. No zero page is mapped there at a THP split, and
pages that leave it pass through a per-CPU batch."""

ZERO_PAGE = -1
REMAPPED = -2
"""Instead of a frame: the mapping is the shared zero page now, by ksmd or by a THP split."""


class Kind(IntEnum):
    """What became of a mapping; values of `Outcome.kind`."""

    UNMERGED = 0
    MERGED = 1  # attached to a stable node
    ZERO_PAGE = 2  # ksmd mapped the zero page (use_zero_pages)
    REMAPPED = 3  # a THP split mapped the zero page: outside all KSM counters
    ORPHAN = 4  # maps a KSM frame without a stable node: a merge was undone (ksm-kernels 2.2)


def contents(snapshot: Snapshot, rows: I64, across_nodes: bool) -> I64:
    """Content of each of these frames: equal number, equal tree and bytes.

    Numbered from 0 in no meaningful order; unreadable frames are -1.
    """
    frames = snapshot.frames
    also = None if across_nodes else frames.node[rows]
    number = numbered(frames.hash[rows], also).astype(np.int64)
    number[has(frames.flags[rows], FrameFlag.UNREADABLE)] = -1
    return number


def mappings_of(snapshot: Snapshot) -> U32:
    """How many selected mappings each frame has, shape (F,)."""
    found, block = np.zeros(len(snapshot.frames), np.uint32), 1 << 18
    for start in range(0, len(snapshot.mappings), block):
        rows = snapshot.mappings.frame[start : start + block].astype(np.intp)
        np.add.at(found, rows, np.uint32(1))
    return found


def any_frame(snapshot: Snapshot, flag: FrameFlag) -> bool:
    """Whether a frame has this flag: most snapshots have few of them, and no table is needed."""
    return bool(np.bitwise_or.reduce(snapshot.frames.flags, initial=0) & flag)


def in_compound(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Frames of a compound page, shape (F,)."""
    found: NDArray[np.bool_] = snapshot.frames.compound != NO_COMPOUND
    return found


def checked_mappings(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Mappings for which write_protect_page() compares references, shape (M,)."""
    frames, mappings = snapshot.frames, snapshot.mappings
    checked = (mappings.flags & np.uint8(MappingFlag.WRITE | MappingFlag.DIRTY)) != 0
    if snapshot.meta.rules.anon_exclusive:
        checked |= has(frames.flags, FrameFlag.EXCLUSIVE)[mappings.frame]
    return np.asarray(checked, np.bool_)


def locked_mappings(snapshot: Snapshot) -> NDArray[np.bool_]:
    """Mappings in a VM_LOCKED VMA, shape (M,)."""
    vmas = snapshot.vmas
    return np.repeat((vmas.flags & np.uint64(VM_LOCKED)) != 0, np.diff(vmas.offset))


def locked_frames(snapshot: Snapshot) -> NDArray[np.bool_] | None:
    """Frames with a mapping in a VM_LOCKED VMA, shape (F,); None if there is none."""
    vmas = snapshot.vmas
    locked = (vmas.flags & np.uint64(VM_LOCKED)) != 0
    if not locked.any():
        return None
    found = np.zeros(len(snapshot.frames), np.bool_)
    for start, end in zip(vmas.offset[:-1][locked], vmas.offset[1:][locked], strict=True):
        found[snapshot.mappings.frame[start:end]] = True
    return found


def blocked_mappings(snapshot: Snapshot) -> U8 | None:
    """1 for each mapping write_protect_page() refuses, shape (M,); None if there is none.

    It compares references only where the entry is writable or dirty, or (5.19+) the page
    is exclusive. Frames of a compound page are left to `Compounds.pinned`: a compound with
    extra references cannot be split, and one that could be split had none.
    """
    frames, mappings = snapshot.frames, snapshot.mappings
    if not any_frame(snapshot, FrameFlag.PINNED):
        return None
    pinned = has(frames.flags, FrameFlag.PINNED) & ~in_compound(snapshot)
    if not pinned.any():
        return None
    blocked: U8 = (checked_mappings(snapshot) & pinned[mappings.frame]).astype(np.uint8)
    return blocked


def split_attempts(snapshot: Snapshot) -> I64:
    """Attempts it takes to split each compound page on 6.16 to early 6.19, shape (C,); 0 and 1
    alike succeed at once.

    An attempt ends at the first process that maps the page by PMD, which has PTEs from then on.
    It succeeds if no other mapper follows: one that has PTEs costs another attempt if it comes
    behind the last PMD. Where the snapshot does not tell, mappers are taken to follow each other
    in fork order.
    """
    compounds, mappings = snapshot.compounds, snapshot.mappings
    attempts = compounds.pmd_mapcount.astype(np.int64)
    if compounds.pte_behind is not None:
        return attempts + compounds.pte_behind
    process = np.repeat(snapshot.vmas.process.astype(np.int64), np.diff(snapshot.vmas.offset))
    compound = snapshot.frames.compound[mappings.frame].astype(np.int64)
    inside = compound != NO_COMPOUND
    huge = has(mappings.flags, MappingFlag.HUGE)
    last = np.full((2, len(compounds)), -1, np.int64)  # process row of the last PTE, PMD mapper
    for kind, of_kind in enumerate((inside & ~huge, inside & huge)):
        np.maximum.at(last[kind], compound[of_kind], process[of_kind])
    attempts[(attempts > 0) & (last[1] >= 0) & (last[0] > last[1])] += 1
    return attempts


def remappable(snapshot: Snapshot, positions: I64) -> NDArray[np.bool_]:
    """Those of these mappings that try_to_map_unused_to_zeropage() (mm/migrate.c, 6.12+) does not
    spare when their THP is split.

    It spares mlocked VMAs. And pages with PG_mlocked, which a page gets back as soon as its
    mapping in such a VMA has been restored (mlock_vma_folio(), mm/rmap.c): all mappings behind
    that one, in fork order, keep their page, too.
    """
    frame = snapshot.mappings.frame
    locked = np.flatnonzero(locked_mappings(snapshot))
    first_locked = np.full(len(snapshot.frames), len(frame), np.int64)
    first_locked[frame[locked[::-1]]] = locked[::-1]  # of equal rows the last one stays
    free: NDArray[np.bool_] = positions < first_locked[frame[positions]]
    return free


def blocked_by_prot_none(snapshot: Snapshot) -> bool:
    """Whether there are PROT_NONE pages, which this kernel cannot read in the unstable tree."""
    if not snapshot.meta.rules.prot_none_unreadable:
        return False
    return bool(has(snapshot.mappings.flags, MappingFlag.PROT_NONE).any())


def poisoned(snapshot: Snapshot) -> bool:
    """Whether the shape of the unstable tree decides, so that everything must be replayed.

    Raises TargetError if it does and the snapshot does not have `Frames.order`.
    """
    if not blocked_by_prot_none(snapshot):
        return False
    if snapshot.frames.order is None:
        raise TargetError(
            "PROT_NONE pages block merging on this kernel, and the snapshot does not tell "
            "the order of the contents",
            "take the snapshot again from the target with this version",
        )
    return True
