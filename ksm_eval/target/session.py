"""The Target of a Program that somebody else opened: a drgn session, a notebook.

With the types that the Program has, if they will do. Else a second Program is made whose memory is
that of the first, and gets what program.py finds (BTF, kallsyms): finders in the user's own would
change what his next expressions mean. Nothing of the given Program is changed.
"""

from __future__ import annotations

import os
from pathlib import Path

import drgn
from drgn import Program, ProgramFlags

from ksm_eval.errors import TargetError, UsageError
from ksm_eval.target import dwarf
from ksm_eval.target.containers import Container, identify
from ksm_eval.target.kernel import KernelTarget
from ksm_eval.target.program import Given, OpenedProgram, with_debug_info

_BTF = Path("/sys/kernel/btf/vmlinux")
_NEEDED_TYPES = ("struct page", "struct mm_struct", "struct task_struct", "struct vm_area_struct")
_NEEDED_OBJECTS = ("init_task", "init_pid_ns")


def target_of(prog: Program) -> KernelTarget:
    """Raises UsageError if `prog` is no Linux kernel, TargetError if it cannot be used."""
    if not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
        raise UsageError(
            "this drgn session is not of a Linux kernel", "open a vmcore or the running kernel"
        )
    path = _path(prog)
    container = None if path is None else identify(path)
    if path is not None and container is not None and container.excludes_user_pages:
        raise TargetError(
            f"{path} has no user pages: it was made by makedumpfile -d {container.dump_level}",
            "make the dump with makedumpfile -d 17 (or -d 1, or unfiltered)",
        )
    try:
        return KernelTarget(_opened(prog, path, container))
    except (drgn.FaultError, drgn.BadDataError) as error:
        raise TargetError(f"cannot make sense of this session's memory: {error}") from None


def _path(prog: Program) -> Path | None:
    """The vmcore's, while there is one: it tells what was filtered out."""
    if prog.flags & ProgramFlags.IS_LIVE or prog.core_dump_path is None:
        return None
    path = Path(os.fsdecode(prog.core_dump_path))
    # A name below /proc is that of a descriptor, which may be another file's by now.
    return path if path.is_file() and path.parts[:2] != ("/", "proc") else None


def _opened(prog: Program, path: Path | None, container: Container | None) -> OpenedProgram:
    live = bool(prog.flags & ProgramFlags.IS_LIVE)
    here = bool(prog.flags & ProgramFlags.IS_LOCAL)
    kind = ("kernel" if here else "qemu") if live else "vmcore"
    opened = OpenedProgram(prog, kind, "" if path is None else str(path), "")
    if container is not None:
        opened.container, opened.holes = container.description, container.holes
        opened.segments = None if container.flattened else container.segments
    if _has_types(prog):
        found = dwarf.loaded_file(prog)
        opened.debug_info = f"DWARF ({found})" if found else "the drgn session's own"
        return opened
    opened.prog = _twin(prog, live=live)
    opened.debug_info = with_debug_info(
        opened.prog, Given(), opened.notes, _BTF if kind == "kernel" else None
    )
    return opened


def _has_types(prog: Program) -> bool:
    try:
        for name in _NEEDED_TYPES:
            if not prog.type(name).is_complete():
                return False
        for name in _NEEDED_OBJECTS:
            prog[name].address_of_()
        prog.symbol("_stext")
    except (LookupError, ValueError):
        return False
    return True


def _twin(prog: Program, *, live: bool) -> Program:
    """A kernel with the same memory and no types."""
    twin = Program(platform=prog.platform)
    twin.set_linux_kernel_custom(prog["VMCOREINFO"].string_(), live)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        del address, physical
        data: bytes = prog.read(offset, count, True)
        return data

    twin.add_memory_segment(0, (1 << 64) - 1, read, True)
    return twin
