"""What ksmd remembers, loaded from a snapshot and read out as counters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.budget import begin
from ksm_eval.replay.contents import (
    REMAPPED,
    ZERO_PAGE,
    Kind,
    blocked_mappings,
    checked_mappings,
    contents,
    locked_mappings,
    mappings_of,
    poisoned,
    remappable,
    split_attempts,
)
from ksm_eval.replay.counters import (
    Counters,
    ProcessCounters,
    observed_zero_pages,
    process_counters,
    system_counters,
)
from ksm_eval.replay.rbtree import Node, RedBlackTree
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.savings import Outcome
from ksm_eval.replay.stable import StableTree
from ksm_eval.snapshot import I64, NO_COMPOUND, FrameFlag, MappingFlag, Snapshot, has

# State of an rmap_item.
NEW, IDLE, UNSTABLE, STABLE, FREED = range(5)

# Instead of a stable node: an ordinary frame, or a KSM frame that has none.
ORDINARY, ORPHAN = -1, -2


@dataclass(frozen=True)
class PassResult:
    """The counters after one full scan."""

    counters: Counters
    processes: ProcessCounters
    cow_breaks: int = 0
    """Merged mappings that had been written since the scan before: each took a COW fault."""
    exact: bool = True
    """False: depends on the order of the contents, or on when chains were pruned, which the
    snapshots do not tell."""


class State:
    """An rmap_item per mapping, and what each frame has become.

    `positions`: only these mappings (ascending), together with all others of their
    contents. `splits`: (position, compound page) of THPs that mappings left out would
    split during the second pass.

    Passes are taken to be further apart than stable_node_chains_prune_millisecs: each prunes the
    chains that its searches pass. How long passes take is not known. By pages_to_scan and
    sleep_millisecs the defaults (100 pages, 20 ms, 2000 ms) get there with 10,000 pages to scan;
    below that ksmd prunes a chain in some passes only, and chains and dups go a little later.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        settings: Settings,
        positions: I64 | None = None,
        splits: Sequence[tuple[int, int]] = (),
    ) -> None:
        rules = snapshot.meta.rules
        self.snapshot = snapshot
        self.rules = rules
        self.use_zero_pages = settings.use_zero_pages
        self.smart_scan = settings.smart_scan and rules.smart_scan
        begin(len(snapshot.mappings) if positions is None else len(positions))
        self.positions = np.arange(len(snapshot.mappings)) if positions is None else positions
        self.has_order = snapshot.frames.order is not None and positions is None
        self.stable = StableTree(
            settings.max_page_sharing,
            settings.stable_node_chains_prune_millisecs,
            collapse_always=rules.checksum_first,
            drop=self._drop,
            shaped=self.has_order,
        )
        self.passes = 0
        self.split_failures = 0  # of compound pages of any size
        self.event_pass = 0  # the last one with something that is never undone
        self.counter_pass = 0  # the last one in which the settled counters moved
        self.items = self.unshared = self.scanned = self.skipped = self.zero = 0
        self.zero_inherited = 0  # by forks that did not add them (Rules.fork_copies_counters)
        self.other_splits = [(int(np.searchsorted(self.positions, at)), c) for at, c in splits]
        self._load_frames(settings.merge_across_nodes)
        self._load_items()
        self._load_compounds()
        self._adopt_ksm_frames()
        # The tree of this pass: item by content, or the real one where its shape decides.
        self.unstable: dict[int, int] = {}
        self.poisoned = poisoned(snapshot)  # refuses what cannot be replayed
        self.shaped = self.poisoned  # this pass needs the real tree
        self.shape_unknown = 0  # the last pass that needed it, and the order was not known
        self.trees: dict[int, RedBlackTree] = {}
        self.tree_nodes: dict[int, Node] = {}

    def _load_frames(self, across_nodes: bool) -> None:
        """Frames are renumbered to those that the items map; copies made later follow."""
        snapshot, frames = self.snapshot, self.snapshot.frames
        used = np.zeros(len(frames), np.bool_)
        used[snapshot.mappings.frame[self.positions]] = True
        rows = np.flatnonzero(used)
        self.rows = rows
        flags = frames.flags[rows]
        self.content = contents(snapshot, rows, across_nodes).tolist()
        self.is_zero = ((flags & FrameFlag.ZERO) != 0).tolist()
        compound = frames.compound[rows].astype(np.int64)
        compound[compound == NO_COMPOUND] = -1
        self.compound = compound.tolist()
        self.mapped = np.maximum(frames.mapcount, mappings_of(snapshot))[rows].tolist()
        self.node = [ORDINARY] * len(rows)  # stable node of each frame
        self.ksm_frame: list[int] = []  # frame of each stable node
        self.rank = [0] * len(rows) if frames.order is None else frames.order[rows].tolist()
        self.numa = [0] * len(rows) if across_nodes else frames.node[rows].tolist()

    def _load_items(self) -> None:
        mappings, n = self.snapshot.mappings, len(self.positions)
        self.frame = np.searchsorted(self.rows, mappings.frame[self.positions]).tolist()
        blocked = blocked_mappings(self.snapshot)
        self.blocked = bytearray(n if blocked is None else blocked[self.positions].tobytes())
        flags = mappings.flags[self.positions]
        locked = locked_mappings(self.snapshot)[self.positions]
        self.locked = bytearray(locked.tobytes())
        self.checked = bytearray(checked_mappings(self.snapshot)[self.positions].tobytes())
        self.mlock_size = self.rules.mlock_batch if locked.any() else 0
        self.mlock_batch: list[int] = []  # frames with a reference of mm/mlock.c's batch
        self.held: set[int] = set()  # and of others that the next pass begins with emptying
        self.prot_none = bytearray(has(flags, MappingFlag.PROT_NONE).tobytes())
        self.state = bytearray(n)
        self.age = bytearray(n)
        self.skips = bytearray(n)
        self.item_node = [-1] * n  # stable node it is attached to, where STABLE
        self.checksum = [-1] * n  # content at the last visit; -1: none, or as if changed
        self.visits: Sequence[int] = range(n)  # in scan order; may be narrowed between passes

    def _load_compounds(self) -> None:
        snapshot, compounds = self.snapshot, self.snapshot.compounds
        mapped = snapshot.mappings.frame[locked_mappings(snapshot)]
        inside = snapshot.frames.compound[mapped]
        # Also by items that are left out here.
        self.locked_compounds = set(inside[inside != NO_COMPOUND].tolist())
        self.split = bytearray(len(compounds))
        self.unsplittable = bytearray(compounds.pinned.astype(np.uint8).tobytes())
        attempts = split_attempts(snapshot) if self.rules.pmd_at_a_time else np.empty(0, np.int64)
        several = np.flatnonzero(attempts > 1)
        # Whom a split attempt gets to, one a time; it succeeds at the last.
        self.pmds = {c: list(range(attempts[c])) for c in several.tolist()}
        # The items that lose their page when a compound page is split (6.12+).
        self.zero_subpages: dict[int, list[int]] = {}
        if self.rules.zero_remap_at_split:
            zero = np.array(self.is_zero, np.bool_) & (np.array(self.compound, np.int64) >= 0)
            items = np.flatnonzero(zero[np.array(self.frame, np.int64)])
            for i in items[remappable(snapshot, self.positions[items])].tolist():
                self.zero_subpages.setdefault(self.compound[self.frame[i]], []).append(i)

    def _adopt_ksm_frames(self) -> None:
        ksm = np.flatnonzero(self.snapshot.frames.flags[self.rows] & FrameFlag.KSM)
        if not len(ksm):
            return
        frame = np.array(self.frame, np.int64)
        count = np.bincount(frame, minlength=len(self.rows))
        for f in ksm.tolist():
            where = self.content[f], self.rank[f], self.numa[f]
            self.node[f] = self.stable.adopt(*where, int(count[f]), self.mapped[f])
            self.ksm_frame.append(f)
        attached = np.isin(frame, ksm)
        self.items = int(attached.sum())
        self.state = bytearray(np.where(attached, STABLE, NEW).astype(np.uint8).tobytes())
        self.item_node = np.where(attached, np.array(self.node, np.int64)[frame], -1).tolist()

    def _drop(self, node: int) -> int:
        """The items of a stale node leave it; how many they were. Only memory that changes
        has stale nodes."""
        raise AssertionError(f"stable node {node} is stale in a memory that stands still")

    def process_rows(self) -> I64:
        """Row in Processes of each item; -1: of none that is there any more."""
        vmas = self.snapshot.vmas
        items = np.diff(np.searchsorted(self.positions, vmas.offset))
        return np.repeat(vmas.process.astype(np.int64), items)

    def result(self) -> PassResult:
        """Counters as they are now."""
        snapshot, stable, count = self.snapshot, self.stable, len(self.snapshot.processes)
        state = np.frombuffer(bytes(self.state), np.uint8)
        zero = np.array(self.frame, np.int64) == ZERO_PAGE
        before = observed_zero_pages(snapshot.processes.observed, count)
        rows = self.process_rows()

        def by_process(marked: NDArray[np.bool_]) -> I64:
            return np.bincount(rows[marked & (rows >= 0)], minlength=count).astype(np.int64)

        has_item = (state != NEW) & (state != FREED)
        return PassResult(
            system_counters(
                snapshot.meta,
                shared=stable.shared,
                sharing=stable.sharing,
                unshared=self.unshared,
                items=self.items,
                chains=stable.chains,
                dups=stable.dups,
                zero=self.zero + int(before.sum()) - self.zero_inherited,
                scanned=self.scanned,
                skipped=self.skipped,
                full_scans=self.passes,
            ),
            process_counters(
                snapshot.meta,
                by_process(has_item),
                by_process(state == STABLE),
                by_process(zero) + before,
            ),
        )

    def orphaned(self) -> NDArray[np.bool_]:
        """Items whose page is a KSM page without a stable node."""
        node = np.array([*self.node, ORDINARY, ORDINARY], np.int64)  # the last: no page
        found: NDArray[np.bool_] = node[np.array(self.frame, np.int64)] == ORPHAN
        return found

    def outcome(self) -> Outcome:
        """What became of each of `positions`; copies are numbered from len(frames) on."""
        frame = np.array(self.frame, np.int64)
        kind = np.full(len(frame), Kind.UNMERGED, np.uint8)
        kind[self.orphaned()] = Kind.ORPHAN
        kind[np.frombuffer(self.state, np.uint8) == STABLE] = Kind.MERGED
        kind[frame == ZERO_PAGE] = Kind.ZERO_PAGE
        kind[frame == REMAPPED] = Kind.REMAPPED
        copies = len(self.node) - len(self.rows)
        numbers = np.append(self.rows, len(self.snapshot.frames) + np.arange(copies))
        split = np.frombuffer(bytes(self.split), np.uint8).astype(np.bool_)
        numbers = np.append(numbers, (REMAPPED, ZERO_PAGE))
        return Outcome(kind, numbers[frame], split)
