"""Which processes and VMAs gain: against plain Python, and the guests' smaps after ksmd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from numpy.typing import NDArray

from ksm_eval.decision.fate import fate_of, items_by_vma, pss_by_vma
from ksm_eval.decision.groups import group_rows
from ksm_eval.decision.pairs import pairs
from ksm_eval.decision.where import ENOUGH, choices, madvise
from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import predict
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.subset import subset, subset_of_vmas, without_plain
from ksm_eval.snapshot import Snapshot
from tests.decisions import allclose, groups, pss, tell
from tests.fixtures import NAMES, snapshot, truth
from tests.snapshots import Builder, snapshots
from tests.snapshots import settings as ksm_settings

many = hypothesis_settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@many
@given(snapshots(), ksm_settings())
def test_a_fate_is_the_outcome_of_every_mapping(memory: Snapshot, ksm: Settings) -> None:
    prediction = predict(memory, ksm)
    fate = fate_of(memory, prediction)
    told = tell(memory, prediction, ksm.merge_across_nodes)
    assert set(np.flatnonzero(fate.freed).tolist()) == told.freed
    assert fate.copies == told.copies
    assert int(fate.freed.sum()) - fate.copies == prediction.savings.frames_freed
    one_by_one = dict(zip(fate.told.tolist(), range(len(fate.told)), strict=True))
    for mapping in told.mappings:
        at = one_by_one.get(mapping.position)
        assert (at is not None) == bool(fate.one_by_one[mapping.frame])
        if at is None:
            mine = fate.kind[mapping.frame], fate.target[mapping.frame]
        else:
            mine = fate.told_kind[at], fate.told_target[at]
        assert mine == (mapping.kind, mapping.target)


@many
@given(snapshots(), ksm_settings())
def test_pss_and_items_of_vmas(memory: Snapshot, ksm: Settings) -> None:
    prediction = predict(memory, ksm)
    fate = fate_of(memory, prediction)
    told = tell(memory, prediction, ksm.merge_across_nodes)
    before, after = pss_by_vma(memory, fate)
    expected = [pss(memory, told, vma) for vma in range(len(memory.vmas))]
    assert allclose(before, [row[0] for row in expected])
    assert allclose(after, [row[1] for row in expected])
    gone = (Kind.ZERO_PAGE, Kind.REMAPPED)
    items = [0] * len(memory.vmas)
    for mapping in told.mappings:
        items[mapping.vma] += mapping.kind not in gone
    assert items_by_vma(memory, fate).tolist() == items


@many
@given(groups(), ksm_settings())
def test_groups_add_up(memory: Snapshot, ksm: Settings) -> None:
    prediction = predict(memory, ksm)
    for by in ("cgroup", "comm", "uid"):
        rows = group_rows(memory, prediction, by)
        assert sum(row.processes for row in rows) == len(memory.processes)
        assert sum(row.mappings for row in rows) == len(memory.mappings)
        merging = prediction.processes.ksm_merging_pages
        assert sum(row.ksm_merging_pages for row in rows) == int(merging.sum())
        saved = prediction.savings
        lost = float((saved.pss_before - saved.pss_after).sum())
        items = int(prediction.processes.ksm_rmap_items.sum()) * 64
        assert sum(row.net_bytes for row in rows) == pytest.approx(lost - items, abs=2 * len(rows))
        assert [row.net_bytes for row in rows] == sorted(
            (row.net_bytes for row in rows), reverse=True
        )
    uids = {row.name for row in group_rows(memory, prediction, "uid")}
    names = {0xFFFFFFFF: ""}
    assert uids == {names.get(uid, str(uid)) for uid in memory.processes.uid.tolist()}


def test_groups_of_processes_that_were_not_selected_are_left_out() -> None:
    builder = Builder()
    for _ in range(3):
        builder.process(builder.frame("X"))
    memory = builder.build()
    memory.processes.selected[2] = False
    memory.processes.uid[:] = [7, 7, 8]
    (row,) = group_rows(memory, predict(memory, Settings()), "uid")
    assert (row.name, row.processes, row.ksm_merging_pages) == ("7", 2, 2)
    assert (row.pss_before, row.pss_after) == (8192, round(2 * 4096 / 3))
    assert row.net_bytes == row.pss_before - row.pss_after - 2 * 64
    with pytest.raises(ValueError, match="pid"):
        group_rows(memory, predict(memory, Settings()), "pid")


@many
@given(snapshots(), ksm_settings())
def test_madvise(memory: Snapshot, ksm: Settings) -> None:
    prediction = predict(memory, ksm)
    told = tell(memory, prediction, ksm.merge_across_nodes)
    gains = []
    for vma in range(len(memory.vmas)):
        before, after = pss(memory, told, vma)
        gone = (Kind.ZERO_PAGE, Kind.REMAPPED)
        items = sum(m.vma == vma and m.kind not in gone for m in told.mappings)
        gains.append(round(before - after - 64 * items, 3))
    rows = madvise(memory, prediction)
    best = sorted((gain for gain in gains if gain > 0.5), reverse=True)
    assert allclose([row.gain_bytes for row in rows], np.rint(best))
    if rows:
        assert rows[-1].covered == 1.0
        assert rows[0].covered == pytest.approx(rows[0].gain_bytes / sum(np.rint(best)))


def test_madvise_names_what_is_eligible_and_selected() -> None:
    builder = Builder()
    for _ in range(3):
        builder.process(builder.frame("X"), builder.frame("Y"))
    memory = builder.build()
    memory.vmas.reason[0] = "shared"
    memory.processes.selected[1] = False
    (row,) = madvise(memory, predict(memory, Settings()))
    assert (row.pid, row.start, row.ksm_pages, row.covered) == (102, 3 << 32, 2, 1.0)


@many
@given(snapshots(), ksm_settings())
def test_subsets(memory: Snapshot, ksm: Settings) -> None:
    keep = np.arange(len(memory.vmas)) % 2 == 0
    part = subset_of_vmas(memory, keep)
    position = np.flatnonzero(np.repeat(keep, np.diff(memory.vmas.offset)))
    mapped = memory.mappings.frame[position]
    assert part.frames.pfn[part.mappings.frame].tolist() == memory.frames.pfn[mapped].tolist()
    assert part.mappings.page.tolist() == memory.mappings.page[position].tolist()
    assert len(part.frames) == len(set(mapped.tolist()))
    assert (np.diff(part.vmas.offset) == np.where(keep, np.diff(memory.vmas.offset), 0)).all()
    freed = predict(memory, ksm).savings.frames_freed
    assert predict(without_plain(memory), ksm).savings.frames_freed == freed
    everything = subset(memory, np.ones(len(memory.mappings), np.bool_))
    assert predict(everything, ksm).savings.frames_freed == freed


@many
@given(snapshots(), ksm_settings())
def test_choices(memory: Snapshot, ksm: Settings) -> None:
    """What is chosen frees as much as is said, and one member fewer does not do."""
    prediction = predict(memory, ksm)
    total = prediction.savings.frames_freed
    found = choices(memory, ksm, prediction)
    if total <= 0:
        assert found == ()
        return
    before, after = pss_by_vma(memory, fate_of(memory, prediction))
    of_process = np.bincount(memory.vmas.process, before - after, len(memory.processes))
    processes, vmas = found
    assert (processes.of, vmas.of) == ("processes", "vmas")
    for choice, gain, owner in (
        (processes, of_process, memory.vmas.process),
        (vmas, before - after, np.arange(len(memory.vmas))),
    ):
        order = [
            row
            for row in sorted(range(len(gain)), key=lambda row: -gain[row])
            if np.diff(memory.vmas.offset)[owner == row].any()
        ]
        assert choice.considered == len(order)

        def freed(size: int, owner: NDArray[Any] = owner, order: list[int] = order) -> int:
            part = subset_of_vmas(memory, np.isin(owner, order[:size]))
            return predict(part, ksm).savings.frames_freed if size else 0

        assert choice.frames_freed == freed(choice.size)
        assert choice.share == choice.frames_freed / total >= ENOUGH
        assert freed(choice.size - 1) < ENOUGH * total
        assert len(choice.members) == choice.size


def test_choices_keep_both_sides_of_a_pair_and_all_that_map_a_frame() -> None:
    builder = Builder()
    shared = [builder.frame(f"s{i}") for i in range(40)]
    builder.process(*shared)
    builder.process(*shared, *(builder.frame(f"s{i}") for i in range(20)))
    builder.process(*(builder.frame(f"o{i}") for i in range(50)))
    builder.process(builder.frame("o0"))
    memory = builder.build()
    processes, vmas = choices(memory, Settings(), predict(memory, Settings()))
    assert processes.members == ("101 (test)", "100 (test)")
    assert (processes.size, processes.considered) == (2, 4)
    assert (processes.frames_freed, processes.share) == (20, 20 / 21)
    assert vmas.members == (
        "101 (test) 0x200000000-0x20003c000",
        "100 (test) 0x100000000-0x100028000",
    )


def test_a_choice_of_many_is_near_the_smallest() -> None:
    """Pairs of processes that have a page in common: 180 pairs of 200."""
    builder = Builder()
    for number in range(200):
        for _ in range(2):
            builder.process(builder.frame(f"{number}"))
    memory = builder.build()
    for choice in choices(memory, Settings(), predict(memory, Settings())):
        assert 360 <= choice.size <= 363
        assert choice.considered == 400
        assert choice.frames_freed == choice.size // 2
        assert len(choice.members) == 100


def test_choices_where_ksmd_works_already() -> None:
    """What is not selected cannot be chosen, and is there anyway."""
    builder = Builder()
    for _ in range(3):
        builder.process(*(builder.frame(f"{i}") for i in range(9)))
    memory = builder.build()
    memory.processes.selected[0] = False
    processes, _ = choices(memory, Settings(), predict(memory, Settings()))
    assert processes.members == ("101 (test)", "102 (test)")
    memory.processes.selected[:] = False
    processes, _ = choices(memory, Settings(), predict(memory, Settings()))
    assert (processes.members, processes.considered, processes.share) == ((), 0, 1.0)


@many
@given(snapshots(), ksm_settings())
def test_pairs(memory: Snapshot, ksm: Settings) -> None:
    prediction = predict(memory, ksm)
    told = tell(memory, prediction, across_nodes=True)
    merging = {m.frame for m in told.mappings if m.kind == Kind.MERGED}
    expected = {}
    for i in range(len(memory.processes)):
        for j in range(i, len(memory.processes)):
            frames = 0
            for content in told.contents.values():
                mine, its = (
                    {f for f in content if f in merging and row in told.mappers[f]}
                    for row in (i, j)
                )
                if i == j:
                    frames += max(len(mine) - 1, 0)
                else:
                    frames += min(len(mine - its), len(its - mine))
            if frames:
                expected[i, j] = frames
    found = pairs(memory, prediction)
    assert {(pair.first, pair.second): pair.frames for pair in found} == expected
    assert [pair.frames for pair in found] == sorted(expected.values(), reverse=True)


def test_pairs_are_rows_of_the_report_and_of_the_best() -> None:
    builder = Builder()
    for count in (1, 5, 9, 9):
        builder.process(*(builder.frame(f"{i}") for i in range(count)))
    memory = builder.build()
    memory.processes.selected[0] = False
    found = pairs(memory, predict(memory, Settings()), most=2)
    assert [(pair.first, pair.second, pair.frames) for pair in found] == [(1, 2, 9)]


@pytest.mark.parametrize("name", NAMES)
def test_the_pss_of_vmas_falls_as_in_the_guest(name: str) -> None:
    """smaps' Pss before and after ksmd's last pass. It is in whole kB, and counts the page cache,
    too, which does not change."""
    memory, real = snapshot(name), truth(name)
    before, after = pss_by_vma(memory, fate_of(memory, predict(memory, memory.meta.settings)))
    earlier = {(vma["pid"], vma["start"]): vma["pss_kb"] for vma in real["before"]["vmas"]}
    now = {(vma["pid"], vma["start"]): vma["pss_kb"] for vma in real["vmas"]}
    pids, compared = memory.processes.pid[memory.vmas.process].tolist(), 0
    for row, key in enumerate(zip(pids, memory.vmas.start.tolist(), strict=True)):
        if key in earlier and key in now:
            lost = (before[row] - after[row]) / 1024
            assert lost == pytest.approx(earlier[key] - now[key], abs=1.01), (key, row)
            compared += lost > 1
    assert compared > 20
