"""Golden reports: what the vmcores of fixtures/ give, as a person and as a program read it.

    python -m tests.golden [--accept] [NAME…]

prints how they differ from tests/golden, and with --accept writes them there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from difflib import unified_diff
from pathlib import Path

from ksm_eval.collect import collect
from ksm_eval.decision import Questions
from ksm_eval.evaluate import evaluate_snapshot
from ksm_eval.report.model import Report
from ksm_eval.report.to_json import to_json
from ksm_eval.report.to_terminal import to_terminal
from ksm_eval.target import Selection
from tests import fixtures

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(fixtures.NAMES + fixtures.WARM)  # the filtered one is refused
_SEED = 1  # of the content hashes


def report(name: str) -> Report:
    """Of the processes that ksmd scanned, without what differs from checkout to checkout."""
    selection = Selection(pids=tuple(fixtures.opted_in(name)))
    snapshot = collect(fixtures.target(name), selection, seed=_SEED)
    made = evaluate_snapshot(snapshot, questions=Questions(what_if=True))
    path = f"fixtures/vmcores/{name}.kdump"
    return replace(made, target=replace(made.target, path=path, time=0.0))


def rendered(name: str) -> dict[str, str]:
    """File name -> text."""
    made = report(name)
    # The last digits of a float are the processor's.
    rounded = json.loads(to_json(made, None), parse_float=lambda text: float(f"{float(text):.9g}"))
    return {
        f"{name}.txt": to_terminal(made),
        f"{name}.json": json.dumps(rounded, indent=1) + "\n",
    }


def difference(file: str, text: str) -> str:
    """As a unified diff, empty if there is none."""
    path = FOLDER / file
    old = path.read_text() if path.exists() else ""
    lines = unified_diff(
        old.splitlines(keepends=True),
        text.splitlines(keepends=True),
        f"golden/{file}",
        "now",
    )
    return "".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/golden", description="Compare golden reports.")
    parser.add_argument("--accept", action="store_true", help="write the reports of now")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no such vmcore: {', '.join(sorted(unknown))}")
    differ = False
    current: set[str] = set()
    for name in options.names or NAMES:
        for file, text in rendered(name).items():
            current.add(file)
            found = difference(file, text)
            differ = differ or bool(found)
            sys.stdout.write(found)
            if found and options.accept:
                FOLDER.mkdir(exist_ok=True)
                (FOLDER / file).write_text(text)
    if options.accept and not options.names:
        for old in FOLDER.iterdir():
            if old.name not in current:
                old.unlink()
    return int(differ and not options.accept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
