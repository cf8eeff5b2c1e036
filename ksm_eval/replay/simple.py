"""The contents whose outcome needs no replay, and what it is (numpy, any size)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import (
    ZERO_PAGE,
    Kind,
    blocked_mappings,
    contents,
    first_visits,
    in_compound,
    locked_mappings,
    mappings_of,
    split_attempts,
)
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import I64, U8, FrameFlag, Snapshot

Bool = NDArray[np.bool_]


@dataclass
class Simple:
    """The outcome but for `replay`; these are UNMERGED on their own frame here."""

    kind: U8  # shape (M,)
    frame: I64  # shape (M,)
    split: Bool  # shape (C,)
    replay: I64  # positions of the mappings that must be replayed
    splits: list[tuple[int, int]]  # (position, compound): when the others split it, in pass 2
    shared: int
    sharing: int
    chains: int
    dups: int
    unshared: int  # in a scan phase
    passes: int  # until all of this is so; one too many if THPs happen to be split before

    def nothing(self) -> Simple:
        """As if every content had to be replayed."""
        none = np.empty(0, np.int64)
        return Simple(self.kind, self.frame, np.zeros_like(self.split), none, [], 0, 0, 0, 0, 0, 1)


def classify(snapshot: Snapshot, settings: Settings) -> Simple:
    """Tell the contents apart and work out the simple ones.

    Simple are contents of one frame (nothing to merge), those that cannot be merged at all,
    those that are KSM pages already, zero pages under use_zero_pages, and those that all
    merge: with room in one stable node, or with one mapping a frame, so that the nodes fill
    up one after the other. To be replayed are fork-shared frames above the cap, contents
    with pages that can be merged and pages that cannot, contents of which a part is merged
    already, zero pages in THPs that vanish when these are split (6.12+), and THPs that are
    split one PMD at a time.
    """
    work = _Work(snapshot, settings)
    simple = work.simple
    if not len(snapshot.mappings):
        return simple
    frames, counts = snapshot.frames, work.counts
    content, size = work.content, work.size

    def any_of(frames_marked: Bool) -> Bool:
        """Contents with such a frame."""
        found = np.zeros(len(size), np.bool_)
        found[content[frames_marked & (content >= 0)]] = True
        return found

    readable = content >= 0
    ksm = (frames.flags & FrameFlag.KSM) != 0
    zero = (frames.flags & FrameFlag.ZERO) != 0
    compound = in_compound(snapshot)
    stuck = work.unsplittable | (work.blocked >= counts) & (work.blocked > 0)
    partly = (work.blocked > 0) | work.unsplittable
    has_ksm, all_ksm = any_of(ksm), ~any_of(~ksm)
    has_blocked, all_blocked = any_of(partly), ~any_of(~stuck)
    mapped = np.bincount(content[readable], weights=counts[readable], minlength=len(size))
    forked = mapped > size

    rules = snapshot.meta.rules
    replay = has_ksm & ~all_ksm
    to_zero = np.zeros(len(size), np.bool_)
    if settings.use_zero_pages:
        to_zero = any_of(zero) & ~has_ksm
    if rules.zero_remap_at_split:
        replay |= any_of(zero & compound & ~work.unsplittable) & ~all_ksm
    several = size > 1
    merging = several & ~has_ksm & ~has_blocked & ~to_zero
    replay |= several & ~has_ksm & has_blocked & ~all_blocked & ~to_zero
    replay |= merging & forked & (mapped > settings.max_page_sharing)
    replay |= any_of(work.in_doubt(merging, mapped > settings.max_page_sharing))
    if rules.mlock_batch:
        replay |= work.held_by_mlock(several | to_zero)
    if rules.pmd_at_a_time:
        work.close_over_pmds(replay, several | to_zero)
    merging &= ~replay
    to_zero &= ~replay

    of_frame = np.append(replay, False)[content]  # content -1: unreadable
    if replay.any():
        simple.replay = np.flatnonzero(of_frame[snapshot.mappings.frame])
    simple.unshared = int((~(replay | merging | to_zero | all_ksm)).sum())
    if merging.any():  # first: it sets the frames of all mappings
        work.merge(np.flatnonzero(np.append(merging, False)[content]), settings.max_page_sharing)
    work.adopt_ksm(ksm & ~of_frame, all_ksm & ~replay)
    if to_zero.any():
        work.zero_pages(np.append(to_zero, False)[content])
    return simple


class _Work:
    """Per-frame arrays, and the outcome under construction."""

    def __init__(self, snapshot: Snapshot, settings: Settings) -> None:
        frames, n = snapshot.frames, len(snapshot.frames)
        self.snapshot = snapshot
        self.content, self.size = contents(snapshot, settings.merge_across_nodes)
        self.counts = mappings_of(snapshot)
        self.compound = np.where(in_compound(snapshot), frames.compound.astype(np.int64), -1)
        self.unsplittable = np.append(snapshot.compounds.pinned, False)[self.compound]
        self.blocked_mappings = blocked_mappings(snapshot)
        self.blocked = np.zeros(n, np.int64)
        if self.blocked_mappings is not None:
            found = snapshot.mappings.frame[self.blocked_mappings != 0]
            self.blocked = np.bincount(found, minlength=n)
        m, c = len(snapshot.mappings), len(snapshot.compounds)
        self.split_at = np.full(c, m, np.int64)  # when, in the second pass; m: never
        self.simple = Simple(
            kind=np.zeros(m, np.uint8),
            frame=snapshot.mappings.frame.astype(np.int64),
            split=np.zeros(c, np.bool_),
            replay=np.empty(0, np.int64),
            splits=[],
            shared=0,
            sharing=0,
            chains=0,
            dups=0,
            unshared=0,
            passes=1,
        )

    def in_doubt(self, merging: Bool, above_cap: Bool) -> Bool:
        """Frames of contents with two frames in one compound page, where it matters.

        Two pages of one compound page do not merge at their first meeting, so another
        frame may become the KSM frame. It matters if somebody outside the selection maps
        one, and if the order decides which mapping is left over.
        """
        found = np.zeros(len(self.content), np.bool_)
        outside = self.snapshot.frames.mapcount > self.counts
        readable = self.content >= 0
        touched = above_cap & merging
        touched[self.content[outside & readable]] = True
        touched &= merging
        rows = np.flatnonzero((self.compound >= 0) & np.append(touched, False)[self.content])
        order = rows[np.lexsort((self.compound[rows], self.content[rows]))]
        same = (self.content[order][1:] == self.content[order][:-1]) & (
            self.compound[order][1:] == self.compound[order][:-1]
        )
        found[order[1:][same]] = True
        return found

    def held_by_mlock(self, merging: Bool) -> Bool:
        """Contents with pages in mlocked VMAs, if a page of one of these is shared by fork.

        A page that left an mlocked VMA cannot be merged by its other mappers while it waits in
        the batch, which all mlocked pages fill, and which a split of an mlocked THP empties.
        """
        found = np.zeros(len(self.size), np.bool_)
        mapped = self.snapshot.mappings.frame[locked_mappings(self.snapshot)]
        compounds = self.compound[mapped]
        rows = mapped[self.content[mapped] >= 0]
        rows = rows[merging[self.content[rows]]]
        if (self.counts[rows] > 1).any():
            found[self.content[rows]] = True
            split = np.zeros(len(self.snapshot.compounds) + 1, np.bool_)
            split[compounds[compounds >= 0]] = True
            found[self.content[split[self.compound] & (self.content >= 0)]] = True
        return found & merging

    def close_over_pmds(self, replay: Bool, merging: Bool) -> None:
        """Replay all contents that meet in a THP with several PMD mappers."""
        several = np.append(split_attempts(self.snapshot) > 1, False)[self.compound]
        rows = np.flatnonzero(several & (self.content >= 0))
        content, compound = self.content[rows], self.compound[rows]
        used = np.zeros(len(self.snapshot.compounds), np.bool_)
        used[compound[merging[content]]] = True
        replay[content[used[compound]]] = True

    def adopt_ksm(self, frames: Bool, of_content: Bool) -> None:
        """KSM frames of the target, with all their selected mappings attached."""
        if not frames.any():
            return
        number = int(frames.sum())
        self.simple.shared += number
        self.simple.sharing += int(self.counts[frames].sum()) - number
        dups = self.size[of_content]
        self.simple.chains += int((dups > 1).sum())
        self.simple.dups += int(dups[dups > 1].sum())
        self.simple.kind[frames[self.snapshot.mappings.frame]] = Kind.MERGED

    def zero_pages(self, frames: Bool) -> None:
        """use_zero_pages: each mapping that is not blocked."""
        mappings = np.flatnonzero(frames[self.snapshot.mappings.frame])
        row = self.snapshot.mappings.frame[mappings]
        stays = self.unsplittable[row]
        if self.blocked_mappings is not None:
            stays |= self.blocked_mappings[mappings] != 0
        # Of those that stay, the first is in the unstable tree after each pass.
        left = self.content[row[stays]]
        self.simple.unshared += int(np.bincount(left).astype(np.bool_).sum()) if len(left) else 0
        gone = mappings[~stays]
        if not len(gone):
            return
        self._split(row[~stays], gone)
        self.simple.kind[gone] = Kind.ZERO_PAGE
        self.simple.frame[gone] = ZERO_PAGE
        self.simple.passes = max(self.simple.passes, 3)

    def merge(self, rows: I64, cap: int) -> None:
        """All frames of each content merge, `cap` to a stable node.

        In the order of their first visits the first frame of a node waits in the unstable
        tree, the second becomes the KSM frame, the others find it. A frame that finds all
        nodes full and has no other to meet is left over.
        """
        simple, counts = self.simple, self.counts
        first = first_visits(self.snapshot)
        content, rows = self._by_content(rows, first)
        index = np.arange(len(rows))
        starts = np.ones(len(rows), np.bool_)
        starts[1:] = content[1:] != content[:-1]
        rank = index - np.maximum.accumulate(np.where(starts, index, 0))
        heads = np.flatnonzero(rank % cap == 0)  # first frame of each node
        length = np.diff(np.append(heads, len(rows)))
        node = np.repeat(np.arange(len(heads)), length)
        merged = (length > 1)[node]
        simple.unshared += int((length == 1).sum())

        second = np.minimum(heads + 1, len(rows) - 1)
        target = np.arange(len(self.content))
        target[rows[merged]] = rows[second[node[merged]]]
        becomes = np.full(len(self.content), Kind.UNMERGED, np.uint8)
        becomes[rows[merged]] = Kind.MERGED
        simple.kind = becomes[self.snapshot.mappings.frame]
        simple.frame = target[self.snapshot.mappings.frame]
        nodes = int((length > 1).sum())
        simple.shared += nodes
        simple.sharing += int(counts[rows[merged]].sum()) - nodes
        dups = np.bincount(content[heads[length > 1]])
        simple.chains += int((dups > 1).sum())
        simple.dups += int(dups[dups > 1].sum())
        tried = first[rows]
        tried[heads] = tried[second]  # the first is touched when the second meets it
        self._split(rows[merged], tried[merged])
        pairs = rows[heads[length > 1]], rows[second[length > 1]]
        simple.passes = max(simple.passes, self._passes(*pairs, first))

    def _by_content(self, rows: I64, first: I64) -> tuple[I64, I64]:
        """(content, frame) of `rows`, by content and then in the order of their first visits.

        Both numbers fit into one, and a sort of values alone is many times faster than one of
        rows; the frame is that of the mapping at the first visit.
        """
        bits = max(len(self.snapshot.mappings) - 1, 1).bit_length()
        keys = (self.content[rows] << bits) | first[rows]
        keys.sort()
        frame = self.snapshot.mappings.frame[keys & ((1 << bits) - 1)]
        return keys >> bits, frame.astype(np.int64)

    def _passes(self, heads: I64, seconds: I64, first: I64) -> int:
        """Full scans until the first and second frames of these nodes have merged."""
        if not len(heads):
            return 1
        late = np.full(len(heads), 2)
        compound = self.compound[heads]
        late += (compound >= 0) & (compound == self.compound[seconds])  # see in_doubt()
        if (self.counts[heads] > 1).any():
            # Other mappings of the first frame, visited before the second frame, wait.
            again = first_visits(self.snapshot, first)
            late += again[heads] < first[seconds]
        return int(late.max())

    def _split(self, rows: I64, at: I64) -> None:
        """The compound pages of these frames are split in pass 2, at these positions."""
        compound = self.compound[rows]
        inside = compound >= 0
        np.minimum.at(self.split_at, compound[inside], at[inside])
        splits = np.flatnonzero(self.split_at < len(self.snapshot.mappings))
        self.simple.split[splits] = True
        self.simple.splits = list(zip(self.split_at[splits].tolist(), splits.tolist(), strict=True))
