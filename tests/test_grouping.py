"""Equal numbers among many, against numpy's own sort of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksm_eval.collect import _distinct
from ksm_eval.replay.grouping import may_repeat, numbered
from ksm_eval.snapshot import U64
from ksm_eval.tables import table_fits

# Few values, so that they repeat; some that differ in high bits only, which the tables do not see.
VALUES = st.lists(
    st.one_of(
        st.integers(0, 5),
        st.integers(0, 2**64 - 1),
        st.integers(0, 7).map(lambda n: n << 61),
        st.integers(0, 7).map(lambda n: n << 40 | 3),
    ),
    max_size=80,
).map(lambda found: np.array(found, np.uint64))


def check(values: U64) -> None:
    _, expected, counts = np.unique(values, return_inverse=True, return_counts=True)
    number, size = numbered(values)
    assert number.tolist() == expected.tolist()
    assert size.tolist() == counts.tolist()
    repeated = counts[expected] > 1
    assert may_repeat(values)[repeated].all()


@given(values=VALUES)
def test_any_numbers(values: U64) -> None:
    check(values)


@pytest.mark.parametrize("shift", [0, 40])
def test_many_hashes(shift: int) -> None:
    """More than a block of rows; of a sixth of them there are two or more."""
    draw = np.random.default_rng(3)
    values = draw.integers(0, 2**64, 300_000, dtype=np.uint64)
    values[::6] = draw.choice(values[1::6], 50_000)
    values = (values >> np.uint64(shift)) << np.uint64(shift)  # no low bits: slower, and right
    check(values)
    if not shift:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        wrong = may_repeat(values) & (counts[inverse] == 1)
        assert wrong.sum() < 0.05 * len(values)  # few are kept in vain


@pytest.mark.parametrize("stray", [0, 1 << 25, 1 << 40])
def test_distinct_frames(stray: int) -> None:
    """By a table, and by sorting where the highest number would make that too large."""
    draw = np.random.default_rng(4)
    walked = [draw.integers(0, 1 << 20, size, dtype=np.uint64) for size in (300_000, 0, 5)]
    walked.append(np.array([stray], np.uint64))
    assert table_fits(5 * stray, 300_006) == (not stray)
    pfns, row = _distinct(walked)
    expected, inverse = np.unique(np.concatenate(walked), return_inverse=True)
    assert (pfns.dtype.itemsize, row.dtype.itemsize) == (8, 4)
    assert np.array_equal(pfns, expected)
    assert np.array_equal(row, inverse)
