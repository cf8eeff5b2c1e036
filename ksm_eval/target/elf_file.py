"""Physical memory straight out of an ELF vmcore: into a buffer that is there already, where drgn
makes a new object for every read."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ksm_eval.target.containers import Segments

ReadPhysical = Callable[[int, int], bytes]
"""(address, size) -> contents as drgn reads them."""


class ElfFile:
    """An open vmcore, by its PT_LOAD table."""

    def __init__(self, path: Path, segments: Segments) -> None:
        order = np.argsort(segments.address, kind="stable")
        self._address = segments.address[order].tolist()
        self._offset = segments.offset[order].tolist()
        self._size = segments.size[order].tolist()
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_into(self, buffer: memoryview, address: int) -> bool:
        """Fill `buffer`. False if the file does not hold all of it in one piece."""
        at = bisect_right(self._address, address) - 1
        if at < 0:
            return False
        start = address - self._address[at]
        if start + len(buffer) > self._size[at]:
            return False
        try:
            return os.preadv(self._fd, [buffer], self._offset[at] + start) == len(buffer)
        except OSError:
            return False

    def agrees(self, read: ReadPhysical, page_size: int) -> bool:
        """Whether the first page of every segment is what drgn finds at that address. Some cores
        have no physical addresses, or more than one idea of them."""
        buffer = memoryview(bytearray(page_size))
        for address, size in zip(self._address, self._size, strict=True):
            if size < page_size:
                continue
            try:
                expected = read(address, page_size)
            except LookupError:
                return False
            if not self.read_into(buffer, address) or buffer != expected:
                return False
        return True

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._fd)
        self._fd = -1


def open_elf(
    path: Path, segments: Segments | None, read: ReadPhysical, page_size: int
) -> ElfFile | None:
    """None where the file cannot be read that way."""
    if segments is None:
        return None
    try:
        file = ElfFile(path, segments)
    except OSError:
        return None
    if file.agrees(read, page_size):
        return file
    file.close()
    return None
