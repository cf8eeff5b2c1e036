"""Bulk page-table walk: a table page at a time, decoded with numpy, to arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.snapshot import I64, U8, U32, U64, Entry, MappingFlag, mark
from ksm_eval.target import Vma, WalkedVmas

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
ENTRIES = 512  # per table, x86-64 and arm64 with 4 KiB pages
MAX_READ = 256  # tables per read: 1 MiB

# arch/x86/include/asm/pgtable_types.h, the same from 5.10 to 7.3.
PRESENT = 1 << 0
RW = 1 << 1
DIRTY = 1 << 6
PSE = 1 << 7  # huge, in a PMD or PUD; PAT in a PTE
PROTNONE = 1 << 8  # _PAGE_GLOBAL, meaningful when not PRESENT
SPECIAL = 1 << 9
SAVED_DIRTY = 1 << 58  # 6.6+ with shadow stacks: dirty moved aside when write-protected
PHYSICAL_MASK = (1 << 52) - PAGE_SIZE
SWP_TYPE_SHIFT = 59  # arch/x86/include/asm/pgtable_64.h


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
    """The target's paging, x86-64."""

    levels: int  # 4 or 5
    swap_types: SwapTypes
    zero_pfn: int  # of the shared zero page
    huge_zero_pfn: int | None = None  # first frame of the huge zero page, if allocated
    sme_mask: int = 0  # AMD memory encryption bit of a physical address, 0 if off


ReadTables = Callable[[int, int], bytes]
"""Physical address, byte count -> contents; raises LookupError if not in the target."""


def read_tables(read: ReadTables, addresses: U64) -> tuple[U64, NDArray[np.bool_]]:
    """Table pages at the given physical addresses: shape (T, 512), and which could be read.

    Neighbours are read together. Unreadable tables are rows of zeros.
    """
    tables = np.zeros((len(addresses), ENTRIES), np.uint64)
    readable = np.ones(len(addresses), np.bool_)
    order = np.argsort(addresses, kind="stable")
    ascending = addresses[order]
    breaks = np.flatnonzero(np.diff(ascending.view(np.int64)) != PAGE_SIZE) + 1
    starts = [0, *breaks.tolist()]
    ends = [*breaks.tolist(), len(ascending)]
    for first, last in zip(starts, ends, strict=True):
        for begin in range(first, last, MAX_READ):
            end = min(begin + MAX_READ, last)
            rows = order[begin:end]
            base = int(ascending[begin])
            try:
                data = read(base, (end - begin) * PAGE_SIZE)
            except LookupError:
                for row in rows.tolist():
                    try:
                        one = read(int(addresses[row]), PAGE_SIZE)
                    except LookupError:
                        readable[row] = False
                    else:
                        tables[row] = np.frombuffer(one, np.uint64)
            else:
                tables[rows] = np.frombuffer(data, np.uint64).reshape(-1, ENTRIES)
    return tables, readable


class _Ranges:
    """Disjoint ascending [start, end) address ranges: which one is an address in?"""

    def __init__(self, vmas: Sequence[Vma]) -> None:
        self.start = np.array([vma.start for vma in vmas], np.uint64)
        self.end = np.array([vma.end for vma in vmas], np.uint64)

    def overlaps(self, va: U64, span: int) -> NDArray[np.bool_]:
        """Does [va, va+span) touch any range?"""
        following = np.searchsorted(self.end, va, side="right")
        inside = following < len(self.end)
        start = self.start[np.minimum(following, len(self.end) - 1)]
        touches: NDArray[np.bool_] = inside & (start < va + np.uint64(span))
        return touches

    def index(self, va: U64) -> I64:
        """Range that holds each address, -1 if none."""
        position = np.searchsorted(self.start, va, side="right").astype(np.int64) - 1
        safe = np.maximum(position, 0)
        outside = (position < 0) | (va >= self.end[safe])
        return np.where(outside, np.int64(-1), position)

    def pages_lost(self, va: int, span: int, entries: U32) -> None:
        """Count the pages of [va, va+span) that lie in ranges as unreadable."""
        low = np.maximum(self.start, np.uint64(va))
        high = np.minimum(self.end, np.uint64(va + span))
        lost = np.where(high > low, high - low, np.uint64(0)) >> np.uint64(PAGE_SHIFT)
        entries[:, Entry.UNREADABLE] += lost.astype(np.uint32)


@dataclass
class _Leaves:
    """Present normal entries found so far, one array per table level that had some."""

    va: list[U64]
    pfn: list[U64]
    flags: list[U8]

    def add(self, va: U64, pfn: U64, flags: U8) -> None:
        self.va.append(va)
        self.pfn.append(pfn)
        self.flags.append(flags)


def _count(entries: U32, vma: I64, kind: U8 | Entry, weight: int = 1) -> None:
    np.add.at(entries, (vma, np.asarray(kind, np.intp)), np.uint32(weight))


def _frame_number(entry: U64, layout: Layout) -> U64:
    """PFN of present and PROT_NONE entries.

    PROT_NONE entries store the physical address inverted (L1TF; pgtable-invert.h, 4.19+).
    """
    present = (entry & np.uint64(PRESENT)) != 0
    plain = np.where(present, entry, ~entry)
    mask = np.uint64(PHYSICAL_MASK & ~layout.sme_mask)
    return np.asarray((plain & mask) >> np.uint64(PAGE_SHIFT), np.uint64)


def _mapping_flags(entry: U64, huge: bool) -> U8:
    flags = np.zeros(len(entry), np.uint8)
    mark(flags, (entry & np.uint64(PRESENT)) == 0, MappingFlag.PROT_NONE)
    mark(flags, (entry & np.uint64(RW)) != 0, MappingFlag.WRITE)
    mark(flags, (entry & np.uint64(DIRTY | SAVED_DIRTY)) != 0, MappingFlag.DIRTY)
    if huge:
        flags |= np.uint8(MappingFlag.HUGE)
    return flags


def _leaf(
    va: U64, entry: U64, span: int, ranges: _Ranges, layout: Layout, found: _Leaves, entries: U32
) -> None:
    """Sort the leaf entries of one level: present ones to `found`, the others counted.

    `span` is the bytes one entry maps; a huge entry is expanded to its pages.
    """
    pages = span >> PAGE_SHIFT
    # pmd_present(): a huge PMD being split keeps only PSE.
    bits = PRESENT | PROTNONE | (PSE if pages > 1 else 0)
    present = (entry & np.uint64(bits)) != 0
    swap = ~present & (entry != 0)
    if swap.any():
        vma = ranges.index(va[swap])
        kind = layout.swap_types.entry_of_type()[entry[swap] >> np.uint64(SWP_TYPE_SHIFT)]
        _count(entries, vma[vma >= 0], kind[vma >= 0], pages)
    va, entry = va[present], entry[present]
    pfn = _frame_number(entry, layout)
    flags = _mapping_flags(entry, huge=pages > 1)
    special = (entry & np.uint64(SPECIAL)) != 0
    if pages > 1:
        step = np.arange(pages, dtype=np.uint64)
        # The low bits of a huge entry's frame number hold PAT.
        pfn = ((pfn & ~np.uint64(pages - 1))[:, None] + step).ravel()
        va = (va[:, None] + (step << np.uint64(PAGE_SHIFT))).ravel()
        flags = np.repeat(flags, pages)
        special = np.repeat(special, pages)
        inside = ranges.index(va) >= 0
        va, pfn, flags, special = va[inside], pfn[inside], flags[inside], special[inside]
    zero = _is_zero(pfn, layout)
    special &= ~zero
    for rows, kind in ((zero, Entry.ZERO_PAGE), (special, Entry.SPECIAL)):
        _count(entries, ranges.index(va[rows]), kind)
    normal = ~(zero | special)
    found.add(va[normal], pfn[normal], flags[normal])


def _is_zero(pfn: U64, layout: Layout) -> NDArray[np.bool_]:
    """is_zero_pfn() and is_huge_zero_pmd()."""
    zero: NDArray[np.bool_] = pfn == layout.zero_pfn
    if layout.huge_zero_pfn is not None:
        zero |= (pfn - np.uint64(layout.huge_zero_pfn)) < ENTRIES
    return zero


def walk(read: ReadTables, root: int, vmas: Sequence[Vma], layout: Layout) -> WalkedVmas:
    """Entries of `vmas` (disjoint, ascending) in the page tables at physical address `root`.

    Follows ksm_next_page_pmd_entry() (mm/ksm.c): present PTEs include PROT_NONE ones;
    pte_special ones (the zero page, PFN maps) are counted, not returned.
    """
    entries = np.zeros((len(vmas), len(Entry)), np.uint32)
    found = _Leaves([], [], [])
    ranges = _Ranges(vmas)
    tables = np.array([root & ~(PAGE_SIZE - 1)], np.uint64)
    base = np.zeros(1, np.uint64)
    for level in range(layout.levels - 1, -1, -1) if len(vmas) else ():
        span = 1 << (PAGE_SHIFT + 9 * level)
        content, readable = read_tables(read, tables)
        for lost in base[~readable].tolist():
            ranges.pages_lost(lost, span * ENTRIES, entries)
        va = base[:, None] + np.arange(ENTRIES, dtype=np.uint64) * np.uint64(span)
        wanted = (content != 0) & ranges.overlaps(va, span)
        va, content = va[wanted], content[wanted]
        if level == 0:
            _leaf(va, content, span, ranges, layout, found, entries)
            break
        # A PMD or PUD is a leaf when huge, or not present (a THP being migrated);
        # PROT_NONE huge entries keep PSE.
        table = (content & np.uint64(PRESENT | PSE)) == np.uint64(PRESENT)
        if level <= 2:
            _leaf(va[~table], content[~table], span, ranges, layout, found, entries)
        physical = np.uint64(PHYSICAL_MASK & ~layout.sme_mask)
        tables, base = content[table] & physical, va[table]
    return _by_vma(found, ranges, entries)


def _by_vma(found: _Leaves, ranges: _Ranges, entries: U32) -> WalkedVmas:
    """All leaves in address order, with the offsets of each VMA."""
    va = np.concatenate([np.empty(0, np.uint64), *found.va])
    pfn = np.concatenate([np.empty(0, np.uint64), *found.pfn])
    flags = np.concatenate([np.empty(0, np.uint8), *found.flags])
    if not bool((va[1:] > va[:-1]).all()):  # huge pages were found before the small ones
        order = np.argsort(va, kind="stable")
        va, pfn, flags = va[order], pfn[order], flags[order]
    begin = np.searchsorted(va, ranges.start)
    offset = np.append(begin, len(va)).astype(np.int64)
    start = np.repeat(ranges.start, np.diff(offset))
    page = ((va - start) >> np.uint64(PAGE_SHIFT)).astype(np.uint32)
    return WalkedVmas(offset=offset, pfn=pfn, page=page, flags=flags, entries=entries)
