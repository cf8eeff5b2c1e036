"""What the contents are that most frames have: a class of each, never an excerpt."""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from ksm_eval.snapshot import (
    I64,
    U64,
    ContentKind,
    Contents,
    FrameFlag,
    Frames,
    has,
)
from ksm_eval.target import Target, Unreadable, read_page

TOP = 100  # contents; each costs a page to read
_WORD = 8  # bytes
_BLOCK = 1 << 18  # frames at a time


def content_kinds(target: Target, frames: Frames, seed: int) -> Contents:
    """The TOP contents that most frames have, at least two each, most frames first.

    `seed`: of `frames.hash`. One frame of each is read again, but for zero pages, which are known.
    Where it has other contents by now, or is gone, the kind is UNKNOWN.
    """
    rows = most_frequent(frames, TOP)
    kinds = np.full(len(rows), ContentKind.UNKNOWN, np.uint8)
    places = target.places(frames.pfn[rows])
    zero = has(frames.flags[rows], FrameFlag.ZERO)
    kinds[zero] = ContentKind.ZERO
    for at in np.flatnonzero(~zero).tolist():
        try:
            page = read_page(target, int(places[at]))
        except Unreadable:
            continue
        # Whoever has the frame now: of equal contents the kind is the same.
        if xxhash.xxh3_64_intdigest(page, seed) == int(frames.hash[rows[at]]):
            kinds[at] = kind_of(page)
    return Contents(frames.hash[rows], kinds)


def kind_of(page: bytes) -> ContentKind:
    """The narrowest that fits."""
    if page == page[:1] * len(page):
        return ContentKind.CONSTANT_BYTE if page[0] else ContentKind.ZERO
    if page == page[:_WORD] * (len(page) // _WORD):
        return ContentKind.REPEATED_WORD
    return ContentKind.OTHER


def most_frequent(frames: Frames, top: int) -> I64:
    """A frame of each of the `top` readable contents that most frames have: the first. Contents
    of as many frames are in the order of these, which does not depend on the hashes' key."""
    unreadable = has(frames.flags, FrameFlag.UNREADABLE)
    ascending = np.sort(frames.hash[~unreadable] if unreadable.any() else frames.hash)
    again = np.zeros(len(ascending) + 1, np.bool_)  # [i]: equal to the one before
    np.equal(ascending[1:], ascending[:-1], out=again[1:-1])
    edges = np.flatnonzero(again[1:] != again[:-1])  # of runs: first and last, by turns
    first, last = edges[::2], edges[1::2]
    values, size = ascending[first], last - first + 1
    del ascending, again, edges
    if len(size) > top:
        least = np.partition(size, len(size) - top)[len(size) - top]
        kept = size >= least
        values, size = values[kept], size[kept]
    rows = _first_rows(frames.hash, unreadable, values, size, top)
    found = np.flatnonzero(rows < len(frames))
    order = np.lexsort((rows[found], -size[found]))
    return rows[found[order]][:top]


def _first_rows(
    hashes: U64, unreadable: NDArray[np.bool_], values: U64, size: I64, top: int
) -> I64:
    """Of each of the ascending `values` the first row that has it; len(hashes) of those that need
    not be looked for any more, since enough others as frequent come before."""
    rows = np.full(len(values), len(hashes), np.int64)
    if not len(values):
        return rows
    certain = size > size.min()
    wanted = top - int(certain.sum())  # of those with as few frames as the last
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        at = np.searchsorted(values, block)
        at[at == len(values)] = 0
        hit = np.flatnonzero((values[at] == block) & ~unreadable[start : start + _BLOCK])
        np.minimum.at(rows, at[hit], hit + start)
        known = rows < len(hashes)
        if known[certain].all() and known[~certain].sum() >= min(wanted, (~certain).sum()):
            break
    return rows
