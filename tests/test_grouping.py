"""Equal numbers among many, against a dictionary."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksm_eval.collect import _distinct, _rows
from ksm_eval.replay import grouping
from ksm_eval.replay.grouping import equals, numbered
from ksm_eval.snapshot import U16, U32, U64, Entry
from ksm_eval.tables import table_fits

# Few values, so that they repeat; some that differ in low bits only, which the words do not have.
VALUES = st.lists(
    st.one_of(
        st.integers(0, 5),
        st.integers(0, 2**64 - 1),
        st.integers(0, 7).map(lambda n: n << 61),
        st.integers(0, 7).map(lambda n: n << 40 | 3),
    ),
    max_size=80,
).map(lambda found: np.array(found, np.uint64))


def check(values: U64, rows: U32 | None = None, also: U16 | None = None) -> None:
    """Against a dictionary of lists."""
    by_value: dict[tuple[int, int], list[int]] = {}
    for row in range(len(values)) if rows is None else rows.tolist():
        by_value.setdefault((values[row], 0 if also is None else also[row]), []).append(row)
    found, bounds = equals(values, rows, also)
    groups = [found[a:b].tolist() for a, b in pairwise(bounds.tolist())]
    assert sorted(groups) == sorted(group for group in by_value.values() if len(group) > 1)
    if rows is None:
        number = numbered(values, also).tolist()
        assert len(set(number)) == len(by_value)
        assert all(len({number[row] for row in group}) == 1 for group in by_value.values())


@given(values=VALUES, data=st.data())
def test_any_numbers(values: U64, data: st.DataObject) -> None:
    check(values)
    which = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    check(values, np.flatnonzero(np.array(which, np.bool_)).astype(np.uint32))
    node = st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values))
    also = np.array(data.draw(node), np.uint16)
    check(values, None, also)
    # A value that differs by what `also` adds to the key of another.
    spread = values + np.array([0, 1, 2], np.uint64)[also] * grouping._SPREAD
    check(np.append(values, spread), None, np.append(also, also * np.uint16(0)))


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_blocks_meet(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value's rows are found wherever the blocks end."""
    monkeypatch.setattr(grouping, "_BLOCK", block)
    monkeypatch.setattr(grouping, "_SMALL", 4)
    draw = np.random.default_rng(5)
    for size in range(24):
        check(draw.integers(0, 6, size, dtype=np.uint64) << np.uint64(58))
        check(draw.integers(0, 2**64, 3, dtype=np.uint64)[draw.integers(0, 3, size)])


@pytest.mark.parametrize("shift", [0, 40])
def test_many_hashes(shift: int) -> None:
    """More than a block of rows; of a sixth of them there are two or more."""
    draw = np.random.default_rng(3)
    values = draw.integers(0, 2**64, 300_000, dtype=np.uint64)
    values[::6] = draw.choice(values[1::6], 50_000)
    values = values >> np.uint64(shift)  # no high bits: slower, and right
    check(values)


@pytest.mark.parametrize("stray", [0, 1 << 25, 1 << 40])
def test_distinct_frames(stray: int) -> None:
    """By a table, and by sorting where the highest number would make that too large."""
    draw = np.random.default_rng(4)
    walked = [draw.integers(0, 1 << 20, size, dtype=np.uint64) for size in (300_000, 0, 5)]
    walked.append(np.array([stray], np.uint64))
    assert table_fits(5 * stray, 300_006) == (not stray)
    expected, inverse = np.unique(np.concatenate(walked), return_inverse=True)
    pfns = _distinct(walked)
    assert pfns.dtype.itemsize == (8 if stray >> 32 else 4)
    assert np.array_equal(pfns, expected)
    kind = np.where(pfns % np.uint64(7) == 0, Entry.FILE, Entry.CANDIDATE).astype(np.uint8)
    row = _rows(walked, pfns, kind)
    assert walked == []
    candidate = kind == Entry.CANDIDATE
    wanted = np.where(candidate, np.cumsum(candidate) - 1, 0xFFFFFF00 + int(Entry.FILE))
    assert np.array_equal(row, wanted[inverse])
