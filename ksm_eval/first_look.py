"""Pages without an equal need not be read whole: a few words tell them from all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import xxhash

from ksm_eval.replay.grouping import equals
from ksm_eval.snapshot import U64, Pfns
from ksm_eval.sweep import Sweep
from ksm_eval.target import Target

WORTH_IT = 1 << 16  # frames: it is another process that looks
MOST = 0.75  # of the frames; to read so many here and there takes as long as to read all


def sweep_what_may_repeat(
    target: Target, pfns: Pfns, seed: int, sweep: Callable[[Pfns], Sweep]
) -> Sweep:
    """`sweep` of the ascending, distinct `pfns` without those that differ from all others in a few
    words, where the target says that looking at these is cheap.

    Equal frames have the hash that they always have. Those of the others are of these words: still
    unequal to all others in this result, but not to be compared with another's.
    """
    words = target.look(pfns) if len(pfns) >= WORTH_IT else None
    if words is None:
        return sweep(pfns)
    rows = np.union1d(equals(words)[0], np.flatnonzero(words == 0))
    if len(rows) >= MOST * len(pfns):
        return sweep(pfns)
    swept = sweep(pfns[rows])
    flags = np.zeros(len(pfns), np.uint8)
    flags[rows] = swept.flags
    hashes = _keyed(words, seed)
    hashes[rows] = swept.hash
    return replace(swept, hash=hashes, flags=flags)


def _keyed(words: U64, seed: int) -> U64:
    """In place, one to one."""
    words ^= np.uint64(xxhash.xxh3_64_intdigest(b"first look", seed))
    for shift in (32, 29, 32):
        words ^= words >> np.uint64(shift)
        words *= np.uint64(0xD6E8FEB86659FD93)
    return words
