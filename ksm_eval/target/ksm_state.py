"""ksmd's own records in the target: mm_slots, rmap_items, stable nodes, its cursor.

Mirrors struct ksm_mm_slot, ksm_rmap_item and ksm_stable_node of mm/ksm.c, 5.10 to 7.3 (5.10
names them without ksm_). Lists of a damaged target may have loops or lead anywhere: every walk
ends, and what contradicts itself raises Contradiction.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from drgn import Object, Program

from ksm_eval.snapshot import EMPTY, I32, I64, SEQNR_MASK, U8, U64
from ksm_eval.target import KsmdRecords
from ksm_eval.target.frames import MAPPING_KSM, Read
from ksm_eval.target.jiffies import read_jiffies
from ksm_eval.target.records import Contradiction, Memory, record

UNSTABLE_FLAG, STABLE_FLAG = 0x100, 0x200  # in rmap_item->address, above SEQNR_MASK
CHAIN = -1024  # STABLE_NODE_CHAIN in rmap_hlist_len
RB_BLACK = 1
END = (1 << 64) - 1  # behind all addresses


def read_records(
    prog: Program,
    read: Read,
    page_size: int,
    mm_rows: dict[int, int],
    page_mapping: Callable[[U64], U64],
) -> KsmdRecords:
    """All that ksmd knows. `mm_rows`: row of each mm_struct's address; `page_mapping`: the word
    page->mapping of ascending PFNs. Raises LookupError if the kernel's types or variables are
    not known, Contradiction if the records make no sense."""
    return _Reader(prog, read, page_size, mm_rows).read(page_mapping)


class _Reader:
    def __init__(self, prog: Program, read: Read, page_size: int, mm_rows: dict[int, int]) -> None:
        self.prog, self.page_size, self.mm_rows = prog, page_size, mm_rows
        self.memory = Memory(read, page_size)
        self.item = record(
            prog,
            ("struct ksm_rmap_item", "struct rmap_item"),  # renamed in 6.1
            *("rmap_list", "address", "oldchecksum", "age", "remaining_skips", "head"),
            "linear_page_index",
        )
        self.node = record(
            prog,
            ("struct ksm_stable_node", "struct stable_node"),
            *("node", "hlist_dup", "hlist", "kpfn", "rmap_hlist_len"),
        )
        rb = record(prog, ("struct rb_node",), "__rb_parent_color", "rb_left", "rb_right")
        self.rb = rb.at
        head = prog["ksm_mm_head"]
        self.head = int(head.address_of_().value_())
        slot = head.type_
        self.rmap_list = int(slot.member("rmap_list").bit_offset) // 8
        try:  # 6.1+, commit 58730ab6c7ca: the generic struct mm_slot
            inner = slot.member("slot")
            start = int(inner.bit_offset) // 8
            self.link = start + int(inner.type.member("mm_node").bit_offset) // 8
            self.mm = start + int(inner.type.member("mm").bit_offset) // 8
        except LookupError:
            self.link = int(slot.member("mm_list").bit_offset) // 8
            self.mm = int(slot.member("mm").bit_offset) // 8
        self.users = int(prog.type("struct mm_struct").member("mm_users").bit_offset) // 8

    def read(self, page_mapping: Callable[[U64], U64]) -> KsmdRecords:
        self._read_tree()
        slots = self._slots()
        mms = [self.memory.word(slot + self.mm) for slot in slots]
        columns = [
            (number, *item)
            for number, slot in enumerate(slots)
            for item in self._items(self.memory.word(slot + self.rmap_list))
        ]
        table = np.array(columns, np.uint64).reshape(len(columns), 6)
        number, flagged, checksum, age, skips, head = table.T
        rows = np.array([self.mm_rows.get(mm, -1) for mm in mms], np.int32)
        dying = np.array([self._dying(mm) for mm in mms], np.bool_)
        item_slot = number.astype(np.int64)
        stable = (flagged & np.uint64(STABLE_FLAG)) != 0
        node = np.full(len(table), -1, np.int64)
        node[stable] = [self._node_row(address) for address in head[stable].tolist()]
        order = np.argsort(np.array(self.pfn, np.uint64), kind="stable")
        pfn = np.array(self.pfn, np.uint64)
        mapping = np.zeros(len(pfn), np.uint64)
        mapping[order] = page_mapping(pfn[order])
        expected = np.array(self.address, np.uint64) | np.uint64(MAPPING_KSM)
        scan = self.prog["ksm_scan"]
        cursor = self._cursor(slots, rows.tolist(), scan)
        return KsmdRecords(
            row=_i32(rows[item_slot]),
            dying=dying[item_slot],
            address=flagged & np.uint64(~(self.page_size - 1) & (1 << 64) - 1),
            unstable=(flagged & np.uint64(UNSTABLE_FLAG)) != 0,
            seqnr=_u8(flagged & np.uint64(SEQNR_MASK)),
            stable_node=node,
            checksum=checksum.astype(np.uint32),
            age=_u8(age),
            skips=_u8(skips),
            node_pfn=pfn,
            node_length=_i32(np.array(self.length, np.int64)),
            node_chain=_i32(np.array(self.chain, np.int64)),
            node_stale=mapping != expected,
            tree=np.array(self.tree, np.int64).reshape(len(self.tree), 5),
            full_scans=int(scan.seqnr.value_()),
            cursor_row=cursor[0],
            cursor_address=cursor[1],
            tree_pruned=self._pruned(),
        )

    def _slots(self) -> list[int]:
        found: list[int] = []
        seen = {self.head + self.link}
        at = self.memory.word(self.head + self.link)
        while at not in seen:
            seen.add(at)
            found.append(at - self.link)
            at = self.memory.word(at)
        if at != self.head + self.link:
            raise Contradiction("ksmd's list of processes has a loop")
        return found

    def _cursor(self, slots: list[int], rows: list[int], scan: Object) -> tuple[int, int]:
        """Row and address that ksmd goes on from, row -1: from the start.

        In an mm without a row, as of a process that has exited, it is behind the one before.
        """
        slot, address = int(scan.mm_slot.value_()), int(scan.address.value_())
        if slot == self.head:
            return -1, 0
        try:
            at = slots.index(slot)
        except ValueError:
            raise Contradiction("ksmd is at a process that is not on its list") from None
        if rows[at] >= 0:
            return rows[at], address
        before = [row for row in rows[:at] if row >= 0]
        return (before[-1], END) if before else (0, 0)

    def _dying(self, mm: int) -> bool:
        return self.memory.read(mm + self.users, 4) == b"\0\0\0\0"

    def _items(self, at: int) -> list[tuple[int, int, int, int, int]]:
        """(address and flags, oldchecksum, age, skips, head) of each rmap_item of an mm."""
        item, read, mask = self.item, self.memory.read, -self.page_size
        next_, address = item.at["rmap_list"], item.at["address"]
        checksum, head = item.at["oldchecksum"], item.at["head"]
        age, skips = item.at.get("age"), item.at.get("remaining_skips")
        found = []
        before = -1
        while at:
            data = read(at, item.size)
            (flagged,) = struct.unpack_from("<Q", data, address)
            if flagged & mask <= before:  # so a loop ends here, too
                raise Contradiction("the rmap_items of a process are not by address")
            before = flagged & mask
            (old,) = struct.unpack_from("<I", data, checksum)
            (node,) = struct.unpack_from("<Q", data, head)
            if flagged & STABLE_FLAG and "linear_page_index" in item.at:
                found.append((flagged, 0, 0, 0, node))  # 7.3: the word holds something else
            else:
                found.append(
                    (
                        flagged,
                        old,
                        data[age] if age is not None else 0,
                        data[skips] if skips is not None else 0,
                        node,
                    )
                )
            (at,) = struct.unpack_from("<Q", data, next_)
        return found

    def _read_tree(self) -> None:
        """Stable nodes in the order of their trees, dups in that of their chains."""
        self.address: list[int] = []
        self.pfn: list[int] = []
        self.length: list[int] = []
        self.chain: list[int] = []
        self.rows: dict[int, int] = {}
        self.chains = 0
        self.tree: list[tuple[int, int, int, int, int]] = []
        self.stamps: list[int | None] = []  # of each tree node; None: no chain
        self.seen: set[int] = set()
        # BTF does not give the types of variables. Without NUMA the pointer never changes, and
        # the compiler leaves it out.
        symbol = self.prog.symbol
        one = roots = symbol("one_stable_tree").address
        with suppress(LookupError):
            roots = self.memory.word(symbol("root_stable_tree").address)
        count = 1
        if roots != one:  # merge_across_nodes was 0 once
            nodes = self.memory.read(symbol("nr_node_ids").address, 4)
            count = int.from_bytes(nodes, "little")
        if not 0 < count <= 1 << 16:
            raise Contradiction("an impossible number of NUMA nodes")
        for numa in range(count):
            top = self.memory.word(roots + 8 * numa)
            todo = [(top, -1, 0)] if top else []
            while todo:
                rb, parent, side = todo.pop()
                row = len(self.tree)
                entry = self._entry(rb - self.node.at["node"])
                red = not self.memory.word(rb + self.rb["__rb_parent_color"]) & RB_BLACK
                self.tree.append((entry, parent, side, red, numa))
                for right, name in enumerate(("rb_left", "rb_right")):
                    child = self.memory.word(rb + self.rb[name])
                    if child:
                        todo.append((child, row, right))

    def _pruned(self) -> I64 | None:
        """Milliseconds since each chain of the tree was pruned; chain_prune_time is in jiffies, in
        the place of kpfn."""
        clock = read_jiffies(self.prog)
        if clock is None:
            return None
        # A stamp of what still runs can be later than the time that was read: just now.
        ago = [-1 if at is None else clock.milliseconds_since(at) for at in self.stamps]
        return np.array(ago, np.int64)

    def _entry(self, address: int) -> int:
        """A tree node: the row of its first stable node; EMPTY of a chain without any.

        Stable nodes that turn out stale when their rmap_items leave them are taken out of their
        chain (remove_node_from_stable_tree()); the chain itself goes when a search meets it.
        """
        if address in self.seen:
            raise Contradiction("the stable tree has a loop")
        self.seen.add(address)
        length = self._length(address)
        if length != CHAIN:
            self.stamps.append(None)
            return self._add(address, -1)
        self.stamps.append(self.memory.word(address + self.node.at["kpfn"]))
        first = len(self.address)
        dup = self.memory.word(address + self.node.at["hlist"])
        while dup:
            self._add(dup - self.node.at["hlist_dup"], self.chains)
            dup = self.memory.word(dup)
        self.chains += 1
        return first if len(self.address) > first else EMPTY

    def _length(self, address: int) -> int:
        data = self.memory.read(address + self.node.at["rmap_hlist_len"], 4)
        return int.from_bytes(data, "little", signed=True)

    def _add(self, address: int, chain: int) -> int:
        if address in self.rows:
            raise Contradiction("a chain of the stable tree has a loop")
        length = self._length(address)
        if length < 0:
            raise Contradiction("a stable node has a negative length")
        row = self.rows[address] = len(self.address)
        self.address.append(address)
        self.pfn.append(self.memory.word(address + self.node.at["kpfn"]))
        self.length.append(length)
        self.chain.append(chain)
        return row

    def _node_row(self, address: int) -> int:
        """Of the stable node of an rmap_item; one on the list migrate_nodes is in no tree."""
        row = self.rows.get(address)
        return self._add(address, -2) if row is None else row


def _i32(values: I64 | I32) -> I32:
    return values.astype(np.int32)


def _u8(values: U64) -> U8:
    return values.astype(np.uint8)
