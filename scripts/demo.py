"""Evaluate a saved vmcore and print the real ksmd's last counters beside the prediction."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ksm_eval.evaluate import evaluate, open_target
from ksm_eval.report.to_terminal import to_terminal
from ksm_eval.target import Selection


def main(vmcore: Path) -> None:
    truth = json.loads(vmcore.with_suffix(".truth.json").read_text())
    asked = [process["pid"] for process in truth["processes"] if process["opted_in"]]
    passes = truth["passes"]
    print(
        f"{vmcore} is the memory of a small guest just before its own ksmd ran.\n"
        "In that guest ksmd then made "
        f"{len(passes)} full scans; its counters are the column 'real ksmd'.\n"
        f"The same without them: scripts/ksm-eval -c {vmcore} --comm 'srv-*'\n"
    )
    report = evaluate(open_target(vmcore), Selection(pids=tuple(asked)))
    print(to_terminal(report, actual=passes[-1]["ksm"]), end="")
    freed = truth["before"]["vmstat"]["nr_anon_pages"] - passes[-1]["vmstat"]["nr_anon_pages"]
    print(
        f"\nReally freed in the guest: nr_anon_pages fell by {freed}; "
        f"predicted {report.savings.frames_freed}."
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
