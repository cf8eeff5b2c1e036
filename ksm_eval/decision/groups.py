"""Processes together: by cgroup, comm or uid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ksm_eval.replay.converged import Prediction
from ksm_eval.replay.counters import per_process
from ksm_eval.report.decision import GroupRow
from ksm_eval.snapshot import Processes, Snapshot

UNREADABLE_UID = 0xFFFFFFFF


def names_of(processes: Processes, by: str) -> Sequence[str]:
    """Which cgroup, comm or uid each process is of; "" where that could not be read."""
    if by == "cgroup":
        return processes.cgroup
    if by == "comm":
        return processes.comm
    if by == "uid":
        return ["" if uid == UNREADABLE_UID else str(uid) for uid in processes.uid.tolist()]
    raise ValueError(by)


def group_rows(snapshot: Snapshot, prediction: Prediction, by: str) -> tuple[GroupRow, ...]:
    """Sums over the selected processes of each group, best first."""
    processes, meta = snapshot.processes, snapshot.meta
    counters, saved = prediction.processes, prediction.savings
    profit = counters.ksm_process_profit
    mappings = per_process(snapshot.vmas, np.diff(snapshot.vmas.offset), len(processes))
    names = names_of(processes, by)
    members: dict[str, list[int]] = {}
    for row in np.flatnonzero(processes.selected).tolist():
        members.setdefault(names[row], []).append(row)
    found = []
    for name, rows in members.items():
        before = round(float(saved.pss_before[rows].sum()))
        after = round(float(saved.pss_after[rows].sum()))
        metadata = int(counters.ksm_rmap_items[rows].sum()) * meta.sizeof["rmap_item"]
        found.append(
            GroupRow(
                name=name,
                processes=len(rows),
                mappings=int(mappings[rows].sum()),
                ksm_merging_pages=int(counters.ksm_merging_pages[rows].sum()),
                ksm_process_profit=None if profit is None else int(profit[rows].sum()),
                pss_before=before,
                pss_after=after,
                metadata_bytes=metadata,
                net_bytes=before - after - metadata,
            )
        )
    return tuple(sorted(found, key=lambda row: (-row.net_bytes, row.name)))
