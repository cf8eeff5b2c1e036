"""How much of a memory stood still over several samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.counters import per_process, per_vma
from ksm_eval.snapshot import I64, U64, Snapshot


@dataclass(frozen=True)
class Calm:
    """Of the candidate mappings of the last sample, how many were the same in all samples.

    A mapping is calm if it was there in every sample with equal contents, new if it was not
    there in all of them, and changed otherwise: mappings - calm - new. Arrays of shape (P,)
    and (V,), rows of the last sample.
    """

    samples: int
    calm: I64
    new: I64
    mappings: I64
    vma_calm: I64
    vma_mappings: I64
    fork_shared: int
    """Mappings of the last sample beyond the first of their frame. ksmd counts those it does
    not merge as pages_volatile, though nothing about them changes."""


def calm(samples: Sequence[Snapshot]) -> Calm:
    """Compare samples of one kernel, taken in this order with one `seed`."""
    last = samples[-1]
    vmas, count = last.vmas, len(last.processes)
    same = np.ones(len(last.mappings), np.bool_)
    there = same.copy()
    for earlier in samples[:-1]:
        found, equal = _compare(earlier, last)
        there &= found
        same &= equal
    total = np.diff(vmas.offset)
    steady, fresh = per_vma(vmas, same), per_vma(vmas, ~there)
    return Calm(
        samples=len(samples),
        calm=per_process(vmas, steady, count),
        new=per_process(vmas, fresh, count),
        mappings=per_process(vmas, total, count),
        vma_calm=steady,
        vma_mappings=total,
        fork_shared=len(last.mappings) - len(last.frames),
    )


def _addresses(snapshot: Snapshot) -> tuple[U64, I64]:
    """Address of each mapping, and where each process's mappings begin, shape (P+1,)."""
    vmas, mappings = snapshot.vmas, snapshot.mappings
    start = np.repeat(vmas.start, np.diff(vmas.offset))
    address = start + mappings.page.astype(np.uint64) * np.uint64(snapshot.meta.page_size)
    first = np.searchsorted(vmas.process, np.arange(len(snapshot.processes) + 1))
    return address, vmas.offset[first]


def _compare(earlier: Snapshot, last: Snapshot) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which mappings of `last` were in `earlier`, and which of them with equal contents."""
    old_address, old_bounds = _addresses(earlier)
    address, bounds = _addresses(last)
    old_hash = earlier.frames.hash[earlier.mappings.frame]
    hashes = last.frames.hash[last.mappings.frame]
    known = {
        key: row
        for row, key in enumerate(
            zip(
                earlier.processes.pid.tolist(),
                earlier.processes.start_time.tolist(),
                strict=True,
            )
        )
    }
    found = np.zeros(len(address), np.bool_)
    equal = np.zeros(len(address), np.bool_)
    keys = zip(last.processes.pid.tolist(), last.processes.start_time.tolist(), strict=True)
    for row, key in enumerate(keys):
        if key not in known:
            continue
        low, high = old_bounds[known[key]], old_bounds[known[key] + 1]
        mine = slice(bounds[row], bounds[row + 1])
        old = old_address[low:high]
        if not len(old):
            continue
        at = np.minimum(np.searchsorted(old, address[mine]), len(old) - 1)
        found[mine] = old[at] == address[mine]
        equal[mine] = found[mine] & (old_hash[low:high][at] == hashes[mine])
    return found, equal
