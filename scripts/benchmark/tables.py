"""The results on the terminal, and docs/performance.md of the same JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plot
from summary import STAGES, Summary, goals, summaries

Found = dict[str, Any]
GROWING = {
    "whole": "whole job",
    "settled": "settled replay, most unique",
    "duplicates": "settled replay, half equal",
    "exact": "3 scans (--passes)",
}


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _cells(case: Found, summary: Summary) -> list[str]:
    """Time, of C, of C on the processor, k pages/s, GB/s, peak RSS, bytes a frame."""
    return [
        _seconds(summary.seconds),
        _share(summary.ratio),
        _share(summary.cpu_ratio),
        f"{summary.rate / 1e3:,.0f}",
        f"{summary.bandwidth / 1e9:.2f}" if case["bytes"] else "",
        f"{summary.peak_rss / 1e6:,.0f}",
        "" if summary.own_rss is None else f"{summary.own_rss:.0f}",
    ]


HEAD = ["median s", "of C", "of C, CPU", "k pages/s", "GB/s", "RSS MB", "B a frame"]


def terminal(case: Found) -> list[str]:
    """One case."""
    lines = [f"{case['name']}: {case['about']}"]
    lines.append(f"  {'':20}" + "".join(f"{word:>11}" for word in HEAD))
    every = summaries(case)
    for name, summary in every.items():
        if summary.failed:
            lines.append(f"  {name:20}  {summary.failed}")
        else:
            cells = "".join(f"{cell:>11}" for cell in _cells(case, summary))
            lines.append(f"  {name:20}{cells}   {summary.rounds} rounds")
    lines += [
        f"    {name}: " + ", ".join(f"{s} {_seconds(t)}" for s, t in summary.stages.items())
        for name, summary in every.items()
        if summary.stages and len(summary.stages) > 1
    ]
    return lines


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _machine(results: Found) -> str:
    m = results["machine"]
    return (
        f"{m['processor']}, {m['cpus']} CPUs, {m['memory_mib'] / 1024:.0f} GiB, Linux "
        f"{m['kernel']}; Python {m['python']}, drgn {m['drgn']}, numpy {m['numpy']}, xxhash "
        f"{m['xxhash']}; C by {m['compiler']} {m['flags']}, XXH3 of Debian's xxhash.h compiled in."
    )


def _growth(results: Found) -> tuple[list[list[str]], plot.Series]:
    rows, series = [], plot.Series()
    for case in results["cases"]:
        kind = case["name"].rpartition("-")[0]
        if kind not in GROWING:
            continue
        (summary,) = summaries(case).values()
        if summary.failed:
            rows.append([GROWING[kind], f"{case['frames']:,}", summary.failed, "", "", ""])
            continue
        series.setdefault(GROWING[kind], []).append((case["frames"], summary.seconds))
        own = f"{summary.own_rss:.0f}" if summary.own_rss is not None else ""
        rows.append([
            GROWING[kind], f"{case['frames']:,}", _seconds(summary.seconds),
            f"{summary.rate / 1e6:.2f}", f"{summary.peak_rss / 1e6:,.0f}", own,
        ])  # fmt: skip
    return rows, series


def _stage_rows(case: Found) -> tuple[list[str], list[list[str]]]:
    every = {n: s for n, s in summaries(case).items() if s.stages and len(s.stages) > 1}
    rows = [
        [stage, *(_seconds(s.stages[stage]) if s.stages and stage in s.stages else ""
                  for s in every.values())]
        for stage in STAGES
        if any(s.stages and stage in s.stages for s in every.values())
    ]  # fmt: skip
    return ["stage, s", *every], rows


INTRODUCTION = """# Performance

Made by `scripts/bench --json docs/performance.json --markdown docs/performance.md`; do not edit.

The yardstick is a C program that does the same job (`scripts/benchmark/reference.c`): walks the
page tables, finds the distinct frames, keeps the anonymous ones by their struct page, reads and
hashes each once, groups and counts. It is told where each process's page tables begin and which
address ranges are mergeable, since finding those is drgn's work in both; so the clock of both runs
from the VMAs to the counters. Reads are equally large. In every round both must arrive at the same
counters and the same sum over all hashes.

Methods take turns, each in a process of its own, and figures are medians. "Of C" is the time
of C divided by the method's own, the median over the rounds; "CPU" is the same of processor time,
which other work on the machine disturbs less. "B a frame" is peak RSS beyond what the process
had when it began, for each frame. `access_process_vm` is the naive way, a page of a process at a
time into a dict, measured on a sample of pages and scaled to all of them; its pages are mappings,
those of the others distinct frames."""


DID_NOT_PAY = """## What holds it, and what did not pay

Reading and hashing is nearly as fast as C. What is left is numpy: each pass over the mappings
writes an array, and every index is made 8 bytes wide first. By hand, on the same guest:

- **A first look** at two words of each frame through a mapping of the file, full hashes only of
  those that may have an equal: 0.20 s instead of 0.29 where most pages are unique, break-even where
  half of them are not. But if the file is cut short meanwhile, the kernel kills who reads there. In
  a child process, which can be killed, it took 0.32 s instead of 0.29, so it is not in.
- **Frames that cannot merge** need not be read, but there are hardly any: not eligible ones are
  not candidates at all, and a pinned page still decides about its equals.
- **Visit by visit** the replay does 1.5 M visits a second. Pages that can never merge are counted
  in bulk, so only the others are visited; the figure above counts all.
- **Without AVX-512**, np.sort() is 4 times as fast on this processor. Hashes are now split by
  their high bits before they are sorted, which gains as much and needs no environment variable."""


def markdown(results: Found, picture: str) -> str:
    parts = [INTRODUCTION, "", _machine(results)]
    vmcore = results["facts"].get("vmcore")
    if vmcore:
        parts += ["", (
            f"The vmcore: Linux {vmcore['kernel']}, {vmcore['processes']} processes, "
            f"{vmcore['mappings']:,} mappings of {vmcore['frames']:,} frames, "
            f"{vmcore['bytes'] / 1e9:.1f} GB, in {vmcore['place']}."
        )]  # fmt: skip
    busy = [case["load"] for case in results["cases"] if case["load"] > results["machine"]["cpus"]]
    if busy:
        parts += ["", (
            f"**The machine was busy with other work**: {len(busy)} of {len(results['cases'])} "
            f"cases were measured at a load of up to {max(busy)}."
        )]  # fmt: skip
    left_out = [f"{name} ({why})" for name, why in results["facts"].get("skipped", {}).items()]
    left_out += [
        f"{case['name']}, {name} ({summary.failed})"
        for case in results["cases"]
        for name, summary in summaries(case).items()
        if summary.failed
    ]
    if left_out:
        parts += ["", f"Not measured: {'; '.join(left_out)}."]
    rows = [[goal.text, goal.value, "yes" if goal.met else "**no**"] for goal in goals(results)]
    if rows:
        parts += ["", "## Goals", "", *_table(["goal", "measured", "met"], rows)]
    rows = []
    for case in results["cases"]:
        if case["name"].rpartition("-")[0] in GROWING:
            continue
        for name, summary in summaries(case).items():
            if not summary.failed:
                rows.append([case["about"], name, *_cells(case, summary)])
    if rows:
        parts += ["", "## Methods and targets", "", *_table(["target", "method", *HEAD], rows)]
    for case in results["cases"]:
        if case["name"] in ("job", "proc"):
            parts += ["", f"## Stages: {case['name']}", "", *_table(*_stage_rows(case))]
    rows, series = _growth(results)
    if rows:
        head = ["what", "frames", "median s", "M mappings or visits/s", "RSS MB", "B a frame"]
        parts += ["", "## Growth", "", *_table(head, rows)]
    if series:
        parts += ["", f"![Time over frames]({picture})"]
    return "\n".join([*parts, "", DID_NOT_PAY]) + "\n"


def write(path: Path, results: Found) -> None:
    """The file, and its plot beside it."""
    picture = path.with_suffix(".svg")
    path.write_text(markdown(results, picture.name))
    series = _growth(results)[1]
    if series:
        picture.write_text(plot.svg(series, "frames", "seconds"))
