"""Both replays on synthetic snapshots, and the whole job on a synthetic target."""

from __future__ import annotations

from typing import Any

import synthetic
from clock import Clock, status
from job import measured

from ksm_eval.replay.converged import predict
from ksm_eval.replay.passes import simulate_passes
from ksm_eval.snapshot import Snapshot
from ksm_eval.target import Selection


def _expected(frames: int, kind: str) -> dict[str, int]:
    """Worked out from what synthetic.py promises: groups of GROUP frames, one mapping each."""
    groups = frames * synthetic.SHARE[kind] // 100 // synthetic.GROUP
    return {"pages_shared": groups, "pages_sharing": groups * (synthetic.GROUP - 1)}


def _made(frames: int, kind: str) -> tuple[Snapshot, dict[str, int]]:
    before = status("VmRSS")
    snapshot = synthetic.snapshot(frames, kind)
    made = status("VmHWM")
    return snapshot, {"rss_before": before, "rss_of_snapshot": made - before}


def settled(frames: int, kind: str) -> dict[str, Any]:
    """The settled state of a snapshot."""
    snapshot, sizes = _made(frames, kind)
    clock = Clock()
    with clock.stage("replay"):
        prediction = predict(snapshot, snapshot.meta.settings)
    counters = prediction.counters
    return {
        **clock.measurement(),
        **sizes,
        "pages": len(snapshot.mappings),
        "results": {
            "pages_shared": counters.pages_shared,
            "pages_sharing": counters.pages_sharing,
        },
        "expected": _expected(frames, kind),
    }


def exact(frames: int, passes: int) -> dict[str, Any]:
    """So many full scans as --passes has them: visit by visit where pages can merge, the others'
    visits in bulk. In the third all that merges has merged."""
    snapshot, sizes = _made(frames, synthetic.UNIQUE)
    clock = Clock()
    with clock.stage("replay"):
        replay = simulate_passes(snapshot, snapshot.meta.settings, passes)
    counters = replay.results[-1].counters
    return {
        **clock.measurement(),
        **sizes,
        "pages": len(snapshot.mappings) * passes,
        "results": {
            "pages_shared": counters.pages_shared,
            "pages_sharing": counters.pages_sharing,
        },
        "expected": _expected(frames, synthetic.UNIQUE),
    }


def whole(frames: int) -> dict[str, Any]:
    """VMAs to counters, without a target's own work: what the arrays cost, in time and memory."""
    target = synthetic.SyntheticTarget(frames)
    found = measured(target, Selection(all=True))[2]
    results = found["results"]
    kept = {name: results[name] for name in ("pages_shared", "pages_sharing")}
    return {**found, "results": kept, "expected": _expected(frames, synthetic.UNIQUE)}
