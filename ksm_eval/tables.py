"""Tables indexed by frame number: quick, but as large as the highest number. And columns of all
mappings or frames, handled so that no second one of them is made."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)

_PIECE = 256  # rows; where they are fewer, one by one is faster
_FREE = 64 << 20  # bytes that nobody minds
_A_ROW = 16


def table_fits(size: int, rows: int) -> bool:
    """May a table of `size` bytes be made for so many frames or mappings? A stray PFN, or a few
    processes on a host with much memory, must not size one."""
    return size <= _A_ROW * rows + _FREE


BLOCK = 1 << 18
"""Rows at a time where numpy makes numbers of 8 bytes of them: those stay in the cache."""


def take(table: NDArray[Scalar], rows: NDArray[np.integer[Any]], out: NDArray[Scalar]) -> None:
    """out[:] = table[rows], without a copy of `rows` in 8 bytes each, which numpy makes."""
    for begin in range(0, len(rows), BLOCK):
        part = slice(begin, begin + BLOCK)
        out[part] = table[rows[part]]


def joined(parts: list[NDArray[Scalar]], dtype: type[Scalar]) -> NDArray[Scalar]:
    """All in one array. Empties `parts` on the way, so that there are never two of all."""
    if len(parts) == 1:
        return parts.pop()
    found = np.empty(sum(map(len, parts)), dtype)
    end = len(found)
    while parts:
        part = parts.pop()
        found[end - len(part) : end] = part
        end -= len(part)
    return found


def without(column: NDArray[Scalar], rows: NDArray[np.int64]) -> NDArray[Scalar]:
    """Less the ascending `rows`. What stays moves up within `column`, if it is most of it."""
    if len(rows) > len(column) // _PIECE:
        keep = np.ones(len(column), np.bool_)
        keep[rows] = False
        return column[keep]
    ends = np.append(rows[1:], len(column)).tolist()
    end = int(rows[0]) if len(rows) else len(column)
    for row, last in zip(rows.tolist(), ends, strict=False):
        for begin in range(row + 1, last, BLOCK):
            count = min(BLOCK, last - begin)
            column[end : end + count] = column[begin : begin + count]
            end += count
    return column[:end]


def constant(column: NDArray[Scalar]) -> NDArray[Scalar]:
    """The column, or if all of it is one value a view of that value, which takes no memory."""
    if len(column) and (column == column[0]).all():
        return np.broadcast_to(column[0], column.shape)
    return column
