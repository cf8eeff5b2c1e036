"""Snapshot and Prediction -> Report: sums, shares, and what a reader must be told."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise

import numpy as np

from ksm_eval.decision import Questions, decide
from ksm_eval.decision.net import net_bytes, records_now
from ksm_eval.replay.calm import Calm
from ksm_eval.replay.converged import Prediction
from ksm_eval.replay.counters import Counters, per_process
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.state import PassResult
from ksm_eval.replay.warm import Verified
from ksm_eval.report.model import (
    Completeness,
    Ineligible,
    Pass,
    Phase,
    ProcessRow,
    Report,
    Savings,
    Setting,
    Stillness,
    System,
    TargetFacts,
    VerifyRow,
    VmaRow,
)
from ksm_eval.snapshot import Entry, FrameFlag, Snapshot, has, unreadable_share


def assemble(
    snapshot: Snapshot,
    settings: Settings,
    overridden: Collection[str],
    prediction: Prediction,
    timeline: Timeline | None = None,
    stood: Stood | None = None,
    questions: Questions | None = None,
) -> Report:
    """The report of one prediction. `overridden`: settings that an option set; `timeline`: what
    single passes do; `stood`: what stood still, where there were several samples."""
    meta = snapshot.meta
    timeline = timeline or Timeline()
    calm = None if stood is None else stood.calm
    complete, saved = _completeness(snapshot, prediction, stood), _savings(snapshot, prediction)
    still = None if stood is None else _stillness(snapshot, stood, timeline)
    return Report(
        target=TargetFacts(
            kind=meta.kind,
            path=meta.path,
            release=meta.release,
            arch=meta.arch,
            page_size=meta.page_size,
            time=meta.time,
            total_ram_pages=meta.total_ram_pages,
            sizeof=meta.sizeof,
        ),
        debug_info=meta.debug_info,
        question=meta.question,
        selection=tuple(meta.selection),
        completeness=complete,
        settings=_settings(snapshot, settings, overridden),
        system=_system(snapshot, settings, prediction),
        observed=meta.counters,
        savings=saved,
        processes=_processes(snapshot, prediction, calm),
        vmas=_vmas(snapshot, prediction, calm),
        ineligible=_ineligible(snapshot),
        entries=_entries(snapshot),
        notes=tuple(_notes(snapshot, prediction, timeline, stood)),
        timeline=_timeline(timeline),
        calm=still,
        decision=decide(
            snapshot, settings, prediction, saved, complete, still, questions or Questions()
        ),
    )


def _completeness(snapshot: Snapshot, prediction: Prediction, stood: Stood | None) -> Completeness:
    unreadable_frames = int(has(snapshot.frames.flags, FrameFlag.UNREADABLE).sum())
    lost = int(snapshot.vmas.entries[:, Entry.UNREADABLE].sum())
    return Completeness(
        mappings=len(snapshot.mappings),
        mappings_unreadable=prediction.unreadable,
        frames=len(snapshot.frames),
        frames_unreadable=unreadable_frames,
        entries_lost=lost,
        share_unreadable=max(unreadable_share(snapshot), stood.worst_share if stood else 0.0),
        processes_lost=(*snapshot.meta.lost, *(stood.lost if stood else ())),
        reasons=snapshot.meta.unreadable,
    )


def _settings(
    snapshot: Snapshot, settings: Settings, overridden: Collection[str]
) -> dict[str, Setting]:
    """Without what this kernel does not have."""
    source = snapshot.meta.settings_source
    absent = set() if snapshot.meta.rules.smart_scan else {"smart_scan"}
    return {
        field.name: Setting(
            getattr(settings, field.name),
            "option" if field.name in overridden else source.get(field.name, "kernel default"),
        )
        for field in fields(settings)
        if field.name not in absent
    }


def _counters(counters: Counters) -> dict[str, int]:
    """By file name, without those that this kernel does not have."""
    return {name: value for name, value in asdict(counters).items() if value is not None}


@dataclass(frozen=True)
class Timeline:
    """Counters after each full scan, and the scans that could not be replayed exactly."""

    passes: Sequence[PassResult] = ()
    inexact: Collection[int] = ()
    none: str = ""  # why there are none, where several samples would give some


@dataclass(frozen=True)
class Stood:
    """What stood still over several samples."""

    calm: Calm
    prediction: Prediction  # if nothing else ever merged
    scan_seconds: float  # of a full scan of the last sample
    moments: Sequence[float] = ()  # seconds; when each sample was taken, if that is known
    # What went wrong in the samples before the last one:
    worst_share: float = 0.0  # that could not be read, of any of them
    lost: Sequence[str] = ()
    notes: Sequence[str] = ()


def _timeline(timeline: Timeline) -> tuple[Pass, ...]:
    return tuple(
        Pass(
            number,
            _counters(result.counters),
            result.exact and number not in timeline.inexact,
            result.cow_breaks,
        )
        for number, result in enumerate(timeline.passes, 1)
    )


def verified(rows: Sequence[Verified]) -> tuple[VerifyRow, ...]:
    """The target's counters beside those of the replay from ksmd's own records."""
    return tuple(
        VerifyRow(
            counter=row.name,
            target=row.target,
            records=row.records,
            difference=None
            if row.target is None or row.records is None
            else row.records - row.target,
            after=tuple(row.after),
        )
        for row in rows
    )


def _stillness(snapshot: Snapshot, stood: Stood, timeline: Timeline) -> Stillness:
    calm, moments = stood.calm, stood.moments
    wanted = snapshot.processes.selected
    total, same, fresh, unread = (
        int(rows[wanted].sum()) for rows in (calm.mappings, calm.calm, calm.new, calm.unread)
    )
    gained = _savings(snapshot, stood.prediction)
    return Stillness(
        samples=calm.samples,
        seconds=moments[-1] - moments[0] if moments else None,
        scan_seconds=stood.scan_seconds,
        mappings=total,
        calm=same,
        new=fresh,
        unread=unread,
        changed=total - same - fresh - unread,
        fork_shared=calm.fork_shared,
        counters=_counters(stood.prediction.counters),
        frames_freed=gained.frames_freed,
        bytes_freed=gained.bytes_freed,
        net_bytes=gained.net_bytes,
        cow_breaks_per_second=_break_rate(timeline, moments),
    )


def _break_rate(timeline: Timeline, moments: Sequence[float]) -> float | None:
    """From the second full scan on, which is the first that merges."""
    if len(timeline.passes) < 3 or not moments or moments[-1] <= moments[1]:
        return None
    return sum(result.cow_breaks for result in timeline.passes[2:]) / (moments[-1] - moments[1])


def _system(snapshot: Snapshot, settings: Settings, prediction: Prediction) -> System:
    counters = _counters(prediction.counters)
    if not (settings.smart_scan and snapshot.meta.rules.smart_scan):
        return System(counters)
    phases = {
        name: Phase(phase.pages_unshared, phase.pages_volatile)
        for name, phase in (("scan", prediction.counters), ("skip", prediction.skip_phase))
    }
    return System(counters, "scan", phases)


def _savings(snapshot: Snapshot, prediction: Prediction) -> Savings:
    saved, meta = prediction.savings, snapshot.meta
    freed = saved.frames_freed * meta.page_size
    now = records_now(snapshot)
    selected = snapshot.processes.selected
    return Savings(
        frames_freed=saved.frames_freed,
        bytes_freed=freed,
        frames_freed_by={"merged": saved.merged, "zero": saved.zero, "thp_zero": saved.thp_zero},
        frames_merged_now=int(has(snapshot.frames.flags, FrameFlag.KSM).sum()),
        metadata_bytes=saved.metadata_bytes,
        metadata_bytes_now=now,
        net_bytes=net_bytes(snapshot, saved),
        thps=saved.thps,
        thps_split=saved.thps_split,
        pss_before=round(float(saved.pss_before[selected].sum())),
        pss_after=round(float(saved.pss_after[selected].sum())),
    )


def _processes(
    snapshot: Snapshot, prediction: Prediction, calm: Calm | None
) -> tuple[ProcessRow, ...]:
    processes, counters, saved = snapshot.processes, prediction.processes, prediction.savings
    zero, profit = counters.ksm_zero_pages, counters.ksm_process_profit
    mappings = per_process(snapshot.vmas, np.diff(snapshot.vmas.offset), len(processes))
    return tuple(
        ProcessRow(
            pid=int(processes.pid[row]),
            comm=processes.comm[row],
            cgroup=processes.cgroup[row],
            uid=int(processes.uid[row]),
            mappings=int(mappings[row]),
            ksm_rmap_items=int(counters.ksm_rmap_items[row]),
            ksm_merging_pages=int(counters.ksm_merging_pages[row]),
            ksm_zero_pages=None if zero is None else int(zero[row]),
            ksm_process_profit=None if profit is None else int(profit[row]),
            pss_before=round(float(saved.pss_before[row])),
            pss_after=round(float(saved.pss_after[row])),
            calm_pages=None if calm is None else int(calm.calm[row]),
            new_pages=None if calm is None else int(calm.new[row]),
        )
        for row in np.flatnonzero(processes.selected).tolist()
    )


def _vmas(snapshot: Snapshot, prediction: Prediction, calm: Calm | None) -> tuple[VmaRow, ...]:
    vmas = snapshot.vmas
    steady = [None] * len(vmas) if calm is None else calm.vma_calm.tolist()
    pids = snapshot.processes.pid[vmas.process].tolist()
    asked = snapshot.processes.selected[vmas.process].tolist()
    return tuple(
        VmaRow(
            pid=pid,
            start=start,
            end=end,
            name=name,
            mappings=mappings,
            ksm_pages=None if reason else ksm_pages,
            ineligible=reason or None,
            calm_pages=None if reason else calm_pages,
        )
        for wanted, pid, start, end, name, reason, mappings, ksm_pages, calm_pages in zip(
            asked,
            pids,
            vmas.start.tolist(),
            vmas.end.tolist(),
            vmas.name,
            vmas.reason,
            np.diff(vmas.offset).tolist(),
            prediction.ksm_pages.tolist(),
            steady,
            strict=True,
        )
        if wanted
    )


def _ineligible(snapshot: Snapshot) -> tuple[Ineligible, ...]:
    vmas = snapshot.vmas
    size = (vmas.end - vmas.start).astype(np.int64)
    count: dict[str, int] = {}
    total: dict[str, int] = {}
    asked = snapshot.processes.selected[vmas.process]
    for reason, bytes_, wanted in zip(vmas.reason, size.tolist(), asked.tolist(), strict=True):
        if reason and wanted:
            count[reason] = count.get(reason, 0) + 1
            total[reason] = total.get(reason, 0) + bytes_
    largest_first = sorted(total, key=lambda reason: (-total[reason], reason))
    return tuple(Ineligible(reason, count[reason], total[reason]) for reason in largest_first)


def _entries(snapshot: Snapshot) -> dict[str, int]:
    totals = snapshot.vmas.entries.sum(axis=0, dtype=np.int64)
    return {kind.name.lower(): int(totals[kind]) for kind in Entry}


def _notes(
    snapshot: Snapshot, prediction: Prediction, timeline: Timeline, stood: Stood | None
) -> list[str]:
    if stood is None:
        notes = [
            "one sample: pages that change are taken for calm, so these figures are an upper bound"
            + ("" if snapshot.meta.kind == "vmcore" else "; --samples 3 tells what stands still")
        ]
    else:
        notes = _sample_notes(stood)
    if timeline.none:
        notes.append(timeline.none)
    notes += snapshot.meta.notes
    merged = int(has(snapshot.frames.flags, FrameFlag.KSM).sum())
    others = len(snapshot.processes) - int(snapshot.processes.selected.sum())
    if merged or others:
        notes.append(
            f"ksmd has run on this target: {merged} frames are KSM pages already; frames freed "
            f"are those to come, and the counters include {others} processes that were not "
            "selected but that ksmd scans"
        )
    if snapshot.ksmd is not None and snapshot.meta.rules.smart_scan:
        notes.append(
            "pages that ksmd knows are of different ages, so they are not all skipped in the same "
            "passes: pages_unshared is between the two phases, their sum with pages_volatile holds"
        )
    if snapshot.meta.question == "merge_any" and not snapshot.meta.rules.general_profit:
        notes.append(
            "this kernel has no PR_SET_MEMORY_MERGE: the prediction is for every mergeable VMA "
            "given madvise(MADV_MERGEABLE)"
        )
    if not prediction.settled:
        notes.append("the counters had not settled when the replay was stopped")
    if prediction.orphans:
        notes.append(
            f"{prediction.orphans} mappings are lost to merges that ksmd has to undo (pinned twins)"
        )
    return notes


def _sample_notes(stood: Stood) -> list[str]:
    calm = stood.calm
    notes = [
        f"{calm.samples} samples: the timeline is what ksmd does with one full scan a sample; "
        "the settled figures are those of the last sample if nothing changed from then on, and "
        "those of the pages alone that stood still so far. A write that leaves a page's bytes as "
        "they were cannot be seen in samples; of busy programs ksmd has been seen to merge up to "
        "8 % less for it"
    ]
    apart = [after - before for before, after in pairwise(stood.moments)]
    if apart and min(apart) < 0.9 * stood.scan_seconds:
        notes.append(
            f"samples were {min(apart):.1f} s apart, but a full scan would take ksmd "
            f"{stood.scan_seconds:.1f} s: pages that change meanwhile are taken for calm, and the "
            "COW faults are not those of ksmd; --interval auto waits as long"
        )
    for people, what in ((calm.ended, "ended"), (calm.started, "started")):
        if people:
            which = ", ".join(people[:10]) + (", …" if len(people) > 10 else "")
            count = "1 process" if len(people) == 1 else f"{len(people)} processes"
            notes.append(f"{count} {what} between the samples: {which}")
    return [*notes, *stood.notes]
