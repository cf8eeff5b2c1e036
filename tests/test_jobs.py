"""Several processes: the same as one, and a clear end if one of them has an unclear one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksm_eval import cli, jobs
from ksm_eval.collect import collect
from ksm_eval.errors import TargetError
from ksm_eval.evaluate import evaluate, open_target
from ksm_eval.jobs import sweep_in_jobs
from ksm_eval.snapshot import U64, FrameFlag, Snapshot, has
from ksm_eval.sweep import Sweep, sweep
from ksm_eval.target import Selection, Target
from ksm_eval.target.containers import identify
from ksm_eval.target.kernel import KernelTarget
from tests import containers
from tests.fixtures import TINY, WARM, opted_in, vmcore

SEED = 5
ARM = "aarch64-6.12-64k"
PIDS = tuple(opted_in(TINY))
WORDS = [word for pid in PIDS for word in ("--pid", str(pid))]


@pytest.fixture(scope="module")
def elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elf") / "vmcore"
    path.write_bytes(containers.elf(containers.memory(vmcore(TINY))))
    return path


to_close: list[Target] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while to_close:
        to_close.pop().close()


def opened(path: Path, **more: Any) -> Target:
    """Until the test ends."""
    to_close.append(open_target(path, **more))
    return to_close[-1]


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """All that a dataclass is made of, but for the moment it was made."""
    if is_dataclass(value):
        for field in fields(value):
            if field.name != "time":
                yield from leaves(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, np.ndarray):
        yield name, (value.dtype.str, value.shape, value.tobytes())
    elif isinstance(value, dict):
        yield name, list(value.items())  # in this order
        yield from (leaf for key, one in value.items() for leaf in leaves(one, f"{name}.{key}"))
    else:
        yield name, value


def same(one: object, other: object) -> None:
    mine, theirs = dict(leaves(one)), dict(leaves(other))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if not name.endswith(".observed"):  # arrays in a dictionary are leaves of their own
            assert value == theirs[name], name


def collected(path: Path, count: int, selection: Selection) -> Snapshot:
    return collect(opened(path), selection, seed=SEED, exact=True, jobs=count)


def children_of(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("name", [TINY, ARM, WARM[-1], "elf"])
def test_the_same_snapshot(name: str, elf: Path) -> None:
    """Hashes, flags, and where ksmd has run its checksums."""
    path = elf if name == "elf" else vmcore(name)
    selection = Selection(pids=PIDS) if name in (TINY, "elf") else Selection(all=True)
    one = collected(path, 1, selection)
    assert len(one.frames) > 500
    assert (one.ksmd is not None) == (name in WARM)
    for count in (2, 3, 7):
        same(one, collected(path, count, selection))


def test_different_seeds_are_seen_by_same() -> None:
    target = opened(vmcore(TINY))
    pfns = np.arange(1000, 1100, dtype=np.uint64)
    with pytest.raises(AssertionError, match="hash"):
        same(sweep(target, pfns, 1), sweep(target, pfns, 2))


def test_more_workers_than_pages() -> None:
    target = opened(vmcore(TINY))
    pfns = collected(vmcore(TINY), 1, Selection(pids=PIDS)).frames.pfn
    for count in (0, 1, 2, 3, 6):
        before = cpu_of_children()
        found = sweep_in_jobs(target, pfns[:count], SEED, checksums=True, jobs=7)
        same(found, sweep(target, pfns[:count], SEED, checksums=True))
        assert (cpu_of_children() > before) == (count > 1)


def unreadable_frames(tmp_path: Path) -> tuple[Path, U64]:
    """Frames that are there, a damaged one in between, and such as no memory has."""
    good = collected(vmcore(TINY), 1, Selection(pids=PIDS)).frames.pfn
    damaged = int(good[len(good) // 2])
    path = tmp_path / "damaged"
    path.write_bytes(containers.replace_page(vmcore(TINY).read_bytes(), damaged, 1, b"no zlib"))
    every = np.arange(int(good[0]), int(good[-1]) + 3000, dtype=np.uint64)
    return path, np.concatenate([every, np.array([1 << 30, (1 << 30) + 2], np.uint64)])


def test_unreadable_pages_are_counted_by_reason(tmp_path: Path) -> None:
    path, pfns = unreadable_frames(tmp_path)
    target = opened(path)
    one = sweep(target, pfns, SEED, checksums=True)
    assert list(one.unreadable) == ["read error", "not in the dump"]
    assert one.unreadable["read error"] == 1
    assert one.unreadable["not in the dump"] > 2
    for count in (2, 3, 7):
        found = sweep_in_jobs(target, pfns, SEED, checksums=True, jobs=count)
        same(one, found)
        assert list(found.unreadable.items()) == list(one.unreadable.items())


def test_holes_of_an_elf_file(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    memory = containers.memory(vmcore(TINY))
    path.write_bytes(containers.elf(memory, holes=[(0x1000 << 12, 0x1100 << 12)]))
    target = opened(path)
    pfns = np.arange(0xF80, 0x1180, dtype=np.uint64)
    one = sweep(target, pfns, SEED)
    assert int(has(one.flags, FrameFlag.UNREADABLE).sum()) == 0x100
    same(one, sweep_in_jobs(target, pfns, SEED, jobs=3))


def test_opened_with_what_the_file_does_not_say(tmp_path: Path) -> None:
    """A kdump of QEMU has no architecture, another may have VMCOREINFO beside it."""
    path, info = tmp_path / "kdump", tmp_path / "vmcoreinfo"
    path.write_bytes(containers.qemu_kdump(vmcore(TINY).read_bytes()))
    info.write_bytes(containers.memory(vmcore(TINY)).vmcoreinfo)
    bare = tmp_path / "bare"
    bare.write_bytes(containers.elf(containers.memory(vmcore(TINY)), note=b"SOMETHING"))
    pfns = np.arange(0x1000, 0x1200, dtype=np.uint64)
    for target in (opened(path), opened(bare, vmcoreinfo=info)):
        same(sweep(target, pfns, SEED), sweep_in_jobs(target, pfns, SEED, jobs=2))


def test_a_flattened_elf_file_is_read_by_one(tmp_path: Path, elf: Path) -> None:
    """What it was put together in has no name."""
    path = tmp_path / "flattened"
    path.write_bytes(containers.flattened(elf.read_bytes()))
    before = cpu_of_children()
    same(
        collected(path, 2, Selection(pids=PIDS)).frames,
        collected(elf, 1, Selection(pids=PIDS)).frames,
    )
    assert cpu_of_children() == before


def through(target: Target, **more: Any) -> tuple[Sweep, bool]:
    """Also whether there were other processes."""
    before = cpu_of_children()
    swept = sweep_in_jobs(target, np.arange(0x1000, 0x1040, dtype=np.uint64), SEED, **more)
    return swept, cpu_of_children() > before


def test_by_default_large_kdumps_only(elf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kdump = opened(vmcore(TINY))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    one, several = through(kdump)
    assert not several
    monkeypatch.setattr(jobs, "WORTH_IT", 0x40 * 4096)
    found, several = through(kdump)
    same(one, found)
    assert several
    assert not through(opened(elf))[1]
    monkeypatch.setattr(jobs, "WORTH_IT", 0x41 * 4096)
    assert not through(kdump)[1]


def test_a_rate_is_kept_by_one_process() -> None:
    target = opened(vmcore(TINY))
    target.meter.max_rate = 1e9
    assert not through(target, jobs=2)[1]


def test_what_workers_read_counts() -> None:
    target = opened(vmcore(TINY))
    before = target.meter.bytes_read
    through(target, jobs=3)
    assert target.meter.bytes_read - before == 0x40 * 4096


def test_progress() -> None:
    target, seen = opened(vmcore(TINY)), list[tuple[str, int, int]]()
    pfns = np.arange(0x1000, 0x1400, dtype=np.uint64)
    sweep_in_jobs(target, pfns, SEED, lambda *report: seen.append(report), jobs=2)
    done = [pages for _, pages, _ in seen]
    assert {(stage, total) for stage, _, total in seen} == {("reading frames", len(pfns))}
    assert done == sorted(done)
    assert len(done) > 2
    assert done[-1] == len(pfns)


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    """A worker must not read another vmcore than was looked at."""
    path = tmp_path / "vmcore"
    shutil.copyfile(vmcore(TINY), path)
    target = opened(path)
    shutil.copyfile(vmcore(TINY), tmp_path / "other")
    (tmp_path / "other").replace(path)
    with pytest.raises(TargetError, match="vmcore was replaced while it was read"):
        through(target, jobs=2)
    path.unlink()
    with pytest.raises(TargetError, match=r"cannot open .*vmcore once more: .*No such file"):
        through(target, jobs=2)
    assert children_of(os.getpid()) == []


def test_no_process_can_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = opened(vmcore(TINY))
    one, _ = through(target, jobs=1)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with caplog.at_level("WARNING"):
        same(one, through(target, jobs=2)[0])
    assert "only 0 of 2 processes could start" in caplog.text


def report(*words: object) -> tuple[str, dict[str, Any]]:
    """The JSON but for the run and the moment, and the run."""
    command = [sys.executable, "-m", "ksm_eval", *map(str, words), "--format", "json"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(text)
    run: dict[str, Any] = found.pop("run")
    found["target"].pop("time")
    for content in found["decision"]["kinds"]["top"]:
        content.pop("hash")  # under another key in each run
    return json.dumps(found), run


def test_the_same_report(elf: Path) -> None:
    for words in (
        ["-c", vmcore(TINY), *WORDS, "--passes", 3],
        ["-c", elf, *WORDS],
        ["-c", vmcore(WARM[0]), "--verify"],
        ["-c", vmcore(TINY), "-c", elf, *WORDS],
    ):
        (one, alone), (two, both) = (report(*words, "--jobs", count) for count in (1, 2))
        assert one == two
        assert both["bytes_read"] == pytest.approx(alone["bytes_read"], rel=0.01)  # gaps differ
        assert both["cpu_seconds"] > alone["cpu_seconds"] + 0.1  # two more interpreters
        assert both["max_rss_bytes"] > alone["max_rss_bytes"] + (50 << 20)


def test_evaluate() -> None:
    def of(count: int) -> object:
        target = opened(vmcore(TINY))
        return evaluate(target, Selection(pids=PIDS), jobs=count).system

    assert of(1) == of(2)


def test_what_runs_takes_no_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    for words, other in (([], "what runs"), (["--qemu", "x"], "what runs")):
        assert cli.run([*words, "--all", "--jobs", "2"]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"ksm-eval: error: --jobs cannot be used with {other}\n")
    assert cli.run(["--snapshot", "x", "--jobs", "2"]) == 2
    assert "--jobs cannot be used with --snapshot" in capsys.readouterr().err
    assert cli.run(["-c", "x", "--all", "--jobs", "0"]) == 2


Started = tuple["subprocess.Popen[str]", list[int]]


@contextmanager
def started(elf: Path, count: int = 2) -> Iterator[Started]:
    """The command line with its workers, which do not get on: they are stopped."""
    command = [sys.executable, "-m", "ksm_eval", "-c", str(elf), *WORDS, "--jobs", str(count)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, as a shell makes it
    )
    workers: list[int] = []
    try:
        until = time.monotonic() + 60
        while len(workers) < count and time.monotonic() < until and process.poll() is None:
            for pid in set(children_of(process.pid)) - set(workers):
                if is_worker(pid):
                    os.kill(pid, signal.SIGSTOP)
                    workers.append(pid)
        assert len(workers) == count
        yield process, workers
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def is_worker(pid: int) -> bool:
    """Not before exec(): until then the parent is stopped with it."""
    with suppress(OSError):
        return jobs._PROGRAM.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def resume(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    return condition()


def test_a_worker_that_is_killed(elf: Path) -> None:
    """As by the kernel, out of memory: nothing on standard output, two lines of what happened."""
    with started(elf) as (process, workers):
        os.kill(workers[1], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (3, "")
        assert err.splitlines() == [
            "ksm-eval: error: a worker process was ended by signal 9",
            "ksm-eval: hint: if memory ran out, use fewer --jobs",
        ]
        assert ended(workers[0])


def test_interrupted(elf: Path) -> None:
    """Ctrl-C goes to all of them, also to one that has only just begun."""
    with started(elf) as (process, workers):
        os.killpg(process.pid, signal.SIGINT)
        resume(workers)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, "", "")
        assert eventually(lambda: all(map(ended, workers)))


def test_it_is_the_parent_that_an_interrupt_ends(elf: Path) -> None:
    with started(elf) as (process, workers):
        for pid in workers:
            os.kill(pid, signal.SIGINT)
        resume(workers)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert "page frames" in out


def test_the_parent_is_killed(elf: Path) -> None:
    with started(elf) as (process, workers):
        os.kill(process.pid, signal.SIGKILL)
        resume(workers)
        assert eventually(lambda: all(map(ended, workers)))
        assert process.wait() == -signal.SIGKILL


def test_the_key_is_on_no_command_line(elf: Path) -> None:
    """Nor is anything else but where modules are."""
    with started(elf) as (_, workers):
        words = Path(f"/proc/{workers[0]}/cmdline").read_text().split("\0")
        assert words[1:3] == ["-I", "-c"]
        assert not any(word.isdigit() for word in words)


def test_modules_of_the_current_directory_are_not_taken(elf: Path, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('taken')\n")
    program = "import sys; from ksm_eval.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, "-c", elf, *WORDS, "--jobs", "2", "-q"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_elf_file_is_read_directly_by_workers(elf: Path) -> None:
    target = opened(elf)
    assert isinstance(target, KernelTarget)
    core = target.core()
    assert core is not None
    assert core.segments is not None
    assert identify(elf).segments is not None
    direct, _ = through(target, jobs=2)
    assert target.direct is not None
    target.direct.close()
    target.direct = None  # as where drgn does not agree
    core = target.core()
    assert core is not None
    assert core.segments is None
    same(direct, through(target, jobs=2)[0])
