"""Pages that stand still, change, and come between samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ksm_eval.replay.calm import calm, calm_only
from ksm_eval.replay.converged import predict
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import FrameFlag, Snapshot, mark
from tests.fixtures import TINY, snapshot
from tests.snapshots import ZERO, Builder


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


def test_frames_that_could_not_be_read_are_not_calm() -> None:
    """Their hashes are equal, and say nothing."""
    sample = snapshot(TINY)
    flags = sample.frames.flags.copy()
    mark(flags, np.arange(len(flags)) < 10, FrameFlag.UNREADABLE)
    unread = replace(sample, frames=replace(sample.frames, flags=flags))
    mapped = int((sample.mappings.frame < 10).sum())
    for samples in ([sample, unread], [unread, sample], [unread, unread]):
        found = calm(samples)
        assert int((found.mappings - found.calm).sum()) == mapped >= 10


def test_processes_that_end_and_start() -> None:
    sample = snapshot(TINY)
    pids, comms = sample.processes.pid.tolist(), sample.processes.comm
    started = sample.processes.start_time.copy()
    started[1] += np.uint64(1)  # its pid has been given to another
    later = replace(sample, processes=replace(sample.processes, start_time=started))
    found = calm([sample, later])
    assert found.ended == found.started == [f"{pids[1]} ({comms[1]})"]
    assert calm([sample, sample]).ended == []


def _two_samples(*, use_zero: bool) -> tuple[int, int, int, int]:
    """Of each frame's content before and now: X twice and calm, Y twice of which one is just
    written, zero pages of which one is calm. A fork of the first process has all its frames."""
    before, now = Builder(), Builder()
    for made, contents in (
        (before, ["X", "X", "Y", "a", ZERO, "b"]),
        (now, ["X", "X", "Y", "Y", ZERO, ZERO]),
    ):
        frames = [made.frame(content) for content in contents]
        made.process(*frames)
        made.process(*frames)
    # A content's hash is its own in both samples.
    hashes = {"X": 1, "Y": 2, "a": 3, "b": 4, ZERO: 5}
    samples = []
    for made in (before, now):
        sample = made.build()
        keys = np.array([hashes[content] for content, *_ in made.frames], np.uint64)
        samples.append(replace(sample, frames=replace(sample.frames, hash=keys)))
    found = calm(samples)
    settings = Settings(smart_scan=False, use_zero_pages=use_zero)
    prediction = predict(calm_only(samples[1], found), settings)
    counters = prediction.counters
    assert counters.ksm_zero_pages is not None
    assert int(found.calm.sum()) == 8  # four frames, each mapped twice
    return (
        counters.pages_shared,
        counters.pages_sharing,
        counters.ksm_zero_pages,
        prediction.savings.frames_freed,
    )


def test_only_calm_pages_merge() -> None:
    """Both frames of X merge: four mappings, one of them kept. Y's and the zero page's second
    frames were written, so that Y and zero have one frame each that holds still."""
    assert _two_samples(use_zero=False) == (1, 3, 0, 1)
    assert _two_samples(use_zero=True) == (1, 3, 2, 2)
