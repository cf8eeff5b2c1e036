"""One workload on one kernel, as a row of the table."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path

from changing import CHANGING, SAME_CONTENT
from compare import Comparison
from guest_run import Skipped
from kernels import Image
from qemu import GuestError
from series import run_changing
from static import run_static
from warm import CUT, WARM, run_warm
from workloads import STATIC, Workload

from ksm_eval.errors import KsmEvalError

WORKLOADS = [*STATIC, *CUT, *WARM, *CHANGING, *SAME_CONTENT]
SHOWN = (
    *("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile"),
    *("stable_node_chains", "stable_node_dups", "ksm_zero_pages"),
)


@dataclass
class Result:
    kernel: str
    release: str
    workload: str
    kind: str  # "static", "cut", "warm", "changing" or "same-content"
    points: int = 0
    equal: int = 0
    values: int = 0
    settled_equal: bool | None = None
    worst: float = 0.0  # relative, of any counter
    worst_system: float = 0.0  # of the system's counters
    counters: dict[str, int] = field(default_factory=dict)  # real, after the last pass
    differences: list[str] = field(default_factory=list)
    settled_differences: list[str] = field(default_factory=list)
    second: str = ""  # of a run that differed: equal passes when it was made once more
    skipped: str = ""
    error: str = ""
    seconds: float = 0.0

    def add(self, comparison: Comparison) -> None:
        self.points, self.values = comparison.points, comparison.values
        self.equal = comparison.equal_points()
        self.differences = [str(difference) for difference in comparison.differences]
        every = [difference.relative() for difference in comparison.differences]
        system = [d.relative() for d in comparison.differences if "process" not in d.counter]
        self.worst = max(every, default=0.0)
        self.worst_system = max(system, default=0.0)

    def wrong(self) -> bool:
        differs = self.equal < self.points or self.settled_equal is False
        return bool(self.error) or (differs and self.kind != "same-content")

    def lines(self) -> list[str]:
        """For the terminal."""
        what = f"{self.kernel:11} {self.workload:18}"
        if self.skipped or self.error:
            return [
                f"{what} {'ERROR: ' + self.error if self.error else 'skipped: ' + self.skipped}"
            ]
        settled = ""
        if self.settled_equal is not None:
            settled = ", settled state equal" if self.settled_equal else ", SETTLED STATE DIFFERS"
        equal = f"{self.equal}/{self.points} passes equal"
        shown = [f"    {line}" for line in self.differences[:6]]
        shown += [f"    settled: {line}" for line in self.settled_differences[:4]]
        if self.second:
            shown.append(f"    once more: {self.second}")
        return [f"{what} {equal} ({self.values} values{settled}) {self.seconds} s", *shown]


def kind_of(workload: Workload) -> str:
    if workload in SAME_CONTENT or workload.name.startswith("random-same"):
        return "same-content"
    if workload in CHANGING or workload.name.startswith("random-changing"):
        return "changing"
    if workload in CUT:
        return "cut"
    if workload in WARM or workload.name.startswith("random-warm"):
        return "warm"
    return "static"


def measure(image: Image, workload: Workload, work: Path, keep: Path | None) -> Result:
    """`keep`: where dumps, script and truth of a run that differs stay, in a folder of its own."""
    folder = None if keep is None else keep / f"{image.kernel.name}-{workload.name}"
    result = _measure(image, workload, work, folder)
    if result.wrong() and not result.error:
        # Is it the prediction, or did the kernel do something else this time? The first counts.
        again = _measure(image, workload, work, None)
        result.second = "error" if again.error else f"{again.equal}/{again.points}"
    if folder is not None and not result.wrong():
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _measure(image: Image, workload: Workload, work: Path, folder: Path | None) -> Result:
    kernel, kind = image.kernel, kind_of(workload)
    result = Result(kernel.name, image.release, workload.name, kind)
    if workload.numa and not kernel.nodes:
        result.skipped = "the kernel has no CONFIG_NUMA"
        return result
    elf = work / "harness" / f"{kernel.name}-{workload.name}.elf"
    settled = None
    start = time.monotonic()
    try:
        if kind == "static":
            truth, comparison, settled = run_static(image, workload, work, elf, folder)
        elif kind in ("cut", "warm"):
            truth, comparison = run_warm(image, workload, work, elf, folder)
        else:
            truth, comparison = run_changing(image, workload, work, elf, folder)
    except Skipped as skipped:
        result.skipped = str(skipped)
        return result
    except (GuestError, KsmEvalError) as error:
        result.error = str(error)
        return result
    except Exception as error:  # a bug in what is tested: a row of the table, and the run goes on
        result.error = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        return result
    finally:
        result.seconds = round(time.monotonic() - start, 1)
    result.release = truth.release
    result.add(comparison)
    if settled is not None:
        result.settled_equal = not settled.differences
        result.settled_differences = [str(difference) for difference in settled.differences]
    last = truth.passes[-1].ksm
    result.counters = {name: last[name] for name in SHOWN if name in last}
    if folder is not None:
        (folder / "truth.json").write_text(json.dumps(asdict(truth), indent=1) + "\n")
    return result
