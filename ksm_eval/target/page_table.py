"""Bulk page-table walk: a table page at a time, decoded with numpy, to arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ksm_eval.snapshot import I64, U8, U32, U64, Entry, MappingFlag, Pfns
from ksm_eval.target import Vma, WalkedVmas

MAX_READ = 1 << 20  # bytes of neighbouring tables read at once
_BLOCK = 1 << 18  # bytes of last-level tables that are read and decoded at once, in the L2 cache
_CHUNK = 1 << 22  # rows

Bools: TypeAlias = NDArray[np.bool_]


class Paging(Protocol):
    """One architecture's tables and entries, which are decoded a column at a time.

    Levels count from 0, the PTEs. A table fills a page; the root may be smaller.
    """

    @property
    def page_shift(self) -> int: ...

    @property
    def levels(self) -> int: ...

    @property
    def top_entries(self) -> int:
        """Of the root table."""

    @property
    def leaf_levels(self) -> int:
        """Levels, from the lowest, whose entries may map memory."""

    @property
    def physical_bits(self) -> int:
        """No frame is beyond, where the target does not tell its last one."""

    @property
    def deciding(self) -> int:
        """Bits of a last-level entry that decide all of the below but its address."""

    def is_table(self, entry: U64) -> Bools:
        """Above level 0: points to a table."""

    def present(self, entry: U64, huge: bool) -> Bools:
        """Maps memory, PROT_NONE included; the other entries that are not 0 are swap's."""

    def address(self, entry: U64) -> U64:
        """Physical address in entries that are a table or present."""

    def prot_none(self, entry: U64) -> Bools:
        """Of present entries: to software only."""

    def writable(self, entry: U64) -> Bools: ...

    def dirty(self, entry: U64) -> Bools: ...

    def special(self, entry: U64) -> Bools: ...

    def swap_type(self, entry: U64) -> U8:
        """Of entries that are not present, 0 to 31."""


@dataclass(frozen=True)
class SwapTypes:
    """How this kernel numbers non-present entries (include/linux/swap.h, swapops.h).

    Types from the top: pte markers, device entries, migration, hwpoison, then swap files.
    """

    marker: int
    device: int
    migration: int
    hwpoison: int

    def entry_of_type(self) -> U8:
        """Entry for each of the 32 types."""
        table = np.full(32, int(Entry.SWAP), np.uint8)
        top = 32
        for count, entry in (
            (self.marker, Entry.POISON),
            (self.device, Entry.DEVICE),
            (self.migration, Entry.MIGRATION),
            (self.hwpoison, Entry.POISON),
        ):
            table[top - count : top] = int(entry)
            top -= count
        return table


@dataclass(frozen=True)
class Layout:
    """The target's paging."""

    paging: Paging
    swap_types: SwapTypes
    zero_pfn: int  # of the shared zero page
    huge_zero_pfn: int | None = None  # first frame of the huge zero page, if allocated


ReadTables = Callable[[int, int], bytes]
"""Physical address, byte count -> contents; raises LookupError if not in the target."""


def read_tables(read: ReadTables, addresses: U64, entries: int) -> tuple[U64, Bools]:
    """Tables at the given physical addresses: shape (T, entries), and which could be read.

    Neighbours are read together. Unreadable tables are rows of zeros.
    """
    size = entries * 8
    if 0 < len(addresses) * size <= MAX_READ and (np.diff(addresses) == size).all():
        with suppress(LookupError):  # all in a row, as fork() makes them
            data = read(int(addresses[0]), len(addresses) * size)
            whole = np.frombuffer(data, np.uint64).reshape(-1, entries)
            return whole, np.ones(len(addresses), np.bool_)
    tables = np.zeros((len(addresses), entries), np.uint64)
    readable = np.ones(len(addresses), np.bool_)
    order = np.argsort(addresses, kind="stable")
    ascending = addresses[order]
    breaks = np.flatnonzero(np.diff(ascending.view(np.int64)) != size) + 1
    starts = [0, *breaks.tolist()]
    ends = [*breaks.tolist(), len(ascending)]
    step = max(1, MAX_READ // size)
    for first, last in zip(starts, ends, strict=True):
        for begin in range(first, last, step):
            end = min(begin + step, last)
            rows = order[begin:end]
            base = int(ascending[begin])
            try:
                data = read(base, (end - begin) * size)
            except LookupError:
                for row in rows.tolist():
                    try:
                        one = read(int(addresses[row]), size)
                    except LookupError:
                        readable[row] = False
                    else:
                        tables[row] = np.frombuffer(one, np.uint64)
            else:
                tables[rows] = np.frombuffer(data, np.uint64).reshape(-1, entries)
    return tables, readable


class _Ranges:
    """Disjoint ascending [start, end) address ranges: which one is an address in?"""

    def __init__(self, vmas: Sequence[Vma], page_shift: int) -> None:
        self.page_shift = page_shift
        self.start = np.array([vma.start for vma in vmas], np.uint64)
        self.end = np.array([vma.end for vma in vmas], np.uint64)

    def overlaps(self, va: U64, span: int) -> Bools:
        """Does [va, va+span) touch any range?"""
        following = np.searchsorted(self.end, va, side="right")
        inside = following < len(self.end)
        start = self.start[np.minimum(following, len(self.end) - 1)]
        touches: Bools = inside & (start < va + np.uint64(span))
        return touches

    def cover(self, va: U64, span: int) -> Bools:
        """Is all of [va, va+span) in one range?"""
        following = np.searchsorted(self.end, va, side="right")
        safe = np.minimum(following, len(self.end) - 1)
        inside = (following < len(self.end)) & (self.start[safe] <= va)
        whole: Bools = inside & (self.end[safe] - va >= np.uint64(span))
        return whole

    def index(self, va: U64) -> I64:
        """Range that holds each address, -1 if none."""
        position = np.searchsorted(self.start, va, side="right").astype(np.int64) - 1
        safe = np.maximum(position, 0)
        outside = (position < 0) | (va >= self.end[safe])
        return np.where(outside, np.int64(-1), position)

    def page(self, va: U64, index: I64) -> U32:
        """Page number of each address within its range."""
        return ((va - self.start[index]) >> np.uint64(self.page_shift)).astype(np.uint32)

    def pages_lost(self, va: int, span: int, entries: U32) -> None:
        """Count the pages of [va, va+span) that lie in ranges as unreadable."""
        low = np.maximum(self.start, np.uint64(va))
        high = np.minimum(self.end, np.uint64(va + span))
        lost = np.where(high > low, high - low, np.uint64(0)) >> np.uint64(self.page_shift)
        entries[:, Entry.UNREADABLE] += lost.astype(np.uint32)


class Columns:
    """Arrays for the entries of one process after the other. In large ones the kernel puts huge
    pages, which saves a fault for every 4 KiB of them."""

    def __init__(self, rows: int = 0) -> None:
        self._new(rows)

    def _new(self, rows: int) -> None:
        self._pfn = np.empty(rows, np.uint32)
        self._page = np.empty(rows, np.uint32)
        self._flags = np.empty(rows, np.uint8)

    def free(self, most: int) -> tuple[U32, U32, U8]:
        """PFN, page and flags of `most` rows, until take()."""
        if len(self._pfn) < most:
            self._new(max(most, _CHUNK))
        return self._pfn[:most], self._page[:most], self._flags[:most]

    def take(self, count: int) -> None:
        """The first `count` rows are used now."""
        self._pfn, self._page = self._pfn[count:], self._page[count:]
        self._flags = self._flags[count:]


class _Mapped:
    """Present normal entries in address order, filled in from the front."""

    def __init__(self, columns: Columns, most: int) -> None:
        self.count = 0
        self._columns = columns
        self.pfn: Pfns
        self.pfn, self.page, self.flags = columns.free(most)

    @classmethod
    def alone(cls, most: int) -> _Mapped:
        return cls(Columns(most), most)

    def room(self, count: int, highest: int) -> slice:
        """Where the next `count` go, the highest of whose PFNs is `highest`."""
        if highest > 0xFFFFFFFF and self.pfn.dtype == np.uint32:  # beyond 16 TiB
            wide = np.empty(len(self.pfn), np.uint64)  # most of it never is in memory
            wide[: self.count] = self.pfn[: self.count]
            self.pfn = wide
        place = slice(self.count, self.count + count)
        self.count += count
        return place

    def add(self, pfn: U64, page: U32, flags: U8) -> None:
        if len(pfn):
            at = self.room(len(pfn), int(pfn.max()))
            self.pfn[at], self.page[at], self.flags[at] = pfn, page, flags

    def done(self) -> tuple[Pfns, U32, U8]:
        self._columns.take(self.count)
        return self.pfn[: self.count], self.page[: self.count], self.flags[: self.count]


@dataclass
class _Leaves:
    """Present normal entries, an array each."""

    va: U64
    pfn: U64
    flags: U8


def _count(entries: U32, vma: I64, kind: U8 | Entry, weight: int = 1) -> None:
    np.add.at(entries, (vma, np.asarray(kind, np.intp)), np.uint32(weight))


def _mapping_flags(paging: Paging, entry: U64, huge: bool) -> U8:
    flags = np.full(len(entry), MappingFlag.HUGE if huge else 0, np.uint8)
    for bits, flag in (
        (paging.prot_none(entry), MappingFlag.PROT_NONE),
        (paging.writable(entry), MappingFlag.WRITE),
        (paging.dirty(entry), MappingFlag.DIRTY),
    ):
        flags |= bits.view(np.uint8) * np.uint8(flag)
    return flags


def _leaf(va: U64, entry: U64, span: int, ranges: _Ranges, layout: Layout, entries: U32) -> _Leaves:
    """Sort leaf entries of one level: present ones are returned, the others counted.

    `span` is the bytes one entry maps; a huge entry is expanded to its pages.
    """
    paging = layout.paging
    pages = span >> paging.page_shift
    present = paging.present(entry, huge=pages > 1)
    swap = ~present & (entry != 0)
    if swap.any():
        vma = ranges.index(va[swap])
        kinds = layout.swap_types.entry_of_type()[paging.swap_type(entry[swap])]
        _count(entries, vma[vma >= 0], kinds[vma >= 0], pages)
    va, entry = va[present], entry[present]
    pfn = paging.address(entry) >> np.uint64(paging.page_shift)
    flags = _mapping_flags(paging, entry, huge=pages > 1)
    special = paging.special(entry)
    if pages > 1:
        step = np.arange(pages, dtype=np.uint64)
        # x86: the low bits of a huge entry's frame number hold PAT.
        pfn = ((pfn & ~np.uint64(pages - 1))[:, None] + step).ravel()
        va = (va[:, None] + (step << np.uint64(paging.page_shift))).ravel()
        flags = np.repeat(flags, pages)
        special = np.repeat(special, pages)
        inside = ranges.index(va) >= 0
        va, pfn, flags, special = va[inside], pfn[inside], flags[inside], special[inside]
    zero = _is_zero(pfn, layout)
    special &= ~zero
    for rows, kind in ((zero, Entry.ZERO_PAGE), (special, Entry.SPECIAL)):
        _count(entries, ranges.index(va[rows]), kind)
    normal = ~(zero | special)
    if normal.all():
        return _Leaves(va, pfn, flags)
    return _Leaves(va[normal], pfn[normal], flags[normal])


def _is_zero(pfn: U64, layout: Layout) -> Bools:
    """is_zero_pfn() and is_huge_zero_pmd()."""
    zero: Bools = pfn == layout.zero_pfn
    if layout.huge_zero_pfn is not None:
        huge_pages = 1 << (layout.paging.page_shift - 3)  # HPAGE_PMD_NR
        zero |= (pfn - np.uint64(layout.huge_zero_pfn)) < huge_pages
    return zero


class _LastLevel:
    """Tables of PTEs. Most are inside one VMA and full of entries that differ by their frames
    only: such a table is decoded by its first entry."""

    def __init__(
        self, tables: int, ranges: _Ranges, layout: Layout, entries: U32, columns: Columns
    ) -> None:
        self.paging, self.ranges, self.layout = layout.paging, ranges, layout
        self.width = 1 << (layout.paging.page_shift - 3)
        self.entries = entries
        self.mapped = _Mapped(columns, tables * self.width)
        self.counts = np.zeros(len(ranges.start), np.int64)  # of `mapped`, by VMA
        self._ramp = np.arange(self.width, dtype=np.uint32)

    def add(self, base: U64, content: U64) -> None:
        """`content`, shape (T, width), of tables that map from the ascending addresses `base`."""
        alike = self._alike(base, content)
        if alike.all():
            return self._tables(base, content, self.mapped)
        found = _Mapped.alone(len(base) * self.width)
        counts = self._entries(base[~alike], content[~alike], found)
        if alike.any():
            whole = _Mapped.alone(len(base) * self.width)
            self._tables(base[alike], content[alike], whole)
            return self._in_turn(alike, whole, found, np.cumsum(counts).tolist())
        return self.mapped.add(*found.done())

    def _in_turn(self, alike: Bools, whole: _Mapped, others: _Mapped, ends: list[int]) -> None:
        """Both kinds of tables in the order of their addresses; `ends`, in `others`, of each."""
        starts = np.flatnonzero(np.append(True, alike[1:] != alike[:-1]))
        tables = np.diff(np.append(starts, len(alike))).tolist()
        done, number, end = 0, 0, 0  # pages of `whole`; tables and pages of `others`
        for first, count in zip(starts.tolist(), tables, strict=True):
            if alike[first]:
                source, begin = whole, done
                done += count * self.width
                last = done
            else:
                source, begin = others, end
                number += count
                last = end = ends[number - 1]
            rows = slice(begin, last)
            self.mapped.add(source.pfn[rows], source.page[rows], source.flags[rows])

    def _alike(self, base: U64, content: U64) -> Bools:
        key = content & np.uint64(self.paging.deciding)
        first = key[:, 0]
        alike: Bools = (key == first[:, None]).all(axis=1)
        alike &= self.paging.present(first, huge=False) & ~self.paging.special(first)
        # The zero page is special, too (mk_special()), but nothing here depends on it.
        alike &= self.ranges.cover(base, self.width << self.paging.page_shift)
        return alike

    def _tables(self, base: U64, content: U64, into: _Mapped) -> None:
        count, shift = len(base) * self.width, np.uint64(self.paging.page_shift)
        pfn = self.paging.address(content)
        pfn >>= shift
        at = into.room(count, int(pfn.max()))
        into.pfn[at] = pfn.ravel()
        vma = self.ranges.index(base)
        page = ((base - self.ranges.start[vma]) >> shift).astype(np.uint32)
        shape = len(base), self.width
        np.add(page[:, None], self._ramp, out=into.page[at].reshape(shape))
        flags = _mapping_flags(self.paging, content[:, 0], huge=False)
        into.flags[at].reshape(shape)[:] = flags[:, None]
        np.add.at(self.counts, vma, self.width)

    def _entries(self, base: U64, content: U64, into: _Mapped) -> I64:
        """Returns how many there are in each table."""
        va = base[:, None] + (self._ramp.astype(np.uint64) << np.uint64(self.paging.page_shift))
        va, content = _wanted(va, base, content, self.ranges, self.layout, level=0)
        leaves = _leaf(va, content, 1 << self.paging.page_shift, self.ranges, self.layout,
                       self.entries)  # fmt: skip
        vma = self.ranges.index(leaves.va)
        self.counts += np.bincount(vma, minlength=len(self.counts))
        into.add(leaves.pfn, self.ranges.page(leaves.va, vma), leaves.flags)
        return np.diff(np.append(np.searchsorted(leaves.va, base), len(leaves.va)))


def _wanted(
    va: U64, base: U64, content: U64, ranges: _Ranges, layout: Layout, level: int
) -> tuple[U64, U64]:
    """Entries that are not 0 and belong to a VMA, and their addresses."""
    span = 1 << (layout.paging.page_shift + (layout.paging.page_shift - 3) * level)
    wanted = content != 0
    partly = ~ranges.cover(base, span * content.shape[1])  # most tables are inside one VMA
    wanted[partly] &= ranges.overlaps(va[partly], span)
    return va[wanted], content[wanted]


def walk(
    read: ReadTables,
    root: int,
    vmas: Sequence[Vma],
    layout: Layout,
    columns: Columns | None = None,
) -> WalkedVmas:
    """Entries of `vmas` (disjoint, ascending) in the page tables at physical address `root`.

    Follows ksm_next_page_pmd_entry() (mm/ksm.c): present PTEs include PROT_NONE ones;
    pte_special ones (the zero page, PFN maps) are counted, not returned.
    """
    paging = layout.paging
    entries = np.zeros((len(vmas), len(Entry)), np.uint32)
    ranges = _Ranges(vmas, paging.page_shift)
    huge: list[_Leaves] = []
    tables = np.array([root], np.uint64)
    base = np.zeros(1, np.uint64)
    width = paging.page_shift - 3  # address bits a whole table resolves
    for level in range(paging.levels - 1, 0, -1) if len(vmas) else ():
        span = 1 << (paging.page_shift + width * level)
        count = paging.top_entries if level == paging.levels - 1 else 1 << width
        content, readable = read_tables(read, tables, count)
        for lost in base[~readable].tolist():
            ranges.pages_lost(lost, span * count, entries)
        va = base[:, None] + np.arange(count, dtype=np.uint64) * np.uint64(span)
        va, content = _wanted(va, base, content, ranges, layout, level)
        # A PMD or PUD is a leaf when huge, or not present (a THP being migrated).
        table = paging.is_table(content)
        if level < paging.leaf_levels and not table.all():
            huge.append(_leaf(va[~table], content[~table], span, ranges, layout, entries))
        tables, base = paging.address(content[table]), va[table]
    last = _LastLevel(
        len(tables) if len(vmas) else 0, ranges, layout, entries, columns or Columns()
    )
    step = max(_BLOCK >> paging.page_shift, 1)
    for begin in range(0, len(tables) if len(vmas) else 0, step):
        part = slice(begin, begin + step)
        content, readable = read_tables(read, tables[part], 1 << width)
        for lost in base[part][~readable].tolist():
            ranges.pages_lost(lost, 1 << (paging.page_shift + width), entries)
        last.add(base[part], content)
    return _by_vma(last, huge, ranges, entries)


def _by_vma(last: _LastLevel, huge: list[_Leaves], ranges: _Ranges, entries: U32) -> WalkedVmas:
    """All leaves in address order, with the offsets of each VMA."""
    pfn, page, flags = last.mapped.done()
    counts = last.counts
    if sum(len(leaves.va) for leaves in huge):
        small = np.repeat(ranges.start, counts) + (
            page.astype(np.uint64) << np.uint64(ranges.page_shift)
        )
        va = np.concatenate([*(leaves.va for leaves in huge), small])
        pfn = np.concatenate([*(leaves.pfn for leaves in huge), pfn])
        flags = np.concatenate([*(leaves.flags for leaves in huge), flags])
        order = np.argsort(va, kind="stable")  # each part ascends: that is fast
        va, pfn, flags = va[order], pfn[order], flags[order]
        vma = ranges.index(va)
        page = ranges.page(va, vma)
        counts = np.bincount(vma, minlength=len(counts))
        if pfn[:1].dtype == np.uint64 and not (pfn > 0xFFFFFFFF).any():
            pfn = pfn.astype(np.uint32)
    offset = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return WalkedVmas(offset=offset, pfn=pfn, page=page, flags=flags, entries=entries)
