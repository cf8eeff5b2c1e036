"""struct page in bulk: what each frame is to ksmd."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from drgn import Program
from drgn.helpers.linux.mm import pfn_to_page
from numpy.typing import NDArray

from ksm_eval.errors import TargetError
from ksm_eval.snapshot import (
    I64,
    NO_COMPOUND,
    U8,
    U64,
    Compounds,
    Entry,
    FrameFlag,
    Pfns,
    mark,
)
from ksm_eval.target import FrameTable, group_compounds
from ksm_eval.target.features import enum_value, vmcoreinfo_number

BLOCK = 1 << 16  # struct pages in memory at once: 4 MiB
GAP = 64  # struct pages that may be read for nothing to join two runs

_MIX = secrets.randbits(64) | 1  # nobody outside knows which identities collide

MAPPING_ANON = 1  # PAGE_MAPPING_ANON / FOLIO_MAPPING_ANON, include/linux/page-flags.h
MAPPING_KSM = 3  # ANON | MOVABLE, until 6.17; ANON | ANON_KSM since: the same bits

Read = Callable[[int, int], bytes]
"""Virtual address, byte count -> contents; raises LookupError if not in the target."""


@dataclass(frozen=True)
class PageLayout:
    """Offsets and bit numbers of struct page, from the target's debug info."""

    base: int  # vmemmap
    size: int
    flags: int
    head: int  # compound_head, compound_info since 7.1
    mapping: int
    index: int | None
    mapcount: int
    refcount: int
    entire_mapcount: int  # from the head page
    large_mapcount: int | None  # from the head page; 6.10+
    order: int | None  # compound_order, a byte from the head page; None: low byte of page[1].flags
    bits: dict[str, int]  # enum pageflags
    node_shift: int
    node_mask: int
    zone_shift: int
    zone_mask: int
    zone_device: int  # -1 if the kernel has none


def _offset(prog: Program, kind: str, *names: str) -> int | None:
    """Offset of the first of the members that exists in `kind`; None also if there is no such
    type (struct folio, 5.16+)."""
    try:
        members = prog.type(kind)
    except LookupError:
        return None
    for name in names:
        with suppress(LookupError):
            return int(members.member(name).bit_offset) // 8
    return None


def _required(prog: Program, kind: str, *names: str) -> int:
    offset = _offset(prog, kind, *names)
    if offset is None:
        raise TargetError(f"{kind} has no {names[0]} in this kernel", "it is not supported yet")
    return offset


def _vmemmap(prog: Program) -> int:
    """Address of the struct page of PFN 0, whether or not there is such a page."""
    try:
        return int(pfn_to_page(prog, 0).value_())
    except LookupError:
        # 5.10's BTF lacks vmemmap_populate(), by which drgn knows that there is a vmemmap.
        return int(prog["vmemmap_base"].value_())  # x86-64, 4.20+


def page_layout(prog: Program) -> PageLayout:
    """Raises TargetError where struct page is not as any kernel from 5.10 to 7.3 has it."""
    size = prog.type("struct page").size
    assert size is not None
    entire = _offset(prog, "struct folio", "_entire_mapcount")  # 6.2+
    if entire is None:
        entire = size + _required(prog, "struct page", "compound_mapcount")
    order = _offset(prog, "struct page", "compound_order")  # until 6.6, commit ebc1baf5c9b4
    bits = {}
    for name in ("PG_head", "PG_lru", "PG_swapbacked", "PG_swapcache", "PG_anon_exclusive",
                 "PG_hwpoison", "PG_double_map"):  # fmt: skip
        value = enum_value(prog, name)
        if value is not None:
            bits[name] = value
    nodes = vmcoreinfo_number(prog, "LENGTH(node_data)") or 1  # MAX_NUMNODES; absent if !NUMA
    zones = enum_value(prog, "__MAX_NR_ZONES") or 4
    node_width = (nodes - 1).bit_length()
    zone_width = (zones - 1).bit_length()
    device = enum_value(prog, "ZONE_DEVICE")
    return PageLayout(
        base=_vmemmap(prog),
        size=size,
        flags=_required(prog, "struct page", "flags"),
        head=_required(prog, "struct page", "compound_info", "compound_head"),
        mapping=_required(prog, "struct page", "mapping"),
        index=_offset(prog, "struct page", "__folio_index", "index"),  # renamed in 6.16
        mapcount=_required(prog, "struct page", "_mapcount"),
        refcount=_required(prog, "struct page", "_refcount"),
        entire_mapcount=entire,
        large_mapcount=_offset(prog, "struct folio", "_large_mapcount"),
        order=None if order is None else size + order,
        bits=bits,
        # page-flags-layout.h: node on top, zone below it (no section with vmemmap).
        node_shift=min(64 - node_width, 63),
        node_mask=(1 << node_width) - 1,
        zone_shift=min(64 - node_width - zone_width, 63),
        zone_mask=(1 << zone_width) - 1,
        zone_device=-1 if device is None else device,
    )


def read_structs(read: Read, layout: PageLayout, pfns: U64) -> tuple[U8, NDArray[np.bool_]]:
    """struct page of ascending PFNs, shape (n, size) bytes, and which could be read."""
    out = np.zeros((len(pfns), layout.size), np.uint8)
    readable = np.ones(len(pfns), np.bool_)
    far = np.diff(pfns.view(np.int64)) > GAP
    far |= np.diff(pfns // np.uint64(BLOCK)) != 0
    breaks = np.flatnonzero(far) + 1
    starts = np.concatenate(([0], breaks)).tolist() if len(pfns) else []
    ends = np.concatenate((breaks, [len(pfns)])).tolist()
    for first, last in zip(starts, ends, strict=False):
        run = pfns[first:last]
        low = int(run[0])
        count = int(run[-1]) - low + 1
        try:
            data = read(layout.base + low * layout.size, count * layout.size)
        except LookupError:
            for row in range(first, last):
                try:
                    one = read(layout.base + int(pfns[row]) * layout.size, layout.size)
                except LookupError:
                    readable[row] = False
                else:
                    out[row] = np.frombuffer(one, np.uint8)
        else:
            structs = np.frombuffer(data, np.uint8).reshape(count, layout.size)
            out[first:last] = structs[(run - run[0]).astype(np.int64)]
    return out, readable


def _u64(structs: U8, offset: int) -> U64:
    return np.ascontiguousarray(structs[:, offset : offset + 8]).view(np.uint64).ravel()


def _count(structs: U8, offset: int) -> I64:
    """An atomic_t, as signed."""
    raw = np.ascontiguousarray(structs[:, offset : offset + 4]).view(np.int32).ravel()
    return raw.astype(np.int64)


def _heads(layout: PageLayout, pfns: U64, structs: U8) -> U64:
    """compound_head() as PFNs. A tail holds its head's address + 1, or since 7.1 where the
    vmemmap is optimised a mask + 1 to be applied to its own address (commit: compound_info)."""
    word = _u64(structs, layout.head)
    tail = (word & np.uint64(1)) != 0
    value = word & ~np.uint64(1)
    inverse = ~value
    mask = tail & ((inverse & (inverse + np.uint64(1))) == 0)
    own = np.uint64(layout.base) + pfns * np.uint64(layout.size)
    address = np.where(mask, own & value, value)
    head = (address - np.uint64(layout.base)) // np.uint64(layout.size)
    # A torn or hostile pointer must not index anything: such a page is its own head.
    far = tail & ((head > pfns) | (pfns - head >= np.uint64(1 << 18)))
    return np.where(tail & ~far, head, pfns)


@dataclass(frozen=True)
class _HeadTable:
    """Per compound head: what its pages have in common."""

    pages: U64
    mapping: U64
    entire: I64  # mappings of the whole by PMD
    double_map: I64  # 1 where every subpage's _mapcount counts the PMD mapping too
    pinned: NDArray[np.bool_]
    lost: NDArray[np.bool_]


def _head_table(
    read: Read, layout: PageLayout, heads: U64, batched: Mapping[int, int]
) -> _HeadTable:
    """Head and first tail page of each compound; order-0 pages are told apart by PG_head."""
    first, readable = read_structs(read, layout, heads)
    second, more = read_structs(read, layout, heads + np.uint64(1))
    both = np.concatenate((first, second), axis=1)
    flags = _u64(first, layout.flags)
    large = ((flags >> np.uint64(layout.bits["PG_head"])) & np.uint64(1)) != 0
    tail_flags = _u64(second, layout.flags)
    if layout.order is None:  # 6.6+, commit ebc1baf5c9b4: folio_order() is in page[1].flags
        order = tail_flags & np.uint64(0xFF)
    else:
        order = both[:, layout.order].astype(np.uint64)
    order = np.where(large, np.minimum(order, np.uint64(18)), np.uint64(0))
    pages = np.uint64(1) << order
    entire = np.where(large, _count(both, layout.entire_mapcount) + 1, 0)
    double_map = np.zeros(len(heads), np.int64)
    if "PG_double_map" in layout.bits:  # until 6.2, commit 4b51634cd16a
        bit = np.uint64(layout.bits["PG_double_map"])
        double_map = np.where(large, (tail_flags >> bit) & np.uint64(1), 0).astype(np.int64)
    if layout.large_mapcount is not None:  # 6.10+, commit 05c5323b2a34: folio_mapcount()
        total = np.where(large, _count(both, layout.large_mapcount) + 1,
                         _count(first, layout.mapcount) + 1)  # fmt: skip
    else:
        total = _total_mapcount(read, layout, heads, pages, entire, double_map)
    swap = np.where(_swapcache(layout, flags), pages.astype(np.int64), 0)
    batch = _batch_references(layout, heads, flags, batched)
    pinned = _count(first, layout.refcount) > total + swap + batch
    return _HeadTable(pages, _u64(first, layout.mapping), entire, double_map, pinned,
                      ~(readable & (more | ~large)))  # fmt: skip


def _single_table(
    layout: PageLayout, pfns: U64, structs: U8, flags: U64, batched: Mapping[int, int]
) -> _HeadTable:
    """The same of pages in no compound, from their own struct pages."""
    none = np.zeros(len(pfns), np.int64)
    total = _count(structs, layout.mapcount) + 1
    held = total + _swapcache(layout, flags) + _batch_references(layout, pfns, flags, batched)
    return _HeadTable(
        pages=np.ones(len(pfns), np.uint64),
        mapping=_u64(structs, layout.mapping),
        entire=none,
        double_map=none,
        pinned=_count(structs, layout.refcount) > held,
        lost=np.zeros(len(pfns), np.bool_),
    )


def _batch_references(
    layout: PageLayout, heads: U64, flags: U64, batched: Mapping[int, int]
) -> I64:
    """A page off the LRU has one more reference, of a per-CPU batch that ksmd drains first. So
    have others that wait in one."""
    batch = 1 - ((flags >> np.uint64(layout.bits["PG_lru"])) & np.uint64(1)).astype(np.int64)
    if batched:
        known = np.array(sorted(batched), np.uint64)
        row = np.searchsorted(heads, (known - np.uint64(layout.base)) // np.uint64(layout.size))
        for address, at in zip(known.tolist(), row.tolist(), strict=True):
            if at < len(heads) and layout.base + int(heads[at]) * layout.size == address:
                batch[at] = max(batch[at], batched[address])
    return batch


def _total_mapcount(
    read: Read, layout: PageLayout, heads: U64, pages: U64, entire: I64, double_map: I64
) -> I64:
    """total_compound_mapcount() of mm/util.c until 6.9: the sum over all subpages."""
    if not len(heads):
        return np.empty(0, np.int64)
    # Damaged heads may claim pages of the next.
    counts = np.minimum(pages, np.diff(heads, append=heads[-1] + pages[-1])).astype(np.int64)
    every = np.repeat(heads, counts) + _ramp(counts)
    structs, _ = read_structs(read, layout, every)
    own = _count(structs, layout.mapcount) + 1
    total = np.add.reduceat(own, np.cumsum(counts) - counts)
    return np.asarray(total + entire - double_map * counts, np.int64)


def _ramp(counts: I64) -> U64:
    """0..n-1 for each n of counts, concatenated."""
    ends = np.cumsum(counts)
    return (np.arange(ends[-1]) - np.repeat(ends - counts, counts)).astype(np.uint64)


def _swapcache(layout: PageLayout, flags: U64) -> NDArray[np.bool_]:
    """folio_test_swapcache(): PG_swapcache is shared with another bit, so both must be set."""
    both = np.uint64(1 << layout.bits["PG_swapcache"] | 1 << layout.bits["PG_swapbacked"])
    found: NDArray[np.bool_] = (flags & both) == both
    return found


def identities(read: Read, layout: PageLayout, pfns: Pfns) -> U64:
    """What tells which page of which process is in each of the ascending `pfns`, in a word: its
    compound's head, mapping and index. Where one of these changes, so does the word; where several
    do, it stays the same by a chance of 2^-64. Other words of struct page change while a page
    stays what it is. Frames that cannot be read are 0."""
    found = np.empty(len(pfns), np.uint64)
    for begin in range(0, len(pfns), BLOCK):
        part = slice(begin, begin + BLOCK)
        found[part] = _identities(read, layout, pfns[part].astype(np.uint64))
    return found


def _identities(read: Read, layout: PageLayout, pfns: U64) -> U64:
    structs, readable = read_structs(read, layout, pfns)
    head_of_row = np.where(readable, _heads(layout, pfns, structs), pfns)
    heads, position = _unique_heads(head_of_row)
    first, more = read_structs(read, layout, heads)
    index = heads if layout.index is None else _u64(first, layout.index)
    word = heads.copy()
    for more_of_it in (_u64(first, layout.mapping), index):
        # One to one in `word` and in what is added.
        word *= np.uint64(_MIX)
        word ^= word >> np.uint64(32)
        word += more_of_it
    word *= np.uint64(_MIX)
    found = word[position]
    found[~(readable & more[position])] = 0
    return found


def classify(
    read: Read,
    layout: PageLayout,
    pfns: Pfns,
    max_pfn: int,
    batched: Mapping[int, int] = MappingProxyType({}),
) -> FrameTable:
    """What ksmd would see in each of the ascending `pfns` (scan and write_protect_page()).

    `batched`: address of a struct page -> references that per-CPU batches hold on it.
    """
    n = len(pfns)
    table = FrameTable(
        entry=np.empty(n, np.uint8),
        flags=np.empty(n, np.uint8),
        mapcount=np.empty(n, np.uint32),
        node=np.empty(n, np.uint16),
        compound=np.empty(n, np.uint32),
        compounds=NO_COMPOUNDS,
    )
    compounds = [NO_COMPOUNDS]
    found = 0
    for begin in range(0, n, BLOCK):
        part = slice(begin, begin + BLOCK)
        block = _block(read, layout, pfns[part].astype(np.uint64), max_pfn, batched)
        for name in ("entry", "flags", "mapcount", "node"):
            getattr(table, name)[part] = getattr(block, name)
        row, more = block.compound, block.compounds
        if len(more) and found and more.head[0] == compounds[-1].head[-1]:  # in both blocks
            found -= 1
            compounds[-1] = _rows_of(compounds[-1], slice(-1))
        table.compound[part] = np.where(row == NO_COMPOUND, row, row + np.uint32(found))
        if len(more):
            compounds.append(more)
            found += len(more)
    joined = {name: np.concatenate([getattr(part, name) for part in compounds])
              for name in ("head", "pages", "pinned", "pmd_mapcount")}  # fmt: skip
    return replace(table, compounds=Compounds(**joined))


NO_COMPOUNDS = Compounds(
    head=np.empty(0, np.uint64),
    pages=np.empty(0, np.uint32),
    pinned=np.empty(0, np.bool_),
    pmd_mapcount=np.empty(0, np.uint32),
)


def _rows_of(compounds: Compounds, rows: slice) -> Compounds:
    return Compounds(
        head=compounds.head[rows],
        pages=compounds.pages[rows],
        pinned=compounds.pinned[rows],
        pmd_mapcount=compounds.pmd_mapcount[rows],
    )


def _unique_heads(heads: U64) -> tuple[U64, I64]:
    """Distinct heads ascending, and the row of each frame's head in them."""
    ascending = np.sort(heads)
    keep = np.ones(len(ascending), np.bool_)
    keep[1:] = ascending[1:] != ascending[:-1]
    unique = ascending[keep]
    return unique, np.searchsorted(unique, heads).astype(np.int64)


def _tables(
    read: Read,
    layout: PageLayout,
    heads: U64,
    pfns: U64,
    structs: U8,
    flags: U64,
    batched: Mapping[int, int],
) -> _HeadTable:
    """_HeadTable with a row a page. Most pages are in no compound: their heads are at hand."""
    head_bit = (flags >> np.uint64(layout.bits["PG_head"])) & np.uint64(1)
    single = (heads == pfns) & (head_bit == 0)
    if single.all():
        return _single_table(layout, pfns, structs, flags, batched)
    alone = _single_table(layout, pfns[single], structs[single], flags[single], batched)
    large, position = _unique_heads(heads[~single])
    shared = _head_table(read, layout, large, batched)
    found = {}
    for name, column in vars(shared).items():
        found[name] = np.empty(len(pfns), column.dtype)
        found[name][single] = vars(alone)[name]
        found[name][~single] = column[position]
    return _HeadTable(**found)


def _block(
    read: Read, layout: PageLayout, pfns: U64, max_pfn: int, batched: Mapping[int, int]
) -> FrameTable:
    n = len(pfns)
    valid = pfns < max_pfn
    structs, readable = read_structs(read, layout, pfns[valid])
    entry = np.full(n, int(Entry.CANDIDATE), np.uint8)
    entry[~valid] = Entry.SPECIAL  # vm_normal_page(): beyond highest_memmap_pfn
    rows = np.flatnonzero(valid)
    entry[rows[~readable]] = Entry.UNREADABLE
    rows, structs = rows[readable], structs[readable]
    own_flags = _u64(structs, layout.flags)
    head_of_row = _heads(layout, pfns[rows], structs)
    table = _tables(read, layout, head_of_row, pfns[rows], structs, own_flags, batched)
    mapping = table.mapping
    kind = np.full(len(rows), int(Entry.CANDIDATE), np.uint8)
    kind[(mapping & np.uint64(MAPPING_ANON)) == 0] = Entry.FILE
    zone = (own_flags >> np.uint64(layout.zone_shift)) & np.uint64(layout.zone_mask)
    kind[zone == layout.zone_device] = Entry.DEVICE
    kind[table.lost] = Entry.UNREADABLE
    entry[rows] = kind

    flags = np.zeros(len(rows), np.uint8)
    ksm = (mapping & np.uint64(MAPPING_KSM)) == MAPPING_KSM
    mark(flags, ksm, FrameFlag.KSM)
    pinned = table.pinned
    mark(flags, pinned & ~ksm, FrameFlag.PINNED)
    mark(flags, _swapcache(layout, own_flags), FrameFlag.SWAPCACHE)
    if "PG_anon_exclusive" in layout.bits:  # 5.19+, commit 78fbe906cc90
        exclusive = own_flags >> np.uint64(layout.bits["PG_anon_exclusive"])
        mark(flags, (exclusive & np.uint64(1)) != 0, FrameFlag.EXCLUSIVE)
    by_pte = _count(structs, layout.mapcount) + 1 - table.double_map
    mapcount = np.maximum(by_pte + table.entire, 0)

    mapcounts = np.zeros(n, np.uint32)
    mapcounts[rows] = mapcount
    all_flags = np.zeros(n, np.uint8)
    all_flags[rows] = flags
    node = np.zeros(n, np.uint16)
    node[rows] = (own_flags >> np.uint64(layout.node_shift)) & np.uint64(layout.node_mask)
    head = pfns.copy()
    head[rows] = head_of_row
    pages = np.ones(n, np.uint64)
    pages[rows] = table.pages
    pages[entry != Entry.CANDIDATE] = 1
    head_pinned = np.zeros(n, np.bool_)
    head_pinned[rows] = pinned
    pmd_mapcount = np.zeros(n, np.uint32)
    pmd_mapcount[rows] = np.maximum(table.entire, 0)
    compound, compounds = group_compounds(head, pages, head_pinned, pmd_mapcount)
    return FrameTable(
        entry=entry,
        flags=all_flags,
        mapcount=mapcounts,
        node=node,
        compound=compound,
        compounds=compounds,
    )
