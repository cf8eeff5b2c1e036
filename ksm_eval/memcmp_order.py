"""The order of the frames' contents, for kernels on which the shape of ksmd's trees matters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.rules import Rules
from ksm_eval.snapshot import U8, U64, FrameFlag, Frames, MappingFlag, has
from ksm_eval.target import Target


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


def memcmp_order(target: Target, pfns: U64, offset: int = 0) -> NDArray[np.int64]:
    """The permutation that sorts these frames by their contents as memcmp() does.

    Contents are compared 64 bytes at a time, and only frames that are still equal are
    read again: a few passes, and never more than 64 bytes a frame in memory.
    """
    step = 64
    if len(pfns) < 2 or offset >= target.info.page_size:
        return np.arange(len(pfns), dtype=np.int64)
    as_bytes = [target.read_pages(int(p), 1)[offset : offset + step] for p in pfns.tolist()]
    ranked = sorted(range(len(pfns)), key=as_bytes.__getitem__)
    order = np.array(ranked, np.int64)
    start = 0
    while start < len(ranked):
        end = start + 1
        while end < len(ranked) and as_bytes[ranked[end]] == as_bytes[ranked[start]]:
            end += 1
        if end - start > 1:
            tie = order[start:end]
            order[start:end] = tie[memcmp_order(target, pfns[tie], offset + step)]
        start = end
    return order
