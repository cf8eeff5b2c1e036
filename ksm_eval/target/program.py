"""Open a target as a drgn Program: the memory, then the best debug info there is.

open_core() is for vmcores; live.py has what runs, which differs only in how the Program gets
its memory: everything from with_debug_info() on is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import drgn
import numpy as np
from drgn import Architecture, Platform, Program, ProgramFlags
from numpy.typing import NDArray

from ksm_eval.errors import TargetError, UsageError
from ksm_eval.snapshot import U64
from ksm_eval.target import btf_finder, dwarf, symbols
from ksm_eval.target.btf import Btf
from ksm_eval.target.containers import (
    NOT_IN_ELF,
    Container,
    Holes,
    Segments,
    identify,
    reassemble,
)
from ksm_eval.target.core_file import CoreFile

_MACHINES: Final = {
    "x86_64": Architecture.X86_64,
    "aarch64": Architecture.AARCH64,
    "ppc64le": Architecture.PPC64,
    "s390x": Architecture.S390X,
}
_LARGEST_BTF: Final = 256 << 20


def _always_there() -> None:
    """A file does not go away."""


@dataclass
class OpenedProgram:
    """A drgn Program whose types, variables and symbols can be used."""

    prog: Program
    kind: str  # "vmcore", "kernel", "qemu"
    path: str  # or the address of a guest
    debug_info: str  # "DWARF (path)", "BTF + kallsyms", …
    container: str = ""  # "ELF vmcore", "kdump-compressed vmcore, flattened", …
    notes: list[str] = field(default_factory=list)
    segments: Segments | None = None  # of an ELF vmcore that is read in place
    core: CoreFile | None = None  # of a vmcore that is read in place
    holes: Holes = field(default_factory=Holes)
    """Physical memory that reads as zeros without having been zero, for all we know."""
    check_there: Callable[[], None] = _always_there
    """Raises TargetError if the target has gone, and with it the sense of what was read."""

    @property
    def live(self) -> bool:
        """It runs while it is read: nothing stays as it was."""
        return self.kind != "vmcore"

    def excluded(self, address: int, size: int) -> str:
        """Why physical memory is not what a read would return; "" if it is."""
        return NOT_IN_ELF if self.holes.touch(address, size) else ""

    def check_user_pages(
        self,
        pfns: U64,
        compound: NDArray[np.bool_],
        swapcache: NDArray[np.bool_],
        page_size: int,
    ) -> None:
        """Refuse a filtered ELF vmcore whose missing pages may be ours.

        `pfns`: ascending anonymous frames; `compound`: which are in a compound page;
        `swapcache`: which are in the swap cache (levels 2 and 4 drop those with the page
        cache). If they prove that anonymous pages were kept, the holes were zeros and are
        forgotten. TargetError if some of `pfns` are in holes and there is no proof.
        """
        if not self.holes:
            return
        gone = self.holes.contain(pfns, page_size)
        missing = int(gone.sum())
        kept = self.holes.hold_only_zeros(pfns[~compound & ~swapcache], page_size)
        if kept and not (gone & swapcache).any():
            self.holes = Holes()
        elif missing:
            raise TargetError(
                f"{missing:,} of {len(pfns):,} anonymous pages are not in {self.path}, "
                "and an ELF vmcore does not tell whether they were zero or filtered out",
                "make the dump in the kdump format: makedumpfile -c -d 17 (or -d 1)",
            )


def open_core(
    path: Path,
    *,
    symbols: Sequence[Path] = (),
    vmcoreinfo: Path | bytes | None = None,
    architecture: str | None = None,
) -> OpenedProgram:
    """Open a vmcore: ELF or kdump-compressed, each also in makedumpfile's flattened format.

    `symbols`: a vmlinux with DWARF and/or a System.map, told apart by their contents.
    `vmcoreinfo`: replaces the file's own. `architecture`: drgn's name, for files that do not
    tell it. Debug info: a given vmlinux, one that drgn finds, the target's own BTF with its
    own kallsyms or else the given System.map.

    Raises TargetError (one line, a hint) for whatever cannot be opened, and for a kdump
    filtered of user pages, since no question can be answered from it.
    """
    given = classify_symbols(symbols)
    container = identify(path)
    if container.excludes_user_pages:
        raise TargetError(
            f"{path} has no user pages: it was made by makedumpfile -d {container.dump_level}",
            "make the dump with makedumpfile -d 17 (or -d 1, or unfiltered)",
        )
    platform, info = _platform(container, architecture, path), read_vmcoreinfo(vmcoreinfo)
    prog = Program(platform, vmcoreinfo=info)
    core = None
    try:
        if container.flattened and container.kind == "ELF":
            _set_reassembled(prog, path)
        else:
            name = None if platform is None else platform.arch.name
            core = CoreFile.of(path, info, name)
            with dwarf.quiet():  # "if open fails or is too slow, reassemble it"
                prog.set_core_dump(path)
    except TargetError:
        raise
    except Exception as error:  # drgn has no class for what libkdumpfile refuses
        raise _refused(path, error) from None
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise _refused(path, LookupError("VMCOREINFO"))
    opened = OpenedProgram(
        prog,
        "vmcore",
        str(path),
        "",
        container.description,
        segments=container.segments,
        core=core,
        holes=container.holes,
    )
    try:
        opened.debug_info = with_debug_info(
            prog, given, opened.notes, bytes_are_dear=container.kind == "ELF"
        )
    except (drgn.FaultError, drgn.BadDataError) as error:
        raise TargetError(f"cannot make sense of {path}: {error}") from None
    return opened


@dataclass(frozen=True)
class Given:
    """Files of -s/--symbols."""

    vmlinux: Path | None = None
    system_map: Path | None = None


def with_debug_info(
    prog: Program,
    given: Given,
    notes: list[str],
    btf: Path | None = None,
    *,
    bytes_are_dear: bool = False,
) -> str:
    """Load what there is, best first; what was loaded, in words. `btf`: a file with the
    kernel's BTF, where there is one; else it is read from the target's memory."""
    if given.vmlinux:
        dwarf.load_given(prog, given.vmlinux)
        return f"DWARF ({given.vmlinux})"
    found = dwarf.find(prog)
    if found:
        return f"DWARF ({found})"
    try:
        finder, name = symbols.kallsyms(prog, bytes_are_dear=bytes_are_dear)
        if given.system_map:
            notes.append(f"{given.system_map} was not needed: the target has its own symbols")
    except symbols.SymbolsError:
        if not given.system_map:
            raise
        finder, name = (
            symbols.system_map(prog, given.system_map),
            f"System.map ({given.system_map})",
        )
    symbols.install(prog, finder)
    blob = btf.read_bytes() if btf is not None and btf.exists() else read_btf(prog)
    btf_finder.install(prog, Btf(blob))
    return f"BTF + {name}"


def read_btf(prog: Program) -> bytes:
    """The kernel's .BTF section, in its read-only data (CONFIG_DEBUG_INFO_BTF, Linux 5.2)."""
    hint = "give a vmlinux with DWARF by -s/--symbols"
    try:
        start, stop = (prog.symbol(f"__{end}_BTF").address for end in ("start", "stop"))
    except LookupError:
        raise TargetError("the target's kernel has no BTF, and there is no DWARF", hint) from None
    if not 0 < stop - start < _LARGEST_BTF:
        raise TargetError(f"the target's BTF cannot have {stop - start} bytes", hint)
    try:
        data: bytes = prog.read(start, stop - start)
    except drgn.FaultError as error:
        raise TargetError(f"the target's BTF cannot be read: {error.message}", hint) from None
    return data


def classify_symbols(paths: Sequence[Path]) -> Given:
    vmlinux = system_map = None
    for path in paths:
        try:
            with path.open("rb") as file:
                head = file.read(256)
        except OSError as error:
            raise TargetError(
                f"cannot read {path}: {error.strerror}", "check the path after -s/--symbols"
            ) from None
        if head.startswith(b"\x7fELF"):
            if vmlinux:
                raise UsageError(f"two vmlinux files are given: {vmlinux} and {path}")
            vmlinux = path
        elif symbols.is_system_map(head):
            system_map = path
        else:
            raise TargetError(
                f"{path} is neither a vmlinux (ELF) nor a System.map",
                "a compressed vmlinuz has no debugging information",
            )
    return Given(vmlinux, system_map)


def _platform(container: Container, architecture: str | None, path: Path) -> Platform | None:
    """None lets drgn find out. QEMU's kdump headers lack what libkdumpfile looks at."""
    if architecture is not None:
        try:
            given = Architecture[architecture.upper()]
        except KeyError:
            names = ", ".join(arch.name.lower() for arch in Architecture)
            raise UsageError(f"no architecture {architecture!r}", f"known: {names}") from None
        if _MACHINES.get(container.machine, given) != given:
            raise UsageError(f"{path} is of {container.machine}, not of {architecture}")
        return Platform(given)
    if container.kind != "kdump" or container.release:
        return None
    if container.machine not in _MACHINES:
        raise TargetError(
            f"{path} does not say which architecture it is of", "give it by --architecture"
        )
    return Platform(_MACHINES[container.machine])


def read_vmcoreinfo(vmcoreinfo: Path | bytes | None) -> bytes | None:
    if vmcoreinfo is None or isinstance(vmcoreinfo, bytes):
        return vmcoreinfo
    try:
        data = vmcoreinfo.read_bytes()
    except OSError as error:
        raise TargetError(
            f"cannot read {vmcoreinfo}: {error.strerror}", "check the path after --vmcoreinfo"
        ) from None
    if b"OSRELEASE=" not in data:
        raise TargetError(
            f"{vmcoreinfo} is no VMCOREINFO: it has no OSRELEASE",
            "give what the kernel shows as its VMCOREINFO note, as text",
        )
    return data


def _set_reassembled(prog: Program, path: Path) -> None:
    """Open a flattened ELF file, which drgn cannot, by a temporary file that has no name."""
    try:
        with tempfile.TemporaryFile(prefix="ksm-eval-") as file:
            reassemble(path, file)
            prog.set_core_dump(f"/proc/self/fd/{file.fileno()}")  # opens it once more
    except OSError as error:
        raise TargetError(
            f"cannot reassemble {path} in {tempfile.gettempdir()}: {error.strerror}",
            "set TMPDIR, or run: makedumpfile -R vmcore < FILE",
        ) from None


def _refused(path: Path, error: Exception) -> TargetError:
    if "vmcoreinfo" in str(error).lower() or "unrecognized QEMU memory dump" in str(error):
        return TargetError(
            f"{path} has no VMCOREINFO, so it is of no Linux kernel or incomplete",
            "give it by --vmcoreinfo; for QEMU dumps, run the guest with -device vmcoreinfo",
        )
    return TargetError(f"cannot open {path}: {error}")
