"""Equal frames that one process has several of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ksm_eval.decision.equal import Equal
from ksm_eval.snapshot import I64, U64, Snapshot

Bool = NDArray[np.bool_]

_AT_ONCE = 1 << 22
"""Mappings whose processes are looked at together: many small ones, or one large."""


def parts(snapshot: Snapshot, equal: Equal, wanted: Bool) -> I64:
    """By content, into how many parts its wanted frames (of `equal.rows`) fall, if frames that
    one process maps are linked; shape (N,)."""
    content = equal.content[wanted]
    part = _components(len(content), _links(snapshot, equal.rows[wanted], content))
    found = np.zeros(len(equal.bounds) - 1, np.int64)
    np.add.at(found, content[part == np.arange(len(content))], 1)
    return found


def _links(snapshot: Snapshot, rows: I64, content: I64) -> U64:
    """Two of `rows` of equal content that one process maps, one in the high and one in the low
    half of a word, so that all such frames are linked directly or by others."""
    vmas = snapshot.vmas
    number = np.full(len(snapshot.frames), -1)
    number[rows] = np.arange(len(rows))
    people = np.arange(len(snapshot.processes) + 1)
    bounds = vmas.offset[np.searchsorted(vmas.process, people)]
    found = [np.empty(0, np.uint64)]
    first = 0
    while first < len(bounds) - 1:
        last = int(np.searchsorted(bounds, bounds[first] + _AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        mine = number[snapshot.mappings.frame[bounds[first] : bounds[last]]]
        owner = np.repeat(np.arange(last - first), np.diff(bounds[first : last + 1]))
        keys = (owner[mine >= 0] << 32) | mine[mine >= 0]
        keys.sort()
        owner, mine = keys >> 32, keys & 0xFFFFFFFF  # numbers ascend with contents
        same = (owner[1:] == owner[:-1]) & (mine[1:] != mine[:-1])
        same &= content[mine[1:]] == content[mine[:-1]]
        pairs = (mine[:-1][same] << 32) | mine[1:][same]
        found.append(np.unique(pairs).astype(np.uint64))
        if len(found) > 16:  # forked processes have the same ones
            found = [np.unique(np.concatenate(found))]
        first = last
    return np.unique(np.concatenate(found))


def _components(count: int, links: U64) -> I64:
    """The lowest number that each is linked to, shape (count,)."""
    one = (links >> np.uint64(32)).astype(np.int64)
    other = (links & np.uint64(0xFFFFFFFF)).astype(np.int64)
    part = np.arange(count)
    while True:
        low, high = np.minimum(part[one], part[other]), np.maximum(part[one], part[other])
        apart = low != high
        if not apart.any():
            return part
        one, other = one[apart], other[apart]
        np.minimum.at(part, high[apart], low[apart])
        while (part[part] != part).any():
            part = part[part]
