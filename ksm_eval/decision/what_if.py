"""The same memory under other settings, without THPs, or without one of the processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ksm_eval.decision.net import net_bytes
from ksm_eval.replay.converged import Prediction, predict
from ksm_eval.replay.counters import per_vma
from ksm_eval.replay.rules import Settings
from ksm_eval.report.decision import WhatIf
from ksm_eval.snapshot import (
    NO_COMPOUND,
    MappingFlag,
    Mappings,
    Processes,
    Snapshot,
    has_merged,
)

SHARINGS = (2, 16, 64, 256, 1024)
"""max_page_sharing; 2 is the least that the kernel takes."""
PROCESSES = 20
"""Left out one by one at most: those that gain most."""


def what_if(snapshot: Snapshot, settings: Settings, prediction: Prediction) -> tuple[WhatIf, ...]:
    """One prediction a row; the first is the report's own, whose net_bytes the others are
    compared with. left_out() tells what is not asked.

    "thp=never" takes every page of a THP for a page of its own, with the same content. Pages that
    are there only because a huge page was given for less stay, mostly as zero pages. "without" a
    process it has not opted in: what it maps stays, and frames shared with it are not freed.
    """
    of_report = net_bytes(snapshot, prediction.savings)

    def row(name: str, kind: str, at: Snapshot, found: Prediction, current: bool = False) -> WhatIf:
        net = net_bytes(at, found.savings)
        return WhatIf(
            name=name,
            kind=kind,
            current=current,
            pages_shared=found.counters.pages_shared,
            pages_sharing=found.counters.pages_sharing,
            frames_freed=found.savings.frames_freed,
            net_bytes=net,
            difference=net - of_report,
        )

    rows = [row("current", "current", snapshot, prediction, True)]
    for name, value in _variants(snapshot, settings):
        current = value == getattr(settings, name)
        found = prediction if current else predict(snapshot, replace(settings, **{name: value}))
        shown = int(value)
        rows.append(row(f"{name}={shown}", name, snapshot, found, current))
    if len(snapshot.compounds):
        single = without_thps(snapshot)
        rows.append(row("thp=never", "thp", single, predict(single, settings)))
    marginal = []
    for number in _gaining(snapshot, prediction):
        less = without_process(snapshot, number)
        processes = snapshot.processes
        name = f"without {processes.pid[number]} ({processes.comm[number]})"
        marginal.append(row(name, "process", less, predict(less, settings)))
    rows += sorted(marginal, key=lambda one: one.difference)
    return tuple(rows)


def left_out(snapshot: Snapshot, settings: Settings) -> tuple[str, ...]:
    """What what_if() does not ask of this snapshot, and why."""
    reasons = []
    if has_merged(snapshot):
        reasons.append(
            "max_page_sharing, merge_across_nodes: the kernel refuses to change them while there "
            "are KSM pages"
        )
    if len(np.unique(snapshot.frames.node)) < 2:
        reasons.append("merge_across_nodes: all of these pages are on one NUMA node")
    if not len(snapshot.compounds):
        reasons.append("thp=never: none of these pages is in a THP")
    selected = int(snapshot.processes.selected.sum())
    if selected < 2:
        reasons.append("without a process: there is only one")
    elif selected > PROCESSES:
        reasons.append(
            f"without a process: only the {PROCESSES} of {selected} that gain most are left out"
        )
    if settings.smart_scan and snapshot.meta.rules.smart_scan:
        reasons.append("smart_scan: it changes how often pages are visited, not what merges")
    return tuple(reasons)


def _variants(snapshot: Snapshot, settings: Settings) -> Iterator[tuple[str, Any]]:
    merged = has_merged(snapshot)
    if not merged:
        for sharing in sorted({*SHARINGS, settings.max_page_sharing}):
            yield "max_page_sharing", sharing
    yield "use_zero_pages", False
    yield "use_zero_pages", True
    if not merged and len(np.unique(snapshot.frames.node)) > 1:
        yield "merge_across_nodes", False
        yield "merge_across_nodes", True


def _gaining(snapshot: Snapshot, prediction: Prediction) -> list[int]:
    """Rows of the selected processes that gain most, best first; none if there is only one."""
    rows = np.flatnonzero(snapshot.processes.selected)
    if len(rows) < 2:
        return []
    saved = prediction.savings
    gain = (saved.pss_before - saved.pss_after)[rows]
    best = np.argsort(-gain, kind="stable")[:PROCESSES]
    return [int(row) for row in rows[best[gain[best] > 0]]]


def without_thps(snapshot: Snapshot) -> Snapshot:
    """Each page of a compound alone, order 0. Which of a pinned THP's pages are pinned is not
    known: none is taken for it."""
    frames, compounds, mappings = snapshot.frames, snapshot.compounds, snapshot.mappings
    return replace(
        snapshot,
        frames=replace(frames, compound=np.full(len(frames), NO_COMPOUND, np.uint32)),
        compounds=replace(
            compounds,
            head=compounds.head[:0],
            pages=compounds.pages[:0],
            pinned=compounds.pinned[:0],
            pmd_mapcount=compounds.pmd_mapcount[:0],
            pte_behind=None if compounds.pte_behind is None else compounds.pte_behind[:0],
        ),
        mappings=replace(mappings, flags=mappings.flags & np.uint8(0xFF & ~MappingFlag.HUGE)),
    )


def without_process(snapshot: Snapshot, row: int) -> Snapshot:
    """As if ksmd knew nothing of it; who maps its frames besides has them as before, and counts
    as outside for what it maps itself (Frames.mapcount still has it)."""
    vmas, mappings, frames = snapshot.vmas, snapshot.mappings, snapshot.frames
    others = vmas.process != row
    keep = np.repeat(others, np.diff(vmas.offset))
    used = np.zeros(len(frames), np.bool_)
    used[mappings.frame[keep]] = True
    new_row = np.cumsum(used, dtype=np.uint32) - np.uint32(1)
    columns = {name: column for name, column in vars(frames).items() if column is not None}
    lengths = per_vma(vmas, keep)[others]
    return replace(
        snapshot,
        processes=_without_row(snapshot.processes, row),
        vmas=replace(
            vmas,
            process=(vmas.process - (vmas.process > row))[others].astype(np.uint32),
            start=vmas.start[others],
            end=vmas.end[others],
            flags=vmas.flags[others],
            name=[name for name, kept in zip(vmas.name, others, strict=True) if kept],
            reason=[reason for reason, kept in zip(vmas.reason, others, strict=True) if kept],
            offset=np.concatenate(([0], np.cumsum(lengths))),
            entries=vmas.entries[others],
        ),
        mappings=Mappings(
            frame=new_row[mappings.frame[keep]],
            page=mappings.page[keep],
            flags=mappings.flags[keep],
        ),
        frames=replace(frames, **{name: column[used] for name, column in columns.items()}),
        ksmd=None,
    )


def _without_row(processes: Processes, row: int) -> Processes:
    others = np.arange(len(processes)) != row

    def kept(column: Any) -> Any:
        if isinstance(column, np.ndarray):
            return column[others]
        if isinstance(column, list):
            return column[:row] + column[row + 1 :]
        if isinstance(column, dict):
            return {name: values[others] for name, values in column.items()}
        return column

    return replace(processes, **{name: kept(column) for name, column in vars(processes).items()})
