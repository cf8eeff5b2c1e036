"""/proc/PID/pagemap, /proc/kpageflags and /proc/kpagecount in bulk, to arrays."""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ksm_eval.errors import TargetError
from ksm_eval.snapshot import I64, U64
from ksm_eval.target.rights import refused

_PROC = Path("/proc")

CHUNK = 1 << 17  # entries a read: 1 MiB
HOLE = 64  # entries not asked for that are worth reading to keep a run going

Wait: TypeAlias = Callable[[int], None]
"""Called with the number of bytes before each read (Meter.wait)."""

# /proc/PID/pagemap: Documentation/admin-guide/mm/pagemap.rst
PM_PFN = (1 << 55) - 1
PM_EXCLUSIVE = 1 << 56  # 4.2+: the only mapping of an anonymous page
PM_FILE = 1 << 61  # of a file or shmem; 3.5+
PM_SWAP = 1 << 62  # not present, and not empty: swap, migration, hwpoison, marker
PM_PRESENT = 1 << 63

# /proc/kpageflags: include/uapi/linux/kernel-page-flags.h
KPF_ANON = 1 << 12
KPF_SWAPCACHE = 1 << 13
KPF_TAIL = 1 << 16
KPF_KSM = 1 << 21
KPF_THP = 1 << 22  # of any size; the huge zero page too
KPF_ZERO_PAGE = 1 << 24

# PAGEMAP_SCAN, include/uapi/linux/fs.h
_PAGE_IS_PRESENT = 1 << 3
_PAGE_IS_SWAPPED = 1 << 4
_PAGE_IS_HUGE = 1 << 6
_SCAN_ARG = struct.Struct("=12Q")
_PAGEMAP_SCAN = 3 << 30 | _SCAN_ARG.size << 16 | ord("f") << 8 | 16  # _IOWR('f', 16, …)
_REGIONS = 8192
_STEP = 128 << 20  # bytes a call: the kernel holds mmap_lock for all of it, up to 50 ns a page


def open_page_files(page_size: int) -> tuple[int, int]:
    """kpageflags and kpagecount; TargetError if these or page frame numbers are not for us."""
    opened: list[int] = []
    try:
        try:
            page = id(opened) // page_size  # this list is in memory
            with (_PROC / "self" / "pagemap").open("rb", buffering=0) as pagemap:
                entry = int(read_entries(pagemap.fileno(), page, page + 1)[0])
            for name in ("kpageflags", "kpagecount"):
                opened.append(os.open(_PROC / name, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError as error:
            raise TargetError(
                f"{error.filename} does not exist",
                "the kernel must have CONFIG_PROC_PAGE_MONITOR; else evaluate a vmcore with -c",
            ) from error
        except OSError as error:
            name = error.filename or "/proc/self/pagemap"
            raise refused("proc", f"{name} cannot be read ({error.strerror})") from error
        if not entry & PM_PFN:
            raise refused("proc", "page frame numbers are hidden")
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return opened[0], opened[1]


class Regions:
    """Populated parts of an address range, where the kernel can list them (6.7+)."""

    def __init__(self, page_size: int, step: int = _STEP) -> None:
        self._page_size, self._step = page_size, step
        self._regions = array.array("Q", bytes(24 * _REGIONS))
        self.works = True

    def populated(self, fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """(first page, last page + 1, mapped by PMDs) with page numbers from address 0; no two
        that adjoin are alike.

        Without PAGEMAP_SCAN the whole range, not by PMDs, and `works` is False afterwards.
        """
        begin = behind = 0
        kind = False
        for first, last, huge in self._pieces(fd, start, end):
            if (first, huge) != (behind, kind):
                if begin < behind:
                    yield begin, behind, kind
                begin, kind = first, huge
            behind = last
        if begin < behind:
            yield begin, behind, kind

    def _pieces(self, fd: int, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The same, cut anywhere."""
        while start < end and self.works:
            limit = min(start - start % self._step + self._step, end)
            address, room = self._regions.buffer_info()
            argument = bytearray(
                _SCAN_ARG.pack(
                    _SCAN_ARG.size, 0, start, limit, 0, address, room // 3, 0, 0, 0,
                    _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, _PAGE_IS_HUGE | _PAGE_IS_PRESENT,
                )
            )  # fmt: skip
            try:
                count = fcntl.ioctl(fd, _PAGEMAP_SCAN, argument)
            except OSError:
                self.works = False
                break
            for row in range(0, 3 * count, 3):
                first, last, kind = self._regions[row : row + 3]
                huge = kind & _PAGE_IS_HUGE and kind & _PAGE_IS_PRESENT
                yield first // self._page_size, last // self._page_size, bool(huge)
            start = _SCAN_ARG.unpack(argument)[4]  # walk_end
        if start < end:
            yield start // self._page_size, end // self._page_size, False


def joined(
    regions: Iterable[tuple[int, int, bool]],
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Ranges of page numbers to read: `regions` (ascending) with small holes filled, cut to
    CHUNK; and of each the parts mapped by PMDs, which may reach beyond it."""
    first = last = 0
    huge: list[tuple[int, int]] = []
    for begin, end, by_pmd in regions:
        if begin - last > HOLE or first == last:
            if first < last:
                yield first, last, huge
            first, huge = begin, []
        last = end
        if by_pmd:
            huge.append((begin, end))
        while last - first > CHUNK:
            yield first, first + CHUNK, huge
            first += CHUNK
            huge = [part for part in huge if part[1] > first]
    if first < last:
        yield first, last, huge


def read_entries(fd: int, first: int, last: int) -> U64:
    """8-byte entries [first, last) of one of these files; fewer where it ends. Raises OSError."""
    data = os.pread(fd, (last - first) * 8, first * 8)
    part = np.frombuffer(data, np.uint64)
    if len(part) == last - first or not data:
        return part
    return np.concatenate((part, read_entries(fd, first + len(part), last)))


def _at_once(size: int) -> None:
    del size


def lookup(fd: int, pfns: U64, wait: Wait = _at_once) -> U64:
    """The entries of ascending PFNs in kpageflags or kpagecount; 0 beyond the end of it."""
    out = np.zeros(len(pfns), np.uint64)
    for begin in range(0, len(pfns), CHUNK):  # few of Python's own numbers at a time
        part = slice(begin, begin + CHUNK)
        _lookup(fd, pfns[part], wait, out[part])
    return out


def _lookup(fd: int, pfns: U64, wait: Wait, out: U64) -> None:
    breaks = np.flatnonzero(np.diff(pfns.view(np.int64)) > HOLE // 8) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(pfns)]))
    lows = pfns[starts].tolist()
    highs = (pfns[ends - 1] + np.uint64(1)).tolist()
    for row, end, low, high in zip(starts.tolist(), ends.tolist(), lows, highs, strict=True):
        if high - low == end - row and high - low <= CHUNK:  # no holes
            wait(8 * (high - low))
            found = read_entries(fd, low, high)
            out[row : row + len(found)] = found
            continue
        for begin in range(low, high, CHUNK):
            limit = min(begin + CHUNK, high)
            wait(8 * (limit - begin))
            found = read_entries(fd, begin, limit)
            left, right = row + np.searchsorted(
                pfns[row:end], np.array([begin, begin + len(found)], np.uint64)
            )
            out[left:right] = found[(pfns[left:right] - np.uint64(begin)).astype(np.int64)]


def ksm_flag_works(kpageflags: int, page_size: int) -> bool:
    """Does KPF_KSM tell KSM pages from others?

    In 6.12 stable_page_flags() (fs/proc/page.c) sets it for every anonymous page: it tests for
    any of the bits of PAGE_MAPPING_KSM. 6.1 and 6.18 do not. A page just written is no KSM page.
    """
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, page_size, flags=private) as page:
        page[:8] = b"not KSM\0"
        here = ctypes.c_char.from_buffer(page)
        number = ctypes.addressof(here) // page_size
        del here  # else the mapping cannot be closed
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
            entry = read_entries(pagemap.fileno(), number, number + 1) & np.uint64(PM_PFN)
        flags = int(lookup(kpageflags, entry)[0])
        return flags & (KPF_ANON | KPF_KSM) == KPF_ANON


def compounds(fd: int, pfns: U64, pages: int, wait: Wait = _at_once) -> tuple[U64, U64]:
    """(PFN of the head, pages) of the compound page that each of ascending `pfns` is in.

    `pages` a PMD maps: no anonymous compound page is larger, and each is aligned to its size.
    """
    block = pfns // np.uint64(pages)
    change = np.ones(len(block), np.bool_)
    change[1:] = block[1:] != block[:-1]
    row = np.cumsum(change) - 1
    head = np.empty(len(pfns), np.uint64)
    size = np.empty(len(pfns), np.uint64)
    blocks = block[change]
    for begin in range(0, len(blocks), CHUNK // pages):
        part = blocks[begin : begin + CHUNK // pages]
        every = (part[:, None] * np.uint64(pages) + np.arange(pages, dtype=np.uint64)).ravel()
        found = lookup(fd, every.astype(np.uint64), wait).reshape(len(part), pages)
        first, count = _extent((found & np.uint64(KPF_TAIL)) != 0)
        rows = slice(*np.searchsorted(row, (begin, begin + len(part))).tolist())
        at = (row[rows] - begin, (pfns[rows] % np.uint64(pages)).astype(np.int64))
        head[rows] = part[at[0]] * np.uint64(pages) + first[at].astype(np.uint64)
        size[rows] = count[at]
    return head, size


def _extent(tail: NDArray[np.bool_]) -> tuple[I64, I64]:
    """Of each page in rows of pages, `tail` or not: column of its head, pages of its compound."""
    width = tail.shape[1]
    column = np.arange(width)
    head = np.maximum.accumulate(np.where(tail, 0, column), axis=1)
    # The next page that is no tail, looking from behind.
    later = np.minimum.accumulate(np.where(tail, width, column)[:, ::-1], axis=1)[:, ::-1]
    following = np.concatenate((later[:, 1:], np.full((len(tail), 1), width)), axis=1)
    return head.astype(np.int64), (following - head).astype(np.int64)
