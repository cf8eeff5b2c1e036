"""Medians and ratios of the runs that the JSON keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

Found = dict[str, Any]
STAGES = (
    *("walk", "distinct frames", "struct page", "read and hash", "columns", "replay"),
    "group and count",
)


@dataclass(frozen=True)
class Summary:
    """One method in one case."""

    name: str
    failed: str
    rounds: int
    seconds: float = 0.0
    least: float = 0.0
    ratio: float | None = None  # yardstick's time / own, median over the rounds
    cpu_ratio: float | None = None  # the same of the time on the processor
    rate: float = 0.0  # pages a second
    bandwidth: float = 0.0  # bytes a second
    peak_rss: float = 0.0
    own_rss: float | None = None  # bytes a frame, without what the process had before
    stages: dict[str, float] | None = None


def summaries(case: Found) -> dict[str, Summary]:
    """By method."""
    runs = {method["name"]: method["runs"] for method in case["methods"]}
    yardstick = runs.get(case["yardstick"], [])
    return {
        method["name"]: _summary(case, method, yardstick if method["runs"] else [])
        for method in case["methods"]
    }


def _summary(case: Found, method: Found, yardstick: list[Found]) -> Summary:
    runs: list[Found] = method["runs"]
    if not runs:
        return Summary(method["name"], method["failed"] or "not run", 0)

    def middle(key: str) -> float:
        return float(median(run[key] for run in runs))

    def ratio(key: str) -> float | None:
        if not yardstick:
            return None
        pairs = zip(yardstick, runs, strict=False)
        return float(median(c[key] / run[key] for c, run in pairs))

    seconds, peak = middle("seconds"), middle("peak_rss")
    own = None
    if case["frames"] and "rss_before" in runs[0]:
        own = median(run["peak_rss"] - run["rss_before"] for run in runs) / case["frames"]
    return Summary(
        name=method["name"],
        failed="",
        rounds=len(runs),
        seconds=seconds,
        least=min(run["seconds"] for run in runs),
        ratio=ratio("seconds"),
        cpu_ratio=ratio("cpu"),
        rate=median(run["pages"] / run["seconds"] for run in runs),
        bandwidth=case["bytes"] / seconds,
        peak_rss=peak,
        own_rss=own,
        stages={
            name: median(run["stages"].get(name, 0.0) for run in runs)
            for name in STAGES
            if any(name in run["stages"] for run in runs)
        },
    )


@dataclass(frozen=True)
class Goal:
    text: str
    value: str
    met: bool


def goals(results: Found) -> Iterator[Goal]:
    """Those whose case was measured."""
    by_name = {case["name"]: (case, summaries(case)) for case in results["cases"]}

    def at_least(text: str, value: float | None, least: float, unit: str = "") -> Iterator[Goal]:
        if value is not None:
            yield Goal(f"{text}: ≥ {least:g}{unit}", f"{value:.3g}{unit}", value >= least)

    for name, about in (("job", "end to end, of C"), ("read", "read and hash, of C")):
        if name not in by_name:
            continue
        ours, drgn = (by_name[name][1].get(m) for m in ("ksm-eval", "ksm-eval, prog.read"))
        assert ours is not None
        through = ours if drgn is None or drgn.failed else drgn
        direct = f"{about}, file read directly"
        yield from at_least(direct, None if through is ours else ours.ratio, 0.9)
        if through is ours:
            yield Goal(f"{direct}: ≥ 0.9", "it reads through drgn only", False)
        yield from at_least(f"{about}, through prog.read", through.ratio, 0.75)
    if "job" in by_name:
        found = by_name["job"][1]
        if not found["access_process_vm"].failed:
            times = found["access_process_vm"].seconds / found["ksm-eval"].seconds
            yield from at_least("times as fast as the naive way", times, 250)
    if "proc" in by_name:
        yield from at_least("through /proc, of C", by_name["proc"][1]["ksm-eval"].ratio, 0.85)
    rates = {
        name: found["ksm-eval"].rate / 1e6
        for name, (_, found) in by_name.items()
        if not found["ksm-eval"].failed
    }
    for kind in ("settled", "duplicates"):
        of_kind = {n: rate for n, rate in rates.items() if n.startswith(f"{kind}-")}
        if of_kind:
            text = f"settled replay ({kind}), slowest size, mappings a second"
            yield from at_least(text, min(of_kind.values()), 10, " M")
            *_, last = of_kind.values()
            first = next(iter(of_kind.values()))
            grows = f"settled replay ({kind}), time a mapping, largest size / smallest: ≤ 1.2"
            yield Goal(grows, f"{first / last:.2f}", first / last <= 1.2)
    of_kind = {n: rate for n, rate in rates.items() if n.startswith("exact-")}
    if of_kind:
        text = "single scans (--passes), slowest size, visits a second"
        yield from at_least(text, min(of_kind.values()), 3, " M")
    for size, most in ((16, 45), (100, 40)):
        if f"whole-{size}" in by_name:
            case, found = by_name[f"whole-{size}"]
            ours = found["ksm-eval"]
            text = f"bytes a frame beyond 300 MB, {size} M frames: ≤ {most}"
            value = (ours.peak_rss - 300e6) / case["frames"]
            yield Goal(text, ours.failed or f"{value:.0f}", not ours.failed and value <= most)
