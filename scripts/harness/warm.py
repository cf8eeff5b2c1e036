"""ksmd at work: counters inside a pass, and dumps of a guest in which it has run already."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from compare import Comparison, compare_pass
from guest_run import Truth, run
from kernels import Image
from script import Point, Script
from static import take
from workloads import PRELOAD, REWRITTEN, UNIQUE, Workload, numa_memory, pre_fork_server

from ksm_eval.evaluate import open_target
from ksm_eval.replay.ksmd import simulate
from ksm_eval.replay.state import PassResult
from ksm_eval.replay.warm import simulate_warm
from ksm_eval.snapshot import Snapshot

LATE = 20  # a process that is forked when ksmd has run


def _cut(script: Script, *, smart_scan: bool) -> None:
    """Cuts in passes without skips and with, in the first process and in later ones."""
    if not smart_scan:
        script.knob("smart_scan", 0)
    pre_fork_server(script)
    script.ready()
    for cuts in ((700, 1234), (1234, 5000), (1, 37, 1234), (2500,), (500, 400), (1000,)):
        for pages in cuts:
            script.cut(pages)
        script.passes(1)
    script.passes(2)
    script.cut(800)


def _change(script: Script) -> None:
    """What happens to merged memory between two passes of ksmd."""
    script.fork(2, LATE)
    script.each(LATE, 1, 0, 20, UNIQUE * 20)
    script.each(1, 11, 0, 10, UNIQUE * 21)
    script.each(3, 0, 10, 15, REWRITTEN + 10)
    script.fill(3, 0, 30, 5, REWRITTEN + 70)
    script.each(2, 10, 0, 15, UNIQUE * 22)
    script.unmap(2, 11, 20, 10)


def _warm(script: Script, *, zero_pages: bool = False) -> None:
    if zero_pages:
        script.knob("use_zero_pages", 1)
    pre_fork_server(script)
    script.passes(6)
    _change(script)
    script.exit(4)
    script.ready()
    script.passes(8)


def _warm_nodes(script: Script) -> None:
    numa_memory(script)
    script.passes(6)
    script.fork(1, LATE)
    script.each(LATE, 0, 0, 20, UNIQUE * 20)
    script.each(2, 1, 50, 30, REWRITTEN)
    script.each(3, 2, 0, 30, UNIQUE * 21)
    script.ready()
    script.passes(8)


def _warm_cut(script: Script, *, passes: int, pages: int = 2000, changed: bool = False) -> None:
    """`changed`: after ksmd has stopped inside a pass, and the process that it is at exits."""
    script.knob("max_page_sharing", 8)
    pre_fork_server(script)
    script.passes(passes)
    script.cut(pages)
    if changed:
        _change(script)
        script.exit(1)
        script.exit(4)
    script.ready()
    script.passes(8)


def _warm_cut_locked(script: Script) -> None:
    """Inside pass 2, between an mlocked process and its children: pages wait in mm/mlock.c's
    batch."""
    script.start(0)
    script.map(0, 0, 60)
    script.each(0, 0, 0, 60, PRELOAD)
    script.map(0, 1, 60)
    script.lock(0, 1, 0, 60)
    script.each(0, 1, 0, 60, PRELOAD)
    script.opt_in(0)
    script.fork(0, 1)
    script.fork(0, 2)
    script.passes(1)
    script.cut(115)
    script.ready()
    script.passes(6)


def _warm_cut_chains(script: Script, *, due: bool) -> None:
    """Six chains of one dup, which the rest of the pass fills: they stay chains for good unless it
    prunes them before. `due`: it does."""
    script.knob("max_page_sharing", 3)
    script.knob("stable_node_chains_prune_millisecs", 1000 if due else 600_000)
    script.start(0)
    script.map(0, 0, 60)
    for group in range(6):
        script.fill(0, 0, 5 * group, 5, PRELOAD + group)
    script.each(0, 0, 30, 30, UNIQUE)
    script.opt_in(0)
    script.passes(2)
    for group in range(6):
        script.each(0, 0, 5 * group, 3, UNIQUE + 100 + 10 * group)
    script.passes(1)
    script.cut(20)
    for group in range(6):
        script.fill(0, 0, 40 + group, 1, PRELOAD + group)
    if due:
        script.sleep(1200)
    script.ready()
    script.passes(4)


CUT = [
    Workload("cut", "counters inside passes", lambda s: _cut(s, smart_scan=True)),
    Workload(
        "cut-smart-scan-off",
        "the same, smart_scan=0",
        lambda s: _cut(s, smart_scan=False),
    ),
]
WARM = [
    Workload("warm", "dumped after six passes, a fork, writes and an exit", _warm),
    Workload("warm-zero-pages", "the same, use_zero_pages=1", lambda s: _warm(s, zero_pages=True)),
    Workload("warm-nodes", "two NUMA nodes, merge_across_nodes=0", _warm_nodes, numa=True),
    Workload(
        "warm-cut", "max_page_sharing=8, dumped inside pass 4", lambda s: _warm_cut(s, passes=3)
    ),
    Workload(
        "warm-cut-early", "dumped inside pass 2, which merges", lambda s: _warm_cut(s, passes=1)
    ),
    Workload("warm-cut-first", "dumped inside pass 1", lambda s: _warm_cut(s, passes=0)),
    Workload(
        "warm-cut-chains",
        "dumped inside pass 4, chains pruned less than the prune time ago",
        lambda s: _warm_cut_chains(s, due=False),
    ),
    Workload(
        "warm-cut-chains-due",
        "the same, longer ago",
        lambda s: _warm_cut_chains(s, due=True),
    ),
    Workload("warm-cut-locked", "dumped inside pass 2, mlocked pages", _warm_cut_locked),
    Workload(
        "warm-cut-changed",
        "dumped inside pass 4, after writes, and exits, of the process that ksmd is at, too",
        lambda s: _warm_cut(s, passes=3, changed=True),
    ),
]


def _replay_cold(snapshot: Snapshot, points: list[Point]) -> list[PassResult]:
    settings = snapshot.meta.settings
    passes = simulate(snapshot, settings, points[-1].full_scans).passes
    found = []
    for point in points:
        if point.pages:
            cut = simulate(snapshot, settings, point.full_scans, cut=point.pages).cut
            assert cut is not None
            found.append(cut)
        else:
            found.append(passes[point.full_scans - 1])
    return found


def run_warm(
    image: Image, workload: Workload, work: Path, elf: Path, keep: Path | None
) -> tuple[Truth, Comparison]:
    """One dump. Where ksmd had run before it, what its records add up to is compared as point 0:
    with the target's counters at the dump."""
    script = Script()
    workload.write(script)
    [dump] = script.dumps
    snapshots: list[Snapshot] = []

    def dumped(number: int, elf: Path, truth: Truth) -> None:
        del number
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / "vmcore").write_bytes(elf.read_bytes())
            (keep / "script").write_text(script.text())
        pids = [truth.pids[process] for process in sorted(dump.processes)]
        with closing(open_target(elf)) as target:
            snapshots.append(take(target, pids, mergeable_only=True))

    truth = run(image, script.text(), work, elf, numa=workload.numa, dumped=dumped)
    [snapshot] = snapshots
    real, points = truth.passes[dump.points :], script.points[dump.points :]
    comparison = Comparison()
    if dump.points:
        now, *results = simulate_warm(snapshot, snapshot.meta.settings, len(real))
        real, results = [truth.before, *real], [now, *results]
        first = 0
    else:
        results, first = _replay_cold(snapshot, points), 1
    for number, (result, counted) in enumerate(zip(results, real, strict=True), first):
        compare_pass(comparison, number, result, snapshot, counted, truth.pids)
    return truth, comparison
