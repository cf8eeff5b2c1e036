"""The results as docs/accuracy.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import report_programs

Row = dict[str, Any]

KINDS = ("static", "cut", "warm", "changing", "same-content")
HEAD = """# Accuracy: the prediction against the real ksmd

Made by `scripts/truth`; the same results, with every difference, are in `accuracy.json`.

A guest is booted under QEMU, its processes fill memory and stop. Its memory is dumped, then the
same guest's ksmd makes exact passes (full scans), and after each pass every counter is read.
`ksm-eval`'s replay of the dump has to show the same numbers after the same pass. A *point* is one
pass; it is equal when **all** of its counters are equal.

Compared in every pass:

- system: `pages_shared`, `pages_sharing`, `pages_unshared`, `pages_volatile`, `stable_node_chains`,
  `stable_node_dups`, `full_scans`, the number of rmap_items, and where the kernel has them
  `general_profit`, `ksm_zero_pages`, `pages_scanned`, `pages_skipped`;
- each process: `ksm_rmap_items`, `ksm_merging_pages`, `ksm_zero_pages`, `ksm_process_profit` of
  `/proc/PID/ksm_stat`, those that the kernel has;
- after the last pass of memory that stands still `thp_split_page` and `thp_split_page_failed` of
  `/proc/vmstat` (the second where all compound pages are THPs).

A run that differs is made once more, which tells a wrong prediction from a kernel that did not do
the same twice; the first one counts.

The settled state in closed form is compared with the last pass, all its counters.
"""
RUN = """
## How to run it

    scripts/truth --kernel 6.1 6.12 --workload base cap     # some
    scripts/truth --seed 1 2 3 --changing                   # all, with random workloads
    scripts/truth --json docs/accuracy.json --markdown docs/accuracy.md

Root is not needed. Debian's kernels are fetched from the archive that apt is configured for, with
more suites than the system uses and apart from its lists; the small ones are built by
`scripts/fixtures/build-kernel`. It needs `qemu-system-x86`, `musl-tools` and, for the small ones,
what `build-kernel` names. Kernels are a table in `scripts/harness/kernels.py`, workloads are in
`scripts/harness/workloads.py`, `warm.py`, `changing.py`, `random_static.py` and
`random_changing.py`. A kernel is booted once, and every run goes on from its saved state; a run
takes some 5 seconds, a changing one 20. `--keep DIR` keeps the dumps and
the truth of runs that differ. `tests/test_harness.py` runs a part of it; with
`KSM_EVAL_WORK=build` it takes the kernels that are there already.

Programs on the own kernel, where gunicorn, PostgreSQL and Redis are installed, as root:

    .venv/bin/python scripts/harness/programs.py --runs 3 --json docs/accuracy.json
    scripts/truth --no-run --json docs/accuracy.json --markdown docs/accuracy.md
"""


def _cell(rows: list[Row]) -> str:
    if not rows:
        return ""
    if all(row["skipped"] for row in rows):
        return "-"
    if any(row["error"] for row in rows):
        return "error"
    equal, points = (sum(row[key] for row in rows) for key in ("equal", "points"))
    if equal == points and all(row["settled_equal"] is not False for row in rows):
        return f"{equal}/{points}"
    worst = max(row["worst_system"] for row in rows)
    settled = "" if all(row["settled_equal"] is not False for row in rows) else " settled"
    return f"**{equal}/{points}** {100 * worst:.2g} %{settled}"


def _group(name: str) -> str:
    """Seeds share a column."""
    return name.rstrip("0123456789").rstrip("-") if name.startswith("random-") else name


def _table(rows: list[Row], order: list[str]) -> list[str]:
    """Kernels down, workloads across, in blocks of at most eight."""
    columns = list(dict.fromkeys(_group(row["workload"]) for row in rows))
    names = [name for name in order if any(row["kernel"] == name for row in rows)]
    lines = []
    for start in range(0, len(columns), 8):
        block = columns[start : start + 8]
        lines += ["", "| kernel | " + " | ".join(block) + " |", "|---" * (len(block) + 1) + "|"]
        for name in names:
            cells = [
                _cell([r for r in rows if r["kernel"] == name and _group(r["workload"]) == column])
                for column in block
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _sum(rows: Sequence[Row]) -> str:
    failed = sum(bool(row["error"]) for row in rows)
    rows = [row for row in rows if row["points"]]
    equal, points, values = (sum(row[key] for row in rows) for key in ("equal", "points", "values"))
    runs = f"{len(rows)} runs on {len({row['kernel'] for row in rows})} kernels"
    settled = [row["settled_equal"] for row in rows if row["settled_equal"] is not None]
    text = f"**{equal} of {points}** passes equal ({values} values) in {runs}"
    if settled:
        text += f"; the settled state in {sum(settled)} of {len(settled)}"
    if failed:
        text += f"; **{failed} runs failed**"
    return text + "."


def _differences(rows: list[Row]) -> list[str]:
    lines = []
    for row in rows:
        if row["error"]:
            lines.append(f"- {row['kernel']} {row['workload']}: {row['error'].splitlines()[0]}")
            continue
        found = row["differences"][:4] + [f"settled: {d}" for d in row["settled_differences"][:4]]
        if found:
            more = len(row["differences"]) + len(row["settled_differences"]) - len(found)
            tail = f"; and {more} more" if more else ""
            if row.get("second"):
                tail += f". The same run once more: {row['second']}"
            lines.append(f"- {row['kernel']} {row['workload']}: " + "; ".join(found) + tail)
    return lines


def markdown(rows: list[Row], order: list[str], about: dict[str, str], programs: list[Row]) -> str:
    """`rows`: dicts of main.Result; `about`: what a workload is, by name; `programs`: rows of
    programs.py."""
    parts = [HEAD]
    titles = {
        "static": (
            "Memory that stands still",
            "An entry is equal/compared passes. -: the kernel has not what the workload is about.",
        ),
        "cut": (
            "Inside a pass",
            "As above, and ksmd stops at some pages of a pass; every stop is a point.",
        ),
        "warm": (
            "Dumps of a guest in which ksmd has run",
            "The replay starts from ksmd's own records. The first point is what they add up to, "
            "beside the guest's counters at the dump; then a pass a point. A pass that the dump "
            "interrupted is finished first.",
        ),
        "changing": (
            "Memory that changes",
            "A dump a step from a boot in which KSM never runs, a pass a step in a second boot of "
            "the same script. Writes that change nothing are left out.",
        ),
        "same-content": (
            "Writes of the same content",
            "No sample of memory can see a write that leaves a page as it was, but it breaks up a "
            "merged page. This is how far the counters are off then; it is a limit of the method.",
        ),
    }
    for kind in KINDS:
        of_kind = [row for row in rows if row["kind"] == kind]
        if not of_kind:
            continue
        title, text = titles[kind]
        parts.append(f"\n## {title}\n\n{_sum(of_kind)} {text}")
        parts.append("\n".join(_table(of_kind, order)))
        found = _differences(of_kind)
        if found:
            parts.append("\nNot equal (bold; with the worst relative error of a system counter):\n")
            parts.append("\n".join(found))
    parts.append(report_programs.section(programs))
    releases = {row["kernel"]: row["release"] for row in rows if row["points"]}
    parts.append("\n## Kernels\n\n| kernel | release |\n|---|---|")
    parts += [f"| {name} | {releases[name]} |" for name in order if name in releases]
    parts.append("\n## Workloads\n\n| workload | what |\n|---|---|")
    parts += [f"| {name} | {text} |" for name, text in about.items()]
    parts.append(RUN)
    return "\n".join(parts)
