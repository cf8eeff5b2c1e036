"""The closed form and the visit-by-visit replay agree on any memory."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings

from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import FIRST_PASS, PERIOD, predict
from ksm_eval.replay.counters import Counters
from ksm_eval.replay.ksmd import Replay, simulate
from ksm_eval.replay.passes import simulate_passes
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import Snapshot
from tests.savings import simple_savings
from tests.snapshots import settings as ksm_settings
from tests.snapshots import snapshots

EXAMPLES = int(os.environ.get("KSM_EVAL_EXAMPLES", "1000"))


def without_progress(counters: Counters) -> Counters:
    return replace(counters, pages_scanned=None, pages_skipped=None, full_scans=None)


def settled_values(counters: Counters) -> tuple[int | None, ...]:
    return (
        counters.pages_shared,
        counters.pages_sharing,
        counters.ksm_zero_pages,
        counters.ksm_rmap_items,
        counters.stable_node_chains,
        counters.stable_node_dups,
    )


def run_settled(snapshot: Snapshot, ksm: Settings, at_least: int) -> Replay:
    """ksmd, long enough and ending in a pass that visits all old pages."""
    passes = FIRST_PASS
    while passes < at_least + 2 * PERIOD:
        passes += PERIOD
    return simulate(snapshot, ksm, passes)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(snapshot=snapshots(), ksm=ksm_settings())
def test_converged_equals_ksmd_settled(snapshot: Snapshot, ksm: Settings) -> None:
    check(snapshot, ksm)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(snapshot=snapshots(warm=False, prot_none=False), ksm=ksm_settings())
def test_converged_equals_ksmd_settled_without_poison(snapshot: Snapshot, ksm: Settings) -> None:
    check(snapshot, ksm)


def check(snapshot: Snapshot, ksm: Settings) -> None:
    prediction = predict(snapshot, ksm)
    assert prediction.settled
    replay = run_settled(snapshot, ksm, prediction.passes)
    last, before = replay.passes[-1], replay.passes[-2]
    assert prediction.counters == without_progress(last.counters)
    smart = ksm.smart_scan and snapshot.meta.rules.smart_scan
    skip = before if smart else last
    assert prediction.skip_phase == without_progress(skip.counters)

    for name in ("ksm_rmap_items", "ksm_merging_pages", "ksm_zero_pages", "ksm_process_profit"):
        ours, theirs = getattr(prediction.processes, name), getattr(last.processes, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.tolist() == theirs.tolist(), name
    whole = prediction.placed.outcome(snapshot)
    assert whole.kind.tolist() == replay.outcome.kind.tolist()
    assert whole.split.tolist() == replay.outcome.split.tolist()
    items = prediction.counters.ksm_rmap_items
    exact = simple_savings(snapshot, replay.outcome, items, prediction.stable_nodes)
    for name, value in vars(exact).items():
        assert np.allclose(value, getattr(prediction.savings, name)), name
    bulk = simulate_passes(snapshot, ksm, len(replay.passes))
    assert bulk.inexact == replay.inexact
    for ours, reference in zip(bulk.results, replay.passes, strict=True):
        assert ours.counters == reference.counters
        for name, value in vars(reference.processes).items():
            assert np.array_equal(getattr(ours.processes, name), value), name
    values = [settled_values(result.counters) for result in replay.passes]
    moving = [n + 2 for n, value in enumerate(values[:-1]) if value != values[-1]]
    expected = moving[-1] if moving else 1
    assert prediction.passes in (expected, expected + 1)
    invariants(replay, prediction.savings.frames_freed, snapshot)


def invariants(replay: Replay, freed: int, snapshot: Snapshot) -> None:
    for result in replay.passes:
        counters = result.counters
        found = (
            counters.pages_shared
            + counters.pages_sharing
            + counters.pages_unshared
            + counters.pages_volatile
        )
        assert found == counters.ksm_rmap_items
        assert result.processes.ksm_rmap_items.sum() == counters.ksm_rmap_items
        merging = counters.pages_shared + counters.pages_sharing
        assert result.processes.ksm_merging_pages.sum() == merging
        dups, chains = counters.stable_node_dups, counters.stable_node_chains
        assert (dups == chains == 0) or dups >= 2 * chains > 0
        assert dups - chains <= counters.pages_shared
        if counters.general_profit is not None:
            assert result.processes.ksm_process_profit is not None
            profit = int(result.processes.ksm_process_profit.sum())
            assert profit - counters.general_profit == counters.pages_shared * 4096
    # Frames of the selected processes, counted from where each mapping ends.
    outcome = replay.outcome
    mapped = set(outcome.frame[outcome.frame >= 0].tolist())
    kept = snapshot.frames.mapcount > np.bincount(
        snapshot.mappings.frame, minlength=len(snapshot.frames)
    )
    gone = set(snapshot.mappings.frame[outcome.kind == Kind.REMAPPED].tolist())
    mapped |= {row for row in np.flatnonzero(kept).tolist() if row not in gone}
    assert freed == len(snapshot.frames) - len(mapped)
