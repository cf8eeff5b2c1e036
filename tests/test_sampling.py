"""Several samples of a process that changes between them, and what it costs the host."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ksm_eval import cli, evaluate, footprint
from ksm_eval.evaluate import evaluate_series, evaluate_taken, open_live
from ksm_eval.footprint import available_bytes, cpu_seconds
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.scan_time import full_scan_seconds
from ksm_eval.report.model import Report
from ksm_eval.report.to_terminal import to_terminal
from ksm_eval.sampling import Samples, take_samples
from ksm_eval.snapshot import FrameFlag, mark
from ksm_eval.target import Selection, Target, proc_pages
from ksm_eval.target.ksmd_cpu import live_hz
from ksm_eval.target.meter import Meter
from ksm_eval.target.selecting import select
from tests import host
from tests.fixtures import TINY, snapshot, vmcore

needs_host = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sys/kernel/mm/ksm/general_profit").exists(),
    reason="needs root, and a kernel with KSM from 6.4 on",
)

CHANGER = """
import ctypes, mmap, sys
PAGE = 4096
libc = ctypes.CDLL(None)
kept = []
def region(pages):
    made = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.madvise(12)  # MADV_MERGEABLE: only these pages are asked about
    kept.append(made)
    return made
def put(memory, page, text):
    memory[page * PAGE : (page + 1) * PAGE] = text.encode().ljust(PAGE, b".")
first = region(16)
for page in range(11):
    put(first, page, "equal")
print("ready", flush=True)
for step, _ in enumerate(sys.stdin, 1):
    for page in range(11, 16):
        put(first, page, f"changes {step} {page}")
    if step == 2:
        second = region(5)
        for page in range(5):
            put(second, page, "equal")
    if step == 3:
        put(first, 10, "written once")
    print("done", flush=True)
"""


@dataclass
class Changer:
    """A process that takes a step when it is told to."""

    process: subprocess.Popen[bytes]
    steps: int = 0
    before_step: dict[int, Callable[[], object]] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def expect(self, word: bytes) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == word + b"\n"

    def step_and_open(self) -> Target:
        self.steps += 1
        self.before_step.get(self.steps, lambda: None)()
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
            self.expect(b"done")
        return open_live("proc")


@pytest.fixture
def start() -> Iterator[Callable[[], Changer]]:
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> Changer:
        command = [sys.executable, "-S", "-E", "-c", CHANGER]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        changer = Changer(process)
        changer.expect(b"ready")
        return changer

    with host.ksmd():  # before they opt in
        yield begin
        for process in started:
            process.kill()
            process.communicate()


def taken_of(changer: Changer, samples: int, *more: int) -> Samples:
    return take_samples(
        changer.step_and_open,
        Selection(pids=(changer.pid, *more)),
        samples=samples,
        interval=0,
        mergeable_only=True,
    )


def counters(report: Report) -> list[tuple[int, ...]]:
    names = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
    return [tuple(entry.counters[name] for name in names) for entry in report.timeline]


@needs_host
def test_the_timeline_of_a_process_that_changes(start: Callable[[], Changer]) -> None:
    """Eleven equal pages merge in the second scan, one of them is written before the third; five
    change all the time; five more equal ones come with the second sample, so that the third
    scan is their second."""
    taken = taken_of(start(), 4)
    report = evaluate_taken(taken)
    assert counters(report) == [(0, 0, 0, 16), (1, 10, 0, 10), (1, 14, 0, 6), (1, 14, 1, 5)]
    assert [entry.cow_breaks for entry in report.timeline] == [0, 0, 1, 0]
    calm = report.calm
    assert calm is not None
    assert (calm.samples, calm.mappings, calm.calm, calm.new, calm.changed) == (4, 21, 10, 5, 6)
    # Of the settled state ten equal calm pages are certain; if all stay as they are, fifteen.
    low, high = calm.counters, report.system.counters
    assert (low["pages_shared"], low["pages_sharing"]) == (1, 9)
    assert (high["pages_shared"], high["pages_sharing"]) == (1, 14)
    assert (calm.frames_freed, report.savings.frames_freed) == (9, 14)
    assert calm.seconds == taken.moments[3] - taken.moments[0] > 0
    assert calm.cow_breaks_per_second == 1 / (taken.moments[3] - taken.moments[1])
    assert sum(vma.calm_pages or 0 for vma in report.vmas) == 10
    text = to_terminal(report)
    assert "Over 4 samples in" in text
    assert ": 9 to 14 frames, " in " ".join(text.split())


@needs_host
def test_one_sample_is_an_upper_bound(start: Callable[[], Changer]) -> None:
    report = evaluate_taken(taken_of(start(), 1))
    assert report.calm is None
    assert "upper bound; --samples 3" in report.notes[0]


@needs_host
def test_a_process_that_ends_between_samples(start: Callable[[], Changer]) -> None:
    """Of two named by pid one ends: it is named, and in no later sample."""
    changer, other = start(), start()
    changer.before_step[2] = other.end
    taken = taken_of(changer, 3, other.pid)
    assert [len(snapshot.processes) for snapshot in taken.snapshots] == [2, 1, 1]
    notes = evaluate_taken(taken).notes
    name = taken.snapshots[0].processes.comm[1]
    assert f"1 process ended between the samples: {other.pid} ({name})" in notes


@needs_host
def test_all_end_between_samples(
    start: Callable[[], Changer],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The samples that were taken are reported, the exit code says that they are fewer."""
    changer = start()
    changer.before_step[3] = changer.end
    monkeypatch.setattr(evaluate, "open_live", lambda *_, **__: changer.step_and_open())
    words = ["--pid", str(changer.pid), "--mergeable-only", "--samples", "5", "--interval", "0"]
    code = cli.run([*words, "-q", "--priority", "normal", "--format", "json"])
    out, err = capsys.readouterr()
    assert code == 4, err
    report = json.loads(out)
    assert report["calm"]["samples"] == 2
    assert report["notes"][0].startswith("only 2 of 5 samples could be taken: ")
    assert err.splitlines()[0].startswith("ksm-eval: error: fewer samples than asked for: ")


@needs_host
def test_samples_are_an_interval_apart(start: Callable[[], Changer]) -> None:
    changer, said = start(), list[float]()

    def samples(interval: float | None) -> Samples:
        return take_samples(
            changer.step_and_open,
            Selection(pids=(changer.pid,)),
            samples=3,
            interval=interval,
            mergeable_only=True,
            announce=said.append,
        )

    host.put("pages_to_scan", 100)
    host.put("sleep_millisecs", 50)
    apart, auto = samples(0.3), samples(None)
    assert all(after - before >= 0.3 for before, after in pairwise(apart.moments))
    # One batch of at most 100 pages: ksmd sleeps from tick to tick, and one more, in which its
    # work of some microseconds is.
    hz = live_hz()
    assert hz is not None
    assert said == [auto.interval]
    assert auto.interval == pytest.approx((math.ceil(0.05 * hz) + 1) / hz)


def test_the_time_of_a_full_scan() -> None:
    """1 GiB with the defaults: 2622 batches of 100 pages, 20 ms of sleep each."""
    assert full_scan_seconds(262_144, Settings()) == pytest.approx(52.44 + 0.524288)
    assert full_scan_seconds(99, Settings()) == pytest.approx(0.02 + 99 * 2e-6)
    assert full_scan_seconds(100, Settings()) == pytest.approx(0.04 + 100 * 2e-6)
    faster = Settings(pages_to_scan=5000, sleep_millisecs=10)
    assert full_scan_seconds(1_000_000, faster) == pytest.approx(2.01 + 2)


# ---- never another process's pages under the same pid ----


@dataclass
class Group:
    tgid: int
    started: int
    pids: list[int]
    parent: int = 1
    comm: str = "x"
    has_memory: bool = True


def test_a_recycled_pid_is_another_process() -> None:
    groups = {10: Group(10, 100, [10, 11]), 20: Group(20, 300, [20])}

    def chosen(*pids: int, started_by: int | None) -> set[int]:
        return select(groups, Selection(pids=pids, started_by=started_by), lambda _: "")

    assert chosen(11, 20, started_by=None) == {10, 20}
    assert chosen(11, 20, 30, started_by=200) == {10}
    assert chosen(20, started_by=299) == set()
    assert chosen(20, started_by=300) == {20}


# ---- what it costs ----


def test_a_rate_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a clock that only sleeping moves: 1000 bytes a second."""
    now, slept = [50.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 9))
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    metered = Meter()
    metered.wait(10_000)
    assert (slept, metered.bytes_read) == ([], 10_000)  # no limit
    metered.max_rate = 1000.0
    for _ in range(3):
        metered.wait(500)
    assert slept == [0.5, 0.5]
    now[0] += 100  # an interval without reading is not saved up
    metered.wait(2000)
    metered.wait(1)
    assert slept == [0.5, 0.5, 2.0]
    assert metered.bytes_read == 13_501


@needs_host
def test_bytes_read(start: Callable[[], Changer]) -> None:
    """Sixteen pages and the text of smaps; 8 bytes each of pagemap twice, of kpageflags and
    kpagecount once at most, with what is read along between them."""
    changer = start()
    smaps = len(Path(f"/proc/{changer.pid}/smaps").read_bytes())
    taken = taken_of(changer, 1)
    least = 16 * 4096 + smaps + 2 * 16 * 8
    assert least <= taken.bytes_read <= least + 512 * 8 + 2 * 16 * 8 * proc_pages.HOLE // 8


def test_it_steps_back_behind_the_workload() -> None:
    program = (
        "import ctypes, os; from ksm_eval.footprint import step_back; step_back();"
        "number = {'x86_64': 252, 'aarch64': 31}[os.uname().machine];"  # ioprio_get
        "print(os.getpriority(os.PRIO_PROCESS, 0), ctypes.CDLL(None).syscall(number, 1, 0) >> 13,"
        "open('/proc/self/oom_score_adj').read().strip())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["19", "3", "1000"], done.stderr


def test_its_own_cost() -> None:
    """Its own: not what the program that started it has."""
    ballast = bytearray(400 << 20)
    ballast[::4096] = b"x" * (len(ballast) // 4096)
    program = "from ksm_eval.footprint import *; print(max_rss_bytes(), cpu_seconds())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    most, cpu = done.stdout.split()
    assert 5 << 20 < int(most) < 200 << 20 < len(ballast), done.stderr
    assert 0 < float(cpu) < 30
    times = os.times()
    assert cpu_seconds() == pytest.approx(sum(times[:4]), abs=0.1)  # and that of its children


def test_the_memory_of_its_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has less than its host."""
    own = tmp_path / "sys/fs/cgroup/box"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("70000000\n")
    (own / "memory.current").write_text("20000000\n")
    real = Path

    def found(path: str) -> Path:
        return real(tmp_path / path[1:]) if path == "/sys/fs/cgroup" else real(path)

    monkeypatch.setattr(footprint, "Path", found)
    monkeypatch.setattr(footprint, "_own_cgroup", lambda: "box")
    assert available_bytes() == 50_000_000
    (own / "memory.max").write_text("max\n")
    assert available_bytes() > 100_000_000


def test_samples_closer_than_a_full_scan_are_no_bound() -> None:
    """And what went wrong in the first of them is not forgotten."""
    sample = snapshot(TINY)
    flags = sample.frames.flags.copy()
    mark(flags, np.arange(len(flags)) >= 0, FrameFlag.UNREADABLE)
    first = replace(
        sample,
        frames=replace(sample.frames, flags=flags),
        meta=replace(sample.meta, lost=["pid 9 (gone): why"], notes=["3 processes ended"]),
    )
    report = evaluate_series([first, sample, sample], None, [10.0, 10.5, 17.0])
    calm = report.calm
    assert calm is not None
    # 8072 pages, 100 a batch, 2 us a page; 20 ms of sleep and a tick of 4 ms behind each, from
    # which the batch's work is taken.
    asleep = 0.02 + 0.004 - 100 * 2e-6
    assert calm.scan_seconds == pytest.approx(81 * asleep + 8072 * 2e-6)
    assert any(
        note.startswith("samples were 0.5 s apart, but a full scan would take ksmd 1.9 s")
        for note in report.notes
    )
    assert (calm.calm, calm.changed, calm.new, calm.unread) == (0, 0, 0, 8072)
    assert report.completeness.share_unreadable == 1.0
    assert report.completeness.processes_lost == ("sample 1: pid 9 (gone): why",)
    assert "sample 1: 3 processes ended" in report.notes
    apart = evaluate_series([sample, sample], None, [10.0, 12.0])
    assert not any("but a full scan would take" in note for note in apart.notes)


def test_memory_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < available_bytes() < 1 << 40
    monkeypatch.setattr("ksm_eval.memory.available_bytes", lambda: 1 << 20)
    assert cli.run(["-q", "-c", str(vmcore(TINY)), "--all"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "this machine has only 1 MiB left" in err


def test_samples_too_large_to_replay_still_tell_what_is_calm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = str(vmcore(TINY))
    monkeypatch.setattr("ksm_eval.evaluate.memory_left", lambda _: 1 << 20)
    assert cli.run(["-q", "-c", core, "-c", core, "--all", "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["timeline"] == []
    assert any(note.startswith("single full scans are not told") for note in report["notes"])
    assert report["calm"]["calm"] == report["calm"]["mappings"] > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pid", "1", "--interval", "5"], "--interval of what?"),
        (["--pid", "1", "--samples", "2", "--passes", "3"], "--passes cannot be used with"),
        (["-c", "x", "--pid", "1", "--samples", "2"], "--core cannot be used with --samples"),
        (["-c", "x", "--pid", "1", "--max-rate", "5M"], "--max-rate cannot be used with a vmcore"),
        (["--snapshot", "x", "--samples", "2"], "--samples cannot be used with --snapshot"),
        (["--snapshot", "x", "--interval", "5"], "--interval cannot be used with --snapshot"),
        (["--snapshot", "x", "--priority", "low"], "--priority cannot be used with --snapshot"),
        (["-c", "x", "-c", "y", "--pid", "1", "--interval", "5"], "--interval cannot be used with"),
        (["--pid", "1", "--max-rate", "fast"], "'fast' is not a size"),
        (["--pid", "1", "--max-rate", "0"], "'0' is not a size"),
        (["--pid", "1", "--samples", "2", "--interval", "-1"], "neither seconds nor auto"),
        (["--pid", "1", "--samples", "0"], "--samples"),
    ],
)
def test_what_makes_no_sense(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("2k", 2048), ("1.5 GiB", 1.5 * 2**30), ("200MB", 200 * 2**20)]
)
def test_sizes(text: str, size: float) -> None:
    from ksm_eval.options import command

    words = ["--pid", "1", "--max-rate", text]
    assert command.main(words, standalone_mode=False).max_rate == size
