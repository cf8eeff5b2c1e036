"""struct page as later and earlier kernels have it, laid out here word by word."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from ksm_eval.snapshot import NO_COMPOUND, Entry, FrameFlag
from ksm_eval.target.frames import PageLayout, classify, identities

BASE = 0xFFFF_EA00_0000_0000
BITS = {
    "PG_head": 6,
    "PG_lru": 5,
    "PG_swapbacked": 17,
    "PG_swapcache": 10,
    "PG_anon_exclusive": 11,
}
LRU, SWAPBACKED, SWAPCACHE, EXCLUSIVE, HEAD = (
    1 << BITS[name]
    for name in ("PG_lru", "PG_swapbacked", "PG_swapcache", "PG_anon_exclusive", "PG_head")
)
LAYOUT = PageLayout(
    base=BASE,
    size=64,
    flags=0,
    head=8,
    mapping=24,
    index=32,
    mapcount=48,
    refcount=52,
    entire_mapcount=64 + 20,
    large_mapcount=64 + 16,
    order=None,
    bits=BITS,
    node_shift=54,
    node_mask=0x3FF,
    zone_shift=51,
    zone_mask=7,
    zone_device=4,
)
ANON, KSM = 0xFFFF_8880_0000_0001, 0xFFFF_8880_0000_0003


class Pages:
    """A vmemmap of free pages; holes raise as an unmapped address does."""

    def __init__(self, count: int) -> None:
        self.memory = bytearray(64 * count)
        self.holes: set[int] = set()
        for pfn in range(count):
            self.put(pfn, 48, "<i", -1)

    def put(self, pfn: int, offset: int, form: str, value: int) -> None:
        struct.pack_into(form, self.memory, pfn * 64 + offset, value)

    def page(self, pfn: int, *, flags: int, mapping: int, mapcount: int, refs: int) -> None:
        self.put(pfn, 0, "<Q", flags)
        self.put(pfn, 24, "<Q", mapping)
        self.put(pfn, 48, "<i", mapcount - 1)
        self.put(pfn, 52, "<i", refs)

    def compound(self, head: int, order: int, *, by_mask: bool) -> None:
        for pfn in range(head + 1, head + (1 << order)):
            mask = (1 << 64) - (64 << order)
            self.put(pfn, 8, "<Q", (mask if by_mask else BASE + head * 64) | 1)
        self.put(head + 1, 0, "<Q", order)

    def read(self, address: int, size: int) -> bytes:
        first = (address - BASE) // 64
        end = address - BASE + size
        if end > len(self.memory) or any(
            pfn in self.holes for pfn in range(first, first + -(-size // 64))
        ):
            raise LookupError("not in the target")
        return bytes(self.memory[address - BASE : end])


def found(pages: Pages, pfns: list[int], layout: PageLayout = LAYOUT, max_pfn: int = 1 << 20):  # type: ignore[no-untyped-def]
    return classify(pages.read, layout, np.array(pfns, np.uint64), max_pfn)


def test_small_pages() -> None:
    pages = Pages(16)
    pages.page(1, flags=LRU, mapping=ANON, mapcount=2, refs=2)
    pages.page(2, flags=LRU, mapping=ANON, mapcount=1, refs=2)  # one more: pinned
    pages.page(3, flags=0, mapping=ANON, mapcount=1, refs=2)  # one more: of an LRU batch
    pages.page(4, flags=0, mapping=ANON, mapcount=1, refs=3)
    pages.page(5, flags=LRU | SWAPBACKED | SWAPCACHE, mapping=ANON, mapcount=1, refs=2)
    pages.page(6, flags=LRU | SWAPCACHE, mapping=ANON, mapcount=1, refs=2)  # another meaning
    pages.page(7, flags=LRU, mapping=KSM, mapcount=9, refs=9)
    pages.page(8, flags=LRU, mapping=0xFFFF_8880_0000_0000, mapcount=1, refs=2)  # of a file
    pages.page(9, flags=LRU | EXCLUSIVE | 3 << 54, mapping=ANON, mapcount=1, refs=1)
    pages.page(10, flags=LRU | 4 << 51, mapping=ANON, mapcount=1, refs=1)  # ZONE_DEVICE
    table = found(pages, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], max_pfn=11)
    assert table.entry.tolist() == [
        *[Entry.CANDIDATE] * 7,
        Entry.FILE,
        Entry.CANDIDATE,
        Entry.DEVICE,
        Entry.SPECIAL,  # past max_pfn
    ]
    assert set(table.compound.tolist()) == {NO_COMPOUND}
    pinned, swapcache = FrameFlag.PINNED, FrameFlag.SWAPCACHE
    assert table.flags[:7].tolist() == [0, pinned, 0, pinned, swapcache, pinned, FrameFlag.KSM]
    assert table.flags[8] == FrameFlag.EXCLUSIVE
    assert table.node.tolist() == [0] * 8 + [3, 0, 0]
    assert table.mapcount[:7].tolist() == [2, 1, 1, 1, 1, 1, 9]


@pytest.mark.parametrize("by_mask", [False, True], ids=["compound_head", "compound_info, 7.1+"])
@pytest.mark.parametrize("order", [2, 4, 9])
def test_compound_pages(by_mask: bool, order: int) -> None:
    """Mapped whole by two processes, and page 1 of it by a third."""
    size = 1 << order
    pages = Pages(3 * size)
    pages.page(size, flags=LRU | HEAD, mapping=ANON, mapcount=0, refs=3)
    pages.compound(size, order, by_mask=by_mask)
    pages.put(size + 1, 20, "<i", 2 - 1)  # _entire_mapcount
    pages.put(size + 1, 16, "<i", 3 - 1)  # _large_mapcount
    pages.put(size + 1, 48, "<i", 1 - 1)
    pages.page(2 * size, flags=LRU, mapping=ANON, mapcount=1, refs=1)
    pfns = [size, size + 1, 2 * size - 1, 2 * size]
    table = found(pages, pfns)
    assert set(table.entry.tolist()) == {Entry.CANDIDATE}
    assert table.compound.tolist() == [0, 0, 0, NO_COMPOUND]
    assert table.compounds.head.tolist() == [size]
    assert table.compounds.pages.tolist() == [size]
    assert table.compounds.pmd_mapcount.tolist() == [2]
    assert table.mapcount.tolist() == [2, 3, 2, 1]
    assert table.compounds.pinned.tolist() == [False]
    pages.put(size, 52, "<i", 4)
    assert found(pages, pfns).compounds.pinned.tolist() == [True]


def test_compound_pages_until_6_1() -> None:
    """Total mappings are a sum over the subpages; with PG_double_map each counts the PMD."""
    layout = replace(LAYOUT, large_mapcount=None, order=64 + 17, bits={**BITS, "PG_double_map": 8})
    pages = Pages(16)
    pages.page(4, flags=LRU | HEAD, mapping=ANON, mapcount=1, refs=1 + 2)
    pages.compound(4, 2, by_mask=False)
    pages.put(5, 0, "<Q", 1 << 8)
    pages.put(5, 17, "<B", 2)
    pages.put(5, 20, "<i", 1 - 1)  # mapped whole once, pages 1 and 2 by PTE as well
    for pfn, mapcount in ((4, 1), (5, 2), (6, 2), (7, 1)):
        pages.put(pfn, 48, "<i", mapcount - 1)
    table = found(pages, [4, 5, 6, 7], layout)
    assert table.mapcount.tolist() == [1, 2, 2, 1]
    assert table.compound.tolist() == [0] * 4
    assert table.compounds.pages.tolist() == [4]
    assert not table.compounds.pinned.any()
    pages.put(4, 52, "<i", 4)
    assert found(pages, [4, 5, 6, 7], layout).compounds.pinned.tolist() == [True]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7])
def test_compounds_in_several_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Some begin in one block of struct pages and end in the next, or go through three."""
    pages = Pages(64)
    expected: list[int | None] = []
    pfns: list[int] = []
    for pfn, order in ((4, 2), (8, 1), (16, 3), (24, 3), (33, 0), (34, 1), (36, 2)):
        pages.page(pfn, flags=LRU | (HEAD if order else 0), mapping=ANON, mapcount=1, refs=1)
        if order:
            pages.compound(pfn, order, by_mask=False)
            pages.put(pfn + 1, 20, "<i", -1)
            pages.put(pfn + 1, 16, "<i", 1 - 1)
        pfns += range(pfn, pfn + (1 << order))
        expected += [pfn if order else None] * (1 << order)
    monkeypatch.setattr("ksm_eval.target.frames.BLOCK", block)
    table = found(pages, pfns)
    heads = [*table.compounds.head.tolist(), None]
    rows = [row if row != NO_COMPOUND else -1 for row in table.compound.tolist()]
    assert [heads[row] for row in rows] == expected
    assert table.compounds.head.tolist() == [4, 8, 16, 24, 34, 36]
    assert table.compounds.pages.tolist() == [4, 2, 8, 8, 2, 4]


def test_struct_pages_that_cannot_be_read() -> None:
    pages = Pages(200)
    for pfn in range(1, 200, 3):
        pages.page(pfn, flags=LRU, mapping=ANON, mapcount=1, refs=1)
    pages.holes = {4, 10}
    pfns = list(range(1, 200, 3))
    table = found(pages, pfns)
    lost = [pfn for pfn, kind in zip(pfns, table.entry, strict=True) if kind == Entry.UNREADABLE]
    assert lost == [4, 10]
    assert int((table.entry == Entry.CANDIDATE).sum()) == len(pfns) - 2


def test_nothing_to_classify() -> None:
    assert len(found(Pages(1), []).entry) == 0


def test_pages_that_wait_in_a_batch() -> None:
    """A reference of a per-CPU batch is no pin, off the LRU or on it."""
    pages = Pages(16)
    pages.page(1, flags=LRU, mapping=ANON, mapcount=1, refs=2)
    pages.page(2, flags=LRU, mapping=ANON, mapcount=1, refs=3)  # batched and pinned
    pages.page(3, flags=0, mapping=ANON, mapcount=1, refs=2)
    pages.page(4, flags=LRU, mapping=ANON, mapcount=1, refs=2)  # pinned
    batched = {BASE + pfn * 64: 1 for pfn in (1, 2, 3, 9)}  # 9: of nobody that was asked about
    pfns = np.array([1, 2, 3, 4], np.uint64)
    table = classify(pages.read, LAYOUT, pfns, 1 << 20, batched)
    pinned = FrameFlag.PINNED
    assert table.flags.tolist() == [0, pinned, 0, pinned]


def test_identities() -> None:
    """What makes a frame another page: freed, another's, part of another compound."""
    pages = Pages(16)
    for pfn in range(1, 8):
        pages.page(pfn, flags=LRU, mapping=ANON, mapcount=1, refs=1)
        pages.put(pfn, 32, "<Q", 100 + pfn)
    pfns = np.arange(1, 9, dtype=np.uint64)
    before = identities(pages.read, LAYOUT, pfns)
    assert len(set(before.tolist())) == len(pfns)
    pages.page(1, flags=0, mapping=ANON, mapcount=5, refs=9)  # still the same page
    pages.put(2, 24, "<Q", 0)
    pages.put(3, 24, "<Q", ANON + 64)
    pages.put(4, 32, "<Q", 7)
    pages.page(5, flags=LRU | HEAD, mapping=ANON, mapcount=1, refs=1)
    pages.compound(5, 1, by_mask=False)
    pages.holes = {7}
    after = identities(pages.read, LAYOUT, pfns)
    changed = before != after
    assert (np.flatnonzero(changed) + 1).tolist() == [2, 3, 4, 6, 7]
