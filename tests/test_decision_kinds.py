"""What kind of duplicates: against plain Python, and a guest's own counters."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

from ksm_eval.decision import inside as inside_module
from ksm_eval.decision.kinds import kinds, page_classes
from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import predict
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import FrameFlag, MappingFlag, Snapshot
from tests.decisions import Told, tell
from tests.fixtures import NAMES, snapshot, truth
from tests.snapshots import KERNEL_6_1, KERNEL_6_12, ZERO, Builder, snapshots
from tests.snapshots import settings as ksm_settings

many = hypothesis_settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def is_zero(memory: Snapshot, frame: int) -> bool:
    return bool(memory.frames.flags[frame] & FrameFlag.ZERO)


def linked(told: Told, frames: set[int]) -> int:
    """Frames that are not the first of those that processes link with each other."""
    left, parts = set(frames), 0
    while left:
        reached = {left.pop()}
        parts += 1
        while True:
            people = {person for frame in reached for person in told.mappers[frame]}
            more = {frame for frame in left if people & set(told.mappers[frame])}
            if not more:
                break
            reached |= more
            left -= more
    return len(frames) - parts


@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_kinds(at_once: int) -> None:
    @many
    @given(snapshots(), ksm_settings())
    def run(memory: Snapshot, ksm: Settings) -> None:
        check_kinds(memory, ksm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inside_module, "_AT_ONCE", at_once)
        run()


def check_kinds(memory: Snapshot, ksm: Settings) -> None:
    prediction = predict(memory, ksm)
    told = tell(memory, prediction, ksm.merge_across_nodes)
    found = kinds(memory, ksm, prediction)
    saved = prediction.savings
    parts = found.zero_frames + found.inside_process + found.between_processes
    assert parts - found.copies == saved.frames_freed
    assert found.zero_frames == sum(is_zero(memory, frame) for frame in told.freed)
    assert found.copies == told.copies
    merging = {m.frame for m in told.mappings if m.kind == Kind.MERGED}
    inside = 0
    for frames in told.contents.values():
        if not is_zero(memory, frames[0]):
            freed = len(told.freed & set(frames))
            inside += min(freed, linked(told, merging & set(frames)))
    assert found.inside_process == inside
    assert found.fork_shared == len(memory.mappings) - len(told.mappers)
    assert found.contents == sum(len(frames) > 1 for frames in told.contents.values())
    # Those that stay, and those that were freed, are all that are too many.
    stay = sum(max(len(set(frames) - told.freed) - 1, 0) for frames in told.contents.values())
    assert sum(found.blocked.values()) == stay
    assert all(found.blocked.values())
    if not (memory.frames.flags & FrameFlag.PINNED).any() and not memory.compounds.pinned.any():
        assert "pinned" not in found.blocked
    if memory.frames.order is None:
        assert "prot_none" not in found.blocked
    if (memory.frames.mapcount <= np.bincount(memory.mappings.frame)).all():
        assert "outside" not in found.blocked
    check_top(memory, told, found)


def check_top(memory: Snapshot, told: Told, found: Any) -> None:
    freed = sorted(
        (len(told.freed & set(frames)) for frames in told.contents.values()), reverse=True
    )
    freed = [number for number in freed if number]
    assert found.concentration == tuple(
        (number, sum(freed[:number])) for number in range(1, len(freed) + 1)
    )
    merges = {m.frame for m in told.mappings if m.kind == Kind.MERGED} | told.freed
    expected = [
        (
            f"{key:016x}",
            sum(len(told.mappers[frame]) for frame in frames),
            len(frames),
            len({person for frame in frames for person in told.mappers[frame]}),
        )
        for (key, _), frames in told.contents.items()
        if merges & set(frames) and (len(frames) > 1 or is_zero(memory, frames[0]))
    ]
    rows = [(row.hash, row.mappings, row.frames, row.processes) for row in found.top]
    assert sorted(rows) == sorted(expected)
    assert [row.frames for row in found.top] == sorted((row[2] for row in expected), reverse=True)


@many
@given(snapshots(), ksm_settings())
def test_page_classes(memory: Snapshot, ksm: Settings) -> None:
    prediction = predict(memory, ksm)
    told = tell(memory, prediction, across_nodes=True)
    equals = {frame: len(frames) for frames in told.contents.values() for frame in frames}
    names = ["", "merged", "zero_page", "thp_zero", "copied"]
    expected = dict.fromkeys([*names[1:], "unique", "fork_shared", "duplicate", "unreadable"], 0)
    for mapping in told.mappings:
        frame = mapping.frame
        name = names[mapping.kind]
        if mapping.kind == Kind.UNMERGED:
            if frame not in equals:
                name = "unreadable"
            elif equals[frame] > 1:
                name = "duplicate"
            elif len(told.mappers[frame]) + told.outside[frame] > 1:
                name = "fork_shared"
            else:
                name = "unique"
        expected[name] += 1
    found = page_classes(memory, prediction)
    assert found == expected
    assert sum(found.values()) == len(memory.mappings)


def test_inside_and_between() -> None:
    """Two of three equal frames are in one process; and another maps both kinds since a fork."""
    builder = Builder()
    builder.process(builder.frame("X"), builder.frame("X"), builder.frame("Y"))
    builder.process(builder.frame("X"))
    memory = builder.build()
    found = kinds(memory, Settings(), predict(memory, Settings()))
    assert (found.inside_process, found.between_processes) == (1, 1)
    builder.process(0, 3)
    memory = builder.build()
    found = kinds(memory, Settings(), predict(memory, Settings()))
    assert (found.inside_process, found.between_processes) == (2, 0)
    assert (found.fork_shared, found.contents, found.blocked) == (2, 1, {})


def test_why_duplicates_stay() -> None:
    pinned = FrameFlag.PINNED | FrameFlag.EXCLUSIVE
    builder = Builder()
    builder.process(*(builder.frame("P", pinned) for _ in range(4)))
    builder.process(*(builder.frame("C") for _ in range(9)))
    builder.process(*(builder.frame("O", outside=1) for _ in range(3)))
    memory, ksm = builder.build(), Settings(max_page_sharing=4)
    found = kinds(memory, ksm, predict(memory, ksm))
    # Four to a page: 4 + 4, and one is left over.
    assert found.blocked == {"pinned": 3, "cap": 2, "outside": 2}
    assert found.between_processes == 0
    assert found.inside_process == 6


def test_prot_none_pages_that_block() -> None:
    builder = Builder(rules=KERNEL_6_1, rank={"a": 0, "m": 1, "z": 2})
    builder.process(builder.frame("m"), flags=MappingFlag.PROT_NONE)
    builder.process(*(builder.frame(name) for name in "aazzz"))
    memory = builder.build()
    found = kinds(memory, Settings(), predict(memory, Settings()))
    assert found.blocked == {"prot_none": 3}
    assert (found.inside_process, found.top, found.concentration) == (0, (), ())


def test_pages_gained_per_split() -> None:
    """One THP has 510 pages of one content, which two KSM pages hold (max_page_sharing); a page
    of the other is equal to one of the first, and 6.12 takes its zero page at the split."""
    builder = Builder(rules=KERNEL_6_12)
    builder.process(*builder.thp(["a", "b"] + ["c"] * 510))
    builder.process(*builder.thp(["a", ZERO] + [f"{i}" for i in range(510)]))
    builder.process(builder.frame("d"), builder.frame("d"))
    memory = builder.build()
    found = kinds(memory, Settings(), predict(memory, Settings()))
    assert (found.thps_split, found.zero_frames) == (2, 1)
    assert found.pages_per_split == (508 + 1 + 1) / 2
    assert found.blocked == {"cap": 1}


def test_the_curve_has_few_points_and_ends_with_all() -> None:
    builder = Builder()
    for size in (2, 3):
        builder.process(*(builder.frame(f"{size} {i}") for i in range(500) for _ in range(size)))
    memory = builder.build()
    found = kinds(memory, Settings(), predict(memory, Settings()))
    assert len(found.concentration) <= 64
    assert found.concentration[0] == (1, 2)
    assert found.concentration[-1] == (1000, 1500)
    assert len(found.top) == 20


@dataclass(frozen=True)
class Looked(Snapshot):
    """A snapshot whose contents were looked at."""

    contents: Any = None


def test_kinds_of_contents() -> None:
    builder = Builder()
    builder.process(*(builder.frame(name) for name in [ZERO, ZERO, ZERO, "a", "a", "b", "b"]))
    memory = builder.build()
    plain = kinds(memory, Settings(), predict(memory, Settings()))
    assert sorted(row.kind for row in plain.top) == ["", "", "zero"]
    known = SimpleNamespace(hash=memory.frames.hash[[3, 0]], kind=np.array([3, 1], np.uint8))
    looked = Looked(**{**vars(memory), "contents": known})
    found = kinds(looked, Settings(), predict(memory, Settings()))
    assert found.top[0].kind == "zero"
    assert sorted(row.kind for row in found.top) == ["", "repeated word", "zero"]


@pytest.mark.parametrize("name", NAMES)
def test_against_the_guest(name: str) -> None:
    """Frames freed by kind add up to the anonymous pages that the guest lost; THPs split are its
    own; mappings merged are those of its counters."""
    memory, real = snapshot(name), truth(name)
    ksm = memory.meta.settings
    prediction = predict(memory, ksm)
    found = kinds(memory, ksm, prediction)
    last = real["passes"][-1]
    lost = real["before"]["vmstat"]["nr_anon_pages"] - last["vmstat"]["nr_anon_pages"]
    parts = found.zero_frames + found.inside_process + found.between_processes - found.copies
    assert abs(parts - lost) <= 8
    assert found.thps_split == last["vmstat"]["thp_split_page"]
    classes = page_classes(memory, prediction)
    counters = last["ksm"]
    assert classes["merged"] == counters["pages_shared"] + counters["pages_sharing"]
    assert classes["zero_page"] == counters.get("ksm_zero_pages", 0)
    rest = counters["pages_unshared"] + counters["pages_volatile"]
    unmerged = ("unique", "fork_shared", "duplicate", "unreadable")
    assert sum(classes[key] for key in unmerged) == rest
    if ksm.max_page_sharing < 256:
        extra = counters["stable_node_dups"] - counters["stable_node_chains"]
        assert found.blocked["cap"] >= extra
