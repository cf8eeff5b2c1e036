"""Physical memory straight out of an ELF vmcore: into a buffer that is there already, where drgn
makes a new object for every read."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from ksm_eval.snapshot import U64, Pfns
from ksm_eval.tables import BLOCK
from ksm_eval.target.containers import Segments

SAMPLES = 64
# Offsets in a page of 4 KiB, and odd factors.
LOOK = (
    (520, 0x9E3779B97F4A7C15),
    (1608, 0xC2B2AE3D27D4EB4F),
    (2800, 0x165667B19E3779F9),
    (3704, 0xD6E8FEB86659FD93),
)

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

    def cached(self) -> bool:
        """Whether the file seems to be in the page cache: looked up at SAMPLES places."""
        buffer = bytearray(1)
        most = max(range(len(self._size)), key=self._size.__getitem__)
        step = max(self._size[most] // SAMPLES, 1)
        try:
            for at in range(0, self._size[most], step):
                os.preadv(self._fd, [buffer], self._offset[most] + at, os.RWF_NOWAIT)
        except OSError:  # BlockingIOError, or a file system that cannot tell
            return False
        return True

    def look(self, pages: Pfns, page_size: int) -> U64 | None:
        """A number for each of the ascending pages, of a few of their words: 0 where they are all
        0 or not in the file. None if the file cannot be read that way.

        Only through a mapping is that cheaper than to read all, and where a file that is mapped
        is cut short the kernel kills who reads there (SIGBUS): that is a child, here.
        """
        shared = mmap.mmap(-1, max(8 * len(pages), 1))
        found = np.frombuffer(shared, np.uint64, len(pages))
        child = os.fork()
        if not child:
            failed = 1
            try:
                self._look(pages, page_size, found)
                failed = 0
            finally:
                os._exit(failed)
        _, status = os.waitpid(child, 0)
        return found if status == 0 else None

    def _look(self, pages: Pfns, page_size: int, out: U64) -> None:
        scale = page_size // 4096
        with mmap.mmap(self._fd, 0, prot=mmap.PROT_READ) as file:
            for address, offset, size in zip(self._address, self._offset, self._size, strict=True):
                bounds = np.array([-(-address // page_size), (address + size) // page_size])
                first, last = np.searchsorted(pages, bounds.astype(pages.dtype)).tolist()
                words = np.frombuffer(file, np.uint64, size // 8, offset)
                for begin in range(first, last, BLOCK):
                    part = slice(begin, min(begin + BLOCK, last))
                    at = pages[part].astype(np.int64) * page_size - address
                    for word, factor in LOOK:
                        out[part] += words[(at + word * scale) >> 3] * np.uint64(factor)
                del words

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
