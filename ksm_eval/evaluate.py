"""The whole road on one screen, and the public Python API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ksm_eval.assemble import assemble
from ksm_eval.collect import collect
from ksm_eval.errors import UsageError
from ksm_eval.replay.converged import predict
from ksm_eval.replay.ksmd import simulate
from ksm_eval.report.model import Report
from ksm_eval.snapshot import Snapshot
from ksm_eval.target import Progress, Selection, Target

__all__ = ["collect", "evaluate", "evaluate_snapshot", "open_target"]


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


def evaluate_snapshot(
    snapshot: Snapshot, overrides: Mapping[str, Any] | None = None, *, passes: int = 0
) -> Report:
    """Replay ksmd on a snapshot and report.

    `passes`: also the counters after each of so many full scans.
    `overrides` replaces settings by their /sys/kernel/mm/ksm names.
    Raises UsageError for a setting this kernel does not have.
    """
    overrides = dict(overrides or {})
    if overrides.get("smart_scan") and not snapshot.meta.rules.smart_scan:
        raise UsageError(
            f"kernel {snapshot.meta.release} has no smart scan", "leave --smart-scan out"
        )
    settings = replace(snapshot.meta.settings, **overrides)
    prediction = predict(snapshot, settings)
    replay = simulate(snapshot, settings, passes) if passes else None
    return assemble(snapshot, settings, frozenset(overrides), prediction, replay)


def evaluate(
    target: Target,
    selection: Selection,
    *,
    mergeable_only: bool = False,
    overrides: Mapping[str, Any] | None = None,
    passes: int = 0,
    progress: Progress | None = None,
) -> Report:
    """Select, read, replay, report."""
    snapshot = collect(
        target, selection, mergeable_only=mergeable_only, exact=passes > 0, progress=progress
    )
    return evaluate_snapshot(snapshot, overrides, passes=passes)
