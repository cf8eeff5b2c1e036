"""Memory gained, less what ksmd's own records take."""

from __future__ import annotations

from ksm_eval.replay.savings import Savings
from ksm_eval.snapshot import FrameFlag, Snapshot, has


def net_bytes(snapshot: Snapshot, saved: Savings) -> int:
    """Where ksmd has run, its records that are there already cost nothing more."""
    freed = saved.frames_freed * snapshot.meta.page_size
    return freed - (saved.metadata_bytes - records_now(snapshot))


def records_now(snapshot: Snapshot) -> int:
    """Bytes that ksmd's records of these processes take already."""
    meta, processes = snapshot.meta, snapshot.processes
    items = processes.observed.get("ksm_rmap_items")
    found = meta.counters.get("ksm_rmap_items", 0) if items is None else int(items.sum())
    nodes = int(has(snapshot.frames.flags, FrameFlag.KSM).sum())
    return (
        found * meta.sizeof["rmap_item"]
        + nodes * meta.sizeof["stable_node"]
        + int(processes.registered.sum()) * meta.sizeof["mm_slot"]
    )
