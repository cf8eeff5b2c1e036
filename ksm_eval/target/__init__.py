"""Where memory comes from. The only folder that knows drgn (or /proc)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.snapshot import I32, I64, NO_COMPOUND, U8, U16, U32, U64, Compounds, Pfns
from ksm_eval.target.core_file import CoreFile
from ksm_eval.target.meter import Meter

if TYPE_CHECKING:
    from drgn import Program as Program


@dataclass(frozen=True)
class Selection:
    """Which tasks to evaluate; the parts add up."""

    pids: tuple[int, ...] = ()  # of any thread
    children: bool = False  # and everything below `pids`, `comms` and `cgroups`
    comms: tuple[str, ...] = ()  # shell globs
    cgroups: tuple[str, ...] = ()  # cgroup v2 paths, each with its subtree
    all: bool = False
    started_by: int | None = None
    """Of `pids` only processes that had started by then (Process.start_time): with later samples
    of what runs, one of them may have ended, and another have its pid."""

    def words(self) -> list[str]:
        """As on the command line."""
        return [
            *(word for pid in self.pids for word in ("--pid", str(pid))),
            *(word for comm in self.comms for word in ("--comm", comm)),
            *(word for cgroup in self.cgroups for word in ("--cgroup", cgroup)),
            *(["--children"] if self.children else []),
            *(["--all"] if self.all else []),
        ]


@dataclass(frozen=True)
class Process:
    """One mm. `handle` is the target's own (a drgn mm_struct, a pid)."""

    pid: int
    comm: str
    cgroup: str
    uid: int
    start_time: int
    registered: bool
    observed: dict[str, int]
    handle: object
    selected: bool = True  # False: not asked for, but ksmd works on it already
    ppid: int = 0  # of real_parent's thread group
    rss_pages: int | None = None  # None: unknown
    user_ns: int = 0  # inode number of its user namespace; 0: unreadable
    unreadable: str = ""  # why nothing more can be said of it; "" if it can
    anon_pages: int = 0  # about as many has it now, by the kernel's own count; 0 if unknown
    merge_any: bool = False
    """Has PR_SET_MEMORY_MERGE. To set it again changes nothing: what has no VM_MERGEABLE now (the
    stack, if it came over exec) will not get it."""


@dataclass(frozen=True)
class Vma:
    start: int
    end: int
    flags: int
    name: str
    reason: str  # "" if mergeable
    has_anon: bool = True  # may have anonymous pages at all


@dataclass(frozen=True)
class WalkedVmas:
    """The page tables of one process's mergeable VMAs."""

    offset: I64  # shape (len(vmas)+1,), into the three below
    pfn: Pfns
    page: U32  # page index within the VMA
    flags: U8  # MappingFlag
    entries: U32  # shape (len(vmas), len(Entry)), without FILE/CANDIDATE told apart yet


@dataclass(frozen=True)
class FrameTable:
    """struct page of the given PFNs, a row each. Rows that are no candidates carry `entry` only."""

    entry: U8  # CANDIDATE: anonymous (KSM included), not ZONE_DEVICE; else FILE, SPECIAL …
    flags: U8  # FrameFlag but for ZERO and UNREADABLE
    mapcount: U32
    node: U16
    compound: U32  # row in `compounds`, or NO_COMPOUND
    compounds: Compounds  # by ascending head; without pte_behind


def group_compounds(
    head: U64, pages: U32 | U64, pinned: NDArray[np.bool_], pmd_mapcount: U32
) -> tuple[U32, Compounds]:
    """FrameTable's two columns, of frames in ascending order with the PFN of their compound head
    and what is known of it; `pages` is 1 in no compound."""
    large = np.flatnonzero(pages > 1)
    heads = head[large]
    first = np.ones(len(heads), np.bool_)
    first[1:] = heads[1:] != heads[:-1]  # a compound's frames are together
    compound = np.full(len(head), NO_COMPOUND, np.uint32)
    compound[large] = np.cumsum(first) - 1
    one = large[first]
    return compound, Compounds(
        head=head[one],
        pages=pages[one].astype(np.uint32),
        pinned=pinned[one],
        pmd_mapcount=pmd_mapcount[one],
    )


@dataclass(frozen=True)
class KsmdRecords:
    """What ksmd itself remembers, as target/ksm_state.py reads it."""

    # rmap_items, in scan order
    row: I32  # of the mm in the list of processes given; -1: none of them
    dying: NDArray[np.bool_]  # the mm has no user any more
    address: U64
    unstable: NDArray[np.bool_]  # UNSTABLE_FLAG; `seqnr`: low bits of the pass
    seqnr: U8
    stable_node: I64  # row in the stable nodes, -1: not attached
    checksum: U32  # oldchecksum
    age: U8
    skips: U8
    # stable nodes; the dups of a chain are together, in its order
    node_pfn: U64
    node_length: I32
    node_chain: I32  # -1: in the tree itself, -2: in no tree
    node_stale: NDArray[np.bool_]  # its frame is another's by now
    tree: I64  # as KsmdState.tree
    full_scans: int
    cursor_row: int  # of the mm that ksmd is at, -1: between two passes
    cursor_address: int
    # as in KsmdState
    tree_pruned: I64 | None = None
    batch_pfn: U64 = field(default_factory=lambda: np.empty(0, np.uint64))
    batch_mlock: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))


WENT_AWAY = "went away while it was read"


class Unreadable(Exception):
    """Memory of the target that is not there: `reason` is one short phrase."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Gone(Unreadable):
    """A process that nobody asked for by its pid ended meanwhile: normal on a running host."""


@dataclass(frozen=True)
class TargetInfo:
    kind: str
    path: str
    release: str
    arch: str
    page_size: int
    debug_info: str
    total_ram_pages: int
    sizeof: dict[str, int]
    boot: str = ""  # equal for targets that are the same running kernel
    container: str = ""  # "kdump-compressed vmcore", …
    read_gaps: bool = True  # pages that nobody asked for may be read along with others
    notes: list[str] = field(default_factory=list)


class Memory(Protocol):
    """What sweep() asks of a target."""

    info: TargetInfo
    meter: Meter

    def places(self, pfns: Pfns) -> Pfns:
        """Where read_into() finds these frames, known to frames() before: page numbers in
        whatever the target reads from. PFNs themselves if that is physical memory."""

    def read_into(self, buffer: memoryview, place: int) -> None:
        """Fill `buffer`, whole pages, with the contents from that place on. Raises Unreadable if
        any of them cannot be read; what is in it then means nothing."""

    def still_mapped(self, pfns: Pfns) -> NDArray[np.bool_]:
        """Which of ascending PFNs are mapped where walk() found them, so that they cannot have
        become another process's; all of them where the target stands still."""


class Target(Memory, Protocol):
    """What collect() asks of a kernel."""

    def rules(self) -> Rules: ...

    def settings(self) -> tuple[Settings, dict[str, str]]:
        """The tunables and where each was found ("target" or "kernel default")."""

    def pace(self) -> dict[str, float]:
        """As Metadata.pace, what can be read of it."""

    def counters(self) -> dict[str, int]:
        """The target's own counters by sysfs name, those that are readable."""

    def processes(self, selection: Selection, *, with_registered: bool = False) -> list[Process]:
        """Selected mms in ksmd's scan order; UsageError for what does not exist.
        `with_registered` adds the others that ksmd scans already."""

    def vmas(self, process: Process, *, mergeable_only: bool) -> list[Vma]:
        """All VMAs by address, each with the reason why it is not mergeable, or "".
        Raises Unreadable if the list is broken."""

    def walk(self, process: Process, vmas: Sequence[Vma]) -> WalkedVmas:
        """Present, normal entries of the VMAs, in address order. Raises Unreadable if the
        page tables have no beginning."""

    def frames(self, pfns: Pfns) -> FrameTable:
        """struct page of ascending PFNs, in bulk."""

    def pte_behind(self, heads: U64, pages: U32) -> NDArray[np.bool_] | None:
        """Compounds.pte_behind of THPs that some process maps by a PMD and another by PTEs; None
        if it cannot be read."""

    def ksmd(self, processes: Sequence[Process]) -> KsmdRecords | None:
        """ksmd's own records, None if they cannot be read (the reason is in info.notes)."""

    def core(self) -> CoreFile | None:
        """The file to open for another process that is to read the same; None if there is none."""

    def close(self) -> None: ...


def is_program(target: object) -> TypeGuard[Program]:
    """Without importing drgn, which reading /proc or a snapshot does not need."""
    drgn = sys.modules.get("drgn")
    return drgn is not None and isinstance(target, drgn.Program)


def read_page(target: Target, place: int) -> bytes:
    """Contents of one place. Raises Unreadable."""
    page = bytearray(target.info.page_size)
    target.read_into(memoryview(page), place)
    return bytes(page)


Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total), total 0 if unknown. A stage ends in one of these:"""
OPENING = "opening"
WALKING = "walking page tables"  # pages
WALKING_PROCESSES = "walking processes"  # the same, where nobody knows how many pages they have
CLASSIFYING = "looking at frames"  # bytes read
RECORDS = "reading ksmd's records"  # bytes
READING = "reading frames"  # pages
ORDERING = "comparing contents"  # bytes
REPLAYING = "replaying ksmd"  # full scans
WAITING = "waiting"  # seconds
