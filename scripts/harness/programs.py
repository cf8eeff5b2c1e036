#!/usr/bin/env python3
"""Real programs on this machine: what ksm-eval says of them, and what its own ksmd does.

    scripts/harness/programs.py [--program NAME …] [--kind frozen …] --json FILE

Frozen: the program is stopped, evaluated with --passes, and scanned by ksmd that often; every
counter after every pass is compared. Running and busy: it serves on, one or 40 requests a second;
it is evaluated from samples, then scanned, a full scan a sample. Held: as busy, but stopped for
the moment of each scan. It needs root, and ksmd for itself: nothing else may use KSM meanwhile.
The rows replace those of the same program and kind in FILE; the table is made from them by
`scripts/truth --no-run --json FILE --markdown docs/accuracy.md`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "guests"))

import host_ksmd
from compare import Comparison, predicted_processes
from servers import PROGRAMS, Program

from ksm_eval.replay.ksmd import simulate
from ksm_eval.save import load

RATES = {"frozen": 1.0, "running": 1.0, "busy": 40.0, "held": 40.0}
"""Kind of row: requests a second."""
PASSES = 16
SAMPLES = 3
INTERVAL = 5.0  # seconds
SETTLE = 15.0  # seconds after the first requests: PostgreSQL's sessions flush statistics after 10
OURS = {"pass", "exact", "cow_breaks"}  # in a row of the timeline: nothing that ksmd counts
PARTS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
Json = dict[str, Any]


@dataclass
class Row:
    program: str
    kind: str
    version: str = ""
    release: str = ""
    processes: int = 0
    mappings: int = 0  # candidate pages
    points: int = 0  # frozen: passes
    equal: int = 0
    values: int = 0
    settled_equal: bool | None = None
    interval: float | None = None  # running
    predicted: list[int] = field(default_factory=list)  # pages_sharing after each pass
    real: list[int] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)  # real, after the last pass
    differences: list[str] = field(default_factory=list)
    settled_differences: list[str] = field(default_factory=list)
    skipped: str = ""

    def worst(self) -> float:
        """Relative error of pages_sharing in the worst pass."""
        pairs = zip(self.predicted, self.real, strict=True)
        return max((abs(mine - real) / max(1, real) for mine, real in pairs), default=0.0)

    def line(self) -> str:
        what = f"{self.program:19} {self.kind:8}"
        if self.skipped:
            return f"{what} skipped: {self.skipped}"
        what += f"{self.processes:3} processes {self.mappings:7} pages  "
        settled = "settled equal" if self.settled_equal else "SETTLED STATE DIFFERS"
        if self.kind == "frozen":
            said = f"{self.equal}/{self.points} passes equal ({self.values} values), {settled}"
        else:
            said = f"{self.predicted} real {self.real}: {100 * self.worst():.2f} %"
        more = self.differences[:6] + [f"settled: {d}" for d in self.settled_differences[:6]]
        return "\n    ".join([what + said, *more])


def ksm_eval(master: int, *options: str) -> Json:
    command = [sys.executable, "-m", "ksm_eval", "-q", "--pid", str(master), "--children"]
    done = subprocess.run(
        [*command, *options, "--format", "json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"ksm-eval ended with {done.returncode}: {done.stderr}")
    report: Json = json.loads(done.stdout)
    return report


@contextmanager
def serving(program: Program, folder: Path, rate: float) -> Iterator[int]:
    with program.serving(folder, rate) as master:
        outside = [pid for pid in host_ksmd.tree(master) if not host_ksmd.opted_in(pid)]
        if outside:
            raise host_ksmd.Unusable("this kernel does not keep PR_SET_MEMORY_MERGE over exec")
        yield master


def compare_pass(comparison: Comparison, entry: Json, real: dict[str, int]) -> None:
    """A row of the report's timeline."""
    number = entry["pass"]
    for name, predicted in entry.items():
        if name == "ksm_rmap_items":  # no file: it is the sum of the four
            comparison.check(number, name, predicted, sum(real[part] for part in PARTS))
        elif name not in OURS:
            comparison.check(number, name, predicted, real.get(name))


def compare_settled(report: Json, real: dict[str, int], stats: dict[int, Json]) -> Comparison:
    comparison = Comparison(points=1)
    system = report["system"]
    for name in ("pages_shared", "pages_sharing", "ksm_zero_pages", "stable_node_chains",
                 "stable_node_dups", "general_profit"):  # fmt: skip
        comparison.check(PASSES, name, system[name], real[name])
    # Smart scan moves pages from one to the other and back.
    both = ("pages_unshared", "pages_volatile")
    comparison.check(PASSES, " + ".join(both), *(sum(d[n] for n in both) for d in (system, real)))
    for process in report["processes"]:
        for name, value in stats[process["pid"]].items():
            what = f"process {process['pid']}: {name}"
            comparison.check(PASSES, what, process[name], value)
    return comparison


def frozen(master: int, folder: Path, row: Row, wait: float) -> None:
    saved = folder / "snapshot.npz"
    comparison = Comparison()
    with host_ksmd.stopped(master) as pids:
        report = ksm_eval(master, "--passes", str(PASSES), "--save", str(saved))
        # The report has each process's counters once settled: a replay of the very same
        # snapshot has them after every pass.
        snapshot = load(saved)
        replay = simulate(snapshot, snapshot.meta.settings, PASSES)
        timeline = report["timeline"]
        host_ksmd.alone(pids, wait)
        rounds = zip(timeline, replay.passes, host_ksmd.passes(PASSES), strict=True)
        for entry, result, real in rounds:
            comparison.points += 1
            row.real.append(real["pages_sharing"])
            compare_pass(comparison, entry, real)
            processes = predicted_processes(result, snapshot)
            stats = {pid: host_ksmd.ksm_stat(pid) for pid in pids}
            for pid, values in stats.items():
                for name, value in values.items():
                    mine = processes.get(pid, {}).get(name)
                    comparison.check(entry["pass"], f"process {pid}: {name}", mine, value)
        host_ksmd.alone(pids)
        settled = compare_settled(report, real, stats)
    row.points, row.equal = comparison.points, comparison.equal_points()
    row.values = comparison.values + settled.values
    row.settled_equal = not settled.differences
    row.differences = [str(difference) for difference in comparison.differences]
    row.settled_differences = [str(difference) for difference in settled.differences]
    row.predicted = [entry["pages_sharing"] for entry in timeline]
    of_report(row, report, real)


def running(master: int, row: Row, interval: float, wait: float) -> None:
    row.interval = interval
    time.sleep(SETTLE)
    report = ksm_eval(master, "--samples", str(SAMPLES), "--interval", str(interval))
    row.predicted = [entry["pages_sharing"] for entry in report["timeline"]]
    host_ksmd.alone(host_ksmd.tree(master), wait)
    for real in scans(master, interval, row.kind == "held"):
        row.real.append(real["pages_sharing"])
        ours = (host_ksmd.ksm_stat(pid)["ksm_rmap_items"] for pid in host_ksmd.tree(master))
        if sum(ours) != sum(real[part] for part in PARTS):
            raise host_ksmd.Busy("ksmd scanned processes of others too")
    host_ksmd.alone(host_ksmd.tree(master))
    of_report(row, report, real)


def scans(master: int, interval: float, held: bool) -> Iterator[dict[str, int]]:
    """The counters after each full scan."""
    if not held:
        yield from host_ksmd.passes(SAMPLES, interval)
        return
    rounds = host_ksmd.passes(SAMPLES)
    start = time.monotonic()
    for number in range(SAMPLES):
        time.sleep(max(0.0, start + number * interval - time.monotonic()))
        with host_ksmd.stopped(master):
            real = next(rounds)
        yield real


def of_report(row: Row, report: Json, real: dict[str, int]) -> None:
    row.release = report["target"]["release"]
    row.processes = len(report["processes"])
    row.mappings = report["completeness"]["mappings"]
    row.counters = {name: real[name] for name in (*PARTS, "general_profit")}


def measure(program: Program, kind: str, options: argparse.Namespace) -> Row:
    deadline = time.monotonic() + options.wait
    row = Row(program.name, kind)
    if missing := program.missing():
        row.skipped = missing
        return row
    while True:
        row = Row(program.name, kind, program.version())
        try:
            once(program, row, options, max(0, deadline - time.monotonic()))
        except host_ksmd.Busy as reason:
            if time.monotonic() < deadline:
                continue
            row.skipped = str(reason)
        except host_ksmd.Unusable as reason:
            row.skipped = str(reason)
        return row


def once(program: Program, row: Row, options: argparse.Namespace, wait: float) -> None:
    with (
        host_ksmd.ksmd(wait),
        tempfile.TemporaryDirectory(prefix="ksm-eval-") as name,
    ):
        own = Path(name) / "program"
        own.mkdir()
        Path(name).chmod(0o711)  # programs that are not root's reach their own folder
        with serving(program, own, RATES[row.kind]) as master:
            if row.kind == "frozen":
                frozen(master, Path(name), row, wait)
            else:
                running(master, row, options.interval, wait)


def add(rows: list[Row], path: Path) -> None:
    """To what the file has; rows of the same program and kind are replaced."""
    document: Json = json.loads(path.read_text()) if path.exists() else {"results": []}
    new = {(row.program, row.kind) for row in rows}
    kept = [row for row in document.get("programs", []) if (row["program"], row["kind"]) not in new]
    order, kinds = [program.name for program in PROGRAMS], list(RATES)
    every = [*kept, *map(asdict, rows)]
    every.sort(key=lambda row: (kinds.index(row["kind"]), order.index(row["program"])))
    path.write_text(json.dumps({**document, "programs": every}, indent=1) + "\n")


def terminate(number: int, frame: object) -> NoReturn:
    del frame
    sys.exit(128 + number)  # as an exception: all that was begun is put back


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [program.name for program in PROGRAMS]
    parser.add_argument("--program", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--kind", nargs="+", choices=RATES, default=[*RATES])
    parser.add_argument("--runs", type=int, default=1, help="so often each; default: 1")
    parser.add_argument("--interval", type=float, default=INTERVAL, metavar="SECONDS")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="for ksmd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, terminate)
    rows = []
    for program in PROGRAMS:
        for kind in options.kind if program.name in options.program else ():
            for _ in range(options.runs):
                rows.append(measure(program, kind, options))
                print(rows[-1].line(), flush=True)
    if options.json is not None:
        add(rows, options.json)
    wrong = [row for row in rows if row.equal < row.points or row.settled_equal is False]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
