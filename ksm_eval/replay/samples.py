"""Which page of a sample is which page of the one before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.snapshot import I32, I64, U64

Key = tuple[int, int]
"""A process: pid and start time."""


@dataclass(frozen=True)
class Sample:
    """A process's mappings in one sample, by ascending address. Arrays of one length."""

    address: U64
    slot: I64  # item of the replay
    pfn: U64
    content: I64
    head: I64  # first PFN of the compound page, -1: in none
    compound: I64  # of the replay, -1: in none


def match(
    samples: Mapping[Key, Sample],
    keys: Sequence[Key],
    ppid: I32 | None,
    address: U64,
    pfn: U64,
    bounds: I64,
) -> tuple[Sample, NDArray[np.bool_], dict[Key, Key]]:
    """What was at each address in the sample before (`slot` -1: nothing), whether in the same
    process, and the parents of the processes that are new.

    Of a new process it is what its parent had there: only a fork inherits, as a frame that an
    old process has at another address may have been freed in between. `bounds`: rows of each
    of the processes `keys`.
    """
    count = len(address)
    found = Sample(
        address,
        np.full(count, -1, np.int64),
        np.zeros(count, np.uint64),
        np.full(count, -1, np.int64),
        np.full(count, -1, np.int64),
        np.full(count, -1, np.int64),
    )
    own = np.zeros(count, np.bool_)
    parents: dict[Key, Key] = {}
    for number, key in enumerate(keys):
        rows = slice(int(bounds[number]), int(bounds[number + 1]))
        own[rows] = key in samples
        if key not in samples:
            parent = _parent(samples, keys, ppid, number, address[rows], pfn[rows])
            if parent is None:
                continue
            parents[key] = parent
        old = samples[parents.get(key, key)]
        at, hit = find(old.address, address[rows])
        for name in ("slot", "pfn", "content", "head", "compound"):
            getattr(found, name)[rows][hit] = getattr(old, name)[at[hit]]
    return found, own, parents


def _parent(
    samples: Mapping[Key, Sample],
    keys: Sequence[Key],
    ppid: I32 | None,
    number: int,
    address: U64,
    pfn: U64,
) -> Key | None:
    """The process of the last sample that this new one was forked from, if any."""
    before = {key[0]: key for key in samples}
    now = {key[0]: row for row, key in enumerate(keys)}
    pid, seen = keys[number][0], set[int]()
    while ppid is not None and pid in now and pid not in seen:
        seen.add(pid)
        pid = int(ppid[now[pid]])
        if pid in before and (pid not in now or keys[now[pid]] == before[pid]):
            return before[pid]
    # Its parent has exited, or is not selected: then nothing is known of what it inherits.
    best, most = None, len(address) // 2
    for key, old in samples.items():
        if ppid is None or key not in keys:
            at, hit = find(old.address, address)
            common = int((hit & (old.pfn[at] == pfn)).sum()) if len(old.pfn) else 0
            if common > most:
                best, most = key, common
    return best


def find(ascending: U64, wanted: U64) -> tuple[I64, NDArray[np.bool_]]:
    """Where each of `wanted` is in `ascending`, and whether it is there at all."""
    if not len(ascending):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    at = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return at, ascending[at] == wanted
