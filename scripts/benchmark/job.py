"""The whole job as ksm-eval does it, on the clock: VMAs to counters."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from clock import Clock, status

from ksm_eval.collect import collect
from ksm_eval.replay.converged import Prediction, predict
from ksm_eval.snapshot import U64, FrameFlag, Snapshot, has
from ksm_eval.target import Selection, Target

SEED = 0x5EED0F0E5EED0F0E

# Of the target; the others of it are about one variable or one task at a time. They are what
# drgn is for, and the C programs are told the answers.
FACTS = ("_layout", "_page_layout", "_max_pfn")  # looked up when they are needed first
TARGET_STAGES = {
    "rules": "target facts",
    "settings": "target facts",
    "counters": "target facts",
    "processes": "tasks",
    "vmas": "VMAs",
    "walk": "walk",
    "frames": "struct page",
}
COLLECT_STAGES = {
    "_distinct": "distinct frames",
    "_rows": "distinct frames",
    "sweep_in_jobs": "read and hash",
}
OFF_THE_CLOCK = ("target facts", "tasks", "VMAs")
REST = "columns"  # of collect(): whatever is in no stage of its own


def simple_counters(snapshot: Snapshot) -> dict[str, int]:
    """Every content with several frames merges into one page, and nothing else happens."""
    frames = snapshot.frames
    mapped = np.bincount(snapshot.mappings.frame, minlength=len(frames))
    order = np.argsort(frames.hash)
    order = order[~has(frames.flags[order], FrameFlag.UNREADABLE)]
    hashes = frames.hash[order]
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)])
    several = np.diff(np.append(starts, len(hashes))) > 1
    mappings = np.add.reduceat(mapped[order], starts) if len(starts) else mapped[:0]
    return {
        "mappings": len(snapshot.mappings),
        "frames": len(frames),
        "contents": len(starts),
        "pages_shared": int(several.sum()),
        "pages_sharing": int((mappings[several] - 1).sum()),
    }


def checksum(pfn: U64, hashes: U64) -> str:
    """As in common.c: the sum of hash * (2 * pfn + 1)."""
    return f"{int((hashes * (pfn * np.uint64(2) + np.uint64(1))).sum(dtype=np.uint64)):016x}"


def measured(
    target: Target, selection: Selection, jobs: int = 1
) -> tuple[Snapshot, Prediction, dict[str, Any]]:
    """Collect and predict; the third is the measurement."""
    clock = Clock()
    for attribute, stage in TARGET_STAGES.items():
        clock.replace(target, attribute, stage)
    module = importlib.import_module("ksm_eval.collect")
    for attribute, stage in COLLECT_STAGES.items():
        clock.replace(module, attribute, stage)
    clock.replace(
        importlib.import_module("ksm_eval.target.kernel"), "batched_pages", "target facts"
    )
    with clock.stage("target facts"):
        for attribute in FACTS:
            getattr(target, attribute, None)
    before = status("VmRSS")
    with clock.stage(REST):
        snapshot = collect(target, selection, seed=SEED, jobs=jobs)
    with clock.stage("replay"):
        prediction = predict(snapshot, snapshot.meta.settings)
    return snapshot, prediction, {
        **clock.measurement(*OFF_THE_CLOCK),
        "pages": len(snapshot.frames),
        "rss_before": before,
        "unreadable": snapshot.meta.unreadable,
        "results": {
            **simple_counters(snapshot),
            "checksum": checksum(snapshot.frames.pfn.astype(np.uint64), snapshot.frames.hash),
        },
        "predicted": {
            "pages_shared": prediction.counters.pages_shared,
            "pages_sharing": prediction.counters.pages_sharing,
        },
    }  # fmt: skip
