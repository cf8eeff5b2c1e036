"""The same memory otherwise: each row against a snapshot built that way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as runs

from ksm_eval.decision.net import net_bytes
from ksm_eval.decision.what_if import left_out, what_if, without_process, without_thps
from ksm_eval.replay.converged import predict
from ksm_eval.replay.ksmd import simulate
from ksm_eval.replay.rules import Settings
from ksm_eval.report.decision import WhatIf
from ksm_eval.snapshot import FrameFlag, Snapshot
from tests import fixtures
from tests.savings import simple_savings as savings
from tests.snapshots import ZERO, Builder, snapshots


def rows(snapshot: Snapshot, at: Settings) -> dict[str, WhatIf]:
    found = what_if(snapshot, at, predict(snapshot, at))
    assert found[0].kind == "current"
    assert found[0].difference == 0
    return {row.name: row for row in found}


def test_max_page_sharing() -> None:
    """20 equal pages: cap 2 makes 10 nodes of 2 (10 frames freed), 16 one of 16 and one of 4
    (18), 64 one node (19)."""
    builder = Builder()
    builder.process(*[builder.frame("a") for _ in range(20)])
    found = rows(builder.build(), Settings())
    freed = {n: found[f"max_page_sharing={n}"].frames_freed for n in (2, 16, 64, 256, 1024)}
    assert freed == {2: 10, 16: 18, 64: 19, 256: 19, 1024: 19}
    assert [name for name, row in found.items() if row.current] == [
        "current",
        "max_page_sharing=256",
        "use_zero_pages=0",
    ]
    # 9 frames of 4096 bytes less, and the records of 9 more stable nodes, and of the chain.
    assert found["max_page_sharing=2"].difference == -9 * 4096 - 10 * 64


def test_the_targets_own_sharing_is_in_the_table() -> None:
    builder = Builder()
    builder.process(*[builder.frame("a") for _ in range(20)])
    found = rows(builder.build(), Settings(max_page_sharing=5))
    assert found["max_page_sharing=5"].current
    assert found["max_page_sharing=5"].frames_freed == found["current"].frames_freed == 16


def test_zero_pages() -> None:
    """8 zero pages: merged one stays, with use_zero_pages none, nor their rmap_items."""
    builder = Builder()
    builder.process(*[builder.frame(ZERO) for _ in range(8)])
    found = rows(builder.build(), Settings())
    assert found["use_zero_pages=0"].frames_freed == 7
    assert found["use_zero_pages=1"].frames_freed == 8
    assert found["use_zero_pages=1"].pages_sharing == 0
    assert found["use_zero_pages=1"].difference == 4096 + 8 * 64 + 64


def test_nodes() -> None:
    builder = Builder()
    builder.process(*[builder.frame("a", node=node) for node in (0, 0, 1, 1)])
    found = rows(builder.build(), Settings())
    assert found["merge_across_nodes=1"].frames_freed == 3
    assert found["merge_across_nodes=0"].frames_freed == 2
    one = Builder()
    one.process(one.frame("a"), one.frame("a"))
    assert not any(name.startswith("merge_across_nodes") for name in rows(one.build(), Settings()))
    assert any("NUMA" in reason for reason in left_out(one.build(), Settings()))


def test_what_thps_cost() -> None:
    """A THP that is pinned cannot be split: its four pages stay; single ones would merge."""
    builder = Builder()
    builder.process(*builder.thp(["a"] * 4, pinned=True), builder.frame("b"))
    found = rows(builder.build(), Settings())
    assert found["current"].frames_freed == 0
    assert found["thp=never"].frames_freed == 3
    assert found["thp=never"].kind == "thp"


def test_a_process_left_out() -> None:
    """a is of three processes, b of the first two, c of the last alone, twice."""
    builder = Builder()
    builder.process(builder.frame("a"), builder.frame("b"))
    builder.process(builder.frame("a"), builder.frame("b"))
    builder.process(builder.frame("a"), builder.frame("c"), builder.frame("c"))
    found = rows(builder.build(), Settings())
    assert found["current"].frames_freed == 4
    freed = {name[8:11]: row.frames_freed for name, row in found.items() if row.kind == "process"}
    assert freed == {"100": 2, "101": 2, "102": 2}
    assert found["without 100 (test)"].name.endswith("(test)")


def test_frames_of_the_one_left_out_stay() -> None:
    """It still maps the frame that it shares with its parent since fork."""
    builder = Builder()
    shared = builder.frame("a")
    builder.process(shared)
    builder.process(shared)
    builder.process(builder.frame("a"))
    snapshot, at = builder.build(), Settings()
    less = without_process(snapshot, 0)
    assert list(less.processes.pid) == [101, 102]
    # 102's frame becomes KSM's, the forked one goes when both have left it; one alone has not.
    assert predict(snapshot, at).savings.frames_freed == 1
    assert predict(less, at).savings.frames_freed == 0
    assert less.frames.mapcount.tolist() == [2, 1]


def test_what_cannot_be_changed_any_more() -> None:
    builder = Builder()
    builder.process(builder.frame("a", FrameFlag.KSM), builder.frame("a"))
    names = rows(builder.build(), Settings())
    assert not any(name.startswith("max_page_sharing") for name in names)
    assert "use_zero_pages=1" in names
    assert any("refuses" in reason for reason in left_out(builder.build(), Settings()))


@given(snapshots())
@runs(max_examples=100)
def test_every_row_is_the_references(snapshot: Snapshot) -> None:
    """Changed by hand and replayed visit by visit. The caps are those of the table."""
    at = Settings(smart_scan=False)
    prediction = predict(snapshot, at)
    for row in what_if(snapshot, at, prediction):
        name, _, number = row.name.partition("=")
        if row.kind == "process":
            pid = int(row.name.split()[1])
            found = without_process(snapshot, int(np.flatnonzero(snapshot.processes.pid == pid)[0]))
            assert pid not in found.processes.pid
            assert found.frames.mapcount.min(initial=1) >= 1
            after = at
        elif row.kind == "thp":
            found, after = without_thps(snapshot), at
        elif row.kind == "current":
            found, after = snapshot, at
        else:
            value = int(number) if name == "max_page_sharing" else bool(int(number))
            found, after = snapshot, replace(at, **{name: value})  # type: ignore[arg-type]
        replay = simulate(found, after, 40)
        last = replay.passes[-1].counters
        assert (row.pages_shared, row.pages_sharing) == (last.pages_shared, last.pages_sharing)
        nodes = last.pages_shared + last.stable_node_chains
        saved = savings(found, replay.outcome, last.ksm_rmap_items, nodes)
        assert row.frames_freed == saved.frames_freed
        assert row.net_bytes == net_bytes(found, saved)
        assert row.difference == row.net_bytes - net_bytes(snapshot, prediction.savings)


@pytest.mark.parametrize("name", [fixtures.TINY, "x86_64-6.12-tiny-cap"])
def test_of_a_vmcore(name: str) -> None:
    snapshot = fixtures.snapshot(name)
    at = snapshot.meta.settings
    found = rows(snapshot, at)
    truth = fixtures.truth(name)
    assert found["current"].pages_sharing == truth["passes"][-1]["ksm"]["pages_sharing"]
    # Of one memory: both vmcores have the same program, one with max_page_sharing 8.
    freed = [found[f"max_page_sharing={n}"].frames_freed for n in (2, 16, 64, 256, 1024)]
    assert freed == sorted(freed)
    marginal = [row.difference for row in found.values() if row.kind == "process"]
    assert marginal == sorted(marginal)
