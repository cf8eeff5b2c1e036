"""How fast ksm-eval is, with the same job in C as the yardstick.

Builds the C programs, makes or reuses the vmcore of a 4 GB guest with 33 forked processes, and
runs all methods in turn. Every result is checked: the C program and ksm-eval must agree to the
last bit, or nothing is printed. docs/performance.md is made of the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

import build  # noqa: E402
import cases  # noqa: E402
import tables  # noqa: E402
from rounds import Case, Measured, Wrong, measure  # noqa: E402

SCHEMA = 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = " ".join(cases.NAMES)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=names)
    parser.add_argument("--rounds", type=int, default=7, help="default: 7; fewer of what is slow")
    parser.add_argument("--work", type=Path, default=ROOT / "build", help="for kernel and vmcores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="and the tables, with a plot")
    parser.add_argument("--quick", action="store_true", help="small memories: are results equal?")
    parser.add_argument("--merge", action="store_true", help="into what the --json file has")
    parser.add_argument("--no-run", action="store_true", help="only --json to --markdown")
    return parser.parse_args(arguments)


def machine() -> dict[str, Any]:
    def first(file: str, key: str) -> str:
        for line in Path(file).read_text().splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
        return ""

    return {
        "processor": first("/proc/cpuinfo", "model name"),
        "cpus": os.cpu_count(),
        "memory_mib": int(first("/proc/meminfo", "MemTotal").split()[0]) >> 10,
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        **{name: version(name) for name in ("drgn", "numpy", "xxhash")},
        "compiler": build.compiler(),
        "flags": " ".join(build.FLAGS[:2]),
    }


def row(case: Case, measured: dict[str, Measured]) -> dict[str, Any]:
    """One case for the JSON: all runs as they were."""
    return {
        "name": case.name,
        "about": case.about,
        "yardstick": case.yardstick,
        "frames": case.frames,
        "bytes": case.size,
        "methods": [
            {"name": name, "failed": m.failed, "runs": m.runs} for name, m in measured.items()
        ],
    }


def run(options: argparse.Namespace, results: dict[str, Any]) -> None:
    work = options.work.resolve() / "benchmark"
    if options.quick:
        work /= "quick"
    work.mkdir(parents=True, exist_ok=True)
    programs = build.build(work / "bin")
    results["machine"] = machine()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    setting = cases.Setting(work, programs, options.quick, say, results["facts"])
    for group, names in cases.GROUPS.items():
        wanted = [name for name in names if name in (options.only or names)]
        if not wanted:
            continue
        try:
            with group(setting, wanted) as todo:
                for case in todo:
                    before = time.monotonic(), os.getloadavg()[0]
                    found = row(case, measure(case, options.rounds, say))
                    found["load"] = round(max(before[1], os.getloadavg()[0]), 1)
                    found["took"] = round(time.monotonic() - before[0], 1)
                    _add(results, found)
                    print("\n".join(tables.terminal(found)), flush=True)
                    _write(options, results)
        except cases.Skipped as reason:
            for name in wanted:
                results["facts"].setdefault("skipped", {})[name] = str(reason)
            print(f"{' '.join(wanted)}: skipped: {reason}", flush=True)


def _add(results: dict[str, Any], found: dict[str, Any]) -> None:
    results["cases"] = [c for c in results["cases"] if c["name"] != found["name"]]
    results["cases"].append(found)
    order = {name: place for place, name in enumerate(cases.NAMES)}

    def place(case: dict[str, Any]) -> tuple[int, int]:
        name: str = case["name"]
        if name in order:
            return order[name], 0
        kind, _, size = name.rpartition("-")
        return order[kind], int(size)

    results["cases"].sort(key=place)


def _write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.markdown is not None:
        tables.write(options.markdown, results)


def terminate(number: int, frame: object) -> NoReturn:
    del frame
    raise SystemExit(128 + number)  # what was started and copied is cleared away


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    unknown = sorted(set(options.only) - set(cases.NAMES))
    if unknown:
        raise SystemExit(
            f"error: nothing is called {' '.join(unknown)}; there are: {' '.join(cases.NAMES)}"
        )
    results: dict[str, Any] = {"schema": SCHEMA, "facts": {}, "cases": []}
    if options.json is not None and options.json.exists() and (options.merge or options.no_run):
        results = json.loads(options.json.read_text())
    if options.no_run:
        _write(options, results)
        return 0
    signal.signal(signal.SIGTERM, terminate)
    try:
        results["rounds"], results["quick"] = options.rounds, options.quick
        run(options, results)
    except (Wrong, build.NoCompiler) as error:
        raise SystemExit(f"error: {error}") from None
    _write(options, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
