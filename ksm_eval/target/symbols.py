"""Where symbol addresses come from when there is no DWARF: kallsyms or a System.map."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import drgn
from drgn import Program, Symbol, SymbolBinding, SymbolIndex, SymbolKind
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

from ksm_eval.errors import TargetError
from ksm_eval.target.kallsyms_scan import SymbolEntry, scan_kallsyms
from ksm_eval.target.kallsyms_tables import Tables

try:  # private, but the only way past a /proc/kallsyms that shows zeros (kptr_restrict=2)
    from drgn.helpers.linux.kallsyms import _load_builtin_kallsyms
except ImportError:
    _load_builtin_kallsyms = None  # type: ignore[assignment]

SymbolFinder: TypeAlias = Callable[[Program, str | None, int | None, bool], Sequence[Symbol]]

FINDER_NAME: Final = "ksm_eval_symbols"
LOWEST_KERNEL_ADDRESS: Final = 1 << 47
"""Below it only per-cpu offsets and absolute constants have "addresses" (not on s390)."""

KERNEL_IMAGE_SIZE: Final = 1 << 30

_LOADER_ERRORS: Final = (
    *(drgn.MissingDebugInfoError, drgn.BadDataError, drgn.FaultError),
    *(LookupError, ValueError, OSError),
)
_SYSTEM_MAP_LINE: Final = re.compile(rb"([0-9a-fA-F]{8,16}) ([a-zA-Z?]) (\S+)(?: \[\w+\])?")
_DEBIAN_STUB: Final = b"The real System.map is in the"


class SymbolsError(TargetError):
    """A symbol source is absent, damaged, or of another kernel."""


def vmcoreinfo(prog: Program) -> dict[str, str]:
    """VMCOREINFO as a dictionary: "SYMBOL(_stext)" -> "ffffffff81000000"."""
    text = prog["VMCOREINFO"].string_().decode("ascii", "replace")
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def vmcoreinfo_symbols(prog: Program) -> dict[str, int]:
    """The SYMBOL() entries: run-time addresses that the kernel itself recorded."""
    return {
        key[len("SYMBOL(") : -1]: int(value, 16)
        for key, value in vmcoreinfo(prog).items()
        if key.startswith("SYMBOL(") and re.fullmatch("[0-9a-fA-F]+", value)
    }


def mismatch(prog: Program, find: SymbolFinder) -> str:
    """The first symbol whose address differs from VMCOREINFO's, "" if all agree.

    `_stext` alone is not enough: without KASLR it is the same in every kernel. Finding
    none of VMCOREINFO's symbols is a mismatch in `_stext`.
    """
    expected = vmcoreinfo_symbols(prog)
    stext = expected.get("_stext", 0)
    compared = 0
    for name, address in expected.items():
        # VMCOREINFO_SYMBOL_ARRAY() of a pointer (mem_section, vmemmap) records its value:
        # an address outside the kernel image.
        if abs(address - stext) > KERNEL_IMAGE_SIZE:
            continue
        found = find(prog, name, None, False)
        if len(found) == 1:
            compared += 1
            if found[0].address != address:
                return name
    return "" if compared or not expected else "_stext"


def kallsyms(prog: Program, *, bytes_are_dear: bool = False) -> tuple[SymbolFinder, str]:
    """The target's own kallsyms, and what to call them in a report.

    Tried in order: drgn's loader (/proc/kallsyms, or the tables that VMCOREINFO names,
    Linux 6.0), those tables even on a live kernel, and a search of the kernel image for
    the tables (5.10). `bytes_are_dear`: first those tables as a whole, not byte by byte.
    SymbolsError if none gives the addresses of VMCOREINFO, and variables.
    """
    loaders: list[tuple[Callable[[Program], SymbolFinder], str]] = [
        (load_vmlinux_kallsyms, "kallsyms")
    ]
    if bytes_are_dear:
        loaders.insert(0, (_tables, "kallsyms"))
    if _load_builtin_kallsyms is not None:
        loaders.append((_load_builtin_kallsyms, "kallsyms"))
    loaders.append((_scanned, "kallsyms found by scanning"))
    problems = []
    for load, name in loaders:
        try:
            finder = load(prog)
        except _LOADER_ERRORS as error:
            problems.append(str(error))
            continue
        wrong = mismatch(prog, finder)
        if wrong:
            problems.append(f"wrong address of {wrong}")
        elif not finder(prog, "init_pid_ns", None, True):
            problems.append("functions only: it was built without CONFIG_KALLSYMS_ALL")
        else:
            return finder, name
    raise SymbolsError(
        f"no usable kernel symbols in the target ({problems[-1]})",
        "give a vmlinux with DWARF, or its System.map, by -s/--symbols",
    )


def is_system_map(head: bytes) -> bool:
    """Whether a file that begins so is a System.map (or Debian's stub of one)."""
    line = head.split(b"\n", 1)[0]
    return bool(_SYSTEM_MAP_LINE.fullmatch(line)) or _DEBIAN_STUB in line


def system_map(prog: Program, path: Path) -> SymbolFinder:
    """The symbols of a System.map, moved by the target's KASLR offset.

    SymbolsError if it is not one, or not of this kernel.
    """
    offset = int(vmcoreinfo(prog).get("KERNELOFFSET", "0"), 16)
    # Per-cpu symbols are offsets, which KASLR does not move.
    finder: SymbolFinder = _index(
        entry._replace(address=entry.address + offset)
        if entry.address >= LOWEST_KERNEL_ADDRESS
        else entry
        for entry in _parse_system_map(path)
    )
    wrong = mismatch(prog, finder)
    if wrong:
        raise SymbolsError(
            f"{path} is of another kernel: it has a different address for {wrong}",
            "give the System.map of the kernel that made the vmcore",
        )
    return finder


def install(prog: Program, finder: SymbolFinder) -> None:
    """Make `finder` the program's first symbol finder.

    Lookups by address are refused below the kernel's own addresses; else every NULL
    pointer would print as the first per-cpu symbol.
    """
    stext = vmcoreinfo_symbols(prog).get("_stext", 0)
    lowest = LOWEST_KERNEL_ADDRESS if stext >= LOWEST_KERNEL_ADDRESS else 0

    def find(prog_: Program, name: str | None, address: int | None, one: bool) -> Sequence[Symbol]:
        if address is not None and address < lowest:
            return []
        return finder(prog_, name, address, one)

    prog.register_symbol_finder(FINDER_NAME, find, enable_index=0)


def _tables(prog: Program) -> SymbolFinder:
    finder: SymbolFinder = Tables(
        prog,
        vmcoreinfo_symbols(prog),
        lambda name, address, size, letter: Symbol(name, address, size, *_binding_and_kind(letter)),
    )
    return finder


def _scanned(prog: Program) -> SymbolFinder:
    return _index(scan_kallsyms(prog, vmcoreinfo_symbols(prog)["_stext"]))


def _index(entries: Iterable[SymbolEntry]) -> SymbolFinder:
    """A symbol's size is the distance to the next one, as in kallsyms_lookup_size_offset()."""
    symbols, size, following = [], 0, None
    for address, kind, name in sorted(entries, reverse=True):
        if following is not None and address != following:
            size = following - address
        following = address
        symbols.append(Symbol(name, address, size, *_binding_and_kind(kind)))
    finder: SymbolFinder = SymbolIndex(symbols)
    return finder


def _parse_system_map(path: Path) -> list[SymbolEntry]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SymbolsError(f"cannot read {path}: {error.strerror}") from None
    if _DEBIAN_STUB in data[:200]:
        raise SymbolsError(
            f"{path} is only the placeholder that Debian installs",
            "the real System.map is in the kernel's -dbg package",
        )
    entries = []
    for number, line in enumerate(data.splitlines(), 1):
        match = _SYSTEM_MAP_LINE.fullmatch(line)
        if match is None:
            raise SymbolsError(f"{path}, line {number}: not a line of a System.map")
        address, kind, name = match.groups()
        entries.append(
            SymbolEntry(int(address, 16), kind.decode(), name.decode("utf-8", "replace"))
        )
    return entries


def _binding_and_kind(code: str) -> tuple[SymbolBinding, SymbolKind]:
    """From the letter that nm(1) prints."""
    kind = SymbolKind.FUNC if code in "tTwW" else SymbolKind.OBJECT
    if code in "wWvV":
        return SymbolBinding.WEAK, kind
    return SymbolBinding.GLOBAL if code.isupper() else SymbolBinding.LOCAL, kind
