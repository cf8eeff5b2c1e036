"""How much of a memory stood still over several samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.counters import per_process, per_vma
from ksm_eval.snapshot import I64, U64, FrameFlag, Snapshot, has, mark


@dataclass(frozen=True)
class Calm:
    """Of the candidate mappings of the last sample, how many were the same in all samples.

    A mapping is calm if it was there in every sample with equal contents, new if it was not
    there in all of them, unread if a sample could not read it, and changed otherwise: mappings -
    calm - new - unread. Arrays of shape (P,) and (V,), rows of the last sample.
    """

    samples: int
    calm: I64
    new: I64
    unread: I64
    mappings: I64
    vma_calm: I64
    vma_mappings: I64
    fork_shared: int
    """Mappings of the selected processes beyond the first of their frame. ksmd counts those it does
    not merge as pages_volatile, though nothing about them changes."""
    still: NDArray[np.bool_]
    """Shape (M,), mappings of the last sample: calm ones."""
    ended: list[str]  # processes of an earlier sample that are not in the last: "pid (comm)"
    started: list[str]  # and those that are not in the first


def calm(samples: Sequence[Snapshot]) -> Calm:
    """Compare samples of one kernel, taken in this order with one `seed`."""
    last = samples[-1]
    vmas, count = last.vmas, len(last.processes)
    same = np.ones(len(last.mappings), np.bool_)
    there, read = same.copy(), same.copy()
    for earlier in samples[:-1]:
        found, equal, known = _compare(earlier, last)
        there &= found
        same &= equal
        read &= known
    total = np.diff(vmas.offset)
    steady, fresh = per_vma(vmas, same), per_vma(vmas, ~there)
    selected = np.repeat(last.processes.selected[vmas.process], total)
    frames = np.zeros(len(last.frames), np.bool_)
    frames[last.mappings.frame[selected]] = True
    return Calm(
        samples=len(samples),
        calm=per_process(vmas, steady, count),
        new=per_process(vmas, fresh, count),
        unread=per_process(vmas, per_vma(vmas, there & ~read), count),
        mappings=per_process(vmas, total, count),
        vma_calm=steady,
        vma_mappings=total,
        fork_shared=int(selected.sum()) - int(frames.sum()),
        still=same,
        ended=_missing(samples[:-1], last),
        started=_missing([last], samples[0]),
    )


def _keys(sample: Snapshot) -> dict[tuple[int, int], int]:
    """Row of each process, by pid and start time."""
    pids, started = sample.processes.pid.tolist(), sample.processes.start_time.tolist()
    return {key: row for row, key in enumerate(zip(pids, started, strict=True))}


def _missing(samples: Sequence[Snapshot], there: Snapshot) -> list[str]:
    """Processes of `samples` that are not `there`."""
    known = _keys(there)
    found = {
        key: f"{key[0]} ({sample.processes.comm[row]})"
        for sample in samples
        for key, row in _keys(sample).items()
        if key not in known and sample.processes.selected[row]
    }
    return list(found.values())


def calm_only(last: Snapshot, found: Calm) -> Snapshot:
    """The last sample as if all pages but the calm ones changed all the time: ksmd finds
    another checksum at every visit and never merges them.

    A frame is calm if one of its mappings is: that one's content is the frame's.
    """
    frames = last.frames
    steady = np.zeros(len(frames), np.bool_)
    steady[last.mappings.frame[found.still]] = True
    flags = frames.flags.copy()
    changing = ~steady & ~has(flags, FrameFlag.KSM)
    flags[changing] &= np.uint8(0xFF & ~FrameFlag.ZERO)
    mark(flags, changing, FrameFlag.UNREADABLE)  # to ksmd as good as contents without an equal
    return replace(last, frames=replace(frames, flags=flags))


def _addresses(snapshot: Snapshot) -> tuple[U64, I64]:
    """Address of each mapping, and where each process's mappings begin, shape (P+1,)."""
    vmas, mappings = snapshot.vmas, snapshot.mappings
    start = np.repeat(vmas.start, np.diff(vmas.offset))
    address = start + mappings.page.astype(np.uint64) * np.uint64(snapshot.meta.page_size)
    first = np.searchsorted(vmas.process, np.arange(len(snapshot.processes) + 1))
    return address, vmas.offset[first]


def _compare(
    earlier: Snapshot, last: Snapshot
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Which mappings of `last` were in `earlier`, which of them with equal contents, and of which
    both contents were read."""
    old_address, old_bounds = _addresses(earlier)
    address, bounds = _addresses(last)
    old_hash = earlier.frames.hash[earlier.mappings.frame]
    hashes = last.frames.hash[last.mappings.frame]
    read = ~has(last.frames.flags, FrameFlag.UNREADABLE)[last.mappings.frame]
    old_read = ~has(earlier.frames.flags, FrameFlag.UNREADABLE)[earlier.mappings.frame]
    known = _keys(earlier)
    found = np.zeros(len(address), np.bool_)
    equal = np.zeros(len(address), np.bool_)
    known_contents = np.zeros(len(address), np.bool_)
    for key, row in _keys(last).items():
        if key not in known:
            continue
        low, high = old_bounds[known[key]], old_bounds[known[key] + 1]
        mine = slice(bounds[row], bounds[row + 1])
        old = old_address[low:high]
        if not len(old):
            continue
        at = np.minimum(np.searchsorted(old, address[mine]), len(old) - 1)
        found[mine] = old[at] == address[mine]
        known_contents[mine] = found[mine] & read[mine] & old_read[low:high][at]
        equal[mine] = known_contents[mine] & (old_hash[low:high][at] == hashes[mine])
    return found, equal, known_contents
