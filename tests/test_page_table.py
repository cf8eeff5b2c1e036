"""The bulk walk against page tables laid out here, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksm_eval.snapshot import Entry, MappingFlag
from ksm_eval.target import Vma
from ksm_eval.target.page_table import Layout, SwapTypes, walk
from ksm_eval.target.paging_x86 import X86Paging

PAGE = 4096
PRESENT, RW, USER, DIRTY, PSE, PROTNONE, SPECIAL = (1 << b for b in (0, 1, 2, 6, 7, 8, 9))
PHYSICAL = (1 << 52) - PAGE
ZERO_PFN = 7
HUGE_ZERO_PFN = 0x40000
SWAP_TYPES = SwapTypes(marker=1, device=4, migration=3, hwpoison=1)


class Tables:
    """Page tables in a dict of physical pages, built one entry at a time."""

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self.memory: dict[int, bytearray] = {}
        self.next_table = 0x10_0000
        self.root = self._table()

    def _table(self) -> int:
        address = self.next_table
        self.next_table += 2 * PAGE if len(self.memory) % 3 else PAGE  # some are neighbours
        self.memory[address] = bytearray(PAGE)
        return address

    def set(self, va: int, entry: int, level: int = 0) -> None:
        """Store a leaf entry for `va` at `level` (0 PTE, 1 PMD, 2 PUD)."""
        table = self.root
        for above in range(self.levels - 1, level, -1):
            slot = (va >> (12 + 9 * above) & 511) * 8
            link = int.from_bytes(self.memory[table][slot : slot + 8], "little")
            if not link:
                link = self._table() | PRESENT | RW | USER
                self.memory[table][slot : slot + 8] = link.to_bytes(8, "little")
            table = link & PHYSICAL
        slot = (va >> (12 + 9 * level) & 511) * 8
        self.memory[table][slot : slot + 8] = entry.to_bytes(8, "little")

    def read(self, address: int, size: int) -> bytes:
        out = bytearray()
        for page in range(address, address + size, PAGE):
            if page not in self.memory:
                raise LookupError("not in the target")
            out += self.memory[page]
        return bytes(out)


def layout(levels: int, sme_mask: int = 0) -> Layout:
    return Layout(X86Paging(levels, sme_mask), SWAP_TYPES, ZERO_PFN, HUGE_ZERO_PFN)


def prot_none(pfn: int) -> int:
    """As arch/x86/include/asm/pgtable-invert.h: all address bits flipped."""
    return (~(pfn << 12) & PHYSICAL) | PROTNONE | USER


def swap(kind: int, offset: int = 5) -> int:
    return kind << 59 | (~offset << 14 & ((1 << 59) - 1) & ~0x3FFF)


def vma(start: int, pages: int) -> Vma:
    return Vma(start=start, end=start + pages * PAGE, flags=0, name="", reason="")


@pytest.mark.parametrize("levels", [4, 5])
def test_every_kind_of_entry(levels: int) -> None:
    tables = Tables(levels)
    base = 0x7F00_0000_0000 if levels == 4 else 0xFE_7F00_0000_0000
    entries = {
        0: (0x1234 << 12) | PRESENT | RW | DIRTY,
        1: (0x1235 << 12) | PRESENT,
        2: prot_none(0x2000),
        3: (ZERO_PFN << 12) | PRESENT | SPECIAL,
        4: (0x9999 << 12) | PRESENT | SPECIAL,
        5: swap(0),
        6: swap(22),  # 23 swap files below hwpoison at 23
        7: swap(23),  # hwpoison
        8: swap(24),  # migration: 24, 25, 26
        9: swap(26),
        10: swap(27),  # device: 27 to 30
        11: swap(30),
        12: swap(31),  # pte marker
        13: (0x1236 << 12) | PRESENT,
    }
    for page, entry in entries.items():
        tables.set(base + page * PAGE, entry)
    tables.set(base + 14 * PAGE, (0x7777 << 12) | PRESENT)  # outside both VMAs
    vmas = [vma(base, 13), vma(base + 13 * PAGE, 1)]
    walked = walk(tables.read, tables.root, vmas, layout(levels))
    assert walked.offset.tolist() == [0, 3, 4]
    assert walked.pfn.tolist() == [0x1234, 0x1235, 0x2000, 0x1236]
    assert walked.page.tolist() == [0, 1, 2, 0]
    assert walked.flags.tolist() == [
        MappingFlag.WRITE | MappingFlag.DIRTY,
        0,
        MappingFlag.PROT_NONE,
        0,
    ]
    expected = dict.fromkeys(Entry, 0) | {
        Entry.ZERO_PAGE: 1,
        Entry.SPECIAL: 1,
        Entry.SWAP: 2,
        Entry.POISON: 2,
        Entry.MIGRATION: 2,
        Entry.DEVICE: 2,
    }
    assert walked.entries[0].tolist() == [expected[kind] for kind in Entry]
    assert walked.entries[1].sum() == 0


def test_huge_entries_are_cut_at_the_vma() -> None:
    tables = Tables(4)
    base = 0x4000_0000
    tables.set(base, (0x8000 << 12) | PRESENT | PSE | RW | 1 << 12, level=1)  # bit 12 is PAT
    tables.set(base + (2 << 20), prot_none(0x8200) | PSE, level=1)
    tables.set(base + (4 << 20), (HUGE_ZERO_PFN << 12) | PRESENT | PSE, level=1)
    tables.set(base + (6 << 20), swap(25), level=1)  # a THP being migrated
    start = base + 510 * PAGE
    walked = walk(tables.read, tables.root, [vma(start, 512 * 3 + 2)], layout(4))
    assert walked.pfn.tolist() == [0x8000 + 510, 0x8000 + 511, *range(0x8200, 0x8400)]
    assert walked.page.tolist() == list(range(514))
    assert set(walked.flags[:2].tolist()) == {MappingFlag.HUGE | MappingFlag.WRITE}
    assert set(walked.flags[2:].tolist()) == {MappingFlag.HUGE | MappingFlag.PROT_NONE}
    assert walked.entries[0][Entry.ZERO_PAGE] == 512
    assert walked.entries[0][Entry.MIGRATION] == 512


def test_one_gigabyte_entry() -> None:
    tables = Tables(4)
    base = 0x40_0000_0000
    tables.set(base, (0x40_0000 << 12) | PRESENT | PSE, level=2)
    walked = walk(tables.read, tables.root, [vma(base + (1 << 29), 3)], layout(4))
    assert walked.pfn.tolist() == [0x40_0000 + (1 << 17) + n for n in range(3)]


def test_a_table_outside_the_target_is_counted_not_guessed() -> None:
    tables = Tables(4)
    base = 0x5000_0000
    tables.set(base, (0x11 << 12) | PRESENT)
    tables.set(base + (2 << 20), 0xDEAD_0000 | PRESENT, level=1)
    walked = walk(tables.read, tables.root, [vma(base, 512 + 100)], layout(4))
    assert walked.pfn.tolist() == [0x11]
    assert walked.entries[0][Entry.UNREADABLE] == 100


def test_memory_encryption_bit_is_no_address() -> None:
    tables = Tables(4)
    mask = 1 << 47
    tables.set(0x1000, (0x55 << 12) | PRESENT | mask)
    walked = walk(tables.read, tables.root, [vma(0x1000, 1)], layout(4, mask))
    assert walked.pfn.tolist() == [0x55]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([4, 5]),
    st.dictionaries(
        st.integers(0, 3000), st.tuples(st.integers(8, 1 << 30), st.booleans()), max_size=200
    ),
    st.lists(st.integers(0, 3001), min_size=2, max_size=12, unique=True),
)
def test_random_layouts(levels: int, mapped: dict[int, tuple[int, bool]], cuts: list[int]) -> None:
    """Every second stretch between the cuts is a VMA; exactly its pages come out, in order."""
    tables = Tables(levels)
    base = 0x7FFF_F000_0000
    for page, (pfn, readable) in mapped.items():
        entry = (pfn << 12) | PRESENT if readable else prot_none(pfn)
        tables.set(base + page * PAGE, entry)
    bounds = sorted(cuts)
    vmas = [
        vma(base + low * PAGE, high - low)
        for low, high in zip(bounds[::2], bounds[1::2], strict=False)
    ]
    walked = walk(tables.read, tables.root, vmas, layout(levels))
    expected = [
        [(page, *mapped[page]) for page in sorted(mapped) if low <= page < high]
        for low, high in zip(bounds[::2], bounds[1::2], strict=False)
    ]
    assert np.diff(walked.offset).tolist() == [len(rows) for rows in expected]
    flat = [row for rows in expected for row in rows]
    assert walked.pfn.tolist() == [pfn for _, pfn, _ in flat]
    starts = np.repeat([v.start for v in vmas], np.diff(walked.offset))
    pages = (starts + walked.page.astype(np.int64) * PAGE - base) // PAGE
    assert pages.tolist() == [page for page, _, _ in flat]
    assert ((walked.flags & MappingFlag.PROT_NONE) == 0).tolist() == [r for _, _, r in flat]


FLAGS = {
    PRESENT: MappingFlag(0),
    PRESENT | DIRTY: MappingFlag.DIRTY,
    PRESENT | RW: MappingFlag.WRITE,
    PRESENT | RW | DIRTY: MappingFlag.WRITE | MappingFlag.DIRTY,
    PROTNONE: MappingFlag.PROT_NONE,
}
FULL, SECOND, SPECIALS, THP, NONE = "full", "every second entry", "two special entries", "a THP", ""


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([FULL, FULL, FULL, SECOND, SPECIALS, THP, NONE]),
            st.sampled_from(list(FLAGS)),
            st.sampled_from(list(FLAGS)),  # of the second half
            st.sampled_from([1 << 9, 1 << 20, 1 << 33]),  # first PFN
        ),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.integers(0, 12 * 512), min_size=2, max_size=8, unique=True),
    st.sampled_from([1, 3, 1 << 6]),
)
def test_whole_tables(tables: list[tuple[str, int, int, int]], cuts: list[int], block: int) -> None:
    """Tables whose entries are alike, which are decoded at once, among others."""
    memory, base = Tables(4), 0x7F00_0000_0000
    expected: dict[int, tuple[int, MappingFlag]] = {}
    for number, (kind, bits, more_bits, first) in enumerate(tables):
        pfn = first + number * 512
        if kind == THP:
            entry = (pfn << 12) | PSE | PRESENT if bits & PRESENT else prot_none(pfn) | PSE
            memory.set(base + number * (2 << 20), entry | bits & (RW | DIRTY), level=1)
        for page in range(512):
            at, own = number * 512 + page, bits if kind == THP or page < 256 else more_bits
            flags = FLAGS[own] | (MappingFlag.HUGE if kind == THP else 0)
            if kind == NONE or (kind == SECOND and page % 2):
                continue
            special = kind == SPECIALS and page in (0, 300)
            if not special:
                expected[at] = pfn + page, flags
            if kind != THP:
                address = ((pfn + page) << 12) if own & PRESENT else prot_none(pfn + page)
                memory.set(base + at * PAGE, address | own | (SPECIAL if special else 0))
    bounds = sorted(cuts)
    ranges = list(zip(bounds[::2], bounds[1::2], strict=False))
    vmas = [vma(base + low * PAGE, high - low) for low, high in ranges]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ksm_eval.target.page_table._BLOCK", block * PAGE)
        walked = walk(memory.read, memory.root, vmas, layout(4))
    wanted = [[page for page in range(low, high) if page in expected] for low, high in ranges]
    flat = [expected[page] for pages in wanted for page in pages]
    assert np.diff(walked.offset).tolist() == list(map(len, wanted))
    assert walked.pfn.tolist() == [pfn for pfn, _ in flat]
    assert walked.flags.tolist() == [int(flags) for _, flags in flat]
    assert walked.page.tolist() == [
        page - low for (low, _), pages in zip(ranges, wanted, strict=True) for page in pages
    ]
