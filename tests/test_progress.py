"""What is told to a person who waits: how often, how much, and how long it will take."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ksm_eval.collect import collect
from ksm_eval.evaluate import evaluate_snapshot, verify_snapshot
from ksm_eval.progress import Pace, ProgressLines
from ksm_eval.target import (
    CLASSIFYING,
    ORDERING,
    READING,
    RECORDS,
    REPLAYING,
    WALKING,
    WALKING_PROCESSES,
    Progress,
    Selection,
)
from tests.fixtures import NAMES, TINY, WARM, snapshot, target

Calls = list[tuple[str, int, int]]


def noted(work: Callable[[Progress], object]) -> Calls:
    calls: Calls = []
    work(lambda stage, done, total: calls.append((stage, done, total)))
    return calls


def stages(calls: Calls) -> list[str]:
    return list(dict.fromkeys(stage for stage, _, _ in calls))


def check_forward(calls: Calls) -> None:
    """No stage goes back or comes back, or is over-full."""
    names = [stage for stage, _, _ in calls]
    assert [a for a, b in zip(names, [*names[1:], ""], strict=True) if a != b] == stages(calls)
    for stage in stages(calls):
        done = [d for s, d, _ in calls if s == stage]
        assert done == sorted(done)
        assert all(d <= total for s, d, total in calls if s == stage and total)


@pytest.mark.parametrize("name", [*NAMES, WARM[0]])
def test_every_step_is_heard(name: str) -> None:
    vm = target(name)
    calls = noted(lambda heard: collect(vm, Selection(all=True), exact=True, progress=heard))
    check_forward([call for call in calls if call[0] != RECORDS])  # that comes twice
    records = [RECORDS] if name in WARM else []
    found = [stage for stage in stages(calls) if stage not in (ORDERING, *records)]
    assert found == [WALKING, CLASSIFYING, READING]
    assert set(records) <= set(stages(calls))
    assert vm.meter.listener is None
    walks = [call for call in calls if call[0] == WALKING]
    assert len(walks) > len(vm.processes(Selection(all=True)))
    last = [call for call in calls if call[0] == READING][-1]
    assert last[1] == last[2] > 3000


def test_processes_of_which_nobody_counts_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksm_eval.target.tasks.mm_counters", lambda _: lambda _: None)
    vm = target(TINY)
    calls = noted(lambda heard: collect(vm, Selection(all=True), progress=heard))
    walks = [call for call in calls if call[0] == WALKING_PROCESSES]
    assert {total for _, _, total in walks} == {len(walks)}


def test_full_scans_are_told() -> None:
    calls = noted(lambda heard: evaluate_snapshot(snapshot(TINY), passes=5, progress=heard))
    assert calls == [(REPLAYING, 0, 0), *((REPLAYING, done, 5) for done in range(6))]
    warm = collect(target(WARM[0]), Selection(all=True), mergeable_only=True)
    calls = noted(lambda heard: verify_snapshot(warm, passes=2, progress=heard))
    assert calls[-1] == (REPLAYING, 2, 2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def read(
    lines: ProgressLines, clock: Clock, frames: int, rate: float, stage: str = READING
) -> None:
    for done in range(0, frames + 1, 100):
        clock.now += 100 / rate
        lines(stage, done, frames)


def test_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = ProgressLines(clock)
    lines.page_size = 4096
    lines("opening", 0, 0)
    read(lines, clock, 200_000, 10_000)
    first, estimate, *rest = capsys.readouterr().err.splitlines()
    assert first == "ksm-eval: opening"
    assert "about 20 s" in estimate
    assert [re.sub("9999", "10k", line) for line in rest] == [
        "ksm-eval: reading frames: 50k/200k pages 10k/s 0:15 left",
        "ksm-eval: reading frames: 100k/200k pages 10k/s 0:10 left",
        "ksm-eval: reading frames: 150k/200k pages 10k/s 0:05 left",
        "ksm-eval: reading frames: 200k/200k pages 10k/s 0:00 left",
    ]


def test_how_long_is_told_once_and_before(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    lines = ProgressLines(clock)
    lines.page_size = 4096
    read(lines, clock, 480_000, 10_000, "sample 1/2 " + READING)
    read(lines, clock, 480_000, 10_000, "sample 2/2 " + READING)
    told = [line for line in capsys.readouterr().err.splitlines() if "to read and hash" in line]
    assert told == ["ksm-eval: 480,000 frames (1.8 GiB) to read and hash: about 48 s (10k pages/s)"]


def test_what_is_short_needs_no_word_before(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    read(ProgressLines(clock), clock, 40_000, 10_000)
    assert "to read and hash" not in capsys.readouterr().err


def test_time_left_is_calm_and_follows() -> None:
    """Reads of which every tenth takes as long as nine; then all of them take twice as long."""
    pace, now, done = Pace(0.0), 0.0, 0
    rates = []
    for number in range(4000):
        slow = 2 if number >= 2000 else 1
        now += slow * (0.09 if number % 10 == 0 else 0.01)
        done += 100
        pace.note(now, done)
        if number > 200:
            rates.append(pace.rate)
    mean = 1000 / 0.18
    assert rates[: 2000 - 201] == pytest.approx([mean] * (2000 - 201), rel=0.06)
    assert rates[-1] == pytest.approx(mean / 2, rel=0.15)
