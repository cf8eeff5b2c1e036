"""Read and hash every distinct frame once, in the order of their places, in coalesced reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import xxhash
from numpy.typing import NDArray

from ksm_eval.snapshot import I64, U8, U32, U64, FrameFlag, Pfns, has, mark
from ksm_eval.tables import BLOCK
from ksm_eval.target import READING, WENT_AWAY, Memory, Progress, Unreadable

MAX_RUN = 1 << 20  # bytes a read: stays in the L2 cache and is not a fresh mmap each time
_RUNS = 1 << 14  # of which Python's own numbers are made at once
MAX_GAP = 5  # pages not asked for that are worth reading to keep a run going


@dataclass(frozen=True)
class Sweep:
    """Of each frame: the hash of its contents, and ZERO or UNREADABLE in `flags`."""

    hash: U64
    flags: U8
    unreadable: dict[str, int]  # reason -> frames
    checksum: U32 | None = None  # as calc_checksum() of mm/ksm.c; 0 where unreadable


def _breaks(places: Pfns, most: int) -> I64:
    """Rows that are more than `most` from the one before."""
    breaks = [
        np.flatnonzero(np.diff(places[begin : begin + BLOCK + 1]) > most) + (begin + 1)
        for begin in range(0, len(places), BLOCK)
    ]
    return np.concatenate([np.empty(0, np.int64), *breaks])


def _runs(places: Pfns, max_gap: int, max_run: int) -> Iterator[tuple[int, int]]:
    """[first, last) rows of each read: places at most `max_gap` apart, `max_run` pages long."""
    breaks = _breaks(places, max_gap + 1)
    bounds = np.concatenate(([0], breaks, [len(places)]))
    for at in range(0, len(bounds) - 1 if len(places) else 0, _RUNS):
        part = bounds[at : at + _RUNS + 1]
        long = (places[part[1:] - 1] - places[part[:-1]] >= max_run).tolist()
        some = part.tolist()
        for first, last, cut in zip(some[:-1], some[1:], long, strict=True):
            while cut and first < last:
                # A long stretch is cut where its pages, gaps included, fill the buffer.
                stretch = places[first : first + max_run] - places[first]
                limit = min(int(np.searchsorted(stretch, max_run)), last - first)
                yield first, first + limit
                first += limit
            if first < last:
                yield first, last


def sweep(
    target: Memory,
    pfns: Pfns,
    seed: int,
    progress: Progress | None = None,
    *,
    max_gap: int | None = None,
    max_run: int | None = None,
    checksums: bool = False,
) -> Sweep:
    """Hash the frames of `pfns` (ascending, distinct) with XXH3-64 under `seed`.

    `max_gap` and `max_run` are in pages; by default a run is MAX_RUN bytes long, and gaps are
    read where the target allows it. The result does not depend on `max_gap` and `max_run`:
    a run with a page that cannot be read is read again page by page, so a hole costs only
    itself.
    """
    places = target.places(pfns)
    if places is pfns:
        swept = _sweep(target, pfns, seed, progress, max_gap, max_run, checksums)
        return _without(swept, ~target.still_mapped(pfns))
    order = np.argsort(places, kind="stable")
    swept = _sweep(target, places[order], seed, progress, max_gap, max_run, checksums)
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    checksum = None if swept.checksum is None else swept.checksum[back]
    return Sweep(swept.hash[back], swept.flags[back], swept.unreadable, checksum)


def _without(swept: Sweep, gone: NDArray[np.bool_]) -> Sweep:
    """What was read of frames that are `gone` may be another process's."""
    gone &= ~has(swept.flags, FrameFlag.UNREADABLE)
    if not gone.any():
        return swept
    swept.flags[gone] = FrameFlag.UNREADABLE
    swept.hash[gone] = 0
    reasons = Counter(swept.unreadable) + Counter({WENT_AWAY: int(gone.sum())})
    return replace(swept, unreadable=dict(reasons))


def _sweep(
    target: Memory,
    places: Pfns,
    seed: int,
    progress: Progress | None,
    max_gap: int | None,
    max_run: int | None,
    checksums: bool,
) -> Sweep:
    """`places` ascending."""
    size = target.info.page_size
    if max_gap is None:
        max_gap = MAX_GAP if target.info.read_gaps else 0
    max_run = max_run or MAX_RUN // size
    zero = xxhash.xxh3_64_intdigest(bytes(size), seed)
    hashes = np.zeros(len(places), np.uint64)
    flags = np.zeros(len(places), np.uint8)
    unreadable: Counter[str] = Counter()
    checksum = np.zeros(len(places), np.uint32) if checksums else None
    # One buffer for all reads, and a view of each page in it, made once.
    buffer = memoryview(bytearray(max_run * size))
    pages = [buffer[at : at + size] for at in range(0, len(buffer), size)]

    def hash_pages(found: list[memoryview], first: int, last: int) -> None:
        digests = b"".join(map(xxhash.xxh3_64_digest, found, repeat(seed)))
        hashes[first:last] = np.frombuffer(digests, ">u8")
        if checksum is not None:
            checksum[first:last] = [_checksum(page) for page in found]

    done = 0
    for first, last in _runs(places, max_gap, max_run):
        low = int(places[first])
        span = int(places[last - 1]) - low + 1
        try:
            target.read_into(buffer[: span * size], low)
        except Unreadable:
            for row in range(first, last):
                try:
                    target.read_into(pages[0], int(places[row]))
                except Unreadable as error:
                    flags[row] = FrameFlag.UNREADABLE
                    unreadable[error.reason] += 1
                else:
                    hash_pages(pages[:1], row, row + 1)
        else:
            found = pages[:span]
            if span > last - first:  # without the gaps
                found = [pages[at] for at in (places[first:last] - places[first]).tolist()]
            hash_pages(found, first, last)
        done += last - first
        if progress is not None:
            progress(READING, done, len(places))
    readable = ~has(flags, FrameFlag.UNREADABLE)
    mark(flags, readable & (hashes == np.uint64(zero)), FrameFlag.ZERO)
    return Sweep(hashes, flags, dict(unreadable), checksum)


def _checksum(page: memoryview) -> int:
    """oldchecksum of an rmap_item: 32 bits of xxHash64 (4.20+, commit 59e1a2f4bf83)."""
    return xxhash.xxh64_intdigest(page) & 0xFFFFFFFF
