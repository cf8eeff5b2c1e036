"""Pages that stand still, change, and come between samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ksm_eval.replay.calm import calm
from ksm_eval.snapshot import Snapshot
from tests.fixtures import TINY, snapshot


def with_hash(sample: Snapshot, rows: np.ndarray, value: int) -> Snapshot:
    changed = sample.frames.hash.copy()
    changed[rows] ^= np.uint64(value)
    return replace(sample, frames=replace(sample.frames, hash=changed))


def test_one_and_equal_samples_are_calm() -> None:
    sample = snapshot(TINY)
    for samples in ([sample], [sample] * 3):
        found = calm(samples)
        assert found.calm.tolist() == found.mappings.tolist()
        assert int(found.mappings.sum()) == len(sample.mappings)
        assert found.new.sum() == 0
        assert found.vma_calm.sum() == len(sample.mappings)
        assert found.fork_shared == len(sample.mappings) - len(sample.frames)


def test_a_frame_that_changed_and_changed_back() -> None:
    """Calm means equal in every sample; all mappings of the frame count."""
    sample = snapshot(TINY)
    frame = int(np.bincount(sample.mappings.frame).argmax())
    mappers = int((sample.mappings.frame == frame).sum())
    assert mappers >= 5
    other = with_hash(sample, np.array([frame]), 1)
    found = calm([sample, other, sample])
    assert int((found.mappings - found.calm).sum()) == mappers
    assert found.new.sum() == 0


def test_a_process_that_is_new_is_not_calm() -> None:
    """The same pid with another start time is another process."""
    sample = snapshot(TINY)
    started = sample.processes.start_time.copy()
    started[2] += np.uint64(1)
    again = replace(sample, processes=replace(sample.processes, start_time=started))
    found = calm([sample, again])
    assert found.new[2] == found.mappings[2] > 900
    assert found.calm[2] == 0
    assert (found.calm[:2] == found.mappings[:2]).all()


def test_pages_that_were_not_there() -> None:
    """The last VMA's pages lie elsewhere in the first sample."""
    sample = snapshot(TINY)
    row = int(np.flatnonzero(np.diff(sample.vmas.offset))[-1])
    start = sample.vmas.start.copy()
    start[row] += np.uint64(1 << 30)
    earlier = replace(sample, vmas=replace(sample.vmas, start=start))
    found = calm([earlier, sample])
    pages = int(sample.vmas.offset[row + 1] - sample.vmas.offset[row])
    assert int(found.new.sum()) == pages > 0
    assert int(found.vma_mappings[row] - found.vma_calm[row]) == pages
