"""Physical memory of a vmcore: all that a worker process has of it. No types, no symbols."""

from __future__ import annotations

import numpy as np
from drgn import Architecture, FaultError, Platform, Program
from numpy.typing import NDArray

from ksm_eval.errors import TargetError
from ksm_eval.snapshot import Pfns
from ksm_eval.target import TargetInfo, Unreadable
from ksm_eval.target.containers import NOT_IN_ELF
from ksm_eval.target.core_file import CoreFile
from ksm_eval.target.elf_file import ElfFile
from ksm_eval.target.meter import Meter


class CoreMemory:
    """The part of a Target that sweep() needs."""

    def __init__(self, core: CoreFile, info: TargetInfo) -> None:
        """`info`: of the target that `core` is from. TargetError if the file is not as it was."""
        self.info = info
        self.meter = Meter()
        self._holes = core.holes
        name = core.architecture
        platform = None if name is None else Platform(Architecture[name])
        self._prog = Program(platform, vmcoreinfo=core.vmcoreinfo)
        try:
            self._prog.set_core_dump(core.path)
            self._direct = None if core.segments is None else ElfFile(core.path, core.segments)
            found = CoreFile.identify(core.path)
        except Exception as error:  # drgn has no class for what libkdumpfile refuses
            raise TargetError(f"cannot open {core.path} once more: {error}") from None
        if found != core.identity:
            raise TargetError(f"{core.path} was replaced while it was read", "try again")

    def places(self, pfns: Pfns) -> Pfns:
        return pfns

    def still_mapped(self, pfns: Pfns) -> NDArray[np.bool_]:
        return np.ones(len(pfns), np.bool_)

    def read_into(self, buffer: memoryview, place: int) -> None:
        address = place * self.info.page_size
        if self._holes.touch(address, len(buffer)):
            raise Unreadable(NOT_IN_ELF)
        self.meter.wait(len(buffer))
        fill(buffer, address, self._prog, self._direct)


def fill(buffer: memoryview, address: int, prog: Program, direct: ElfFile | None) -> None:
    """Physical memory into `buffer`. Raises Unreadable."""
    if direct is not None and direct.read_into(buffer, address):
        return
    try:
        buffer[:] = prog.read(address, len(buffer), True)
    except FaultError as error:
        raise Unreadable(_fault_reason(error)) from None


def _fault_reason(error: FaultError) -> str:
    """One short phrase for a read that failed, without the address."""
    message = error.message.lower()
    if "excluded" in message:
        return "filtered out of the dump"
    if any(words in message for words in ("not mapped", "out-of-bounds", "could not find")):
        return "not in the dump"
    return "read error"
