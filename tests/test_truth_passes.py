"""Every counter after every single pass, against the real ksmd on the same memory."""

from __future__ import annotations

from functools import cache

import pytest

from ksm_eval.collect import collect
from ksm_eval.replay.ksmd import Replay, simulate
from ksm_eval.snapshot import Snapshot
from ksm_eval.target import Selection
from tests.fixtures import NAMES, opted_in, target, truth

STATIC = [name for name in NAMES if not name.endswith("-warm")]
SYSTEM = (
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "stable_node_chains",
    "stable_node_dups",
    "general_profit",
    "ksm_zero_pages",
    "pages_scanned",
    "pages_skipped",
    "full_scans",
)
PROCESS = ("ksm_rmap_items", "ksm_merging_pages", "ksm_zero_pages", "ksm_process_profit")


@cache
def replayed(name: str) -> tuple[Snapshot, Replay]:
    snapshot = collect(target(name), Selection(pids=tuple(opted_in(name))), exact=True)
    return snapshot, simulate(snapshot, snapshot.meta.settings, len(truth(name)["passes"]))


@pytest.mark.parametrize("name", STATIC)
def test_system_counters_of_every_pass(name: str) -> None:
    _, replay = replayed(name)
    assert not replay.inexact
    for real, ours in zip(truth(name)["passes"], replay.passes, strict=True):
        expected = {key: real["ksm"][key] for key in SYSTEM if key in real["ksm"]}
        assert len(expected) >= 7
        found = {key: getattr(ours.counters, key) for key in expected}
        assert found == expected, f"pass {real['pass']}"


@pytest.mark.parametrize("name", STATIC)
def test_process_counters_of_every_pass(name: str) -> None:
    snapshot, replay = replayed(name)
    for real, ours in zip(truth(name)["passes"], replay.passes, strict=True):
        for row, pid in enumerate(snapshot.processes.pid.tolist()):
            counted = real["processes"][str(pid)]
            expected = {key: counted[key] for key in PROCESS if key in counted}
            assert "ksm_merging_pages" in expected
            found = {key: int(getattr(ours.processes, key)[row]) for key in expected}
            assert found == expected, f"pass {real['pass']}, pid {pid}"


def test_without_the_order_of_contents_the_inexact_passes_are_named() -> None:
    name = "x86_64-6.12-tiny"
    snapshot = collect(target(name), Selection(pids=tuple(opted_in(name))))
    replay = simulate(snapshot, snapshot.meta.settings, 6)
    real = [entry["ksm"] for entry in truth(name)["passes"][:6]]
    different = [
        number
        for number, (ours, theirs) in enumerate(zip(replay.passes, real, strict=True), 1)
        if any(getattr(ours.counters, key) != theirs[key] for key in SYSTEM)
    ]
    assert different == replay.inexact == [2]
