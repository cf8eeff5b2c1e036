"""--max-memory: what does not fit is refused with the figure, what is begun stays below it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ksm_eval.collect import collect
from ksm_eval.errors import TargetError
from ksm_eval.evaluate import evaluate_snapshot
from ksm_eval.footprint import rss_bytes
from ksm_eval.jobs import WORKER_BYTES
from ksm_eval.memory import BYTES_A_REPLAYED
from ksm_eval.replay.converged import predict
from ksm_eval.snapshot import FrameFlag
from ksm_eval.target import Selection
from tests.fixtures import NAMES, TINY, snapshot, target, vmcore

MIB = 1 << 20
REFUSED = r"(?:pages need .* MiB|takes about [\d,]+ MiB) of memory.*, --max-memory allows"


def evaluated(limit: int, *words: object) -> tuple[int, str]:
    """(peak of resident memory, "") of a process of its own, or (0, what it said)."""
    done = subprocess.run(
        [sys.executable, "-m", "ksm_eval", *map(str, words), "--format", "json",
         "--max-memory", f"{limit}M"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout)["run"]["max_rss_bytes"], ""
    assert done.returncode == 3
    assert done.stdout == ""
    assert re.search(REFUSED, done.stderr)
    return 0, done.stderr


def hinted(message: str) -> int:
    found = re.search(r"hint: .*give --max-memory (\d+)M", message)
    assert found
    return int(found[1])


@pytest.mark.parametrize("words", [["--all"], ["--all", "--passes", "3"]])
@pytest.mark.parametrize("name", [TINY, "x86_64-6.12-debian-cloud", "aarch64-6.12-64k"])
def test_what_is_just_accepted_stays_below(name: str, words: list[str]) -> None:
    core = ("-c", vmcore(name), *words)
    _, message = evaluated(1, *core)
    # Two MiB less than what a process takes that has read no page, from one run to the next.
    assert evaluated(hinted(message) * 100 // 102 - 2, *core)[1]
    limit = hinted(message)
    peak, message = evaluated(limit, *core)
    if message:  # the floor was enough, the pages were not
        limit = hinted(message)
        peak, _ = evaluated(limit, *core)
    assert 0 < peak <= limit * MIB


def test_the_figure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    vm = target(TINY)
    monkeypatch.setattr("ksm_eval.memory.rss_bytes", lambda: 30 * MIB)
    # 30, 16 for code, 4 for libkdumpfile's cache, and the pages: 94 are of files.
    for exact, each, of_frame in ((False, 25, 180), (True, 45, 400)):
        enough = 50 * MIB + each * 9604 + of_frame * 4559
        collect(vm, Selection(all=True), exact=exact, max_memory=enough)
        figure = f"^9,604 pages need about {-(-enough // MIB)} MiB of memory, --max-memory allows"
        with pytest.raises(TargetError, match=figure):
            collect(vm, Selection(all=True), exact=exact, max_memory=enough - 1)
    with pytest.raises(TargetError, match=r"^without a single page ksm-eval takes about 50 MiB"):
        collect(vm, Selection(all=True), max_memory=50 * MIB - 1)
    # Clearly too little is refused by the kernel's own counts. Here nobody has offered anything by
    # prctl(), and so only a part of it.
    vm = target("x86_64-6.1-tiny")
    pages = sum(process.anon_pages for process in vm.processes(Selection(all=True)))
    monkeypatch.setattr("ksm_eval.memory.available_bytes", lambda: MIB // 2)
    with pytest.raises(TargetError, match=rf"^{pages:,} pages need at least 2 MiB of memory, and"):
        collect(vm, Selection(all=True), exact=True)


def test_a_saved_snapshot_is_measured_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "saved.npz"
    assert evaluated(500, "-c", vmcore(TINY), "--all", "--save", path)[0]
    limit = hinted(evaluated(1, "--snapshot", path)[1])
    peak, message = evaluated(limit, "--snapshot", path)
    if not peak:
        limit = hinted(message)
        peak, _ = evaluated(limit, "--snapshot", path)
    assert 0 < peak <= limit * MIB


@pytest.mark.parametrize("name", NAMES)
def test_the_kernels_own_count_of_pages(name: str) -> None:
    """Of all that a process has, beside the mappings found; batches of 32 a CPU may be missing."""
    vm = target(name)
    known = {process.pid: process.anon_pages for process in vm.processes(Selection(all=True))}
    found = snapshot(name)
    assert not (found.frames.flags & FrameFlag.UNREADABLE).any()
    compared = 0
    for row, pid in enumerate(found.processes.pid.tolist()):
        vmas = found.vmas.process == row
        pages = int((found.vmas.offset[1:] - found.vmas.offset[:-1])[vmas].sum())
        assert -32 < known[pid] - pages < 32
        compared += pages
    assert compared > 5000


def test_a_replay_asks_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the cap the mappings are replayed one by one, which only then is known."""
    found = snapshot("x86_64-6.12-tiny-cap")
    replayed = predict(found, found.meta.settings).replayed
    assert replayed > 100
    left = BYTES_A_REPLAYED * replayed
    monkeypatch.setattr("ksm_eval.memory.memory_left", lambda _: left - 1)
    with pytest.raises(TargetError, match=f"^{replayed:,} pages do not merge in the obvious way"):
        evaluate_snapshot(found)
    monkeypatch.setattr("ksm_eval.memory.memory_left", lambda _: 4 * left)
    assert evaluate_snapshot(found).savings.frames_freed > 0


def test_workers_are_in_the_limit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        collect(target(TINY), Selection(all=True), jobs=3, max_memory=rss_bytes() + WORKER_BYTES)
    assert "--max-memory is enough for 1 of 3 processes" in caplog.text
