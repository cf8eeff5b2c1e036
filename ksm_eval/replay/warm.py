"""ksmd at work already: the replay starts from ksmd's own records in the target."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from ksm_eval.replay.counters import Counters
from ksm_eval.replay.rbtree import Node, RedBlackTree
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.samples import find
from ksm_eval.replay.series import GONE, Series
from ksm_eval.replay.stable import Chain
from ksm_eval.replay.state import IDLE, ORDINARY, ORPHAN, STABLE, UNSTABLE, PassResult
from ksm_eval.snapshot import EMPTY, I64, SEQNR_MASK, FrameFlag, KsmdState, Snapshot


@dataclass(frozen=True)
class Verified:
    """One counter of the target. None: it does not have it."""

    name: str
    target: int | None  # as its kernel shows it
    records: int | None  # from ksmd's own records
    after: list[int | None]  # predicted, after 1, 2 … more full scans


def verify(
    snapshot: Snapshot, settings: Settings, passes: int, tick: Callable[[int], None] | None = None
) -> list[Verified]:
    """What the target's own counters say beside what its records add up to.

    All registered processes must be in the snapshot, or those that are not stay as they are.
    Raises ValueError if the snapshot has no `ksmd`.
    """
    now, *later = simulate_warm(snapshot, settings, passes, tick)
    shown = snapshot.meta.counters
    return [
        Verified(
            name,
            shown.get(name),
            getattr(now.counters, name),
            [getattr(result.counters, name) for result in later],
        )
        for name in (field.name for field in fields(Counters))
        if name in shown or getattr(now.counters, name) is not None
    ]


def simulate_warm(
    snapshot: Snapshot, settings: Settings, passes: int, tick: Callable[[int], None] | None = None
) -> list[PassResult]:
    """The counters now, and after each of `passes` more full scans of a memory that stands still.

    A pass under way is finished first, as the first of them: at once, so that it prunes the chains
    that are due now. Where that is not known it is not exact, nor where some would become due in
    the time that pages_to_scan and sleep_millisecs make of its rest.
    """
    ksmd = Warm(snapshot, settings)
    results = [ksmd.result()]
    for number in range(1, passes + 1):
        ksmd.full_scan()
        results.append(ksmd.result())
        if tick is not None:
            tick(number)
    return results


class Warm(Series):
    """ksmd as it is in the target."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        state = snapshot.ksmd
        if state is None:
            raise ValueError("the snapshot has no records of ksmd")
        super().__init__(snapshot, settings)
        self.pages_to_scan, self.sleep_millisecs = settings.pages_to_scan, settings.sleep_millisecs
        self.resumed: list[int] | None = None  # the rest of the pass that is under way
        self.here = 0  # how many of them are of the process that ksmd is at
        self.prune_unknown = 0  # the pass under way, if which chains it prunes is not known
        self.advance(snapshot)
        self._adopt_nodes(state)
        self._adopt_tree(state)
        items = self._adopt_items(state)
        self._adopt_counters(snapshot, state, items)
        self._find_stale()
        self.passes = state.full_scans
        if state.cursor_process >= 0:
            self._resume(state, items)

    def _adopt_nodes(self, state: KsmdState) -> None:
        """Stable nodes keep their row as their number; each has its frame."""
        frames = self.snapshot.frames
        seen = {pfn: f for f, pfn in enumerate(self.frame_pfn) if pfn >= 0}
        ranks = {}
        if frames.order is not None:
            ranks = dict(zip(frames.hash.tolist(), frames.order.tolist(), strict=True))
        self.ranks_known = frames.order is not None
        for f, flags in zip(self._frame_rows(), frames.flags.tolist(), strict=True):
            if f >= 0 and flags & FrameFlag.KSM:
                self.node[f] = ORPHAN  # unless a node turns up for it
        # The NUMA node of a page that no process of the snapshot maps: of the tree it is in.
        numa = dict.fromkeys(range(len(state.node_pfn)), 0)
        if not self.across_nodes:
            numa |= {entry: where for entry, _, _, _, where in state.tree.tolist()}  # and EMPTY
        pairs = zip(
            state.node_pfn.tolist(),
            state.node_hash.tolist(),
            state.node_length.tolist(),
            state.node_chain.tolist(),
            state.node_stale.tolist(),
            strict=True,
        )
        first: dict[int, int] = {}  # of each chain
        for row, (pfn, key, length, chain, stale) in enumerate(pairs):
            where = numa[first.setdefault(chain, row)] if chain >= 0 else numa[row]
            f = seen.get(pfn, -1)
            if stale or f < 0:
                f = self._unseen_frame(key, where, stale, ranks)
            self.node[f] = row
            self.ksm_frame.append(f)
            self.stable.length.append(length)
            self.stable.content.append(self.content[f] if chain != -2 else -1)
            self.stable.shared += length > 0
            self.stable.sharing += max(length - 1, 0)

    def _frame_rows(self) -> list[int]:
        """The replay's frame of each row of Frames."""
        of_row = np.full(len(self.snapshot.frames), -1, np.int64)
        slots = np.concatenate([np.empty(0), *(sample.slot for sample in self.samples.values())])
        frames = np.array(self.frame, np.int64)[slots.astype(np.int64)]
        of_row[self.snapshot.mappings.frame] = frames
        rows: list[int] = of_row.tolist()
        return rows

    def _unseen_frame(self, key: int, numa: int, stale: bool, ranks: dict[int, int]) -> int:
        """A KSM page that no process of the snapshot maps; a stale node's has no contents."""
        content = -1
        if not stale:
            content = self.contents.setdefault((numa, key), len(self.contents))
            self.ranks_known = self.ranks_known and key in ranks
        self.content.append(content)
        self.is_zero.append(False)
        self.rank.append(ranks.get(key, 0))
        self.numa.append(numa)
        self.compound.append(-1)
        self.node.append(ORDINARY)
        self.mapped.append(int(not stale))
        self.frame_pfn.append(-1)
        self.outside.append(int(not stale))
        return len(self.node) - 1

    def _adopt_tree(self, state: KsmdState) -> None:
        """Chains, and the tree's shape where the order of all its contents is known."""
        stable, chains = self.stable, state.node_chain.tolist()
        members: dict[int, list[int]] = {}
        for row, chain in enumerate(chains):
            members.setdefault(chain, []).append(row)
        entries = []  # (content, rank) of each tree node
        pruned = None if state.tree_pruned is None else state.tree_pruned.tolist()
        known = self.has_order and self.ranks_known
        for number, (first, *_) in enumerate(state.tree.tolist()):
            chain = first == EMPTY or chains[first] >= 0
            rows = [] if first == EMPTY else members[chains[first]] if chain else [first]
            alive = [row for row in rows if stable.content[row] >= 0]
            if alive:
                content, rank = stable.content[alive[0]], self.rank[self.ksm_frame[alive[0]]]
            else:  # stale nodes or none: a search that gets there drops them, and compares nothing
                content, rank = len(self.contents), 0
                self.contents[-1 - number, 0] = content
            entries.append((content, rank))
            for row in rows:
                stable.content[row] = content
            if chain:
                open_dups = sum(stable.length[row] < stable.cap for row in rows)
                ago = stable.prune_millisecs if pruned is None else pruned[number]
                stable.tree[content] = Chain(deque(rows), open_dups, -ago)
                stable.chains += 1
                stable.dups += len(rows)
            else:
                stable.tree[content] = first
        stable.trees = {} if known else None
        if stable.trees is None:
            return
        nodes: list[Node] = []
        for (content, rank), shape in zip(entries, state.tree.tolist(), strict=True):
            _, parent, right, red, numa = shape
            tree = stable.trees.setdefault(numa, RedBlackTree())
            node = Node(content, rank)
            node.red = bool(red)
            if parent < 0:
                tree.root = node
            else:
                node.parent = nodes[parent]
                if right:
                    nodes[parent].right = node
                else:
                    nodes[parent].left = node
            nodes.append(node)
            stable.tree_nodes[content] = tree, node

    def _adopt_items(self, state: KsmdState) -> I64:
        """The replay's item of each rmap_item; -1: of a process that the snapshot does not have."""
        items = np.full(len(state.item_process), -1, np.int64)
        visits: list[int] = []
        for row, key in enumerate(self.keys):
            mine = np.flatnonzero(state.item_process == row)
            sample = self.samples[key]
            at, hit = find(sample.address, state.item_address[mine])
            items[mine[hit]] = sample.slot[at[hit]]
            gone = mine[~hit]
            items[gone] = self._gone_slots(len(gone))
            slots = np.concatenate((items[gone], sample.slot))
            address = np.concatenate((state.item_address[gone], sample.address))
            visits += slots[np.argsort(address, kind="stable")].tolist()
        dying = np.flatnonzero((state.item_process < 0) & state.item_dying)
        items[dying] = self._gone_slots(len(dying))
        self.dead = items[dying].tolist()
        mine = np.flatnonzero(items >= 0)
        columns = zip(
            items[mine].tolist(),
            state.item_node[mine].tolist(),
            state.item_unstable[mine].tolist(),
            state.item_current[mine].tolist(),
            state.item_age[mine].tolist(),
            state.item_skips[mine].tolist(),
            strict=True,
        )
        for i, node, unstable, current, age, skips in columns:
            self.state[i] = STABLE if node >= 0 else UNSTABLE if unstable else IDLE
            self.item_node[i] = node
            self.age[i], self.skips[i] = age, skips
            if current and self.frame[i] >= 0:
                self.checksum[i] = self.content[self.frame[i]]
        self.visits = [i for i in visits if self._offered(i)]
        return items

    def _gone_slots(self, count: int) -> I64:
        """Items of addresses at which nothing is mapped any more."""
        slots = self._slots(np.full(count, -1), np.full(count, GONE))
        rows = np.full(count, -1)
        self.row = np.concatenate((self.row, rows))
        return slots

    def _adopt_counters(self, snapshot: Snapshot, state: KsmdState, items: I64) -> None:
        counters = snapshot.meta.counters
        self.items = len(items)
        self.unshared = int(state.item_unstable.sum())
        self.scanned = counters.get("pages_scanned", 0)
        self.skipped = counters.get("pages_skipped", 0)
        here = state.item_process >= 0
        rows, count = state.item_process[here], len(self.keys)
        # Items at addresses without a page are counted until ksmd has freed them.
        self.row[items[here]] = rows
        if self.rules.fork_copies_counters:
            observed = snapshot.processes.observed
            if "ksm_zero_pages" in observed and "ksm_zero_pages" in counters:
                total = int(observed["ksm_zero_pages"].sum())
                self.zero_inherited = total - counters["ksm_zero_pages"]
            of_row = np.bincount(rows, minlength=count)
            merging = np.bincount(rows[state.item_node[here] >= 0], minlength=count)
            if "ksm_rmap_items" in observed and "ksm_merging_pages" in observed:
                more = observed["ksm_rmap_items"] - of_row
                more_merging = observed["ksm_merging_pages"] - merging
                pairs = zip(more.tolist(), more_merging.tolist(), strict=True)
                self.copied = dict(zip(self.keys, pairs, strict=True))

    def _resume(self, state: KsmdState, items: I64) -> None:
        """The dump was taken within a pass: what ksmd has not visited yet, and its trees."""
        address = dict(zip(items.tolist(), state.item_address.tolist(), strict=True))
        for sample in self.samples.values():
            address |= dict(zip(sample.slot.tolist(), sample.address.tolist(), strict=True))
        place = (state.cursor_process, state.cursor_address)
        row = self.row.tolist()
        self.resumed = [i for i in self.visits if (row[i], address[i]) >= place]
        self.here = sum(row[i] == state.cursor_process for i in self.resumed)
        self._adopt_batches(state)
        now = state.item_unstable & (state.item_seqnr == state.full_scans & SEQNR_MASK)
        self.passes += 1
        self._check_pruning(state.tree_pruned)
        # Items of the dead are freed next. A page that was written since is in the tree where
        # its old contents belong: hardly any search gets there.
        there = now & (state.item_process >= 0)
        changed = (
            there & ~state.item_current & (np.array([*self.frame, GONE], np.int64)[items] >= 0)
        )
        inserted = items[there & ~changed].tolist()
        inserted.sort(key=lambda i: (row[i], address[i]))
        for i in inserted:
            if self.frame[i] >= 0:
                self.unstable.setdefault(self.content[self.frame[i]], i)
        self._grow_trees(inserted)

    def _check_pruning(self, ago: I64 | None) -> None:
        assert self.resumed is not None
        due = self.stable.prune_millisecs
        time = -(-len(self.resumed) // max(1, self.pages_to_scan)) * self.sleep_millisecs
        known = ago is not None and not ((ago >= 0) & (ago < due) & (ago + time >= due)).any()
        if self.stable.chains and not known:
            self.prune_unknown = self.passes

    def _adopt_batches(self, state: KsmdState) -> None:
        """Pages that wait in per-CPU batches until the next pass begins."""
        found = {pfn: f for f, pfn in enumerate(self.frame_pfn) if pfn >= 0}
        for pfn, mlock in zip(state.batch_pfn.tolist(), state.batch_mlock.tolist(), strict=True):
            f = found.get(pfn, GONE)
            if mlock:
                self.mlock_batch.append(f)
            else:
                self.held.add(f)

    def _grow_trees(self, inserted: list[int]) -> None:
        """The unstable trees of the pass under way, where their shape decides: as if nothing had
        been erased from them, and pages that are gone by now were there only as the first."""
        first_gone = bool(inserted) and self.frame[inserted[0]] < 0
        gone = any(self.frame[i] < 0 for i in inserted)
        if not (gone or self.poisoned or self.zero_subpages):
            self.shaped = False
            return
        self.shape_unknown = self.passes
        # Without ranks all searches end there at once, if there is one tree only.
        self.shaped = self.has_order or (first_gone and self.across_nodes)
        if not self.shaped:
            return
        for i in inserted:
            f = self.frame[i]
            tree = self.trees.setdefault(self.numa[f] if f >= 0 else 0, RedBlackTree())
            rank, parent, at, left = self.rank[f] if f >= 0 else 0, None, tree.root, False
            if f < 0 and at is not None:
                continue  # where it was is not known
            while at is not None and at.rank != rank and self.frame[at.item] >= 0:
                parent, left = at, rank < at.rank
                at = at.left if left else at.right
            if at is None:
                node = self.tree_nodes[i] = Node(i, rank)
                tree.insert(node, parent, left)

    def full_scan(self) -> None:
        if self.resumed is None:
            super().full_scan()
            return
        visits, self.resumed = self.resumed, None
        here = self.here
        self.scan(visits[:here])
        self.scan(self.dead)  # __ksm_exit() moved them to behind the process that ksmd is at
        self.scan(visits[here:])
        self._forget_freed()

    def result(self) -> PassResult:
        found = super().result()
        if self.resumed is None:
            return replace(found, exact=found.exact and self.prune_unknown != self.passes)
        return replace(
            found, counters=replace(found.counters, full_scans=self.passes - 1)
        )  # the pass under way does not count yet
