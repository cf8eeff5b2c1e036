"""The prediction and the real ksmd, counter by counter, pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from guest_run import Pass, Truth, Values

from ksm_eval.replay.converged import Prediction
from ksm_eval.replay.state import PassResult
from ksm_eval.snapshot import Snapshot

VISITED = {1, 2, 3, 4, 6, 9, 14, 23, 32, 41}
"""Passes in which smart scan visits a page that never merges."""


@dataclass(frozen=True)
class Difference:
    number: int  # of the pass
    counter: str  # a system counter's name, or "process N: name"
    predicted: int
    real: int

    def relative(self) -> float:
        return abs(self.predicted - self.real) / max(1, abs(self.predicted), abs(self.real))

    def __str__(self) -> str:
        return f"pass {self.number}: {self.counter}: predicted {self.predicted}, real {self.real}"


@dataclass
class Comparison:
    points: int = 0  # passes
    values: int = 0  # counters compared
    differences: list[Difference] = field(default_factory=list)

    def equal_points(self) -> int:
        return self.points - len({difference.number for difference in self.differences})

    def check(self, number: int, counter: str, predicted: int | None, real: int | None) -> None:
        """Nothing is compared that this kernel does not count."""
        if predicted is None and real is None:
            return
        self.values += 1
        if predicted != real:
            self.differences.append(
                Difference(
                    number,
                    counter,
                    -1 if predicted is None else int(predicted),
                    -1 if real is None else int(real),
                )
            )


def predicted_processes(result: PassResult, snapshot: Snapshot) -> dict[int, Values]:
    """/proc/PID/ksm_stat by pid."""
    columns = {
        field.name: getattr(result.processes, field.name) for field in fields(result.processes)
    }
    return {
        int(pid): {name: int(column[row]) for name, column in columns.items() if column is not None}
        for row, pid in enumerate(snapshot.processes.pid)
    }


def compare_pass(
    comparison: Comparison,
    number: int,
    result: PassResult,
    snapshot: Snapshot,
    real: Pass,
    pids: dict[int, int],
) -> None:
    comparison.points += 1
    for counter in fields(result.counters):
        name, value = counter.name, getattr(result.counters, counter.name)
        if name == "ksm_rmap_items":  # no file: it is the sum of the four
            parts = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
            comparison.check(number, name, value, sum(real.ksm[part] for part in parts))
        elif name in real.ksm or value is not None:
            comparison.check(number, name, value, real.ksm.get(name))
    predicted = predicted_processes(result, snapshot)
    for process, values in real.processes.items():
        of_process = predicted.get(pids[process], {})
        for name, value in values.items():
            # A process that ksmd does not scan has zeros.
            comparison.check(number, f"process {process}: {name}", of_process.get(name, 0), value)


def compare_static(
    results: Sequence[PassResult],
    snapshot: Snapshot,
    truth: Truth,
    splits: int,
    split_failures: int | None,
) -> Comparison:
    """Every pass of a memory that stood still; THP splits at the end."""
    comparison = Comparison()
    for number, (result, real) in enumerate(zip(results, truth.passes, strict=True), 1):
        compare_pass(comparison, number, result, snapshot, real, truth.pids)
    last, before = truth.passes[-1].vmstat, truth.before.vmstat
    pairs = (("thp_split_page", splits), ("thp_split_page_failed", split_failures))
    for name, predicted in pairs:
        if name in last and predicted is not None:
            comparison.check(len(results), name, predicted, last[name] - before[name])
    return comparison


def compare_settled(
    prediction: Prediction, snapshot: Snapshot, truth: Truth, smart_scan: bool
) -> Comparison:
    """The closed form against the last pass."""
    comparison = Comparison(points=1)
    last = truth.passes[-1]
    number = len(truth.passes)
    skipping = smart_scan and number not in VISITED
    counters = prediction.skip_phase if skipping else prediction.counters
    for counter in fields(counters):
        name, value = counter.name, getattr(counters, counter.name)
        if value is not None and name != "ksm_rmap_items":
            comparison.check(number, name, value, last.ksm.get(name))
    predicted = predicted_processes(PassResult(counters, prediction.processes), snapshot)
    for process, values in last.processes.items():
        of_process = predicted.get(truth.pids[process], {})
        for name, value in values.items():
            comparison.check(number, f"process {process}: {name}", of_process.get(name, 0), value)
    if "thp_split_page" in last.vmstat:
        real = last.vmstat["thp_split_page"] - truth.before.vmstat["thp_split_page"]
        comparison.check(number, "thp_split_page", prediction.savings.thps_split, real)
    return comparison
