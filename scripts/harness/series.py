"""A changing workload: dumps of a boot without KSM, truth from a second boot of the same script."""

from __future__ import annotations

from pathlib import Path

from compare import Comparison, compare_pass
from guest_run import Truth, run
from kernels import Image
from script import Script
from static import take
from workloads import Workload

from ksm_eval.evaluate import open_target
from ksm_eval.memcmp_order import common_order
from ksm_eval.replay.series import simulate_series
from ksm_eval.replay.state import PassResult
from ksm_eval.snapshot import Snapshot
from ksm_eval.target import Target


def replay(samples: list[tuple[Target, Snapshot]]) -> list[PassResult]:
    """The one place where a series of samples is handed to the replay: a pass a sample."""
    snapshots = common_order(samples)
    return simulate_series(snapshots, snapshots[0].meta.settings)


def run_changing(
    image: Image, workload: Workload, work: Path, elf: Path, keep: Path | None
) -> tuple[Truth, Comparison]:
    script = Script()
    workload.write(script)
    samples: list[tuple[Target, Snapshot]] = []  # targets stay open, their files are deleted
    pids: list[dict[int, int]] = []  # of each dump

    def dumped(number: int, elf: Path, truth: Truth) -> None:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"vmcore-{number}").write_bytes(elf.read_bytes())
            (keep / "script").write_text(script.text())
        running = {process: truth.pids[process] for process in truth.running}
        target = open_target(elf)
        samples.append((target, take(target, list(running.values()), mergeable_only=True)))
        pids.append(running)

    try:
        run(image, script.text(), work, elf, dumping=True, dumped=dumped)
        truth = run(image, script.text(), work, elf, dumped=dumped)
        results = replay(samples)
    finally:
        for target, _ in samples:
            target.close()
    comparison = Comparison()
    rows = zip(results, samples, truth.passes, pids, strict=True)
    for number, (result, (_, snapshot), real, by_process) in enumerate(rows, 1):
        compare_pass(comparison, number, result, snapshot, real, by_process)
    return truth, comparison
