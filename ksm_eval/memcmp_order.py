"""The order of the frames' contents, for kernels on which the shape of ksmd's trees matters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.rules import Rules
from ksm_eval.snapshot import U8, U64, FrameFlag, Frames, MappingFlag, has
from ksm_eval.target import Target

WINDOW = 64  # bytes


def with_memcmp_order(target: Target, frames: Frames, rules: Rules, flags: U8) -> Frames:
    """Add the memcmp rank of the contents where the shape of ksmd's trees decides."""
    poisoned = rules.prot_none_unreadable and bool(has(flags, MappingFlag.PROT_NONE).any())
    if not poisoned:
        return frames
    readable = np.flatnonzero(~has(frames.flags, FrameFlag.UNREADABLE))
    by_hash = readable[np.argsort(frames.hash[readable], kind="stable")]
    hashes = frames.hash[by_hash]
    first = np.append(True, hashes[1:] != hashes[:-1]) if len(hashes) else np.empty(0, np.bool_)
    one_each = by_hash[first]
    rank = np.zeros(len(one_each), np.uint32)
    rank[memcmp_order(target, frames.pfn[one_each])] = np.arange(len(one_each), dtype=np.uint32)
    order = np.zeros(len(frames), np.uint32)
    order[by_hash] = rank[np.cumsum(first) - 1]
    return replace(frames, order=order)


def memcmp_order(target: Target, pfns: U64) -> NDArray[np.int64]:
    """The permutation that sorts these frames by their contents as memcmp() does.

    Contents are compared WINDOW bytes at a time, and only frames that are still equal are
    read again, where they first differ: a few passes, and never more than WINDOW bytes a
    frame and two pages in memory.
    """
    order = np.arange(len(pfns), dtype=np.int64)
    groups = [(0, len(pfns), 0)]  # [start, end) of `order`, equal in their first bytes
    while groups:
        start, end, offset = groups.pop()
        rows = order[start:end].copy()
        if offset:
            offset = _first_difference(target, pfns[rows])
        if offset >= target.info.page_size:
            continue
        windows = [target.read_pages(p, 1)[offset : offset + WINDOW] for p in pfns[rows].tolist()]
        ranked = sorted(range(len(rows)), key=windows.__getitem__)
        order[start:end] = rows[ranked]
        first = 0
        for last in range(1, len(ranked) + 1):
            if last == len(ranked) or windows[ranked[last]] != windows[ranked[first]]:
                if last - first > 1:
                    groups.append((start + first, start + last, offset + WINDOW))
                first = last
    return order


def _first_difference(target: Target, pfns: U64) -> int:
    """Offset of the first byte in which these frames are not all equal; the page size if none."""
    common = target.info.page_size
    reference = np.frombuffer(target.read_pages(int(pfns[0]), 1), np.uint8)
    for pfn in pfns[1:].tolist():
        contents = np.frombuffer(target.read_pages(pfn, 1), np.uint8)
        different = contents[:common] != reference[:common]
        if different.any():
            common = int(different.argmax())
    return common
