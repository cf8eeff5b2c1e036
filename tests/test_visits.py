"""Sums and first mappings, by runs and by blocks, against one mapping at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksm_eval.replay import visits as module
from ksm_eval.replay.visits import Visits
from ksm_eval.snapshot import Snapshot
from tests.snapshots import Builder

PIECE = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted)
VMA = st.lists(PIECE, max_size=4).map(lambda pieces: [f for a, b in pieces for f in range(a, b)])


@st.composite
def memories(draw: st.DrawFn) -> Snapshot:
    """VMAs of runs, some of them empty; every frame has a mapping."""
    builder = Builder()
    vmas = draw(st.lists(VMA, min_size=1, max_size=5))
    used = sorted({frame for vma in vmas for frame in vma})
    row = {frame: builder.frame(str(frame)) for frame in used}
    for vma in vmas:
        builder.process(*(row[frame] for frame in vma))
    return builder.build()


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("block", [1, 5, 1 << 18])
@given(data=st.data())
def test_visits(runs: bool, block: int, data: st.DataObject) -> None:
    snapshot = data.draw(memories())
    frames, frame = len(snapshot.frames), snapshot.mappings.frame.tolist()
    bits = data.draw(st.lists(st.booleans(), min_size=frames, max_size=frames))
    number = np.array(data.draw(st.lists(st.integers(0, 99), min_size=frames, max_size=frames)))
    wanted = np.array(bits, np.bool_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        patch.setattr(module, "_SHARED", 0 if runs else 1 << 40)
        patch.setattr(module, "_LONG", 1)
        visits = Visits(snapshot)
        assert (visits.runs is not None) == (runs and bool(frame))
        places: dict[int, list[int]] = {}
        for position, f in enumerate(frame):
            places.setdefault(f, []).append(position)
        assert visits.counts.tolist() == [len(places[f]) for f in range(frames)]
        mine = np.flatnonzero(wanted)
        first = visits.first(wanted)
        assert first[mine].tolist() == [places[f][0] for f in mine.tolist()]
        shared = wanted & (visits.counts > 1)
        mine = np.flatnonzero(shared)
        assert visits.second(shared, first)[mine].tolist() == [places[f][1] for f in mine.tolist()]
        offset = snapshot.vmas.offset.tolist()
        of_vma = [frame[a:b] for a, b in pairwise(offset)]
        assert visits.marked(wanted).tolist() == [sum(bits[f] for f in vma) for vma in of_vma]
        share = number.astype(np.float64)
        assert visits.shares(share).tolist() == [sum(number[f] for f in vma) for vma in of_vma]


def test_runs_end_where_a_vma_does() -> None:
    """Frames that go on in the next VMA, and many mappings of each: by runs without being told."""
    builder = Builder()
    frames = [builder.frame(str(n)) for n in range(40)]
    for _ in range(5):
        builder.process(*frames[:20])
        builder.vma(*frames[20:])
    snapshot = builder.build()
    visits = Visits(snapshot)
    assert visits.runs is not None
    assert visits.runs.length.tolist() == [20] * 10
    assert visits.marked(np.ones(40, np.bool_)).tolist() == [20] * 10
    scattered = np.random.default_rng(6).permutation(snapshot.mappings.frame)
    changed = replace(snapshot, mappings=replace(snapshot.mappings, frame=scattered))
    assert Visits(changed).runs is None
    assert Visits(changed).counts.tolist() == [5] * 40
