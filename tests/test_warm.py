"""Targets on which ksmd runs already: its own records, and what it does next.

The fixtures were dumped after ksmd's sixth pass and after a fork and writes; the truth is what
the same guest's ksmd counted then, and in the passes that followed.
"""

from __future__ import annotations

import struct
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksm_eval.collect import collect
from ksm_eval.evaluate import open_target
from ksm_eval.replay.ksmd import simulate
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.state import PassResult
from ksm_eval.replay.warm import simulate_warm, verify
from ksm_eval.save import load, save
from ksm_eval.save_check import Invalid, check_ksmd
from ksm_eval.snapshot import KsmdState, Snapshot
from ksm_eval.target import Selection
from ksm_eval.target.ksm_state import END, _Reader
from ksm_eval.target.records import Contradiction, Memory
from tests.fixtures import WARM, opted_in, snapshot, target, truth, vmcore
from tests.test_truth_passes import PROCESS, SYSTEM


@cache
def warm(name: str, exact: bool = True) -> Snapshot:
    return collect(target(name), Selection(pids=tuple(opted_in(name))), exact=exact)


@cache
def replayed(name: str) -> list[PassResult]:
    made = warm(name)
    return simulate_warm(made, made.meta.settings, len(truth(name)["passes"]))


def state(name: str) -> KsmdState:
    found = warm(name).ksmd
    assert found is not None
    return found


def test_there_are_such_fixtures() -> None:
    assert WARM == ["x86_64-6.1-tiny-warm", "x86_64-6.12-tiny-warm"]


@pytest.mark.parametrize("name", WARM)
def test_the_records_add_up_to_the_targets_own_counters(name: str) -> None:
    shown = truth(name)["settings_at_dump"]
    assert shown["pages_sharing"] > 2000
    rows = {row.name: row for row in verify(warm(name), warm(name).meta.settings, 1)}
    compared = [key for key in SYSTEM if key in shown]
    assert len(compared) >= 7
    assert {key: rows[key].records for key in compared} == {key: shown[key] for key in compared}
    for row in rows.values():  # and to the variables in the dump
        assert row.target in (None, row.records), row.name
        assert len(row.after) == 1
    assert rows["ksm_rmap_items"].target is not None


@pytest.mark.parametrize("name", WARM)
@pytest.mark.parametrize("way", ["exact", "without order", "saved"])
def test_further_passes_are_the_real_ones(name: str, way: str, tmp_path: Path) -> None:
    made = warm(name)
    ours = replayed(name)
    if way == "without order":
        ours = simulate_warm(warm(name, exact=False), made.meta.settings, 8)
    if way == "saved":
        save(made, tmp_path / "x")
        ours = simulate_warm(load(tmp_path / "x"), made.meta.settings, 8)
    real = truth(name)["passes"]
    assert [entry["pass"] for entry in real] == list(range(7, 15))
    for entry, result in zip(real, ours[1:], strict=True):
        expected = {key: entry["ksm"][key] for key in SYSTEM if key in entry["ksm"]}
        found = {key: getattr(result.counters, key) for key in expected}
        assert found == expected, f"pass {entry['pass']}"


@pytest.mark.parametrize("name", WARM)
def test_processes_in_further_passes(name: str) -> None:
    for entry, result in zip(truth(name)["passes"], replayed(name)[1:], strict=True):
        for row, pid in enumerate(warm(name).processes.pid.tolist()):
            counted = entry["processes"][str(pid)]
            expected = {key: counted[key] for key in PROCESS if key in counted}
            found = {key: int(getattr(result.processes, key)[row]) for key in expected}
            assert found == expected, f"pass {entry['pass']}, pid {pid}"


def test_what_changed_before_the_dump_is_in_the_records() -> None:
    found = state("x86_64-6.12-tiny-warm")
    assert found.full_scans == 6
    assert found.cursor_process == -1
    # The child that was forked after the merges has no rmap_item yet.
    comms = warm("x86_64-6.12-tiny-warm").processes.comm
    late = comms.index("srv-late")
    assert not (found.item_process == late).any()
    # Three pairs were merged in worker 0 and then written; one node had nobody else.
    assert found.node_stale.sum() >= 1
    # 1-4 and 6: old pages have been visited five times and are skipped from the sixth on.
    assert found.item_age.max() == 6
    assert (found.item_node >= 0).sum() == found.node_length.sum()
    # A pass compares the checksum: nearly all are those of the pages.
    unmerged = found.item_node < 0
    assert found.item_current[unmerged].mean() > 0.99


def test_a_cold_target_has_no_records() -> None:
    cold = snapshot("x86_64-6.12-tiny")
    assert cold.ksmd is None
    with pytest.raises(ValueError, match="no records"):
        simulate_warm(cold, Settings(), 1)


@pytest.mark.parametrize("name", WARM)
def test_a_pass_under_way_is_finished_first(name: str) -> None:
    """Stopped at any process, the replay from there ends where the whole pass ends."""
    made = warm(name)
    assert made.ksmd is not None
    # As if ksmd had just begun its seventh pass: nothing is in this pass's trees yet.
    begun = replace(made.ksmd, cursor_process=0, cursor_address=0)
    ours = simulate_warm(replace(made, ksmd=begun), made.meta.settings, 3)
    assert ours[0].counters.full_scans == 6
    assert [r.counters for r in ours[1:]] == [r.counters for r in replayed(name)[1:4]]


@pytest.mark.parametrize("name", WARM)
@pytest.mark.parametrize(
    ("walked", "at", "expected"),
    [
        ([0, 1, 2, 3], 2, (2, 0x5000)),
        ([0, -1, 1, 2], 1, (0, END)),  # an exited process: behind the one before it
        ([-1, -1, 0, 1], 1, (0, 0)),
        ([0, 1, 2, -1], 3, (2, END)),
    ],
)
def test_where_ksmd_goes_on_from(
    name: str, walked: list[int], at: int, expected: tuple[int, int]
) -> None:
    """The vmcore's own list of processes, with the cursor put to one of them."""
    with closing(open_target(vmcore(name))) as vm:
        prog: Any = vm._prog  # type: ignore[attr-defined]
        reader = _Reader(prog, prog.read, 4096, {})
        slots = reader._slots()
        assert len(slots) > 4
        rows = walked + list(range(max(walked) + 1, max(walked) + 1 + len(slots) - 4))
        assert reader._cursor(slots, rows, prog["ksm_scan"]) == (-1, 0)
        scan = prog["ksm_scan"].address_
        cursor = struct.pack("<QQ", slots[at], 0x5000)  # mm_slot and address
        prog.add_memory_segment(
            scan, len(cursor), lambda _, count, offset, __: cursor[offset : offset + count], False
        )
        assert reader._cursor(slots, rows, prog["ksm_scan"]) == expected
        with pytest.raises(Contradiction, match="not on its list"):
            reader._cursor(slots[:at], rows[:at], prog["ksm_scan"])


@pytest.mark.parametrize("name", WARM)
def test_a_warm_start_and_a_cold_one_settle_alike(name: str) -> None:
    """Cold, the KSM frames of the target are taken as they are (State)."""
    made = warm(name)
    last = simulate_warm(made, made.meta.settings, 14)[-1].counters
    cold = simulate(made, made.meta.settings, 14).passes[-1].counters
    for key in ("pages_shared", "pages_sharing", "ksm_rmap_items"):
        assert getattr(cold, key) == pytest.approx(getattr(last, key), rel=0.02), key


def edited(name: str, column: str, row: int, value: int) -> KsmdState:
    found = state(name)
    values = getattr(found, column).copy()
    values[row] = value
    return replace(found, **{column: values})


@pytest.mark.parametrize(
    ("column", "row", "value", "match"),
    [
        ("item_process", 0, 99, "item_process out of range"),
        ("item_node", 0, 10**6, "item_node out of range"),
        ("item_address", 0, 17, "within a page"),
        ("node_length", 0, 0, "do not fit their rmap_items"),
        ("node_pfn", 0, 1 << 60, "PFN"),
        ("node_chain", 0, -7, "out of range"),
    ],
)
def test_records_that_contradict_themselves(column: str, row: int, value: int, match: str) -> None:
    made = warm(WARM[0])
    check_ksmd(state(WARM[0]), len(made.processes), made.meta.page_size)
    with pytest.raises(Invalid, match=match):
        check_ksmd(edited(WARM[0], column, row, value), len(made.processes), made.meta.page_size)


@pytest.mark.parametrize(
    ("row", "column", "value", "match"),
    [
        (0, 0, 5, "does not fit the stable nodes"),
        (3, 1, 3, "a loop"),
        (3, 1, -1, "red-black"),
        (5, 3, 7, "out of range"),
        (0, 3, 1, "red-black"),
    ],
)
def test_trees_that_are_none(row: int, column: int, value: int, match: str) -> None:
    found, made = state(WARM[0]), warm(WARM[0])
    tree = found.tree.copy()
    tree[row, column] = value
    with pytest.raises(Invalid, match=match):
        check_ksmd(replace(found, tree=tree), len(made.processes), made.meta.page_size)


def test_damaged_records_are_refused_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of ksmd's lists may lead anywhere: the walk ends, and the snapshot is taken without."""
    name = WARM[1]
    read, seed = Memory.read, np.random.default_rng(7)
    vm: Any = target(name)
    notes = len(vm.info.notes)
    refused = 0
    # Anywhere, which is mostly in rmap_items; and in the stable tree, which is read first.
    for reads, flips in [(15_000, 3)] * 25 + [(2_500, 1)] * 60:
        hits = {int(n) for n in seed.integers(0, reads, flips)}
        count = 0

        def damaged(self: Any, address: int, size: int, hits: set[int] = hits) -> bytes:
            nonlocal count
            count += 1
            data: bytes = read(self, address, size)
            if count in hits:
                at = int(seed.integers(0, size))
                data = (
                    data[:at] + bytes([data[at] ^ 1 << int(seed.integers(0, 8))]) + data[at + 1 :]
                )
            return data

        monkeypatch.setattr(Memory, "read", damaged)
        made = collect(vm, Selection(pids=tuple(opted_in(name))))
        if made.ksmd is None:
            refused += 1
        else:
            simulate_warm(made, made.meta.settings, 2)
    assert refused > 5
    assert len(vm.info.notes) == notes + refused
    del vm.info.notes[notes:]
