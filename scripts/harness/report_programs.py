"""Real programs on the host's own kernel, for docs/accuracy.md."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

HEAD = """
## Programs on this machine's own kernel

Servers that nobody here wrote, opted in by `prctl(PR_SET_MEMORY_MERGE)` before exec, and evaluated
by `ksm-eval --pid MASTER --children` through `/proc`. The truth is the ksmd of the kernel they run
on ({releases}). Made by `scripts/harness/programs.py`, which says more.

Stopped (SIGSTOP) after several clients had their answers: **{equal} of {points}** passes equal
({values} values: each process's `ksm_stat` after every pass too); the settled state in {settled}.

| program | version | processes | candidate pages | equal/compared passes | pages_sharing |
|---|---|---|---|---|---|"""
RUNNING = """
Serving on, one request a second: {samples} samples {interval:g} s apart, then as many full scans
{interval:g} s apart. `pages_sharing` after the second and third pass (the first merges nothing),
predicted / real, and the larger difference of the two; a line is a run.

| program | processes | candidate pages | pass 2 | pass 3 | difference |
|---|---|---|---|---|---|"""
BUSY = """
The same with 40 requests a second. Real figures are lower here and there: a page that is written
with what it holds leaves its KSM page, and if all that map one do so while ksmd is still at work
on that pass, the KSM page goes, and those ksmd is past already are counted again one pass later.
Samples do not show such writes. *held* is the check of that: the program is stopped for each scan
alone, and serves on between them.

| program | processes | candidate pages | pass 2 | pass 3 | difference |
|---|---|---|---|---|---|"""


def section(rows: list[Row]) -> str:
    """`rows`: those of scripts/harness/programs.py; "" if there are none."""
    done = [row for row in rows if not row["skipped"]]
    frozen = [row for row in done if row["kind"] == "frozen"]
    running = [row for row in done if row["kind"] == "running"]
    busy = [row for row in done if row["kind"] in ("busy", "held")]
    parts = []
    if frozen:
        sums = {name: sum(row[name] for row in frozen) for name in ("equal", "points", "values")}
        settled = f"{sum(row['settled_equal'] for row in frozen)} of {len(frozen)}"
        releases = ", ".join(sorted({row["release"] for row in frozen}))
        parts.append(HEAD.format(releases=releases, settled=settled, **sums))
        parts += map(_frozen, frozen)
        found = [_differences(row) for row in frozen if row["differences"]]
        parts += ["\nNot equal:\n", *found] if found else []
    if running:
        first = running[0]
        parts.append(RUNNING.format(samples=len(first["real"]), interval=first["interval"]))
        parts += map(_running, running)
    if busy:
        parts.append(BUSY)
        parts += map(_running, busy)
    return "\n".join(parts)


def _frozen(row: Row) -> str:
    equal = f"{row['equal']}/{row['points']}"
    cells = [
        *(row["program"], row["version"], row["processes"], row["mappings"]),
        *(equal if row["equal"] == row["points"] else f"**{equal}**", row["real"][-1]),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _running(row: Row) -> str:
    pairs = list(zip(row["predicted"], row["real"], strict=True))[1:]
    worst = max(abs(mine - real) / max(1, real) for mine, real in pairs)
    name = row["program"] + (" *held*" if row["kind"] == "held" else "")
    shown = [f"{mine} / {real}" for mine, real in pairs]
    return " | ".join(
        ["| " + name, *map(str, (row["processes"], row["mappings"])), *shown, f"{worst:.2%} |"]
    )


def _differences(row: Row) -> str:
    more = len(row["differences"]) - 4
    tail = f"; and {more} more" if more > 0 else ""
    return f"- {row['program']}: " + "; ".join(row["differences"][:4]) + tail
