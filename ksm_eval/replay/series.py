"""Several samples of a memory that changes: one sample, one full scan.

Between two samples only what they show is known. A mapping is (process, address); its content
changed if its hash did, and then it has a frame of its own. What ksmd merged stays merged as
long as the content is equal, whatever frame the target has there, as the target knows nothing
of that merge. A write that leaves the content as it was cannot be seen.

All samples must be collected with one `seed`. With ranks that mean the same in all of them
(memcmp_order.common_order()) the trees have ksmd's own shape; without, chains are pruned
only by searches of their own content, which can leave stable_node_chains and _dups a few off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import (
    REMAPPED,
    ZERO_PAGE,
    blocked_mappings,
    mappings_of,
    poisoned,
    remappable,
)
from ksm_eval.replay.counters import ProcessCounters, process_counters
from ksm_eval.replay.ksmd import Ksmd
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.state import FREED, NEW, ORDINARY, PassResult
from ksm_eval.snapshot import (
    I64,
    NO_COMPOUND,
    U64,
    FrameFlag,
    MappingFlag,
    Snapshot,
    has,
    mark,
)

GONE = -3
"""Instead of a frame: nothing is mapped at this address any more."""

Key = tuple[int, int]
"""A process: pid and start time."""


@dataclass(frozen=True)
class Sample:
    """A process's mappings in one sample, by ascending address. Arrays of one length."""

    address: U64
    slot: I64  # item of the replay
    pfn: U64
    content: I64
    head: I64  # first PFN of the compound page, -1: in none
    compound: I64  # of the replay, -1: in none


_NOTHING = Sample(
    np.empty(0, np.uint64),
    np.empty(0, np.int64),
    np.empty(0, np.uint64),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    np.empty(0, np.int64),
)


def simulate_series(snapshots: Sequence[Snapshot], settings: Settings) -> list[PassResult]:
    """The counters after each sample's full scan; ksmd starts with the first one.

    Samples are taken to be further apart than stable_node_chains_prune_millisecs. Raises
    TargetError if PROT_NONE pages block merging and a snapshot does not tell the order of
    the contents.
    """
    if not snapshots:
        return []
    ksmd = Series(snapshots[0], settings)
    results = []
    for snapshot in snapshots:
        ksmd.advance(snapshot)
        ksmd.full_scan()
        results.append(ksmd.result())
    return results


class Series(Ksmd):
    """ksmd's state, carried from sample to sample. An item is never used for another address."""

    def __init__(self, first: Snapshot, settings: Settings) -> None:
        super().__init__(first, settings, np.empty(0, np.int64))
        self.across_nodes = settings.merge_across_nodes
        self.has_order = first.frames.order is not None
        if self.has_order:
            self.stable.trees = {}
        self.split, self.unsplittable = bytearray(), bytearray()
        self.contents: dict[tuple[int, int], int] = {}  # (node, hash) -> number
        self.samples: dict[Key, Sample] = {}  # the last one
        self.row = np.empty(0, np.int64)  # process of each item; -1: none any more
        self.frame_pfn: list[int] = []  # where the target has it; -1: a copy made by ksmd
        self.outside: list[int] = []  # mappings of each frame by other processes
        self.removed: set[int] = set()  # stable nodes that are no more
        self.stale_items: dict[int, list[int]] = {}
        self.dead: list[int] = []  # items of processes that are gone
        self.pte_mapped: set[tuple[int, Key]] = set()  # (compound, process): PMD split by ksmd
        self.keys: list[Key] = []  # of the rows of this sample
        self.copied: dict[Key, tuple[int, int]] = {}  # counters a process started with (6.1)
        self.last: dict[Key, tuple[int, int]] = {}

    # One sample

    def advance(self, snapshot: Snapshot) -> None:
        """The memory is as in `snapshot` now."""
        self.snapshot = snapshot
        self.poisoned = poisoned(snapshot)
        self.has_order = self.has_order and snapshot.frames.order is not None
        processes, vmas, mappings = snapshot.processes, snapshot.vmas, snapshot.mappings
        self.keys = list(
            zip(processes.pid.tolist(), processes.start_time.tolist(), strict=True)
        )
        vma = np.repeat(np.arange(len(vmas)), np.diff(vmas.offset))
        size = np.uint64(snapshot.meta.page_size)
        address = vmas.start[vma] + mappings.page.astype(np.uint64) * size
        row = vmas.process[vma].astype(np.int64)
        bounds = np.searchsorted(row, np.arange(len(processes) + 1))
        content = self._contents(snapshot)[mappings.frame]
        pfn = snapshot.frames.pfn[mappings.frame]
        compound = snapshot.frames.compound[mappings.frame]
        raw = np.where(compound == NO_COMPOUND, -1, compound.astype(np.int64))
        heads = np.append(snapshot.compounds.head.astype(np.int64), -1)
        now = Sample(address, np.full(len(row), -1), pfn, content, heads[raw], raw)

        before, inherited = self._matched(now, bounds)
        known = before.slot >= 0
        same_pfn = (known | inherited) & (before.pfn == pfn)
        same = (known | inherited) & (before.content == content) & (same_pfn | (content >= 0))
        inherited &= same & same_pfn
        same &= known | inherited
        now = self._compounds(snapshot, now, before, same_pfn & same)

        frames = np.array([*self.frame, GONE], np.int64)[before.slot]
        frames[~(known | inherited)] = GONE
        node = np.array([*self.node, ORDINARY, ORDINARY, ORDINARY], np.int64)[frames]
        # What ksmd merged stays, ordinary and orphan frames only where the target's stayed.
        keep = same & ((frames < 0) | (node >= 0) | same_pfn) & (frames != GONE)
        frames[~keep] = GONE
        frames = self._fresh_frames(snapshot, now, frames, keep)
        slot = self._slots(now, before, known, frames, bounds)
        now = Sample(address, slot, pfn, content, now.head, now.compound)
        self.row = np.full(len(self.frame), -1, np.int64)
        self.row[slot] = row
        self._leave(now, bounds)
        self._flags(snapshot, slot)
        self._outside(snapshot, now)
        self._find_stale()
        self._find_zero_subpages(snapshot, now)
        if self.rules.pmd_at_a_time:
            self._find_pmds(snapshot, now, bounds)

    def _contents(self, snapshot: Snapshot) -> I64:
        """Number of each frame's content, the same in all samples; -1: unreadable."""
        frames, numbers = snapshot.frames, self.contents
        nodes = [0] * len(frames) if self.across_nodes else frames.node.tolist()
        keys = zip(nodes, frames.hash.tolist(), strict=True)
        found = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
        found[has(frames.flags, FrameFlag.UNREADABLE)] = -1
        return found

    def _matched(self, now: Sample, bounds: I64) -> tuple[Sample, NDArray[np.bool_]]:
        """What was at each address before: in the same process, or (True) in the parent of one
        that is new. `slot` -1: nothing."""
        count = len(now.address)
        found = Sample(*(np.full(count, -1, getattr(now, n).dtype) if n not in ("address", "pfn")
                         else np.zeros(count, np.uint64) for n in vars(now)))
        inherited = np.zeros(count, np.bool_)
        for number, key in enumerate(self.keys):
            rows = slice(int(bounds[number]), int(bounds[number + 1]))
            old = self.samples.get(key)
            if old is None:
                parent = self._parent(number, now, rows)
                if parent is None:
                    continue
                old = self.samples[parent]
                self._copy_counters(key, parent)
            at, hit = _find(old.address, now.address[rows])
            for name in vars(found):
                getattr(found, name)[rows][hit] = getattr(old, name)[at[hit]]
            if key not in self.samples:
                inherited[rows] = hit
        return Sample(found.address, np.where(inherited, -1, found.slot), *list(
            vars(found).values())[2:]) if False else found, inherited

    def _parent(self, number: int, now: Sample, rows: slice) -> Key | None:
        """The process of the last sample that this one was forked from."""
        processes = self.snapshot.processes
        if processes.ppid is not None:
            by_pid = {key[0]: key for key in self.samples}
            row_of = {pid: row for row, (pid, _) in enumerate(self.keys)}
            pid, seen = int(processes.ppid[number]), {self.keys[number][0]}
            while pid not in seen:
                if pid in by_pid and (pid not in row_of or self.keys[row_of[pid]] == by_pid[pid]):
                    return by_pid[pid]
                if pid not in row_of:
                    break
                seen.add(pid)
                pid = int(processes.ppid[row_of[pid]])
        best, most = None, 0
        for key, old in self.samples.items():
            at, hit = _find(old.address, now.address[rows])
            equal = hit & (old.pfn[at] == now.pfn[rows]) if len(old.pfn) else hit
            if int(equal.sum()) > most:
                best, most = key, int(equal.sum())
        return best
