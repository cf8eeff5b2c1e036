"""DWARF of the target's vmlinux: given by -s/--symbols, or where drgn finds it."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from drgn import MissingDebugInfoError, ModuleFileStatus, Program

from ksm_eval.errors import TargetError
from ksm_eval.target.symbols import mismatch, vmcoreinfo

_SHT_NOTE: Final = 7
_NT_GNU_BUILD_ID: Final = 3
_ET_EXEC, _ET_DYN = 2, 3


class DwarfError(TargetError):
    """A given vmlinux is unreadable, without DWARF, or of another kernel."""


def load_given(prog: Program, path: Path) -> None:
    """Load the DWARF of `path`, which must be the vmlinux of exactly this kernel."""
    build_id = read_build_id(path)
    wanted = vmcoreinfo(prog).get("BUILD-ID", "")  # Linux 5.9
    if build_id and wanted and build_id != wanted:
        raise _wrong(path, f"its build ID is {build_id[:12]}, the target's {wanted[:12]}")
    with quiet():
        try:
            prog.load_debug_info([path])
        except MissingDebugInfoError:
            pass  # of modules, whose names drgn now knows
        except Exception as error:  # drgn has no class for what elfutils refuses
            raise DwarfError(f"cannot load {path}: {error}") from None
    if not loaded_file(prog):
        raise DwarfError(
            f"{path} has no debugging information (DWARF)",
            "leave it out: BTF and kallsyms of the target will do",
        )
    wrong = mismatch(prog, lambda _p, name, _a, _o: prog.symbols(name))
    if wrong:  # kernels without a build ID in VMCOREINFO
        raise _wrong(path, f"it has a different address for {wrong}")


def find(prog: Program) -> str:
    """Load DWARF from drgn's standard places; the path, or "" if there is none.

    Not from debuginfod: BTF is at hand, and a download of a gigabyte is not asked for.
    """
    prog.set_enabled_debug_info_finders(["standard"])
    with quiet():
        try:
            prog.load_debug_info(None, main=True)
        except MissingDebugInfoError:
            return ""
    return loaded_file(prog)


def loaded_file(prog: Program) -> str:
    """The file that the kernel's DWARF came from, or ""."""
    try:
        module = prog.main_module()
    except LookupError:
        return ""
    if module.debug_file_status != ModuleFileStatus.HAVE:
        return ""
    return module.debug_file_path or ""


def read_build_id(path: Path) -> str:
    """The GNU build ID of a vmlinux, "" if it has none. DwarfError if it is no vmlinux."""
    try:
        with path.open("rb") as file:
            return _build_id(file, path)
    except (struct.error, OverflowError):
        raise DwarfError(f"{path} is truncated or damaged") from None
    except OSError as error:
        raise DwarfError(f"cannot read {path}: {error.strerror}") from None


def _build_id(file: BinaryIO, path: Path) -> str:
    header = file.read(64).ljust(20, b"\0")
    if not header[4]:
        raise DwarfError(f"{path} is truncated or damaged")
    order = "<" if header[5] == 1 else ">"
    (kind,) = struct.unpack_from(f"{order}H", header, 16)
    if header[4] != 2 or kind not in (_ET_EXEC, _ET_DYN):
        raise DwarfError(
            f"{path} is not a vmlinux", "KSM is built in: files of modules are not needed"
        )
    (sections_at,) = struct.unpack_from(f"{order}Q", header, 40)
    size, count = struct.unpack_from(f"{order}HH", header, 58)
    for number in range(count):
        file.seek(sections_at + number * size)
        section = struct.unpack(f"{order}IIQQQQIIQQ", file.read(64))
        if section[1] != _SHT_NOTE:
            continue
        file.seek(section[4])
        notes, at = file.read(min(section[5], 1 << 20)), 0
        while at + 12 <= len(notes):
            name_size, size_, type_ = struct.unpack_from(f"{order}III", notes, at)
            name = at + 12
            contents = name + (name_size + 3 & ~3)
            if type_ == _NT_GNU_BUILD_ID and notes[name : name + name_size] == b"GNU\0":
                return notes[contents : contents + size_].hex()
            at = contents + (size_ + 3 & ~3)
    return ""


def _wrong(path: Path, why: str) -> DwarfError:
    return DwarfError(
        f"{path} is of another kernel: {why}",
        "give the vmlinux of the kernel that made the vmcore, or none at all",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without drgn's log of what is missing: it is not missed, or reported in our words."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING

    logger = logging.getLogger("drgn")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
