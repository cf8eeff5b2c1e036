"""The order of the frames' contents, for passes in which the shape of ksmd's trees matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.snapshot import (
    EMPTY,
    I64,
    NO_COMPOUND,
    U32,
    U64,
    FrameFlag,
    Frames,
    KsmdState,
    MappingFlag,
    Mappings,
    Snapshot,
    has,
)
from ksm_eval.target import Target, Unreadable, read_page

WINDOW = 64  # bytes

Read: TypeAlias = Callable[[int], bytes]
"""Row of a list of pages -> the contents of that page."""


def with_memcmp_order(
    target: Target,
    frames: Frames,
    rules: Rules,
    mappings: Mappings,
    settings: Settings,
    ksmd: KsmdState | None,
    *,
    exact: bool,
) -> Frames:
    """Add the memcmp rank of the contents where the shape of ksmd's trees decides.

    Always where it decides the settled state. With `exact` also where it decides single
    passes: a THP split that takes a zero page out of the unstable tree, and chains and stale
    nodes, which a search prunes on its way.
    """
    needed = rules.prot_none_unreadable and bool(has(mappings.flags, MappingFlag.PROT_NONE).any())
    if exact and not needed:
        zero = has(frames.flags, FrameFlag.ZERO) & (frames.compound != NO_COMPOUND)
        needed = rules.zero_remap_at_split and bool(zero.any())
        _, content = np.unique(frames.hash, return_inverse=True)
        of_content = np.bincount(content[mappings.frame], minlength=1)
        needed = needed or bool((of_content > settings.max_page_sharing).any())
        needed = needed or (ksmd is not None and _to_prune(ksmd))
    if not needed:
        return frames
    hashes, rows = _one_each(frames)
    try:
        order = memcmp_order(target, frames.pfn[rows])
    except Unreadable:  # a page of a running host went away
        return frames
    return replace(frames, order=_ranks(frames, hashes, hashes[order]))


def _to_prune(ksmd: KsmdState) -> bool:
    """Has the stable tree anything that a search changes on its way?"""
    chains = (ksmd.node_chain >= 0).any() or (ksmd.tree[:, 0] == EMPTY).any()
    return bool(chains or ksmd.node_stale.any())


def common_order(samples: Sequence[tuple[Target, Snapshot]]) -> list[Snapshot]:
    """The snapshots of one series with ranks that mean the same contents in all of them.

    The targets must be open, and the snapshots collected with one `seed`. Each content is
    read from the first sample that has it.
    """
    first: dict[int, tuple[Target, int]] = {}
    for target, snapshot in samples:
        hashes, rows = _one_each(snapshot.frames)
        places = target.places(snapshot.frames.pfn[rows])
        for key, place in zip(hashes.tolist(), places.tolist(), strict=True):
            first.setdefault(key, (target, place))
    hashes = np.fromiter(first, np.uint64, len(first))
    sources = list(first.values())

    def read(row: int) -> bytes:
        target, place = sources[row]
        return read_page(target, place)

    page_size = samples[0][0].info.page_size if samples else 0
    ascending = hashes[_sorted(read, len(sources), page_size)]
    return [
        replace(s, frames=replace(s.frames, order=_ranks(s.frames, np.sort(hashes), ascending)))
        for _, s in samples
    ]


def _one_each(frames: Frames) -> tuple[U64, I64]:
    """The distinct readable contents, ascending by hash, and a frame of each."""
    readable = np.flatnonzero(~has(frames.flags, FrameFlag.UNREADABLE))
    hashes, first = np.unique(frames.hash[readable], return_index=True)
    return hashes, readable[first]


def _ranks(frames: Frames, hashes: U64, ascending: U64) -> U32:
    """The rank of each frame; `hashes` sorted by value, `ascending` the same by contents."""
    order = np.zeros(len(frames), np.uint32)
    if len(hashes):
        rank = np.zeros(len(hashes), np.uint32)
        rank[np.searchsorted(hashes, ascending)] = np.arange(len(hashes), dtype=np.uint32)
        readable = ~has(frames.flags, FrameFlag.UNREADABLE)
        order[readable] = rank[np.searchsorted(hashes, frames.hash[readable])]
    return order


def memcmp_order(target: Target, pfns: U64) -> NDArray[np.int64]:
    """The permutation that sorts these frames by their contents as memcmp() does."""
    numbers = target.places(pfns).tolist()
    return _sorted(lambda row: read_page(target, numbers[row]), len(pfns), target.info.page_size)


def _sorted(read: Read, count: int, page_size: int) -> NDArray[np.int64]:
    """Contents are compared WINDOW bytes at a time, and only pages that are still equal are
    read again, where they first differ: a few passes, and never more than WINDOW bytes a
    page and two pages in memory.
    """
    order = np.arange(count, dtype=np.int64)
    groups = [(0, count, 0)]  # [start, end) of `order`, equal in their first bytes
    while groups:
        start, end, offset = groups.pop()
        rows = order[start:end].copy()
        if offset:
            offset = _first_difference(read, rows.tolist(), page_size)
        if offset >= page_size:
            continue
        windows = [read(row)[offset : offset + WINDOW] for row in rows.tolist()]
        ranked = sorted(range(len(rows)), key=windows.__getitem__)
        order[start:end] = rows[ranked]
        first = 0
        for last in range(1, len(ranked) + 1):
            if last == len(ranked) or windows[ranked[last]] != windows[ranked[first]]:
                if last - first > 1:
                    groups.append((start + first, start + last, offset + WINDOW))
                first = last
    return order


def _first_difference(read: Read, rows: Sequence[int], page_size: int) -> int:
    """Offset of the first byte in which these pages are not all equal; the page size if none."""
    common = page_size
    reference = np.frombuffer(read(rows[0]), np.uint8)
    for row in rows[1:]:
        contents = np.frombuffer(read(row), np.uint8)
        different = contents[:common] != reference[:common]
        if different.any():
            common = int(different.argmax())
    return common
