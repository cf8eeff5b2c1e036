"""KSM inside one uid or cgroup: against plain Python."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ksm_eval.decision.kinds import kinds
from ksm_eval.decision.security import confined, groups_of, security
from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import predict
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import FrameFlag, Snapshot
from tests.decisions import groups
from tests.fixtures import NAMES, snapshot
from tests.snapshots import Builder
from tests.snapshots import settings as ksm_settings

many = hypothesis_settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def mappers(memory: Snapshot, names: list[str]) -> dict[int, frozenset[str]]:
    """By frame, the groups of its mappings."""
    found: dict[int, set[str]] = {}
    owner = np.repeat(memory.vmas.process, np.diff(memory.vmas.offset)).tolist()
    for frame, process in zip(memory.mappings.frame.tolist(), owner, strict=True):
        found.setdefault(frame, set()).add(names[process])
    return {frame: frozenset(of_frame) for frame, of_frame in found.items()}


def uids(memory: Snapshot) -> list[str]:
    return [str(uid) for uid in memory.processes.uid.tolist()]


@many
@given(groups(), ksm_settings(), st.sampled_from(["uid", "cgroup"]))
def test_nobody_shares_with_another_group(memory: Snapshot, ksm: Settings, by: str) -> None:
    """A frame merges only with those that the very same groups map; all else is as it was."""
    names = uids(memory) if by == "uid" else memory.processes.cgroup
    unknown = "4294967295" if by == "uid" else ""
    if set(names) == {unknown}:
        assert groups_of(memory, by) is None
        with pytest.raises(ValueError, match=f"no {by}"):
            confined(memory, by)
        return
    known = [f for f in memory.frames.flags.tolist() if f & FrameFlag.KSM]
    alone = confined(memory, by)
    prediction, of_frame = predict(alone, ksm), mappers(memory, names)
    result = prediction.placed.outcome(alone)
    for position, frame in enumerate(alone.mappings.frame.tolist()):
        target = int(result.frame[position])
        if result.kind[position] == Kind.MERGED and target < len(memory.frames):
            assert of_frame[target] == of_frame[frame]
            if not known:
                assert memory.frames.hash[target] == memory.frames.hash[frame]
    whole = predict(memory, ksm).savings
    assert np.allclose(prediction.savings.pss_before, whole.pss_before)
    assert prediction.savings.thps == whole.thps


@many
@given(groups(), ksm_settings())
def test_within_one_group_everything_may_share(memory: Snapshot, ksm: Settings) -> None:
    memory.processes.uid[:] = 7
    whole, alone = predict(memory, ksm), predict(confined(memory, "uid"), ksm)
    assert alone.counters == whole.counters
    assert alone.savings.frames_freed == whole.savings.frames_freed
    (split, *_) = security(memory, ksm, whole).splits
    assert split.by == "uid"
    assert split.within == whole.savings.frames_freed
    assert split.across == 0


@many
@given(groups(), ksm_settings())
def test_within_and_across_are_all(memory: Snapshot, ksm: Settings) -> None:
    whole = predict(memory, ksm)
    found = security(memory, ksm, whole)
    for split in found.splits:
        assert split.across >= 0
        assert split.within + split.across == whole.savings.frames_freed
        if split.groups > 1 and whole.savings.frames_freed > 0:
            alone = predict(confined(memory, split.by), ksm).savings.frames_freed
            assert split.within == min(alone, whole.savings.frames_freed)
        mapped = {int(row) for row in memory.vmas.process[np.diff(memory.vmas.offset) > 0]}
        names = uids(memory) if split.by == "uid" else memory.processes.cgroup
        assert split.groups == len({names[row] for row in mapped})


@st.composite
def simple(draw: st.DrawFn) -> Snapshot:
    """Forked processes of three uids over plain frames that nobody else maps."""
    builder = Builder()
    for content in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=8)):
        builder.frame(content)
    number = st.integers(0, len(builder.frames) - 1)
    builder.process(*range(len(builder.frames)))
    everyone = [draw(st.integers(0, 2))]
    for _ in range(draw(st.integers(0, 4))):
        builder.process(*draw(st.lists(number, min_size=1, max_size=8)))
        everyone.append(draw(st.integers(0, 2)))
    if draw(st.booleans()):  # without the one that maps all
        builder.processes -= 1
        builder.vmas = [(row - 1, flags, pairs) for row, flags, pairs in builder.vmas[1:]]
        everyone = everyone[1:]
        used = sorted({frame for _, _, pairs in builder.vmas for frame, _ in pairs})
        row_of = {frame: row for row, frame in enumerate(used)}
        builder.frames = [builder.frames[frame] for frame in used]
        builder.outside = dict.fromkeys(range(len(used)), 0)
        builder.vmas = [
            (row, flags, [(row_of[frame], flag) for frame, flag in pairs])
            for row, flags, pairs in builder.vmas
        ]
    if not builder.vmas:
        builder.process(builder.frame("a"))
        everyone = [0]
    memory = builder.build()
    memory.processes.uid[:] = everyone
    return memory


@many
@given(simple())
def test_frames_freed_are_those_of_each_set_of_groups(memory: Snapshot) -> None:
    """Plain frames: all but one of each content and set of groups. That is never more than any KSM
    could free that lets nobody map a frame that none of his group mapped."""
    alone = predict(confined(memory, "uid"), Settings()).savings
    of_frame = mappers(memory, uids(memory))
    keys = {(int(memory.frames.hash[frame]), groups) for frame, groups in of_frame.items()}
    assert alone.frames_freed == len(of_frame) - len(keys)
    assert alone.frames_freed <= predict(memory, Settings()).savings.frames_freed
    needed = 0
    for content in {int(number) for number in memory.frames.hash}:
        frames = [frame for frame in of_frame if int(memory.frames.hash[frame]) == content]
        wanted = {group for frame in frames for group in of_frame[frame]}
        needed += next(
            size
            for size in range(1, len(frames) + 1)
            for kept in combinations(frames, size)
            if wanted <= {group for frame in kept for group in of_frame[frame]}
        )
    most = len(of_frame) - needed
    assert alone.frames_freed <= most
    if all(len(groups) == 1 for groups in of_frame.values()):
        assert alone.frames_freed == most


def test_a_page_shared_by_fork_and_setuid_is_of_both() -> None:
    builder = Builder()
    builder.process(*(builder.frame("X") for _ in range(3)))  # root
    builder.process(0, 1, builder.frame("X"))  # a fork, after setuid()
    builder.process(builder.frame("X"))  # another of that uid
    memory = builder.build()
    memory.processes.uid[:] = [0, 33, 33]
    whole = predict(memory, Settings())
    assert whole.savings.frames_freed == 4
    found = security(memory, Settings(), whole)
    # Frames 0 and 1 are of both, 2 is root's, 3 and 4 are 33's.
    assert [(s.by, s.groups, s.within, s.across) for s in found.splits] == [("uid", 2, 2, 2)]
    assert "(Rowhammer)" in found.sentence
    assert len(found.sources) == 5


def test_user_namespaces_where_they_are_known() -> None:
    builder = Builder()
    for _ in range(4):
        builder.process(builder.frame("X"))
    memory = builder.build()
    assert groups_of(memory, "user_ns") is None
    spaces = np.array([9, 9, 5, 9], np.uint32)
    memory = replace(memory, processes=replace(memory.processes, user_ns=spaces))
    found = security(memory, Settings(), predict(memory, Settings()))
    assert [(s.by, s.groups, s.within, s.across) for s in found.splits] == [
        ("uid", 1, 3, 0),
        ("user_ns", 2, 2, 1),
    ]


@pytest.mark.parametrize("by", ["uid", "cgroup"])
@pytest.mark.parametrize("name", NAMES)
def test_of_a_guest(name: str, by: str) -> None:
    """Without max_page_sharing and zero pages: of each content and set of groups the frame that
    is visited second stays, those that somebody else maps, and pinned ones."""
    memory = snapshot(name)
    if memory.frames.order is not None or (memory.frames.flags & FrameFlag.PINNED).any():
        pytest.skip("pinned or PROT_NONE pages decide here")
    ksm = replace(memory.meta.settings, max_page_sharing=1 << 30)
    names = uids(memory) if by == "uid" else memory.processes.cgroup
    assert len(set(names)) > 1
    alone = confined(memory, by)
    found = kinds(alone, ksm, predict(alone, ksm))
    of_frame = mappers(memory, names)
    counts = np.bincount(memory.mappings.frame)
    contents: dict[tuple[int, int, frozenset[str]], list[int]] = {}
    for frame in dict.fromkeys(memory.mappings.frame.tolist()):
        if memory.frames.flags[frame] & (FrameFlag.ZERO | FrameFlag.UNREADABLE):
            continue
        node = 0 if ksm.merge_across_nodes else int(memory.frames.node[frame])
        key = (int(memory.frames.hash[frame]), node, of_frame[frame])
        contents.setdefault(key, []).append(frame)
    freed = 0
    for frames in contents.values():
        stay = {frames[min(1, len(frames) - 1)]}
        stay |= {frame for frame in frames if memory.frames.mapcount[frame] > counts[frame]}
        freed += len(frames) - len(stay)
    assert found.inside_process + found.between_processes == freed > 0
    within = {s.by: s for s in security(memory, ksm, predict(memory, ksm)).splits}[by]
    assert 0 < within.within < within.within + within.across
    assert within.groups == len(set(names))
