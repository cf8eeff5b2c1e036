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
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import (
    REMAPPED,
    ZERO_PAGE,
    blocked_mappings,
    checked_mappings,
    locked_mappings,
    mappings_of,
    poisoned,
    remappable,
)
from ksm_eval.replay.counters import process_counters
from ksm_eval.replay.ksmd import Ksmd
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.samples import Key, Sample, find, match
from ksm_eval.replay.state import FREED, NEW, ORDINARY, PassResult
from ksm_eval.snapshot import (
    I64,
    NO_COMPOUND,
    U64,
    FrameFlag,
    MappingFlag,
    Snapshot,
    has,
)

GONE = -3
"""Instead of a frame: nothing is mapped at this address any more."""

OUTSIDE = -1
"""Instead of a row in Processes: one that is not in the sample."""


def simulate_series(snapshots: Sequence[Snapshot], settings: Settings) -> list[PassResult]:
    """The counters after each sample's full scan; ksmd starts with the first one.

    Samples are taken to be further apart than stable_node_chains_prune_millisecs (State). Raises
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
        self.outside_split: dict[int, int] = {}  # how many others' PMDs, by compound
        self.keys: list[Key] = []  # of the rows of this sample
        self.parents: dict[Key, Key] = {}  # of the processes that are new in this sample
        self.copied: dict[Key, tuple[int, int]] = {}  # counters a process started with (6.1)
        self.last: dict[Key, tuple[int, int]] = {}
        self.cow_breaks = 0  # since the last full scan
        self.last_zero: dict[Key, int] = {}  # ksm_zero_pages

    def advance(self, snapshot: Snapshot) -> None:
        """The memory is as in `snapshot` now."""
        self.snapshot = snapshot
        self.poisoned = poisoned(snapshot)
        self.has_order = self.has_order and snapshot.frames.order is not None
        processes, vmas, mappings = snapshot.processes, snapshot.vmas, snapshot.mappings
        self.keys = list(zip(processes.pid.tolist(), processes.start_time.tolist(), strict=True))
        vma = np.repeat(np.arange(len(vmas)), np.diff(vmas.offset))
        size = np.uint64(snapshot.meta.page_size)
        address = vmas.start[vma] + mappings.page.astype(np.uint64) * size
        row = vmas.process[vma].astype(np.int64)
        bounds = np.searchsorted(row, np.arange(len(processes) + 1))
        contents = self._contents(snapshot)
        content = contents[mappings.frame]
        pfn = snapshot.frames.pfn[mappings.frame]
        compound = snapshot.frames.compound[mappings.frame]
        raw = np.where(compound == NO_COMPOUND, -1, compound.astype(np.int64))
        heads = np.append(snapshot.compounds.head.astype(np.int64), -1)
        now = Sample(address, np.full(len(row), -1), pfn, content, heads[raw], raw)

        before, own, parents = match(
            self.samples, self.keys, snapshot.processes.ppid, address, pfn, bounds
        )
        self.parents = parents
        for key, parent in parents.items():
            self.copied[key] = self.last[parent]
        source = before.slot >= 0
        same_pfn = source & (before.pfn == pfn)
        same = source & (before.content == content) & (same_pfn | (content >= 0))
        sim_compound = self._compounds(snapshot, raw, heads[raw], before, same_pfn)

        frames = np.array([*self.frame, GONE], np.int64)[before.slot]
        node = np.array([*self.node, ORDINARY, ORDINARY, ORDINARY], np.int64)[frames]
        # What ksmd merged stays. Other frames do where the target's did, and with a fork.
        merged = own & ((frames == ZERO_PAGE) | (frames == REMAPPED) | (node >= 0))
        written = merged & source & (before.content >= 0) & (content >= 0) & ~same
        self.cow_breaks = int(written.sum())
        if self.rules.fork_copies_counters:
            lost = (frames == ZERO_PAGE) & ~same
            self.zero_inherited += self._inherited_zero_pages(lost, address, pfn, bounds)
        keep = same & (same_pfn | (own & ((frames < 0) | (node >= 0))))
        dissolved = keep & (raw < 0) & (frames >= 0)
        for f in np.unique(frames[dissolved]).tolist():
            if self.compound[f] >= 0:  # the kernel split it itself
                self.split[self.compound[f]] = 1
        frames = self._fresh_frames(snapshot, frames, keep, sim_compound, contents)
        slot = self._slots(np.where(own, before.slot, -1), frames)
        self.row = np.full(len(self.frame), -1, np.int64)
        self.row[slot] = row
        now = Sample(address, slot, pfn, content, heads[raw], sim_compound)
        self._leave(now, bounds)
        self._flags(snapshot, slot)
        self._map_counts(snapshot, now, contents)
        self._find_stale()
        self._find_zero_subpages(snapshot, slot)
        if self.rules.pmd_at_a_time:
            self._find_pmds(snapshot, now, row)

    def _inherited_zero_pages(
        self, lost: NDArray[np.bool_], address: U64, pfn: U64, bounds: I64
    ) -> int:
        """What the parents of new processes had in mm->ksm_zero_pages when they forked. `lost`:
        mappings that were the zero page and have been written: by the parent before the fork if
        both have the page that was written."""
        found = 0
        for number, key in enumerate(self.keys):
            parent = self.parents.get(key)
            if parent is None:
                continue
            found += self.last_zero.get(parent, 0)
            if parent in self.keys:
                child = np.arange(bounds[number], bounds[number + 1])
                child = child[lost[child]]
                theirs = self.keys.index(parent)
                old = slice(int(bounds[theirs]), int(bounds[theirs + 1]))
                at, hit = find(address[old], address[child])
                if hit.any():
                    found -= int((hit & (pfn[old][at] == pfn[child])).sum())
        return found

    def _contents(self, snapshot: Snapshot) -> I64:
        """Number of each frame's content, the same in all samples; -1: unreadable."""
        frames, numbers = snapshot.frames, self.contents
        nodes = [0] * len(frames) if self.across_nodes else frames.node.tolist()
        keys = zip(nodes, frames.hash.tolist(), strict=True)
        found = np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
        found[has(frames.flags, FrameFlag.UNREADABLE)] = -1
        return found

    def _compounds(
        self,
        snapshot: Snapshot,
        raw: I64,
        head: I64,
        before: Sample,
        same_pfn: NDArray[np.bool_],
    ) -> I64:
        """Compound page of each mapping, by the replay's numbers. One that reappears at other
        addresses is a new one, and whole."""
        compounds = snapshot.compounds
        number = np.full(len(compounds), -1, np.int64)
        carried = same_pfn & (raw >= 0) & (before.head == head) & (before.compound >= 0)
        number[raw[carried]] = before.compound[carried]
        new = np.flatnonzero(number < 0)
        number[new] = len(self.split) + np.arange(len(new))
        self.split.extend(bytes(len(new)))
        self.unsplittable.extend(bytes(len(new)))
        for c, pinned in zip(number.tolist(), compounds.pinned.tolist(), strict=True):
            self.unsplittable[c] = pinned
        return np.append(number, -1)[raw]

    def _fresh_frames(
        self,
        snapshot: Snapshot,
        frames: I64,
        keep: NDArray[np.bool_],
        compound: I64,
        contents: I64,
    ) -> I64:
        """Frame of each mapping: those that are not kept get new ones, one a frame of the
        target, or join one that is kept and is not merged."""
        table, mapped = snapshot.frames, snapshot.mappings.frame.astype(np.int64)
        node = np.array([*self.node, ORDINARY, ORDINARY, ORDINARY], np.int64)
        at = np.array([*self.frame_pfn, -1, -1, -1], np.int64)
        kept = keep & (frames >= 0) & (node[frames] < 0)
        kept &= at[frames] == table.pfn[mapped].astype(np.int64)
        of_row = np.full(len(table), -1, np.int64)
        of_row[mapped[kept]] = frames[kept]
        missing = np.zeros(len(table), np.bool_)
        missing[mapped[~keep]] = True
        rows = np.flatnonzero(missing & (of_row < 0))
        of_row[rows] = len(self.node) + np.arange(len(rows))
        compound_of = np.full(len(table), -1, np.int64)
        compound_of[mapped] = compound
        self.content += contents[rows].tolist()
        self.is_zero += has(table.flags[rows], FrameFlag.ZERO).tolist()
        self.rank += [0] * len(rows) if table.order is None else table.order[rows].tolist()
        self.numa += [0] * len(rows) if self.across_nodes else table.node[rows].tolist()
        self.compound += compound_of[rows].tolist()
        self.node += [ORDINARY] * len(rows)
        self.frame_pfn += table.pfn[rows].tolist()
        return np.where(keep, frames, of_row[mapped])

    def _slots(self, slot: I64, frames: I64) -> I64:
        """Give each mapping its frame; mappings without an item (-1) get a new one."""
        for i, f in zip(slot[slot >= 0].tolist(), frames[slot >= 0].tolist(), strict=True):
            if f != self.frame[i]:
                self.frame[i] = f
                if self.state[i] == FREED:
                    self.state[i] = NEW
                    self.age[i] = self.skips[i] = 0
                    self.checksum[i] = -1
        new = np.flatnonzero(slot < 0)
        slot = slot.copy()
        slot[new] = len(self.frame) + np.arange(len(new))
        self.frame += frames[new].tolist()
        for column in (
            *(self.state, self.age, self.skips),
            *(self.blocked, self.prot_none, self.locked, self.checked),
        ):
            column.extend(bytes(len(new)))
        self.item_node += [-1] * len(new)
        self.checksum += [-1] * len(new)
        return slot

    def _leave(self, now: Sample, bounds: I64) -> None:
        """Addresses that are gone; then the visits of this pass, in scan order."""
        here = np.zeros(len(self.frame), np.bool_)
        here[now.slot] = True
        visits: list[int] = []
        samples: dict[Key, Sample] = {}
        gone: dict[Key, I64] = {}
        for key, old in self.samples.items():
            left = np.flatnonzero(~here[old.slot])
            gone[key] = left
            for i in old.slot[left].tolist():
                self.frame[i] = GONE
        for number, key in enumerate(self.keys):
            rows = slice(int(bounds[number]), int(bounds[number + 1]))
            sample = samples[key] = Sample(*(column[rows] for column in vars(now).values()))
            slots, address = sample.slot, sample.address
            left = gone.pop(key, np.empty(0, np.int64))
            if len(left):
                old = self.samples[key]
                slots = np.concatenate((old.slot[left], slots))
                address = np.concatenate((old.address[left], address))
                slots = slots[np.argsort(address, kind="stable")]
            visits += slots.tolist()
        dead = [i for key, left in gone.items() for i in self.samples[key].slot[left].tolist()]
        self.samples = samples
        self.dead = [i for i in dead if self._offered(i)]
        self.visits = [i for i in visits if self._offered(i)]

    def _offered(self, i: int) -> bool:
        """There is a page, or an rmap_item to be freed."""
        return self.frame[i] >= 0 or self.state[i] not in (NEW, FREED)

    def _flags(self, snapshot: Snapshot, slot: I64) -> None:
        """PTE bits and pins as they are in this sample."""
        prot_none = np.zeros(len(self.frame), np.uint8)
        prot_none[slot] = has(snapshot.mappings.flags, MappingFlag.PROT_NONE)
        self.prot_none = bytearray(prot_none.tobytes())
        blocked = np.zeros(len(self.frame), np.uint8)
        found = blocked_mappings(snapshot)
        if found is not None:
            blocked[slot] = found
        self.blocked = bytearray(blocked.tobytes())
        locked = locked_mappings(snapshot)
        self.mlock_size = self.rules.mlock_batch if locked.any() else 0
        for name, values in (("locked", locked), ("checked", checked_mappings(snapshot))):
            column = np.zeros(len(self.frame), np.uint8)
            column[slot] = values
            setattr(self, name, bytearray(column.tobytes()))
        frames = np.array(self.frame, np.int64)[slot[locked]]
        compounds = np.array([*self.compound, -1], np.int64)[np.maximum(frames, -1)]
        self.locked_compounds = set(compounds[compounds >= 0].tolist())

    def _map_counts(self, snapshot: Snapshot, now: Sample, contents: I64) -> None:
        """Mappings of each frame; those of other processes as the target last showed them."""
        table = snapshot.frames
        self.outside += [0] * (len(self.node) - len(self.outside))
        others = np.maximum(table.mapcount.astype(np.int64) - mappings_of(snapshot), 0)
        outside = np.array(self.outside, np.int64)
        row, hit = find(
            table.pfn, np.maximum(np.array(self.frame_pfn, np.int64), 0).view(np.uint64)
        )
        if len(table):
            hit &= contents[row] == np.array(self.content, np.int64)
            outside[hit] = others[row[hit]]
        self.outside = outside.tolist()
        frames = np.array(self.frame, np.int64)[now.slot]
        self.zero = int((frames == ZERO_PAGE).sum())
        count = np.bincount(frames[frames >= 0], minlength=len(self.node))
        self.mapped = (count + outside).tolist()

    def _find_stale(self) -> None:
        """Stable nodes whose frame nobody maps any more, and the items that do not know yet."""
        frames, mapped = self.ksm_frame, self.mapped
        stale = {n for n, f in enumerate(frames) if not mapped[f] and n not in self.removed}
        self.stable.stale = stale
        self.stale_items = {n: [] for n in stale}
        if stale:
            for i, n in enumerate(self.item_node):
                if n in stale:
                    self.stale_items[n].append(i)

    def _drop(self, node: int) -> int:
        items = self.stale_items.pop(node)
        self.removed.add(node)
        for i in items:
            self.left_node(i)
        return len(items)

    def _find_zero_subpages(self, snapshot: Snapshot, slot: I64) -> None:
        """As State does when it is loaded."""
        self.zero_subpages = {}
        if not self.rules.zero_remap_at_split:
            return
        candidates = np.flatnonzero(
            has(snapshot.frames.flags, FrameFlag.ZERO)[snapshot.mappings.frame]
        )
        for i in slot[candidates[remappable(snapshot, candidates)]].tolist():
            f = self.frame[i]
            if f >= 0 and self.compound[f] >= 0 and not self.split[self.compound[f]]:
                self.zero_subpages.setdefault(self.compound[f], []).append(i)

    def _find_pmds(self, snapshot: Snapshot, now: Sample, row: I64) -> None:
        """Who maps each THP by PMD, in fork order (6.16 to early 6.19)."""
        for key, parent in self.parents.items():
            self.pte_mapped |= {(c, key) for c, owner in self.pte_mapped if owner == parent}
        inside = now.compound >= 0
        huge = has(snapshot.mappings.flags, MappingFlag.HUGE)[inside]
        compound, rows = now.compound[inside], row[inside]
        raw = snapshot.frames.compound[snapshot.mappings.frame[inside]]
        numbers, at = np.unique(compound, return_index=True)
        mapcount = snapshot.compounds.pmd_mapcount[raw[at]]
        outside = dict(zip(numbers.tolist(), mapcount.tolist(), strict=True))
        self.pmds = {}
        known_behind: set[int] = set()
        if snapshot.compounds.pte_behind is not None:
            known_behind.update(compound[snapshot.compounds.pte_behind[raw]].tolist())
        behind: dict[int, int] = {}  # last process that has PTEs
        by_pmd_last: dict[int, int] = {}  # and that has a PMD in the target
        mappers = np.unique(np.stack((compound, rows, huge), axis=1), axis=0)
        for c, number, by_pmd in mappers.tolist():
            outside[c] = outside.get(c, 0) - by_pmd
            if by_pmd:
                by_pmd_last[c] = number
            if by_pmd and (c, self.keys[number]) not in self.pte_mapped:
                self.pmds.setdefault(c, []).append(number)
            elif by_pmd or snapshot.compounds.pte_behind is None:
                behind[c] = number
        for c, count in outside.items():
            found = self.pmds.get(c, [])
            last = max(found, default=by_pmd_last.get(c, -1))
            left = count - self.outside_split.get(c, 0)
            found += [OUTSIDE] * max(left, 0)
            if found and (c in known_behind or 0 <= last < behind.get(c, -1)):
                found.append(OUTSIDE)  # never broken: a split succeeds at the last
            if found and not self.split[c]:
                self.pmds[c] = found

    def full_scan(self) -> None:
        self.start_pass()
        self.scan(self.dead)  # __ksm_exit() moved them to where ksmd goes on
        self.scan(self.visits)
        self._forget_freed()

    def _forget_freed(self) -> None:
        self.dead = []
        self.visits = [i for i in self.visits if self._offered(i)]

    def pmd_split(self, compound: int, mapper: int) -> None:
        if mapper == OUTSIDE:
            self.outside_split[compound] = self.outside_split.get(compound, 0) + 1
        else:
            self.pte_mapped.add((compound, self.keys[mapper]))

    def copied_frame(self) -> None:
        self.frame_pfn.append(-1)
        self.outside.append(0)

    def process_rows(self) -> I64:
        return self.row

    def result(self) -> PassResult:
        """Counters of the processes of the last sample."""
        found = super().result()
        if self.rules.fork_copies_counters:
            base = np.array([self.copied.get(key, (0, 0)) for key in self.keys], np.int64)
            ours, base = found.processes, base.reshape(len(self.keys), 2)
            zero = ours.ksm_zero_pages
            found = PassResult(
                found.counters,
                process_counters(
                    self.snapshot.meta,
                    ours.ksm_rmap_items + base[:, 0],
                    ours.ksm_merging_pages + base[:, 1],
                    np.zeros(len(base), np.int64) if zero is None else zero,
                ),
            )
        # Without ranks a chain is pruned only by searches of its own content.
        in_trees = self.stable.trees is not None
        exact = self.shape_unknown != self.passes and (in_trees or not self.stable.chains)
        found = replace(found, cow_breaks=self.cow_breaks, exact=exact)
        ours = found.processes
        pairs = zip(ours.ksm_rmap_items.tolist(), ours.ksm_merging_pages.tolist(), strict=True)
        self.last = dict(zip(self.keys, pairs, strict=True))
        if ours.ksm_zero_pages is not None:
            self.last_zero = dict(zip(self.keys, ours.ksm_zero_pages.tolist(), strict=True))
        return found
