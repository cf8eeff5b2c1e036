"""The whole road on one screen, and the public Python API."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ksm_eval.assemble import Stood, Timeline, assemble, verified
from ksm_eval.collect import collect
from ksm_eval.decision import Questions
from ksm_eval.decision.security import confined
from ksm_eval.errors import TargetError, UsageError
from ksm_eval.listening import heard
from ksm_eval.memcmp_order import common_order
from ksm_eval.memory import memory_left, replay_budget
from ksm_eval.replay.budget import limited
from ksm_eval.replay.calm import calm, calm_only
from ksm_eval.replay.contents import blocked_by_prot_none
from ksm_eval.replay.converged import predict
from ksm_eval.replay.passes import simulate_passes
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.scan_time import full_scan_seconds
from ksm_eval.replay.series import simulate_series
from ksm_eval.replay.warm import simulate_warm, verify
from ksm_eval.report.model import Report
from ksm_eval.sampling import Samples, take_samples
from ksm_eval.snapshot import Snapshot, has_merged, unreadable_share
from ksm_eval.target import ORDERING, REPLAYING, Progress, Selection, Target, is_program

if TYPE_CHECKING:
    from ksm_eval.target import Program

BYTES_A_VISIT = 1000
"""Of memory that the visit-by-visit replay of samples takes a mapping."""

__all__ = [
    "collect",
    "evaluate",
    "evaluate_samples",
    "evaluate_series",
    "evaluate_snapshot",
    "evaluate_taken",
    "open_guest",
    "open_live",
    "open_target",
    "take_samples",
    "verify_snapshot",
]


def open_target(
    core: Path,
    *,
    symbols: Sequence[Path] = (),
    vmcoreinfo: Path | None = None,
    architecture: str | None = None,
) -> Target:
    """Open a vmcore. Raises TargetError if it cannot be used."""
    from ksm_eval.target.kernel import KernelTarget  # drgn is not needed for a saved snapshot
    from ksm_eval.target.program import open_core

    return KernelTarget(
        open_core(core, symbols=symbols, vmcoreinfo=vmcoreinfo, architecture=architecture)
    )


def open_live(via: str = "auto", *, symbols: Sequence[Path] = ()) -> Target:
    """The running kernel. `via`: "kcore" (drgn on /proc/kcore), "proc" (no drgn), or "auto":
    the first of them that works, with a note if it is the second.

    `symbols` are for /proc/kcore, so with them "auto" is "kcore". Raises TargetError if it
    cannot be read, with what would help.
    """
    why = "as asked"
    if via != "proc":
        from ksm_eval.target.kernel import KernelTarget
        from ksm_eval.target.live import open_kernel

        try:
            kernel = KernelTarget(open_kernel(symbols=symbols))
            kernel.probe()
            return kernel
        except TargetError as error:
            if via == "kcore" or symbols:
                raise
            why = error.message
    from ksm_eval.target.procfs import open_proc

    target = open_proc()
    target.info.notes.insert(0, f"the running kernel was read through /proc: {why}")
    return target


def open_guest(
    address: str, *, symbols: Sequence[Path] = (), vmcoreinfo: Path | None = None
) -> Target:
    """A running QEMU guest by its QMP socket. Raises TargetError if it cannot be used."""
    from ksm_eval.target.kernel import KernelTarget
    from ksm_eval.target.live import open_qemu

    return KernelTarget(open_qemu(address, symbols=symbols, vmcoreinfo=vmcoreinfo))


def evaluate_snapshot(
    snapshot: Snapshot,
    overrides: Mapping[str, Any] | None = None,
    *,
    passes: int = 0,
    progress: Progress | None = None,
    questions: Questions | None = None,
    within: str | None = None,
    max_memory: int = 0,
) -> Report:
    """Replay ksmd on a snapshot and report.

    `passes`: also the counters after each of so many full scans; where ksmd has run, of so
    many more. `overrides` replaces settings by their /sys/kernel/mm/ksm names.
    `within`: as if KSM merged only inside one "uid", "cgroup" or "user_ns". `max_memory`: as for
    collect().
    Raises UsageError for a setting this kernel does not have, or cannot change now.
    """
    settings = _settings(snapshot, overrides)
    if within is not None:
        snapshot = _confined(snapshot, within)
    _begun(progress)
    with limited(replay_budget(max_memory)):
        prediction = predict(snapshot, settings)
        timeline = _timeline(snapshot, settings, passes, progress)
        return assemble(
            snapshot,
            settings,
            frozenset(overrides or ()),
            prediction,
            timeline,
            questions=questions,
        )


def _confined(snapshot: Snapshot, by: str) -> Snapshot:
    try:
        alone = confined(snapshot, by)
    except ValueError:
        raise UsageError(
            f"the target does not tell the {by} of any process", "leave --within out"
        ) from None
    note = (
        f"within one {by} only: a page merges with equal ones that processes of the same {by} map; "
        "ksmd itself cannot be told to do so, but it is what opting in one of them would give"
    )
    meta = alone.meta
    return replace(
        alone,
        meta=replace(meta, notes=[note, *meta.notes], selection=[*meta.selection, "--within", by]),
    )


def _begun(progress: Progress | None) -> None:
    """Of the settled state nobody knows how many full scans it takes, mostly none."""
    if progress is not None:
        progress(REPLAYING, 0, 0)


def _tick(progress: Progress | None, passes: int) -> Callable[[int], None] | None:
    if progress is None:
        return None
    progress(REPLAYING, 0, passes)
    return lambda done: progress(REPLAYING, done, passes)


def _timeline(
    snapshot: Snapshot, settings: Settings, passes: int, progress: Progress | None
) -> Timeline:
    if not passes:
        return Timeline()
    tick = _tick(progress, passes)
    if snapshot.ksmd is not None:
        return Timeline(simulate_warm(snapshot, settings, passes, tick)[1:])
    replay = simulate_passes(snapshot, settings, passes, tick)
    # KSM pages without ksmd's records: what it remembers of the others is not known.
    unknown = range(1, passes + 1) if has_merged(snapshot) else replay.inexact
    return Timeline(replay.results, unknown)


def verify_snapshot(
    snapshot: Snapshot, *, passes: int = 1, progress: Progress | None = None
) -> Report:
    """Replay from the records of a ksmd that has run, beside the target's own counters.

    The snapshot must have all that ksmd scans (collect() of all processes with
    mergeable_only). Raises TargetError if it has no records of ksmd.
    """
    if snapshot.ksmd is None:
        raise TargetError(
            "there is nothing to verify: ksmd has not run here, or its records cannot be read",
            "evaluate processes with --pid, --comm, --cgroup or --all",
        )
    if snapshot.meta.selection != ["--all"] or snapshot.meta.question != "mergeable_only":
        raise TargetError(
            "this snapshot is not of all that ksmd scans",
            "verify the vmcore itself, or save it with --all --mergeable-only",
        )
    settings = snapshot.meta.settings
    report = evaluate_snapshot(snapshot, progress=progress)
    rows = verify(snapshot, settings, passes, _tick(progress, passes))
    return replace(report, verify=verified(rows))


def evaluate_samples(
    samples: Sequence[tuple[Target, Snapshot]],
    overrides: Mapping[str, Any] | None = None,
    *,
    max_memory: int = 0,
    progress: Progress | None = None,
    questions: Questions | None = None,
) -> Report:
    """Replay ksmd over vmcores of one boot, in their order, a full scan each.

    The targets must still be open, and the snapshots collected with one `seed`. Raises
    UsageError for samples of different kernels; see evaluate_series().
    """
    _same_boot([target for target, _ in samples])
    snapshots = [snapshot for _, snapshot in samples]
    if not _has_run(snapshots):
        with ExitStack() as stack:
            for target, _ in samples:
                stack.enter_context(heard(target, progress, ORDERING))
            snapshots = common_order(samples)
    _begun(progress)
    return evaluate_series(
        snapshots, overrides, ranked=True, max_memory=max_memory, questions=questions
    )


def evaluate_taken(
    taken: Samples,
    overrides: Mapping[str, Any] | None = None,
    *,
    passes: int = 0,
    max_memory: int = 0,
    progress: Progress | None = None,
    questions: Questions | None = None,
) -> Report:
    """What sampling.take_samples() took: evaluate_series(), of one evaluate_snapshot()."""
    snapshots, moments = taken.snapshots, taken.moments
    if len(snapshots) == 1:
        report = evaluate_snapshot(
            snapshots[0],
            overrides,
            passes=passes,
            progress=progress,
            questions=questions,
            max_memory=max_memory,
        )
    else:
        _begun(progress)
        report = evaluate_series(
            snapshots, overrides, moments, max_memory=max_memory, questions=questions
        )
    notes = []
    if taken.stopped is not None:
        notes.append(
            f"only {len(snapshots)} of {taken.wanted} samples could be taken: "
            f"{taken.stopped.message}"
        )
    apart = max((after - before for before, after in pairwise(moments)), default=0.0)
    if apart > taken.interval + 1:
        notes.append(
            f"samples were up to {apart:.0f} s apart, not {taken.interval:.0f} s: reading one "
            "takes that long"
        )
    return replace(report, notes=(*notes, *report.notes))


def evaluate_series(
    snapshots: Sequence[Snapshot],
    overrides: Mapping[str, Any] | None = None,
    moments: Sequence[float] = (),
    *,
    ranked: bool = False,
    max_memory: int = 0,
    questions: Questions | None = None,
) -> Report:
    """Replay ksmd over several samples, a full scan each.

    The settled state is that of the last sample if it stood still from then on. `moments`: when
    each was taken, in seconds, if that is known; `ranked`: Frames.order means the same in all.
    `max_memory`: as for collect(); where it is not enough, single full scans are not told.
    """
    last = snapshots[-1]
    settings = _settings(last, overrides)
    if _has_run(snapshots):
        timeline = Timeline(
            none="ksmd has run here: samples show its work and the program's at once, so what "
            "single full scans would do is not told"
        )
    elif not ranked and any(map(blocked_by_prot_none, snapshots)):
        timeline = Timeline(
            none="PROT_NONE pages block merging on this kernel: what single full scans do then "
            "depends on the order of contents, which cannot be had of a memory that changes"
        )
    elif (needed := BYTES_A_VISIT * len(last.mappings)) > memory_left(max_memory):
        timeline = Timeline(
            none=f"single full scans are not told: to replay them for {len(last.mappings)} pages "
            f"takes {needed >> 20} MiB of memory, more than there is"
        )
    else:
        series = snapshots if ranked else [_unranked(snapshot) for snapshot in snapshots]
        timeline = Timeline(simulate_series(series, settings))
    stood_still, hz = calm(snapshots), last.meta.pace.get("hz")
    calm_prediction = predict(calm_only(last, stood_still), settings)
    return assemble(
        last,
        settings,
        frozenset(overrides or ()),
        predict(last, settings),
        timeline,
        Stood(
            stood_still,
            calm_prediction,
            full_scan_seconds(len(last.mappings), settings, hz=int(hz) if hz else None),
            tuple(moments),
            worst_share=max(map(unreadable_share, snapshots[:-1]), default=0.0),
            lost=_of_earlier(snapshots, lambda snapshot: snapshot.meta.lost),
            notes=_of_earlier(snapshots, lambda snapshot: snapshot.meta.notes),
        ),
        questions,
    )


def _of_earlier(
    snapshots: Sequence[Snapshot], lines: Callable[[Snapshot], Sequence[str]]
) -> list[str]:
    """What only samples before the last one have to say."""
    known = set(lines(snapshots[-1]))
    found = []
    for number, snapshot in enumerate(snapshots[:-1], 1):
        new = [line for line in lines(snapshot) if line not in known]
        known |= set(new)
        found += [f"sample {number}: {line}" for line in new]
    return found


def _has_run(snapshots: Sequence[Snapshot]) -> bool:
    """Has ksmd worked on any of them?"""
    return any(snapshot.ksmd is not None or has_merged(snapshot) for snapshot in snapshots)


def _unranked(snapshot: Snapshot) -> Snapshot:
    """What runs cannot be read again to find one order for all samples."""
    return replace(snapshot, frames=replace(snapshot.frames, order=None))


def _same_boot(targets: Sequence[Target]) -> None:
    first = targets[0].info
    for target in targets[1:]:
        if target.info.boot != first.boot:
            raise UsageError(
                f"{target.info.path} and {first.path} are not of the same boot",
                "samples must be of one running kernel; evaluate others one by one",
            )


def _settings(snapshot: Snapshot, overrides: Mapping[str, Any] | None) -> Settings:
    overrides = overrides or {}
    if overrides.get("smart_scan") and not snapshot.meta.rules.smart_scan:
        raise UsageError(
            f"kernel {snapshot.meta.release} has no smart scan", "leave --smart-scan out"
        )
    if has_merged(snapshot):
        for name in ("max_page_sharing", "merge_across_nodes"):
            if overrides.get(name, getattr(snapshot.meta.settings, name)) != getattr(
                snapshot.meta.settings, name
            ):
                raise UsageError(
                    f"{name} cannot be changed while there are KSM pages; the kernel refuses it",
                    "after writing 2 to /sys/kernel/mm/ksm/run it can: evaluate that memory then",
                )
    return replace(snapshot.meta.settings, **overrides)


def evaluate(
    target: Target | Program,
    selection: Selection,
    *,
    mergeable_only: bool = False,
    overrides: Mapping[str, Any] | None = None,
    passes: int = 0,
    progress: Progress | None = None,
    max_memory: int = 0,
    jobs: int | None = None,
    questions: Questions | None = None,
    within: str | None = None,
) -> Report:
    """Select, read, replay, report. A drgn Program, of a vmcore or of what runs, will do, too."""
    with ExitStack() as stack:
        if is_program(target):
            from ksm_eval.target.session import target_of

            target = target_of(target)
            stack.callback(target.close)
        snapshot = collect(
            target,
            selection,
            mergeable_only=mergeable_only,
            exact=passes > 0,
            progress=progress,
            max_memory=max_memory,
            jobs=jobs,
        )
    return evaluate_snapshot(
        snapshot,
        overrides,
        passes=passes,
        progress=progress,
        questions=questions,
        within=within,
        max_memory=max_memory,
    )


class _CallableModule(ModuleType):
    """For ksm_eval.evaluate(prog, …): the name is this module's, and means its function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
