"""The Target of the running kernel through /proc: no /proc/kcore, no drgn.

Only pages that are present are read, from the process itself: nothing is faulted in, no
THP is split. One thing does change: the kernel takes a read of /proc/PID/mem for a use of the
page (FOLL_TOUCH in mm/gup.c: folio_mark_accessed()), so a page that was read is referenced, and
active the next time; reclaim will spare it for longer. User space cannot read it otherwise. What
/proc does not tell is said in `info.notes`.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.snapshot import I64, U8, U16, U32, U64, Entry, FrameFlag, MappingFlag, Pfns, mark
from ksm_eval.tables import table_fits
from ksm_eval.target import (
    WENT_AWAY,
    FrameTable,
    Gone,
    KsmdRecords,
    Process,
    Selection,
    TargetInfo,
    Unreadable,
    Vma,
    WalkedVmas,
    group_compounds,
    proc_pages,
)
from ksm_eval.target.advisor import sysfs_advisor
from ksm_eval.target.ksmd_cpu import live_hz, proc_ksmd_cpu_seconds
from ksm_eval.target.meter import Meter
from ksm_eval.target.proc_maps import VM_EXEC, VM_READ, VM_WRITE, dax_devices, parse_smaps
from ksm_eval.target.proc_nodes import nodes
from ksm_eval.target.proc_rules import (
    Sysfs,
    detect_rules,
    read_names,
    read_sysfs,
    record_sizes,
    swap_types,
)
from ksm_eval.target.proc_tasks import PROC, ProcGroup, select_processes
from ksm_eval.target.rights import NO_PTRACE, check_open_files

RowOf: TypeAlias = Callable[[U64], I64]

PAGE_BITS = 45  # of a page number: 57-bit addresses, pages of 4 KiB
PAGE_MASK = (1 << PAGE_BITS) - 1

_Part: TypeAlias = tuple[U64, U32, U8]
"""Of candidates: pagemap entry, page number in the VMA, flags."""
_SMALL_PARTS = 1024  # an array takes a hundred bytes beside what is in it

_SMAPS_READ = 1 << 16  # at most; the kernel gives a few VMAs at a time


@dataclass
class _Opened:
    """One process being read. The two files stay with its mm whatever becomes of the pid."""

    process: Process
    mem: int
    pagemap: int
    page: U64  # page number (address / page size) of each mapping
    pfn: U64
    exclusive: NDArray[np.bool_]  # the frame's only mapping
    huge: NDArray[np.bool_]


class ProcTarget:
    """The running kernel. Raises TargetError where /proc does not tell enough."""

    def __init__(self) -> None:
        self._page_size = os.sysconf("SC_PAGE_SIZE")
        notes: list[str] = []
        self._kpageflags, self._kpagecount = proc_pages.open_page_files(self._page_size)
        self._names, source = read_names(notes)
        self._ksm_flag_works = proc_pages.ksm_flag_works(self._kpageflags, self._page_size)
        self._rules = detect_rules(self._names, notes)
        self._sysfs: Sysfs = read_sysfs(self._rules)
        if self._sysfs.counters.get("pages_shared") and not self._ksm_flag_works:
            notes.append(
                "this kernel does not tell through /proc which pages are KSM pages already: they "
                "are taken for pages that are yet to be merged"
            )
        self.meter = Meter()
        self._regions = proc_pages.Regions(self._page_size)
        self._opened: list[_Opened] = []
        # Frame -> where to read it: ascending PFNs, and for each the number of its place.
        self._pfns: U64 = np.empty(0, np.uint64)
        self._places: U64 = np.empty(0, np.uint64)
        self._by_place: I64 = np.empty(0, np.int64)
        uname = os.uname()
        notes.append(
            "read through /proc: pages that are pinned (O_DIRECT, io_uring, vfio) cannot be told "
            "and are taken for pages that merge"
        )
        notes.append(
            "reading a page through /proc marks it accessed: reclaim takes it for one in use, and "
            "after a second reading for one in frequent use (--via kcore should leave no mark)"
        )
        self.info = TargetInfo(
            kind="procfs",
            path="",
            release=uname.release,
            arch=platform.machine(),
            page_size=self._page_size,
            debug_info=source,
            total_ram_pages=_total_ram(self._page_size),
            sizeof=record_sizes(self._names),
            boot=_boot_id(),
            read_gaps=False,
            notes=notes,
        )
        _allow_open_files()

    def _close_processes(self) -> None:
        for opened in self._opened:
            os.close(opened.mem)
            os.close(opened.pagemap)
        self._opened = []

    def close(self) -> None:
        self._close_processes()
        for fd in (self._kpageflags, self._kpagecount):
            if fd >= 0:
                os.close(fd)
        self._kpageflags = self._kpagecount = -1

    def rules(self) -> Rules:
        return self._rules

    def settings(self) -> tuple[Settings, dict[str, str]]:
        return self._sysfs.settings, self._sysfs.source

    def pace(self) -> dict[str, float]:
        advisor = sysfs_advisor()
        found: dict[str, float] = {f"advisor_{name}": value for name, value in advisor.items()}
        hz, seconds = live_hz(), proc_ksmd_cpu_seconds()
        if hz is not None:
            found["hz"] = hz
        if seconds is not None:
            found["ksmd_cpu_seconds"] = seconds
        return found

    def counters(self) -> dict[str, int]:
        return dict(self._sysfs.counters)

    def processes(self, selection: Selection, *, with_registered: bool = False) -> list[Process]:
        self._close_processes()
        return select_processes(selection, self.info.notes, with_registered=with_registered)

    @cached_property
    def _dax(self) -> frozenset[str]:
        return dax_devices(PROC / "self" / "mountinfo")

    def vmas(self, process: Process, *, mergeable_only: bool) -> list[Vma]:
        group = _group(process)
        try:
            text = self._smaps(group.task).decode("utf-8", "backslashreplace")
            vmas = parse_smaps(text, mergeable_only=mergeable_only, dax_devices=self._dax)
        except OSError as error:
            raise _ended(group, error) from error
        except ValueError as error:
            raise Unreadable("its VMAs cannot be read") from error
        if not group.still_there():
            raise _ended(group)
        return vmas

    def _smaps(self, task: int) -> bytes:
        parts = []
        with (PROC / str(task) / "smaps").open("rb", buffering=0) as file:
            while part := file.read(_SMAPS_READ):
                parts.append(part)
                self.meter.wait(len(part))
        return b"".join(parts)

    def walk(self, process: Process, vmas: Sequence[Vma]) -> WalkedVmas:
        group = _group(process)
        mem = pagemap = -1
        try:
            # Both files belong to the mm that the task has when they are opened.
            pagemap = os.open(PROC / str(group.task) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
            mem = os.open(PROC / str(group.task) / "mem", os.O_RDONLY | os.O_CLOEXEC)
            walked, exclusive = self._walk(pagemap, vmas)
            if not group.still_there():
                raise _ended(group)
        except BaseException as error:
            for fd in (mem, pagemap):
                if fd >= 0:
                    os.close(fd)
            if isinstance(error, OSError):
                raise _ended(group, error) from error
            raise
        first = np.array([vma.start // self._page_size for vma in vmas], np.uint64)
        page = np.repeat(first, np.diff(walked.offset)) + walked.page
        huge = (walked.flags & MappingFlag.HUGE) != 0
        self._opened.append(_Opened(process, mem, pagemap, page, walked.pfn, exclusive, huge))
        return walked

    def _walk(self, fd: int, vmas: Sequence[Vma]) -> tuple[WalkedVmas, NDArray[np.bool_]]:
        kinds = swap_types(self._names).entry_of_type()
        entries = np.zeros((len(vmas), len(Entry)), np.uint32)
        parts: list[_Part] = []
        whole = 0  # parts of many small ones
        counts = []
        for row, vma in enumerate(vmas):
            found = 0
            start = vma.start // self._page_size
            regions = self._regions.populated(fd, vma.start, vma.end)
            for first, last, by_pmd in proc_pages.joined(regions):
                self.meter.wait(8 * (last - first))
                raw = proc_pages.read_entries(fd, first, last)
                present = (raw & np.uint64(proc_pages.PM_PRESENT)) != 0
                file = (raw & np.uint64(proc_pages.PM_FILE)) != 0
                swap = raw[~present & ((raw & np.uint64(proc_pages.PM_SWAP)) != 0)]
                kind = kinds[(swap & np.uint64(31)).astype(np.intp)]
                entries[row] += np.bincount(kind, minlength=len(Entry)).astype(np.uint32)
                entries[row, Entry.FILE] += np.uint32((present & file).sum())
                rows = np.flatnonzero(present & ~file)
                flags = np.zeros(len(raw), np.uint8)
                if not vma.flags & (VM_READ | VM_WRITE | VM_EXEC):
                    flags |= np.uint8(MappingFlag.PROT_NONE)
                for begin, end in by_pmd:
                    flags[max(begin - first, 0) : end - first] |= np.uint8(MappingFlag.HUGE)
                found_here = (rows + (first - start)).astype(np.uint32)
                parts.append((raw[rows], found_here, flags[rows]))
                if len(parts) - whole == _SMALL_PARTS:
                    parts[whole:] = [_one(parts[whole:])]
                    whole += 1
                found += len(rows)
            counts.append(found)
        raw, page, flags = _one(parts)
        pfn = raw & np.uint64(proc_pages.PM_PFN)
        exclusive = (raw & np.uint64(proc_pages.PM_EXCLUSIVE)) != 0
        walked = WalkedVmas(
            offset=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            pfn=pfn,
            page=page,
            flags=flags,
            entries=entries,
        )
        return walked, exclusive

    def frames(self, pfns: Pfns) -> FrameTable:
        pfns = pfns.astype(np.uint64)
        flags = self._lookup(self._kpageflags, pfns)
        entry = np.full(len(pfns), int(Entry.SPECIAL), np.uint8)
        entry[(flags & np.uint64(proc_pages.KPF_ANON)) != 0] = Entry.CANDIDATE
        entry[(flags & np.uint64(proc_pages.KPF_ZERO_PAGE)) != 0] = Entry.ZERO_PAGE
        candidate = entry == Entry.CANDIDATE
        frame_flags = np.zeros(len(pfns), np.uint8)
        if self._ksm_flag_works:
            mark(frame_flags, (flags & np.uint64(proc_pages.KPF_KSM)) != 0, FrameFlag.KSM)
        mark(frame_flags, (flags & np.uint64(proc_pages.KPF_SWAPCACHE)) != 0, FrameFlag.SWAPCACHE)
        row_of = _row_finder(pfns)
        exclusive = self._place(pfns, row_of)
        mapcount = np.ones(len(pfns), np.uint32)
        several = np.flatnonzero(candidate & ~exclusive)
        counted = self._lookup(self._kpagecount, pfns[several])
        mapcount[several] = np.minimum(counted, np.uint64(0xFFFFFFFF)).astype(np.uint32)
        head = pfns.copy()
        pages = np.ones(len(pfns), np.uint32)
        large = np.flatnonzero(candidate & ((flags & np.uint64(proc_pages.KPF_THP)) != 0))
        pmd_pages = self._page_size // 8  # HPAGE_PMD_NR: a table of 8-byte entries
        head[large], pages[large] = proc_pages.compounds(
            self._kpageflags, pfns[large], pmd_pages, self.meter.wait
        )
        whole = self._pmd_mappings(row_of, head, mapcount)
        self._check_thps(len(large))
        compound, compounds = group_compounds(head, pages, np.zeros(len(pfns), np.bool_), whole)
        return FrameTable(
            entry=entry,
            flags=frame_flags,
            mapcount=mapcount,
            node=self._nodes(pfns),
            compound=compound,
            compounds=compounds,
        )

    def _lookup(self, fd: int, pfns: U64) -> U64:
        return proc_pages.lookup(fd, pfns, self.meter.wait)

    def pte_behind(self, heads: U64, pages: U32) -> None:
        """/proc does not tell it."""

    def _place(self, pfns: U64, row_of: RowOf) -> NDArray[np.bool_]:
        """Note where to read each frame: in the first mapping of the scan order. Returns which
        frames have one mapping only."""
        places = np.zeros(len(pfns), np.uint64)
        exclusive = np.zeros(len(pfns), np.bool_)
        for slot in range(len(self._opened) - 1, -1, -1):
            opened = self._opened[slot]
            rows = row_of(opened.pfn)[::-1]  # of a repeated row the last one stays
            places[rows] = (opened.page | np.uint64(slot << PAGE_BITS))[::-1]
            exclusive[rows] = opened.exclusive[::-1]
        self._pfns, self._places = pfns, places
        self._by_place = np.argsort(places, kind="stable")
        return exclusive

    def _pmd_mappings(self, row_of: RowOf, head: U64, mapcount: U32) -> U32:
        """Of each frame's compound, mappings by PMD. Those of others than were walked are taken
        to be by PMD where these are."""
        if not any(opened.huge.any() for opened in self._opened):
            return np.zeros(len(head), np.uint32)
        mine = np.zeros(len(head), np.int64)
        by_pmd = np.zeros(len(head), np.int64)
        for opened in self._opened:
            rows = row_of(opened.pfn)
            mine += np.bincount(rows, minlength=len(head))
            by_pmd += np.bincount(rows[opened.huge], minlength=len(head))
        others = np.maximum(mapcount.astype(np.int64) - mine, 0)
        whole = np.where(by_pmd > 0, by_pmd + others, 0)
        # Any page of it that was walked stands for all: the largest.
        first = np.ones(len(head), np.bool_)
        first[1:] = head[1:] != head[:-1]
        most = np.maximum.reduceat(whole, np.flatnonzero(first)).astype(np.uint32)
        found: U32 = most[np.cumsum(first) - 1]
        return found

    def _check_thps(self, large: int) -> None:
        if large and not self._regions.works:
            self.info.notes.append(
                "this kernel (before 6.7) does not tell through /proc which THPs are mapped as a "
                "whole"
            )

    def _nodes(self, pfns: U64) -> U16:
        if self._sysfs.settings.merge_across_nodes:
            return nodes(pfns, self._page_size, [])
        return nodes(pfns, self._page_size, self.info.notes)

    def ksmd(self, processes: Sequence[Process]) -> KsmdRecords | None:
        del processes
        self.info.notes.append(
            "ksmd has worked on this host and its own records cannot be read through /proc"
        )
        return None

    def places(self, pfns: Pfns) -> U64:
        """Of frames() before: process and page number, in one number."""
        return self._places[np.searchsorted(self._pfns, pfns)]

    def core(self) -> None:
        """What runs is in no file."""

    def still_mapped(self, pfns: Pfns) -> NDArray[np.bool_]:
        # read_into() reads from the process itself: from no other, whatever happens.
        return np.ones(len(pfns), np.bool_)

    def read_into(self, buffer: memoryview, place: int) -> None:
        opened = self._opened[place >> PAGE_BITS]
        page, size = place & PAGE_MASK, len(buffer)
        count = size // self._page_size
        at = int(np.searchsorted(self._places, np.uint64(place), sorter=self._by_place))
        expected = self._pfns[self._by_place[at : at + count]]
        self.meter.wait(size + 8 * count)
        try:
            # A page that went away must not be brought back by reading it.
            now = proc_pages.read_entries(opened.pagemap, page, page + count)
            wanted = expected | np.uint64(proc_pages.PM_PRESENT)
            mask = np.uint64(proc_pages.PM_PRESENT | proc_pages.PM_PFN)
            if not np.array_equal(now & mask, wanted):  # also where the process has ended
                raise Unreadable(WENT_AWAY)
            done = os.preadv(opened.mem, [buffer], page * self._page_size)
        except OSError as error:
            raise Unreadable(f"read error ({error.strerror})") from error
        if done < size:
            raise Unreadable(WENT_AWAY)


def _one(parts: Sequence[_Part]) -> _Part:
    return (
        np.concatenate([np.empty(0, np.uint64), *(part[0] for part in parts)]),
        np.concatenate([np.empty(0, np.uint32), *(part[1] for part in parts)]),
        np.concatenate([np.empty(0, np.uint8), *(part[2] for part in parts)]),
    )


def _row_finder(pfns: U64) -> RowOf:
    """PFNs -> their rows in the ascending `pfns`, by a table where that is not too large."""
    top = int(pfns[-1]) + 1 if len(pfns) else 0
    if not table_fits(4 * top, len(pfns)):
        return lambda wanted: np.searchsorted(pfns, wanted).astype(np.int64)
    table = np.zeros(top, np.uint32)
    table[pfns] = np.arange(len(pfns), dtype=np.uint32)
    return lambda wanted: table[wanted].astype(np.int64)


def open_proc() -> ProcTarget:
    """The running kernel through /proc. Raises TargetError, with the command that would work."""
    return ProcTarget()


def _group(process: Process) -> ProcGroup:
    assert isinstance(process.handle, ProcGroup)
    return process.handle


def _ended(group: ProcGroup, error: OSError | None = None) -> Unreadable:
    """Why a process cannot be read (any more). TargetError if it is not the process's fault."""
    if error is not None:
        check_open_files(error)
    if error is not None and group.still_there():
        if isinstance(error, PermissionError):
            return Unreadable(NO_PTRACE)
        return Unreadable(f"it cannot be read: {error.strerror}")
    reason = "it ended, or started another program, while it was read"
    return Unreadable(reason) if group.explicit else Gone(reason)


def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _total_ram(page_size: int) -> int:
    """Pages of RAM the kernel manages, 0 if unknown."""
    with suppress(OSError, ValueError):
        for line in (PROC / "meminfo").read_text().split("\n"):
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024 // page_size
    return 0


def _allow_open_files() -> None:
    """Two files stay open for each process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
