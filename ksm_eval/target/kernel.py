"""The Target of a drgn Program: a vmcore, the running kernel, a QEMU guest.

What runs changes while it is read. A process is checked again behind every step, a page when
its contents have been read: what is no longer what it was is counted, not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from drgn import Architecture, FaultError, Object, PlatformFlags, Program
from drgn.helpers.linux.mm import virt_to_phys
from numpy.typing import NDArray

from ksm_eval.errors import TargetError
from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.snapshot import NO_COMPOUND, U32, U64, Entry, FrameFlag, Pfns, has
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
    page_table,
    paging_arm64,
    paging_x86,
)
from ksm_eval.target.advisor import read_advisor
from ksm_eval.target.core_file import CoreFile
from ksm_eval.target.core_memory import fill
from ksm_eval.target.elf_file import open_elf
from ksm_eval.target.features import detect_rules
from ksm_eval.target.frames import (
    PageLayout,
    classify,
    identities,
    page_layout,
    read_structs,
)
from ksm_eval.target.jiffies import read_jiffies
from ksm_eval.target.kernel_values import first_value, record_sizes, swap_types, total_ram
from ksm_eval.target.ksm_state import read_records
from ksm_eval.target.ksmd_cpu import ksmd_cpu_seconds
from ksm_eval.target.lru_batches import batched_pages, waiting
from ksm_eval.target.meter import Meter
from ksm_eval.target.pid_ns import INITIAL, own_namespace, own_pid
from ksm_eval.target.program import OpenedProgram
from ksm_eval.target.records import Contradiction
from ksm_eval.target.rewalk import Walks
from ksm_eval.target.settings import read_counters, read_settings
from ksm_eval.target.symbols import vmcoreinfo
from ksm_eval.target.tasks import Handle, select_processes
from ksm_eval.target.thp_mappers import pte_behind
from ksm_eval.target.vmas import list_vmas

VMA_ATTEMPTS = 20  # of a process that maps and unmaps all the time


class _PerArchitecture(NamedTuple):
    paging: Callable[[Program], page_table.Paging]
    image_to_physical: Callable[[Program, int], int | None]


_ARCHITECTURES = {
    Architecture.X86_64: _PerArchitecture(paging_x86.paging, paging_x86.image_to_physical),
    Architecture.AARCH64: _PerArchitecture(paging_arm64.paging, paging_arm64.image_to_physical),
}


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def _while_there(
    method: Callable[Concatenate[KernelTarget, _Arguments], _Result],
) -> Callable[Concatenate[KernelTarget, _Arguments], _Result]:
    """TargetError instead of whatever comes of a target that has gone (QEMU ended)."""

    @wraps(method)
    def checked(
        self: KernelTarget, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> _Result:
        try:
            return method(self, *args, **kwargs)
        finally:
            self._opened.check_there()

    return checked


class KernelTarget:
    """A kernel's memory through drgn. Raises TargetError where it is not what it must be."""

    def __init__(self, opened: OpenedProgram) -> None:
        self._prog = prog = opened.prog
        self._opened = opened
        platform = prog.platform
        assert platform is not None
        if (
            platform.arch not in _ARCHITECTURES
            or not platform.flags & PlatformFlags.IS_LITTLE_ENDIAN
        ):
            raise TargetError(
                f"the target is {platform.arch.name.lower()}; this version reads x86-64 "
                "and little-endian aarch64",
                "evaluate a target of these architectures",
            )
        self._arch = _ARCHITECTURES[platform.arch]
        self.info = TargetInfo(
            kind=opened.kind,
            path=opened.path,
            release=prog["UTS_RELEASE"].string_().decode("ascii", "replace"),
            arch=platform.arch.name.lower(),
            page_size=prog["PAGE_SIZE"].value_(),
            debug_info=opened.debug_info,
            total_ram_pages=total_ram(prog),
            sizeof=record_sizes(prog),
            boot=_boot(prog, opened.kind),
            container=opened.container,
            notes=list(opened.notes),
        )
        self.meter = Meter()
        self._columns = page_table.Columns()
        # Where a file can be read without drgn.
        self.direct = open_elf(
            Path(opened.path), opened.segments, self._read_physical, self.info.page_size
        )
        # Of a live target, what was walked; the frames that frames() was asked about, and what was
        # in them.
        self._walks = Walks(self.info.page_size)
        self._known: tuple[U64, U64] = (np.empty(0, np.uint64), np.empty(0, np.uint64))

    def close(self) -> None:
        """The Program goes with its last reference."""
        if self.direct is not None:
            self.direct.close()
            self.direct = None

    def probe(self) -> None:
        """Look for what every question needs of types and variables. Raises TargetError now if it
        would later."""
        self.rules()
        _ = self._layout, self._page_layout

    @cached_property
    def _rules(self) -> Rules:
        return detect_rules(self._prog, self.info.notes)

    @_while_there
    def rules(self) -> Rules:
        return self._rules

    @_while_there
    def settings(self) -> tuple[Settings, dict[str, str]]:
        return read_settings(self._prog, self._rules)

    @_while_there
    def pace(self) -> dict[str, float]:
        advisor = read_advisor(self._prog)
        found: dict[str, float] = {f"advisor_{name}": value for name, value in advisor.items()}
        jiffies, seconds = read_jiffies(self._prog), ksmd_cpu_seconds(self._prog)
        if jiffies is not None:
            found["hz"] = jiffies.hz
        if seconds is not None:
            found["ksmd_cpu_seconds"] = seconds
        return found

    @_while_there
    def counters(self) -> dict[str, int]:
        return read_counters(self._prog)

    @_while_there
    def processes(self, selection: Selection, *, with_registered: bool = False) -> list[Process]:
        self._walks = Walks(self.info.page_size)
        here = self._opened.kind == "kernel"
        return select_processes(
            self._prog,
            selection,
            self.info.notes,
            with_registered=with_registered,
            namespace=own_namespace() if here else INITIAL,
            own=own_pid() if here else 0,
        )

    @_while_there
    def vmas(self, process: Process, *, mergeable_only: bool) -> list[Vma]:
        attempts = VMA_ATTEMPTS if self._opened.live else 1
        for attempt in range(attempts):
            try:
                vmas = list_vmas(_mm(process), mergeable_only=mergeable_only)
            except (FaultError, ValueError) as error:
                self._check_process(process)
                if attempt == attempts - 1:
                    raise Unreadable("its VMAs cannot be read") from error
            else:
                self._check_process(process)
                return vmas
        raise AssertionError

    def _check_process(self, process: Process) -> None:
        """Gone or Unreadable if it ended, was replaced by another, or started a program."""
        if self._opened.live and not _handle(process).still_there():
            reason = "it ended, or started another program, while it was read"
            raise Unreadable(reason) if _handle(process).explicit else Gone(reason)

    @cached_property
    def _paging(self) -> page_table.Paging:
        return self._arch.paging(self._prog)

    @cached_property
    def _layout(self) -> page_table.Layout:
        prog = self._prog
        huge_zero = first_value(prog, "huge_zero_pfn")
        return page_table.Layout(
            paging=self._paging,
            swap_types=swap_types(prog),
            zero_pfn=self._zero_pfn(),
            # ~0UL while no huge zero page is allocated
            huge_zero_pfn=None if huge_zero in (None, (1 << 64) - 1) else huge_zero,
        )

    def _zero_pfn(self) -> int:
        """PFN of the shared zero page. Raises TargetError if it cannot be found."""
        pfn = first_value(self._prog, "zero_page_pfn", "zero_pfn")  # renamed in 7.1
        if pfn is not None:
            return pfn
        try:
            address = self._prog.symbol("empty_zero_page").address
        except LookupError:
            physical = None
        else:
            physical = self._arch.image_to_physical(self._prog, address)
        if physical is None:
            raise TargetError(
                "the kernel's zero page cannot be found",
                "give the vmlinux with debug info, or System.map, with -s",
            )
        return physical // self.info.page_size

    @_while_there
    def walk(self, process: Process, vmas: Sequence[Vma]) -> WalkedVmas:
        walked = self._walk(process, vmas)
        if self._opened.live:
            self._walks.add(process, vmas, walked)
        return walked

    def _walk(self, process: Process, vmas: Sequence[Vma]) -> WalkedVmas:
        try:
            root = virt_to_phys(_mm(process).pgd).value_()
        except FaultError as error:
            self._check_process(process)
            raise Unreadable("its page tables cannot be found") from error
        walked = page_table.walk(self._read_physical, root, vmas, self._layout, self._columns)
        self._check_process(process)
        return walked

    @_while_there
    def still_mapped(self, pfns: Pfns) -> NDArray[np.bool_]:
        if not self._opened.live:
            return np.ones(len(pfns), np.bool_)
        return self._walks.still_mapped(pfns, self._walk)

    @cached_property
    def _max_pfn(self) -> int:
        # The frames vmemmap covers; where the variable has no symbol, what it can cover.
        paging = self._paging
        return first_value(self._prog, "max_pfn") or 1 << paging.physical_bits - paging.page_shift

    @_while_there
    def frames(self, pfns: Pfns) -> FrameTable:
        if self._opened.live:
            valid = pfns[: np.searchsorted(pfns, np.uint64(self._max_pfn))]
            known = identities(self._read_virtual, self._page_layout, valid)
            self._known = valid, known
        table = classify(
            self._read_virtual,
            self._page_layout,
            pfns,
            self._max_pfn,
            batched_pages(self._prog),
        )
        if self._opened.live:
            gone = ~self.still_mapped(pfns)
            table.entry[gone] = Entry.UNREADABLE
        anonymous = table.entry == Entry.CANDIDATE
        self._opened.check_user_pages(
            pfns[anonymous].astype(np.uint64),
            table.compound[anonymous] != NO_COMPOUND,
            has(table.flags[anonymous], FrameFlag.SWAPCACHE),
            self.info.page_size,
        )
        return table

    @_while_there
    def pte_behind(self, heads: U64, pages: U32) -> NDArray[np.bool_] | None:
        try:
            return pte_behind(
                self._prog,
                self._read_virtual,
                self._read_physical,
                self._layout,
                self._page_layout.base,
                heads,
                pages,
            )
        except (Contradiction, LookupError, FaultError):
            if not self._opened.live:
                self.info.notes.append(
                    "who maps each THP cannot be read: taken to be in fork order"
                )
            return None

    @_while_there
    def ksmd(self, processes: Sequence[Process]) -> KsmdRecords | None:
        rows = {int(_mm(process).value_()): row for row, process in enumerate(processes)}

        def mapping(pfns: U64) -> U64:
            layout = self._page_layout
            data, _ = read_structs(self._read_virtual, layout, pfns)
            word = data[:, layout.mapping : layout.mapping + 8]
            return np.ascontiguousarray(word).view(np.uint64).reshape(len(pfns))

        try:
            records = read_records(
                self._prog, self._read_virtual, self.info.page_size, rows, mapping
            )
            return records if records.cursor_row < 0 else self._with_batches(records)
        except (Contradiction, LookupError, FaultError) as error:
            reason = error.message if isinstance(error, FaultError) else str(error)
            self.info.notes.append(f"ksmd's own records cannot be used: {reason}")
            return None

    def _with_batches(self, records: KsmdRecords) -> KsmdRecords:
        """Only the start of a pass empties the batches: in the rest of this one they matter."""
        layout, (mlock, others) = self._page_layout, waiting(self._prog)
        pages = np.array([*mlock, *others], np.uint64)
        pfns = (pages - np.uint64(layout.base)) // np.uint64(layout.size)
        known = pfns < self._max_pfn
        batch_mlock = np.arange(len(pages)) < len(mlock)
        return replace(records, batch_pfn=pfns[known], batch_mlock=batch_mlock[known])

    @cached_property
    def _page_layout(self) -> PageLayout:
        return page_layout(self._prog)

    def _read_physical(self, address: int, size: int) -> bytes:
        self.meter.wait(size)
        try:
            data: bytes = self._prog.read(address, size, True)
        except FaultError as error:
            raise LookupError(error.message) from None
        except (OverflowError, ValueError):  # an address that damage made
            raise LookupError("no address") from None
        return data

    def _read_virtual(self, address: int, size: int) -> bytes:
        self.meter.wait(size)
        try:
            data: bytes = self._prog.read(address, size)
        except FaultError as error:
            raise LookupError(error.message) from None
        except (OverflowError, ValueError):
            raise LookupError("no address") from None
        return data

    def core(self) -> CoreFile | None:
        core = self._opened.core
        if core is None:
            return None
        segments = None if self.direct is None else self._opened.segments
        return replace(core, segments=segments, holes=self._opened.holes)

    def places(self, pfns: Pfns) -> Pfns:
        return pfns

    @_while_there
    def read_into(self, buffer: memoryview, place: int) -> None:
        size, address = len(buffer), place * self.info.page_size
        reason = self._opened.excluded(address, size)
        if reason:
            raise Unreadable(reason)
        self.meter.wait(size)
        fill(buffer, address, self._prog, self.direct)
        if self._opened.live:
            self._check_frames(place, size // self.info.page_size)

    def _check_frames(self, pfn: int, count: int) -> None:
        """Unreadable if any of these frames has become another page's since frames()."""
        pfns, known = self._known
        first, last = np.searchsorted(pfns, np.array([pfn, pfn + count], np.uint64)).tolist()
        now = identities(self._read_virtual, self._page_layout, pfns[first:last])
        if not np.array_equal(now, known[first:last]):
            raise Unreadable(WENT_AWAY)


def _handle(process: Process) -> Handle:
    assert isinstance(process.handle, Handle)
    return process.handle


def _mm(process: Process) -> Object:
    return _handle(process).mm


def _boot(prog: Program, kind: str) -> str:
    """The running kernel's boot_id; else what VMCOREINFO says: release, build, KASLR offset."""
    if kind == "kernel":
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    found = vmcoreinfo(prog)
    return " ".join(
        found.get(key, "")
        for key in ("OSRELEASE", "BUILD-ID", "KERNELOFFSET", "NUMBER(phys_base)", "SYMBOL(_stext)")
    )
