"""Equal hashes among many: rows together whose values are equal.

The high bits of each value and its row share a word, and the words are sorted: split twice by
eight bits, and np.sort() for what is left. That is four times as fast as one np.sort() of all on
processors whose AVX-512 stores are slow, and nowhere slower than it by much. Values should be
hashes: equal high bits of others that differ give the same results, slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ksm_eval.snapshot import I64, U8, U16, U32, U64

_BLOCK = 1 << 18  # rows at a time: the temporaries stay in cache
_SMALL = 1 << 13  # words that are sorted without another split
_Blocks: TypeAlias = Callable[[int], U64]
"""The words from a row on, a block of them."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # takes `also` to the high bits


def equals(values: U64, rows: U32 | None = None, also: U16 | None = None) -> tuple[U32, I64]:
    """(rows whose value another row has, too, bounds of each value's among them).

    Ascending within each value. `rows`: only these; None: all. `also`: a second column that
    must be equal.
    """
    count = len(values) if rows is None else len(rows)
    bits = max(len(values) - 1, 1).bit_length()
    words = np.empty(count, np.uint64)
    high = np.uint64((1 << 64) - (1 << bits))

    def block(start: int) -> U64:
        at = slice(start, min(start + _BLOCK, count))
        row = np.arange(at.start, at.stop, dtype=np.uint32) if rows is None else rows[at]
        found = _keys(values, also, at if rows is None else row)
        return (found & high) | row

    _split(words, 56, block)
    found, starts = _repeated(words, bits)
    del words
    if not len(found):
        return found, np.zeros(1, np.int64)
    return _checked(found, starts, values, also)


def numbered(values: U64, also: U16 | None = None) -> U32:
    """A number for each row's value; equal values, equal number."""
    rows, bounds = equals(values, None, also)
    number = np.arange(len(bounds) - 1, len(bounds) - 1 + len(values), dtype=np.uint32)
    number[rows] = np.repeat(np.arange(len(bounds) - 1, dtype=np.uint32), np.diff(bounds))
    return number


def _keys(values: U64, also: U16 | None, at: slice | U32) -> U64:
    return values[at] if also is None else values[at] + also[at].astype(np.uint64) * _SPREAD


def _split(words: U64, shift: int, block: _Blocks) -> None:
    """Fill `words` with the words of all blocks, by eight bits of each, and sort them."""
    count, kinds = len(words), 256
    size = np.zeros((max(-(-count // _BLOCK), 1), kinds), np.int64)
    low = np.uint64(shift)
    for number, start in enumerate(range(0, count, _BLOCK)):
        size[number] = np.bincount((block(start) >> low).astype(np.uint8), minlength=kinds)
    ends = size.sum(axis=0).cumsum()
    at = (ends - size.sum(axis=0)).tolist()
    for number, start in enumerate(range(0, count, _BLOCK)):
        mine = block(start)
        digit: U8 = (mine >> low).astype(np.uint8)
        mine = mine[np.argsort(digit, kind="stable")]  # of bytes: a radix sort
        first = 0
        for kind, some in enumerate(size[number].tolist()):
            words[at[kind] : at[kind] + some] = mine[first : first + some]
            at[kind] += some
            first += some
    start = 0
    for end in ends.tolist():
        part, start = words[start:end], end
        if len(part) > _SMALL and shift == 56:
            _split(part, shift - 8, _blocks_of(part.copy()))
        else:
            part.sort()


def _blocks_of(words: U64) -> _Blocks:
    return lambda start: words[start : start + _BLOCK]


def _repeated(words: U64, bits: int) -> tuple[U32, I64]:
    """(rows of words whose high bits repeat, where those with others begin); ascending words."""
    shift, mask = np.uint64(bits), np.uint64((1 << bits) - 1)
    rows, starts, count = [], [], 0
    for start in range(0, len(words), _BLOCK):
        # With a word on either side.
        around = words[max(start - 1, 0) : start + _BLOCK + 1]
        same = (around[1:] ^ around[:-1]) >> shift == 0
        before = same if start else np.append(False, same)
        after = same if start + _BLOCK < len(words) else np.append(same, False)
        mine = words[start : start + _BLOCK]
        before, after = before[: len(mine)], after[len(after) - len(mine) :]
        members = np.flatnonzero(before | after)
        rows.append((mine[members] & mask).astype(np.uint32))
        starts.append(np.flatnonzero(~before[members]) + count)
        count += len(members)
    if not count:
        return np.empty(0, np.uint32), np.zeros(0, np.int64)
    return np.concatenate(rows), np.concatenate(starts)


def _checked(rows: U32, starts: I64, values: U64, also: U16 | None) -> tuple[U32, I64]:
    """As equals(): what only the high bits have put together is taken apart."""
    begins = np.zeros(len(rows), np.bool_)
    begins[starts] = True
    wrong = []
    for start in range(1, len(rows), _BLOCK):
        at = slice(start, start + _BLOCK)
        differs = _differs(rows[start - 1 : start + _BLOCK], values, also)
        wrong.append(np.flatnonzero(differs & ~begins[at]) + start)
    mixed = np.concatenate(wrong)
    if len(mixed):
        several = np.zeros(len(starts), np.bool_)
        several[np.searchsorted(starts, mixed, side="right") - 1] = True
        places = np.flatnonzero(np.repeat(several, np.diff(starts, append=len(rows))))
        row = rows[places]
        by = [_keys(values, also, row)] if also is None else [also[row], _keys(values, also, row)]
        row = row[np.lexsort((row, *by))]
        rows[places] = row
        begins[places[1:]] = _differs(row, values, also)
        alone = begins & np.append(begins[1:], True)
        rows, begins = rows[~alone], begins[~alone]
    return rows, np.append(np.flatnonzero(begins), len(rows))


def _differs(rows: U32, values: U64, also: U16 | None) -> NDArray[np.bool_]:
    """Whether each row but the first has another value than the one before it."""
    mine = values.take(rows)
    found: NDArray[np.bool_] = mine[1:] != mine[:-1]
    if also is not None:
        second = also[rows]
        found |= second[1:] != second[:-1]
    return found
