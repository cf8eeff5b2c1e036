"""Snapshot: everything the replay needs, as column arrays.

Left of it the code may touch a kernel; right of it all is computation on these
arrays, so a saved snapshot can be evaluated again anywhere. It never holds page
contents, only a keyed hash of each frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.rules import Rules, Settings

U8: TypeAlias = NDArray[np.uint8]
U16: TypeAlias = NDArray[np.uint16]
U32: TypeAlias = NDArray[np.uint32]
U64: TypeAlias = NDArray[np.uint64]
I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]
Pfns: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Page frame numbers: 32 bits where all fit (up to 16 TiB of 4 KiB pages)."""

NO_COMPOUND = 0xFFFFFFFF
"""`Frames.compound` of a frame that is in no compound page."""


EMPTY = -1
"""In `KsmdState.tree`, instead of a stable node: a chain that has none any more."""


SEQNR_MASK = 0xFF
"""Which bits of a pass's number are in `KsmdState.item_seqnr`."""


class MappingFlag(IntFlag):
    """One candidate mapping: bits of its PTE or PMD."""

    PROT_NONE = 1  # _PAGE_PROTNONE: mprotect(PROT_NONE) or a NUMA hint
    HUGE = 2  # mapped by a huge PMD (or PUD), not by PTEs
    WRITE = 4
    DIRTY = 8


class FrameFlag(IntFlag):
    """One frame: from struct page, and from its contents."""

    KSM = 1  # is a KSM page already (ksmd has run on this target)
    ZERO = 2  # all bytes zero
    PINNED = 4  # more references than mappings explain: write_protect_page() would fail
    SWAPCACHE = 8
    EXCLUSIVE = 16  # PG_anon_exclusive
    UNREADABLE = 32  # contents could not be read; `hash` is meaningless
    DEVICE = 64  # ZONE_DEVICE; never a candidate


def has(flags: U8, flag: IntFlag) -> NDArray[np.bool_]:
    """Rows that have `flag` set."""
    found: NDArray[np.bool_] = (flags & np.uint8(flag)) != 0
    return found


def mark(flags: U8, rows: NDArray[np.bool_], flag: IntFlag) -> None:
    """Set `flag` in those rows."""
    flags[rows] |= np.uint8(flag)


class Entry(IntEnum):
    """What a page-table entry inside a mergeable VMA was; columns of `Vmas.entries`."""

    CANDIDATE = 0  # present, normal, anonymous: ksmd would look at it
    FILE = 1  # present page of a file, or shmem
    ZERO_PAGE = 2  # the shared zero page or huge zero page
    SPECIAL = 3  # pte_special(), PFN map, or a frame without a struct page
    SWAP = 4
    MIGRATION = 5
    DEVICE = 6  # device private / exclusive entry, or ZONE_DEVICE page
    POISON = 7  # hwpoison entries and pte markers
    UNREADABLE = 8  # the table or struct page could not be read: entries lost


class ContentKind(IntEnum):
    """What the contents of a page are; column `Contents.kind`."""

    UNKNOWN = 0  # changed, or went away, before it was looked at
    ZERO = 1
    CONSTANT_BYTE = 2  # one byte, not 0, in all places
    REPEATED_WORD = 3  # one word of 8 bytes in all places
    OTHER = 4


@dataclass(frozen=True)
class Processes:
    """One row per mm, in ksmd's scan order. P rows.

    Threads and CLONE_VM tasks share an mm: `pid` is the thread group id of the
    first of them, as the caller's pid namespace has it; 0 of one outside, not `selected`.
    """

    pid: I32
    comm: list[str]
    cgroup: list[str]  # cgroup v2 path, "" if unknown
    uid: U32  # real uid, as seen in the initial user namespace; 0xFFFFFFFF if unreadable
    start_time: U64  # task_struct.start_boottime, ns
    registered: NDArray[np.bool_]  # has a ksm mm_slot: ksmd already scans it
    selected: NDArray[np.bool_]  # False: here only because ksmd works on it already
    observed: dict[
        str, I64
    ]  # ksm_rmap_items, ksm_merging_pages, ksm_zero_pages; absent: no such member
    ppid: I32 | None = None  # thread group id of the parent: whose state a fork inherits
    rss_pages: I64 | None = None  # resident: anonymous, of files and shmem. None: unknown
    user_ns: U32 | None = None  # inode number of the user namespace, 0 where unreadable
    merge_any: NDArray[np.bool_] | None = None
    """PR_SET_MEMORY_MERGE was set. None: unknown; False also where /proc is silent (to 6.13)."""

    def __len__(self) -> int:
        return len(self.pid)


@dataclass(frozen=True)
class Vmas:
    """One row per VMA, by process, then address. V rows."""

    process: U32  # row in Processes
    start: U64
    end: U64
    flags: U64  # vm_flags
    name: list[str]  # as in /proc/PID/maps; "" for plain anonymous memory
    reason: list[str]  # why it is not mergeable (target/vma_rules.py); "" if it is
    offset: I64  # shape (V+1,): mappings[offset[v]:offset[v+1]] are of VMA v
    entries: U32  # shape (V, len(Entry)): page-table entries by kind, in pages

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True)
class Mappings:
    """One row per candidate mapping, in ksmd's scan order. M rows."""

    frame: U32  # row in Frames
    page: U32  # (address - vma.start) / page_size
    flags: U8  # MappingFlag

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class Frames:
    """One row per distinct frame that some candidate mapping maps, by ascending PFN. F rows."""

    pfn: Pfns
    hash: U64  # XXH3-64 of the contents under a key that is not kept
    flags: U8  # FrameFlag
    mapcount: U32  # page-table entries of the whole system that map this frame
    node: U16  # NUMA node
    compound: U32  # row in Compounds, or NO_COMPOUND
    order: U32 | None = None
    """Rank of the contents in memcmp order (equal contents, equal rank). Only where the
    shape of ksmd's trees decides (Rules.prot_none_unreadable and PROT_NONE candidates)."""

    def __len__(self) -> int:
        return len(self.pfn)


@dataclass(frozen=True)
class Compounds:
    """One row per compound page (THP or smaller large folio) that has a candidate frame. C rows."""

    head: U64  # PFN of the head page
    pages: U32  # 1 << order
    pinned: NDArray[np.bool_]  # references beyond its mappings: cannot be split
    pmd_mapcount: U32  # processes of the whole system that map it by a PMD
    pte_behind: NDArray[np.bool_] | None = None
    """A process that maps it by PTEs comes after the last one with a PMD in rmap_walk(). Only
    where that decides (Rules.pmd_at_a_time) and can be read."""

    def __len__(self) -> int:
        return len(self.head)


@dataclass(frozen=True)
class Contents:
    """The contents that most frames have, at least two each: most frames first."""

    hash: U64  # as Frames.hash; each once
    kind: U8  # ContentKind

    def __len__(self) -> int:
        return len(self.hash)


@dataclass(frozen=True)
class KsmdState:
    """What ksmd remembers on a target on which it runs: its records, of all processes.

    I rmap_items in scan order, N stable nodes, T nodes of the stable trees, B pages that wait.
    """

    item_process: I32  # row in Processes, -1: of none of them
    item_dying: NDArray[np.bool_]  # the process has exited, ksmd has not noticed yet
    item_address: U64
    item_unstable: NDArray[np.bool_]
    item_seqnr: U8  # low bits of the pass that put it into the unstable tree
    item_node: I64  # stable node it is attached to, or -1
    item_current: NDArray[np.bool_]  # its checksum is that of the page that is mapped there
    item_age: U8
    item_skips: U8
    node_pfn: U64
    node_hash: U64  # as Frames.hash
    node_length: I32  # rmap_hlist_len
    node_chain: I32  # dups of a chain are together, in its order; -1: in the tree, -2: in none
    node_stale: NDArray[np.bool_]  # its page is gone, ksmd has not noticed yet
    tree: I64  # shape (T, 5): first stable node or EMPTY, parent row or -1, side, red, NUMA node
    batch_pfn: U64  # B pages with a reference of a per-CPU batch; only within a pass
    batch_mlock: NDArray[np.bool_]  # of mm/mlock.c's where ksmd ran, in its order
    full_scans: int
    cursor_process: int  # where ksmd is within a pass: row in Processes; -1: between two passes
    cursor_address: int
    tree_pruned: I64 | None = None  # T: ms since each chain was pruned, -1: no chain; None: unknown


@dataclass(frozen=True)
class Metadata:
    """Where a snapshot comes from."""

    kind: str  # "vmcore", "kernel", "qemu", "procfs"
    path: str  # of the vmcore, or ""
    release: str  # utsname release of the target
    arch: str
    page_size: int
    time: float  # seconds since the epoch when it was taken
    debug_info: str  # "DWARF (path)", "BTF + kallsyms", …
    rules: Rules
    settings: Settings  # the target's own, where readable, else the kernel's defaults
    settings_source: dict[str, str]  # setting -> "target" or "kernel default"
    counters: dict[str, int]  # the target's own /sys/kernel/mm/ksm counters, those found
    sizeof: dict[str, int]  # rmap_item, stable_node, mm_slot
    question: str  # "merge_any" (as if PR_SET_MEMORY_MERGE) or "mergeable_only"
    selection: list[str] = field(default_factory=list)  # as on the command line
    unreadable: dict[str, int] = field(default_factory=dict)  # reason -> pages
    lost: list[str] = field(default_factory=list)  # processes of which nothing can be said
    notes: list[str] = field(default_factory=list)  # what a reader must know, a line each
    total_ram_pages: int = 0
    pace: dict[str, float] = field(default_factory=dict)
    """What the target tells of how fast its ksmd is: "hz", "ksmd_cpu_seconds" since boot, and the
    scan-time advisor's settings by their sysfs names."""


@dataclass(frozen=True)
class Snapshot:
    """The memory of the selected processes at one moment."""

    meta: Metadata
    processes: Processes
    vmas: Vmas
    mappings: Mappings
    frames: Frames
    compounds: Compounds
    ksmd: KsmdState | None = None
    contents: Contents | None = None


def has_merged(snapshot: Snapshot) -> bool:
    """Are there KSM pages already?"""
    return bool(has(snapshot.frames.flags, FrameFlag.KSM).any())


def unreadable_share(snapshot: Snapshot) -> float:
    """Of all page-table entries that are or may be candidates, 0 to 1."""
    unread = has(snapshot.frames.flags, FrameFlag.UNREADABLE)[snapshot.mappings.frame].sum()
    lost = int(snapshot.vmas.entries[:, Entry.UNREADABLE].sum())
    pages = len(snapshot.mappings) + lost
    return (int(unread) + lost) / pages if pages else 0.0
