"""The arm64 walk against tables laid out here, and what real targets say of their paging."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ksm_eval.snapshot import Entry, MappingFlag
from ksm_eval.target import Vma, paging_arm64, paging_x86
from ksm_eval.target.features import has_symbol
from ksm_eval.target.page_table import Layout, SwapTypes, walk
from ksm_eval.target.paging_arm64 import PMD_PRESENT_INVALID, PROT_NONE, Arm64Paging
from ksm_eval.target.program import open_core
from tests.fixtures import NAMES, vmcore

VALID, TABLE, AF, DBM, SW_DIRTY, SPECIAL, CONT = (1 << b for b in (0, 1, 10, 51, 55, 56, 52))
USER, READ_ONLY, INNER_SHAREABLE, NOT_GLOBAL, XN = 1 << 6, 1 << 7, 3 << 8, 1 << 11, 3 << 53
ZERO_PFN, HUGE_ZERO_PFN = 0x41_000, 0x80_0000
SWAP_TYPES = SwapTypes(marker=1, device=4, migration=3, hwpoison=1)
BEFORE_6_10 = PROT_NONE | PMD_PRESENT_INVALID


@dataclass
class Tables:
    """Page tables in a dict of physical pages. With `lpa2` no entry tells its shareability."""

    page_shift: int
    va_bits: int
    levels: int
    lpa2: bool = False
    memory: dict[int, bytearray] = field(default_factory=dict)
    next_table: int = 0x4000_0000  # where RAM starts on most machines
    root: int = 0

    def __post_init__(self) -> None:
        # A root table of a few entries is from a slab, so it need not begin a page.
        top_bits = self.va_bits - self._shift(self.levels - 1)
        inside = 1 << top_bits + 3
        self.root = self._table() + (inside if inside < self.page >> 1 else 0)

    @property
    def page(self) -> int:
        return 1 << self.page_shift

    def _shift(self, level: int) -> int:
        return self.page_shift + (self.page_shift - 3) * level

    def _table(self) -> int:
        address = self.next_table
        self.next_table += self.page * (2 if len(self.memory) % 3 else 1)  # some are neighbours
        self.memory[address] = bytearray(self.page)
        return address

    def address_bits(self, pfn: int) -> int:
        physical = pfn << self.page_shift
        if self.page_shift == 16:
            return physical & ((1 << 48) - 1) | physical >> 48 << 12
        if self.lpa2:
            return physical & ((1 << 50) - 1) | physical >> 50 << 8
        return physical

    def page_entry(self, pfn: int, bits: int = 0) -> int:
        """A read-only, clean PTE; or a block if TABLE is in `bits`, which takes it away."""
        shareable = 0 if self.lpa2 else INNER_SHAREABLE
        entry = VALID | TABLE | AF | USER | READ_ONLY | NOT_GLOBAL | XN | shareable
        return self.address_bits(pfn) | entry ^ bits

    def set(self, va: int, entry: int, level: int = 0) -> None:
        table = self.root
        for above in range(self.levels - 1, level - 1, -1):
            slots = self.page >> 3
            if above == self.levels - 1:
                slots = 1 << self.va_bits - self._shift(above)
            slot = (va >> self._shift(above)) % slots * 8 + table % self.page
            memory = self.memory[table - table % self.page]
            if above == level:
                memory[slot : slot + 8] = entry.to_bytes(8, "little")
                return
            link = int.from_bytes(memory[slot : slot + 8], "little")
            if not link:
                # pgd_populate() and the like set PXNTable (59) for user tables.
                link = self.address_bits(self._table() >> self.page_shift) | VALID | TABLE | 1 << 59
                memory[slot : slot + 8] = link.to_bytes(8, "little")
            table = self.physical(link)

    def physical(self, link: int) -> int:
        high = (link >> 12 & 15) << 48 if self.page_shift == 16 else 0
        return link & ((1 << 48) - self.page) | high

    def read(self, address: int, size: int) -> bytes:
        out = bytearray()
        while size:
            inside = address % self.page
            page = self.memory.get(address - inside)
            if page is None:
                raise LookupError("not in the target")
            part = page[inside : inside + size]
            out += part
            address, size = address + len(part), size - len(part)
        return bytes(out)

    def layout(self, invalid_bits: int = NOT_GLOBAL, swap_type_shift: int = 6) -> Layout:
        paging = Arm64Paging(self.page_shift, self.va_bits, invalid_bits, swap_type_shift)
        assert paging.levels == self.levels
        return Layout(paging, SWAP_TYPES, ZERO_PFN, HUGE_ZERO_PFN)

    def vma(self, start: int, pages: int) -> Vma:
        return Vma(start=start, end=start + pages * self.page, flags=0, name="", reason="")


# Page shift, bits of user addresses, levels: arch/arm64/Kconfig, PGTABLE_LEVELS; the last
# three are 52-bit ones.
SHAPES = [(12, 39, 3), (12, 48, 4), (14, 36, 2), (14, 47, 3), (14, 48, 4), (16, 42, 2),
          (16, 48, 3), (12, 52, 5), (14, 52, 4), (16, 52, 3)]  # fmt: skip
TOP_ENTRIES = [512, 512, 2048, 2048, 2, 8192, 64, 16, 32, 1024]


def make(shape: tuple[int, int, int]) -> Tables:
    page_shift, va_bits, levels = shape
    return Tables(page_shift, va_bits, levels, lpa2=va_bits == 52 and page_shift != 16)


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{1 << shape[0] - 10}k-{shape[1]}")
def tables(request: pytest.FixtureRequest) -> Tables:
    return make(request.param)


def test_shape(tables: Tables) -> None:
    """PTRS_PER_PGD and CONFIG_PGTABLE_LEVELS of each configuration."""
    paging = tables.layout().paging
    shape = (tables.page_shift, tables.va_bits, tables.levels)
    assert paging.top_entries == TOP_ENTRIES[SHAPES.index(shape)]


def prot_none(tables: Tables, pfn: int) -> int:
    """PAGE_NONE: to the hardware, which sees VALID only, nothing is there."""
    return tables.page_entry(pfn, VALID | USER)


def test_every_kind_of_entry(tables: Tables) -> None:
    entry, none = tables.page_entry, prot_none
    top = (1 << tables.va_bits) - 64 * tables.page  # in the last entry of the root
    entries = {
        0: entry(0x41234, DBM),  # writable, clean
        1: entry(0x41235),
        2: entry(0x41236, DBM | READ_ONLY),  # the hardware made it dirty
        3: entry(0x41237, SW_DIRTY),  # dirty, then write-protected
        4: none(tables, 0x42000),
        5: entry(0x42001, CONT),
        6: entry(ZERO_PFN, SPECIAL),
        7: entry(0x9999, SPECIAL),
        8: 5 << 12 | 0 << 6,
        9: 5 << 12 | 22 << 6 | 1 << 2,  # exclusive; 23 swap files, below hwpoison
        10: 0x41300 << 12 | 23 << 6,  # hwpoison
        11: 0x41300 << 12 | 24 << 6,  # migration: 24, 25, 26
        12: 0x41300 << 12 | 26 << 6,
        13: 0x41300 << 12 | 27 << 6,  # device: 27 to 30
        14: 1 << 12 | 31 << 6,  # pte marker
        15: entry(0x41238),
    }
    for page, value in entries.items():
        tables.set(top + page * tables.page, value)
    tables.set(top + 16 * tables.page, entry(0x7777))  # outside both VMAs
    vmas = [tables.vma(top, 15), tables.vma(top + 15 * tables.page, 1)]
    walked = walk(tables.read, tables.root, vmas, tables.layout())
    assert walked.offset.tolist() == [0, 6, 7]
    assert walked.pfn.tolist() == [0x41234, 0x41235, 0x41236, 0x41237, 0x42000, 0x42001, 0x41238]
    assert walked.page.tolist() == [0, 1, 2, 3, 4, 5, 0]
    write, dirty = MappingFlag.WRITE, MappingFlag.DIRTY
    assert walked.flags.tolist() == [write, 0, write | dirty, dirty, MappingFlag.PROT_NONE, 0, 0]
    expected = dict.fromkeys(Entry, 0) | {
        Entry.ZERO_PAGE: 1,
        Entry.SPECIAL: 1,
        Entry.SWAP: 2,
        Entry.POISON: 2,
        Entry.MIGRATION: 2,
        Entry.DEVICE: 1,
    }
    assert walked.entries[0].tolist() == [expected[kind] for kind in Entry]
    assert walked.entries[1].sum() == 0


@pytest.mark.parametrize(("swap_type_shift", "exclusive"), [(3, 1 << 2), (2, 0)])
def test_entries_before_6_10(swap_type_shift: int, exclusive: int) -> None:
    """PROT_NONE is bit 58; bit 11 is of the swap offset, and so says nothing. Before 5.19
    the type of a swap entry began at bit 2."""
    tables = make((12, 48, 4))
    base = 0x40_0000
    tables.set(base, prot_none(tables, 0x42000) | 1 << 58)
    for page, kind in enumerate((0, 22, 24, 31), 1):
        offset = 0b1001 << 8  # reaches bit 11
        tables.set(base + page * 4096, offset | kind << swap_type_shift | exclusive)
    layout = tables.layout(BEFORE_6_10, swap_type_shift)
    walked = walk(tables.read, tables.root, [tables.vma(base, 5)], layout)
    assert walked.pfn.tolist() == [0x42000]
    assert walked.flags.tolist() == [MappingFlag.PROT_NONE]
    kinds = {Entry.SWAP: 2, Entry.MIGRATION: 1, Entry.POISON: 1}
    assert {
        kind: int(walked.entries[0][kind]) for kind in Entry if walked.entries[0][kind]
    } == kinds


def test_blocks_are_cut_at_the_vma(tables: Tables) -> None:
    pages = tables.page >> 3
    block = pages * tables.page
    base = 4 * block
    first, second = 16 * pages, 17 * pages  # PFNs of two huge pages
    tables.set(base, tables.page_entry(first, TABLE | DBM), level=1)
    tables.set(base + block, prot_none(tables, second) ^ TABLE, level=1)
    tables.set(base + 2 * block, tables.page_entry(HUGE_ZERO_PFN, TABLE), level=1)
    tables.set(base + 3 * block, first << 12 | 25 << 6, level=1)  # a THP being migrated
    vma = tables.vma(base + (pages - 2) * tables.page, pages * 3 + 2)
    walked = walk(tables.read, tables.root, [vma], tables.layout())
    assert walked.pfn.tolist() == [first + pages - 2, first + pages - 1,
                                   *range(second, second + pages)]  # fmt: skip
    assert walked.page.tolist() == list(range(pages + 2))
    assert set(walked.flags[:2].tolist()) == {MappingFlag.HUGE | MappingFlag.WRITE}
    assert set(walked.flags[2:].tolist()) == {MappingFlag.HUGE | MappingFlag.PROT_NONE}
    assert walked.entries[0][Entry.ZERO_PAGE] == pages
    assert walked.entries[0][Entry.MIGRATION] == pages


def test_a_thp_being_split_before_6_10() -> None:
    """pmd_mkinvalid(): PMD_PRESENT_INVALID for VALID."""
    tables = make((12, 48, 4))
    tables.set(0x20_0000, tables.page_entry(0x4_0200, TABLE | VALID) | 1 << 59, level=1)
    vma = tables.vma(0x20_0000, 512)
    walked = walk(tables.read, tables.root, [vma], tables.layout(BEFORE_6_10, 3))
    assert walked.pfn.tolist() == list(range(0x4_0200, 0x4_0400))


def test_one_gigabyte_block() -> None:
    tables = make((12, 48, 4))
    base = 0x40_0000_0000
    tables.set(base, tables.page_entry(0x40_0000, TABLE), level=2)
    vma = tables.vma(base + (1 << 29), 3)
    walked = walk(tables.read, tables.root, [vma], tables.layout())
    assert walked.pfn.tolist() == [0x40_0000 + (1 << 17) + n for n in range(3)]


def test_52_bit_physical_addresses(tables: Tables) -> None:
    """Only entries that have room for them: 64 KiB pages, and LPA2."""
    if tables.page_shift != 16 and not tables.lpa2:
        assert tables.layout().paging.address(np.array([INNER_SHAREABLE], np.uint64))[0] == 0
        return
    pfns = [0xF_1234_5678_0000 >> tables.page_shift, 0x5_FFFF_FFFF_0000 >> tables.page_shift]
    for page, pfn in enumerate(pfns):
        tables.set(page * tables.page, tables.page_entry(pfn))
    walked = walk(tables.read, tables.root, [tables.vma(0, 2)], tables.layout())
    assert walked.pfn.tolist() == pfns


def test_a_table_outside_the_target_is_counted_not_guessed(tables: Tables) -> None:
    pages = tables.page >> 3
    block = pages * tables.page
    tables.set(2 * block, tables.page_entry(0x40011))
    tables.set(3 * block, 0xDEAD_0000 | VALID | TABLE, level=1)
    vma = tables.vma(2 * block, pages + 100)
    walked = walk(tables.read, tables.root, [vma], tables.layout())
    assert walked.pfn.tolist() == [0x40011]
    assert walked.entries[0][Entry.UNREADABLE] == 100


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.dictionaries(
        st.integers(0, 9000), st.tuples(st.integers(1 << 18, 1 << 30), st.booleans()), max_size=200
    ),
    st.lists(st.integers(0, 9001), min_size=2, max_size=12, unique=True),
)
def test_random_layouts(
    shape: tuple[int, int, int], mapped: dict[int, tuple[int, bool]], cuts: list[int]
) -> None:
    """Every second stretch between the cuts is a VMA; exactly its pages come out, in order."""
    tables = make(shape)
    mapped = {
        page: (pfn, ok) for page, (pfn, ok) in mapped.items() if not 0 <= pfn - HUGE_ZERO_PFN < 8192
    }
    base = (1 << tables.va_bits) - 9472 * tables.page
    for page, (pfn, readable) in mapped.items():
        entry = tables.page_entry(pfn) if readable else prot_none(tables, pfn)
        tables.set(base + page * tables.page, entry)
    bounds = sorted(cuts)
    stretches = list(zip(bounds[::2], bounds[1::2], strict=False))
    vmas = [tables.vma(base + low * tables.page, high - low) for low, high in stretches]
    walked = walk(tables.read, tables.root, vmas, tables.layout())
    expected = [
        [(page - low, *mapped[page]) for page in sorted(mapped) if low <= page < high]
        for low, high in stretches
    ]
    assert np.diff(walked.offset).tolist() == [len(rows) for rows in expected]
    flat = [row for rows in expected for row in rows]
    assert walked.page.tolist() == [page for page, _, _ in flat]
    assert walked.pfn.tolist() == [pfn for _, pfn, _ in flat]
    assert ((walked.flags & MappingFlag.PROT_NONE) == 0).tolist() == [ok for _, _, ok in flat]


ARM64 = {
    "aarch64-6.12-4k": (12, 48, 4, 512),
    "aarch64-6.12-16k": (14, 48, 4, 2),
    "aarch64-6.12-64k": (16, 48, 3, 64),
}
"""Page shift, VA bits, PGTABLE_LEVELS of each configuration, and entries of a root table."""


@pytest.mark.parametrize("name", ARM64)
def test_paging_of_a_target(name: str) -> None:
    prog = open_core(vmcore(name)).prog
    paging = paging_arm64.paging(prog)
    shape = (paging.page_shift, paging.va_bits, paging.levels, paging.top_entries)
    assert shape == ARM64[name]
    assert (paging.invalid_bits, paging.swap_type_shift) == (1 << 11, 6)  # 6.12
    # What a kernel without KALLSYMS_ALL, and so without protection_map, is asked.
    assert has_symbol(prog, "__arm64_sys_mseal")


@pytest.mark.parametrize("name", NAMES)
def test_zero_page_by_its_symbol(name: str) -> None:
    """Where the variable zero_pfn has no symbol: the page is in the kernel's image, not in
    the direct map."""
    prog = open_core(vmcore(name)).prog
    image = paging_arm64 if name.startswith("aarch64") else paging_x86
    physical = image.image_to_physical(prog, prog.symbol("empty_zero_page").address)
    page_size = prog["PAGE_SIZE"].value_()
    assert physical == prog["zero_pfn"].value_() * page_size
    assert physical is not None
    assert prog.read(physical, page_size, True) == bytes(page_size)
