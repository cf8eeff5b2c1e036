"""Columns of all mappings, handled a block at a time, against the same in one line of numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksm_eval import tables


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", 3)
        yield


@given(st.lists(st.integers(0, 9), max_size=20))
def test_take(rows: list[int]) -> None:
    table = np.arange(100, 110, dtype=np.uint32)
    out = np.zeros(len(rows), np.uint32)
    tables.take(table, np.array(rows, np.uint32), out)
    assert out.tolist() == [100 + row for row in rows]


@given(st.lists(st.lists(st.integers(0, 255), max_size=5), max_size=5))
def test_joined(parts: list[list[int]]) -> None:
    arrays = [np.array(part, np.uint8) for part in parts]
    found = tables.joined(arrays, np.uint8)
    assert found.tolist() == [value for part in parts for value in part]
    assert found.dtype == np.uint8
    assert arrays == []


@given(st.integers(0, 1500), st.data())
def test_without(count: int, data: st.DataObject) -> None:
    """Few rows and many of them, one after the other and apart."""
    most = data.draw(st.sampled_from([3, 1500]))
    rows = data.draw(st.lists(st.integers(0, max(count - 1, 0)), max_size=most, unique=True))
    rows = sorted(row for row in rows if row < count)
    column = np.arange(count, dtype=np.uint32)
    left = tables.without(column, np.array(rows, np.int64))
    assert left.tolist() == sorted(set(range(count)) - set(rows))


def test_constant() -> None:
    mixed = np.array([1, 1, 2], np.uint16)
    assert tables.constant(mixed) is mixed
    same = tables.constant(np.full(5, 7, np.uint16))
    assert same.tolist() == [7] * 5
    assert same.strides == (0,)
    assert len(tables.constant(mixed[:0])) == 0
