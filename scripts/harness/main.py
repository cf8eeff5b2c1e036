"""Hold the prediction against the real ksmd, on many kernels.

Boots each kernel under QEMU with each workload, dumps its memory, lets the guest's ksmd make
exact passes, replays the dump and compares every counter after every pass. Without arguments:
all kernels and all workloads but the changing ones. docs/accuracy.md has the result and says more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "guests"))

import kernels  # noqa: E402
import qemu  # noqa: E402
import random_changing  # noqa: E402
import random_static  # noqa: E402
import report  # noqa: E402
from measure import WORKLOADS, Result, kind_of, measure  # noqa: E402
from warm import CUT, WARM  # noqa: E402
from workloads import STATIC, Workload  # noqa: E402

TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "musl-gcc": "musl-tools",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
Job = tuple[kernels.Kernel, Workload]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/truth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = " ".join(kernel.name for kernel in kernels.KERNELS)
    parser.add_argument("--kernel", nargs="+", default=[], metavar="NAME", help=names)
    names = " ".join(workload.name for workload in WORKLOADS)
    parser.add_argument("--workload", nargs="+", default=[], metavar="NAME", help=names)
    parser.add_argument("--changing", action="store_true", help="also changing workloads")
    parser.add_argument("--seed", type=int, nargs="+", default=[], help="also random workloads")
    parser.add_argument("--only-random", action="store_true", help="nothing but the seeds")
    parser.add_argument("--jobs", type=int, default=2, help="guests at once; default: 2")
    parser.add_argument("--work", type=Path, default=ROOT / "build", help="for kernels and dumps")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep runs that differ there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--merge", action="store_true", help="into what the --json file has")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--no-run", action="store_true", help="only --json to --markdown")
    return parser.parse_args(arguments)


def chosen_workloads(options: argparse.Namespace) -> list[Workload]:
    if options.only_random:
        return []
    if not options.workload:
        return WORKLOADS if options.changing else [*STATIC, *CUT, *WARM]
    known = {workload.name: workload for workload in WORKLOADS}
    unknown = [name for name in options.workload if name not in known]
    if unknown:
        raise SystemExit(f"error: no workload {' '.join(unknown)}; there are: {' '.join(known)}")
    return [known[name] for name in options.workload]


def jobs(options: argparse.Namespace) -> list[Job]:
    found: list[Job] = []
    for kernel in kernels.find(options.kernel):
        found += [(kernel, workload) for workload in chosen_workloads(options)]
        smart = kernel.smart_scan
        for seed in options.seed:
            numa = kernel.nodes and seed % 3 == 0
            found += [
                (kernel, write(seed, smart_scan=smart, numa=numa))
                for write in (random_static.workload, random_static.warm_workload)
            ]
            if options.changing:
                found += [
                    (kernel, random_changing.workload(seed, smart_scan=smart, same_content=same))
                    for same in (False, True)
                ]
    return found


class Results:
    """The rows so far; written after each, so that a broken run is not lost."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.json: Path | None = options.json
        self.markdown: Path | None = options.markdown
        self.rows: list[dict[str, Any]] = []
        self.programs: list[dict[str, Any]] = []  # of programs.py, which are kept
        if self.json is not None and self.json.exists():
            document = json.loads(self.json.read_text())
            self.programs = document.get("programs", [])
            if options.merge or options.no_run:
                self.rows = document["results"]

    def add(self, result: Result) -> None:
        key = (result.kernel, result.workload)
        self.rows = [row for row in self.rows if (row["kernel"], row["workload"]) != key]
        self.rows.append(asdict(result))
        self.write()

    def write(self) -> None:
        kernel_order = [kernel.name for kernel in kernels.KERNELS]
        order = [workload.name for workload in WORKLOADS]

        def place(row: dict[str, Any]) -> tuple[int, int, str]:
            name = row["workload"]
            place = order.index(name) if name in order else len(order)
            return kernel_order.index(row["kernel"]), place, name

        rows = sorted(self.rows, key=place)
        if self.json is not None:
            document = {"results": rows, "programs": self.programs}
            self.json.write_text(json.dumps(document, indent=1) + "\n")
        if self.markdown is not None:
            about = {workload.name: workload.about for workload in WORKLOADS}
            self.markdown.write_text(report.markdown(rows, kernel_order, about, self.programs))


def run(todo: list[Job], results: Results, options: argparse.Namespace) -> list[Result]:
    images: dict[str, kernels.Image | str] = {}
    fetching, reporting = threading.Lock(), threading.Lock()

    def one(job: Job) -> Result:
        kernel, workload = job
        with fetching:
            if kernel.name not in images:
                try:
                    images[kernel.name] = kernels.image(kernel, options.work)
                except kernels.KernelError as error:
                    images[kernel.name] = str(error)
            image = images[kernel.name]
        if isinstance(image, str):
            result = Result(kernel.name, "", workload.name, kind_of(workload), error=image)
        else:
            result = measure(image, workload, options.work, options.keep)
        with reporting:
            print("\n".join(result.lines()), flush=True)
            results.add(result)
        return result

    with ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(one, todo))


def terminate(number: int, frame: object) -> None:
    del frame
    qemu.kill_all()
    os._exit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    results = Results(options)
    if options.no_run:
        results.write()
        return 0
    missing = sorted(package for tool, package in TOOLS.items() if not shutil.which(tool))
    if missing:
        raise SystemExit(f"error: missing tools; install: {' '.join(missing)}")
    options.work = options.work.resolve()
    (options.work / "harness").mkdir(parents=True, exist_ok=True)
    try:
        todo = jobs(options)
    except kernels.KernelError as error:
        raise SystemExit(f"error: {error}") from None
    signal.signal(signal.SIGTERM, terminate)
    done = run(todo, results, options)
    points, equal = sum(r.points for r in done), sum(r.equal for r in done)
    wrong = [result for result in done if result.wrong()]
    print(f"{equal} of {points} passes equal; {len(wrong)} of {len(done)} runs differ or failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
