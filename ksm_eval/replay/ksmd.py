"""ksmd, visit by visit: the reference. About a million visits a second.

Mirrors mm/ksm.c from scan_get_next_rmap_item() down; what differs between kernels comes
from Rules. A red-black tree is a dictionary except where a search can end at an item that it
only passes, or prune a chain that it only passes: then it needs `Frames.order`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ksm_eval.replay.contents import REMAPPED, ZERO_PAGE
from ksm_eval.replay.rbtree import Node, RedBlackTree
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.savings import Outcome
from ksm_eval.replay.state import (
    FREED,
    IDLE,
    NEW,
    ORDINARY,
    ORPHAN,
    STABLE,
    UNSTABLE,
    PassResult,
    State,
)
from ksm_eval.snapshot import I64, Snapshot

MAX_AGE = 255
SKIPS = [1] * 4 + [2] * 2 + [4] * 3 + [8] * (MAX_AGE - 8)
"""skip_age() by rmap_item.age."""


@dataclass(frozen=True)
class Replay:
    """`passes[n]` is after n+1 full scans, `outcome` after the last."""

    passes: list[PassResult]
    outcome: Outcome
    split_failures: int  # attempts to split a compound page in vain
    inexact: list[int]  # passes that needed the order of the contents, which is not known
    cut: PassResult | None = None  # inside the pass that follows


def simulate(
    snapshot: Snapshot,
    settings: Settings,
    passes: int,
    cut: int = 0,
    tick: Callable[[int], None] | None = None,
    positions: I64 | None = None,
) -> Replay:
    """Run ksmd over a memory that stands still.

    `cut`: also the counters when so many pages (pages_scanned) of the next pass were visited.
    `tick` is called behind each pass with its number.
    `positions`: of these mappings only, see State.

    Frames that are KSM pages already are stable nodes with all their selected mappings
    attached; rmap_items of other mappings start anew. Raises TargetError if the outcome
    depends on the order of contents and the snapshot does not tell it.

    `Frames.order` (collect(exact=True)) makes every pass exact. Without it, passes in which a
    THP split took a zero page out of the unstable tree (6.12+) may have some pages_unshared
    that are pages_volatile on the kernel, or merge some a pass early: `inexact` names them.
    """
    ksmd = Ksmd(snapshot, settings, positions)
    results, inexact = [], []
    for number in range(1, passes + 1):
        ksmd.full_scan()
        results.append(ksmd.result())
        if ksmd.shape_unknown == ksmd.passes:
            inexact.append(number)
        if tick is not None:
            tick(number)
    outcome, failures = ksmd.outcome(), ksmd.split_failures
    inside = None
    if cut:
        ended = ksmd.part_of_a_scan(cut)
        result = ksmd.result()
        inside = replace(result, counters=replace(result.counters, full_scans=passes + ended))
    return Replay(results, outcome, failures, inexact, inside)


class Ksmd(State):
    """ksmd at work on its state."""

    def full_scan(self) -> None:
        """One pass (ksm_scan.seqnr)."""
        self.start_pass()
        start = 0
        if self.passes == 2:
            for item, compound in sorted(self.other_splits):
                end = bisect_left(self.visits, item)
                self.scan(self.visits[start:end])
                start = end
                if not self.split[compound]:
                    self._split(compound)
        self.scan(self.visits[start:])
        if self.counter_pass == self.passes and FREED in self.state:
            self.visits = [i for i in self.visits if self.state[i] != FREED]

    def part_of_a_scan(self, pages: int) -> bool:
        """A pass up to its `pages`th page that is scanned, not skipped: as much as
        ksm_do_scan(pages) does of it. True: it has fewer, and is at its end. The pass cannot
        be finished afterwards."""
        self.start_pass()
        at, end = 0, self.scanned + pages
        while at < len(self.visits) and self.scanned < end:
            count = end - self.scanned  # a visit scans at most one page
            self.scan(self.visits[at : at + count])
            at += count
        return self.scanned < end

    def start_pass(self) -> None:
        """The unstable trees are emptied; items keep their state until their next visit."""
        self.passes += 1
        self.mlock_batch.clear()  # lru_add_drain_all()
        self.held.clear()
        self.stable.now += max(1, self.stable.prune_millisecs)
        self.unstable.clear()
        self.tree_nodes.clear()
        self.trees.clear()
        # Only a split in this pass can make a waiting page unreadable.
        self.shaped = self.poisoned or (self.has_order and bool(self.zero_subpages))

    def _event(self) -> None:
        self.event_pass = self.counter_pass = self.passes

    def scan(self, visits: Sequence[int]) -> None:
        """scan_get_next_rmap_item() and cmp_and_merge_page() for each visit."""
        frame, state, content, checksum = self.frame, self.state, self.content, self.checksum
        node_of, age, skips, unstable = self.node, self.age, self.skips, self.unstable
        item_node, rank, numa, shaped = self.item_node, self.rank, self.numa, self.shaped
        stable_tree, search = self.stable.tree, self.stable.search
        smart, checksum_first = self.smart_scan, self.rules.checksum_first
        use_zero, is_zero, reset = self.use_zero_pages, self.is_zero, self.rules.reset_on_leave
        in_trees = self.stable.trees is not None  # a search also prunes what it passes
        unshared, scanned, skipped = 0, 0, 0  # changes; the counters follow at the end
        for i in visits:
            f = frame[i]
            if f < 0:  # the address offers no page any more
                unshared -= state[i] == UNSTABLE
                self._free(i)
                continue
            node = node_of[f]
            if node == ORDINARY and smart and not (reset and state[i] == STABLE):
                a = age[i]
                if a < MAX_AGE:
                    age[i] = a + 1
                if a >= 3:
                    if skips[i]:
                        skips[i] -= 1
                        skipped += 1
                        if state[i] == UNSTABLE:
                            state[i] = IDLE
                            unshared -= 1
                        elif state[i] == STABLE:
                            self._detach(i)
                        continue
                    skips[i] = SKIPS[a]
            scanned += 1
            if node >= 0 and item_node[i] == node:
                continue
            if not state[i]:
                state[i] = IDLE
                self.items += 1
                self.counter_pass = self.passes
            c = content[f]
            target = node
            if node < 0 and not checksum_first and (in_trees or c in stable_tree) and c >= 0:
                target = search(c, rank[f], numa[f])
            if state[i] == UNSTABLE:
                state[i] = IDLE
                unshared -= 1
            elif state[i] == STABLE:
                self._detach(i)
            if target >= 0:
                # A KSM page that was forked, or until 6.10 any page that is in the tree.
                if target == node or self._mergeable(i, f):
                    self._attach(i, f, target)
                continue
            if checksum[i] != c or c < 0:
                checksum[i] = c
                continue
            if use_zero and is_zero[f] and self._mergeable(i, f):
                frame[i] = ZERO_PAGE
                self.mapped[f] -= 1
                if self.mlock_size and self.locked[i]:
                    self._mlock(f)
                self.zero += 1
                self._event()
                continue
            if checksum_first and (in_trees or c in stable_tree):
                target = search(c, rank[f], numa[f])
                if target >= 0:
                    if self._mergeable(i, f):
                        self._attach(i, f, target)
                    continue
            if shaped:
                twin = self._search_tree(i, f)
            elif (twin := unstable.setdefault(c, i)) == i:
                state[i] = UNSTABLE
                unshared += 1
            if twin != i and frame[twin] != f:
                if frame[twin] >= 0:
                    unshared -= self._merge_two(i, f, twin)
                else:
                    self.shape_unknown = self.passes
        self.unshared += unshared
        self.scanned += scanned
        self.skipped += skipped

    def _free(self, i: int) -> None:
        """get_next_rmap_item(): the address was not offered, its rmap_item goes."""
        if self.state[i] == STABLE:
            self._detach(i)
        if self.state[i] != NEW:
            self.items -= 1
            self._event()
        self.state[i] = FREED

    def _detach(self, i: int) -> None:
        """remove_rmap_item_from_tree() of an item whose page is its stable node's no more."""
        node = self.item_node[i]
        if node in self.stable.stale:
            self.stable.remove(node)
            return
        self.stable.detach(node)
        self.left_node(i)

    def left_node(self, i: int) -> None:
        """What remains of an item that was attached to a stable node."""
        self.state[i] = IDLE
        self.item_node[i] = -1
        if self.rules.reset_on_leave:
            self._reset(i)

    def _reset(self, i: int) -> None:
        """7.3: linear_page_index shares the word of oldchecksum, age and remaining_skips."""
        self.checksum[i] = -1
        self.age[i] = self.skips[i] = 0

    def _mergeable(self, i: int, f: int) -> bool:
        """try_to_merge_one_page() as far as it can fail: split, then write_protect_page()."""
        if self.node[f] == ORPHAN:  # page_address_in_vma() knows no anon_vma of it
            return False
        compound = self.compound[f]
        if compound >= 0 and not self.split[compound] and not self._split(compound):
            return False
        if self.checked[i] and (f in self.mlock_batch or f in self.held):
            return False
        return self.frame[i] == f and not self.blocked[i]

    def _split(self, compound: int) -> bool:
        """split_huge_page(), when ksmd holds one reference."""
        if self.unsplittable[compound]:
            self.split_failures += 1
            return False
        mappers = self.pmds.get(compound)
        if mappers is not None and len(mappers) > 1:  # 6.16 to early 6.19: one PMD an attempt
            self.pmd_split(compound, mappers.pop(0))
            self.split_failures += 1
            self.event_pass = self.passes
            return False
        self.split[compound] = 1
        self.event_pass = self.passes
        if compound in self.locked_compounds:
            self.mlock_batch.clear()  # mlock_drain_local()
        self.pmds.pop(compound, None)
        for i in self.zero_subpages.pop(compound, ()):
            self.mapped[self.frame[i]] -= 1
            self.frame[i] = REMAPPED
            if self.state[i] == UNSTABLE and not self.shaped:
                self.shape_unknown = self.passes
        return True

    def copied_frame(self) -> None:
        """One more frame was made, by ksmd."""

    def pmd_split(self, compound: int, mapper: int) -> None:
        """`mapper` maps this THP by PTEs from now on."""

    def _move(self, i: int, f: int) -> None:
        """replace_page()."""
        old = self.frame[i]
        self.mapped[old] -= 1
        self.mapped[f] += 1
        self.frame[i] = f
        if self.mlock_size and self.locked[i]:
            self._mlock(f)
            self._mlock(old)

    def _mlock(self, f: int) -> None:
        """mlock_folio() or munlock_folio() (mm/mlock.c, 5.18+): the page waits in a per-CPU
        batch, with one reference more, until that is full."""
        self.mlock_batch.append(f)
        if len(self.mlock_batch) >= self.mlock_size:
            self.mlock_batch.clear()

    def _attach(self, i: int, f: int, node: int) -> None:
        if self.ksm_frame[node] != f:
            self._move(i, self.ksm_frame[node])
        self.stable.attach(node)
        self.state[i] = STABLE
        self.item_node[i] = node
        self._event()

    def _merge_two(self, i: int, f: int, twin: int) -> int:
        """try_to_merge_two_pages() and what follows; how many items left the unstable tree."""
        other, compound = self.frame[twin], self.compound[f]
        if compound >= 0 and compound == self.compound[other] and not self.split[compound]:
            # Both references are to one compound page: no split while both are held, one
            # when the twin's has been dropped; the two meet again in the next pass.
            self.split_failures += 1
            self._split(compound)
            return 0
        if not self._mergeable(i, f):
            return 0
        if not self._mergeable(twin, other):
            self._undo(i, f)
            return 0
        self.unstable.pop(self.content[f], None)
        if twin in self.tree_nodes:
            self.trees[self.numa[other]].erase(self.tree_nodes.pop(twin))
        node = self.stable.insert(self.content[f], self.rank[f], self.numa[f])
        self.ksm_frame.append(f)
        self.node[f] = node
        self._attach(twin, other, node)
        self._attach(i, f, node)
        return 1

    def _undo(self, i: int, f: int) -> None:
        """break_cow(): the scanned page was a KSM page already; its process gets a copy.

        Other processes that map it keep a KSM page without a stable node.
        """
        if self.mapped[f] <= 1:  # the frame stands for the copy
            if self.mlock_size and self.locked[i]:
                self._mlock(f)
                self._mlock(-1)  # the page that was copied is nobody's any more
        else:
            self.node[f] = ORPHAN
            copy = len(self.node)
            self.node.append(ORDINARY)
            self.compound.append(-1)
            self.mapped.append(0)
            for column in (self.content, self.is_zero, self.numa, self.rank):
                column.append(column[f])
            self.copied_frame()
            self._move(i, copy)
            self.event_pass = self.passes
        if self.rules.reset_on_leave:
            self._reset(i)

    def _search_tree(self, i: int, f: int) -> int:
        """unstable_tree_search_insert() in a real tree: the twin, or i itself if there is none.

        6.1.y: get_mergeable_page() refuses PROT_NONE pages, on all kernels a page that was
        remapped since: meeting one anywhere on the way down ends the visit.
        """
        tree = self.trees.setdefault(self.numa[f], RedBlackTree())
        unreadable = self.prot_none if self.rules.prot_none_unreadable else bytes(len(self.frame))
        rank, parent, at, left = self.rank[f], None, tree.root, False
        while at is not None:
            other = self.frame[at.item]
            if other < 0 or unreadable[at.item] or other == f:
                return i
            if at.rank == rank:
                return at.item
            parent, left = at, rank < at.rank
            at = at.left if left else at.right
        node = self.tree_nodes[i] = Node(i, rank)
        tree.insert(node, parent, left)
        self.state[i] = UNSTABLE
        self.unshared += 1
        return i
