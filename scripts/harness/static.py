"""A static workload: one dump before ksmd runs, then its passes, in the same guest."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from compare import Comparison, compare_settled, compare_static
from guest_run import Truth, run
from kernels import Image
from script import HUGE, Script
from workloads import Workload

from ksm_eval.collect import collect
from ksm_eval.evaluate import open_target
from ksm_eval.replay.converged import predict
from ksm_eval.replay.ksmd import simulate
from ksm_eval.snapshot import Snapshot
from ksm_eval.target import Selection, Target


def take(target: Target, pids: list[int], *, mergeable_only: bool) -> Snapshot:
    """The snapshot of a dump: of the processes that ksmd is going to scan."""
    return collect(
        target, Selection(pids=tuple(pids)), mergeable_only=mergeable_only, seed=1, exact=True
    )


def run_static(
    image: Image, workload: Workload, work: Path, elf: Path, keep: Path | None
) -> tuple[Truth, Comparison, Comparison]:
    """What the guest said; the replay in every pass; the closed form in the last."""
    script = Script()
    workload.write(script)
    snapshots: list[Snapshot] = []

    def dumped(number: int, elf: Path, truth: Truth) -> None:
        del number
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / "vmcore").write_bytes(elf.read_bytes())
            (keep / "script").write_text(script.text())
        pids = [truth.pids[process] for process in sorted(truth.pids)]
        # VM_MERGEABLE says what ksmd scans, but for processes that register later.
        with closing(open_target(elf)) as target:
            snapshots.append(take(target, pids, mergeable_only=not workload.late))

    truth = run(image, script.text(), work, elf, numa=workload.numa, dumped=dumped)
    snapshot = snapshots[0]
    settings = snapshot.meta.settings
    replay = simulate(snapshot, settings, len(truth.passes))
    thp = snapshot.compounds.pages == HUGE  # what vmstat counts
    split = int(np.count_nonzero(replay.outcome.split & thp))
    failures = replay.split_failures if thp.all() else None
    every = compare_static(replay.passes, snapshot, truth, split, failures)
    smart = settings.smart_scan and snapshot.meta.rules.smart_scan
    settled = compare_settled(predict(snapshot, settings), snapshot, truth, smart)
    return truth, every, settled
