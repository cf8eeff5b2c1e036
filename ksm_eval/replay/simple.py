"""The contents whose outcome needs no replay, and what it is (numpy, any size)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import (
    ZERO_PAGE,
    Kind,
    any_frame,
    blocked_mappings,
    in_compound,
    locked_frames,
    split_attempts,
)
from ksm_eval.replay.plain import Contents, positions_of
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.savings import Nodes
from ksm_eval.replay.visits import Positions, Visits
from ksm_eval.snapshot import I64, NO_COMPOUND, U8, U32, FrameFlag, Snapshot, has

Bool = NDArray[np.bool_]
_Number = TypeVar("_Number", np.uint32, np.int64)

_BLOCK = 1 << 18  # frames at a time: the temporaries stay in cache


def _none() -> I64:
    return np.empty(0, np.int64)


@dataclass
class Simple:
    """The outcome but for `replay`."""

    split: Bool  # shape (C,)
    replay: I64 = field(default_factory=_none)  # mappings that must be replayed
    # (position, compound): when the others split it, in pass 2
    splits: list[tuple[int, int]] = field(default_factory=list)
    merged: list[tuple[U32, I64, I64, U32]] = field(default_factory=list)
    """(frames, by node; of each stable node: how many frames, how many mappings, KSM frame)."""
    positions: I64 = field(default_factory=_none)  # under use_zero_pages: mappings of zero pages
    stays: Bool = field(default_factory=lambda: np.empty(0, np.bool_))  # those that cannot go
    shared: int = 0
    sharing: int = 0
    chains: int = 0
    dups: int = 0
    unshared: int = 0  # in a scan phase
    passes: int = 1  # until all of this is so; one too many if THPs happen to be split before


def classify(snapshot: Snapshot, settings: Settings, found: Contents, visits: Visits) -> Simple:
    """Tell the contents apart and work out the simple ones.

    Simple are contents of one frame (nothing to merge), those that cannot be merged at all,
    those that are KSM pages already, zero pages under use_zero_pages, and those that all
    merge: with room in one stable node, or with one mapping a frame, so that the nodes fill
    up one after the other. To be replayed are fork-shared frames above the cap, contents
    with pages that can be merged and pages that cannot, contents of which a part is merged
    already, zero pages in THPs that vanish when these are split (6.12+), and THPs that are
    split one PMD at a time.
    """
    work = _Work(snapshot, found, visits)
    simple = work.simple
    simple.unshared = found.plain
    if len(found.rows):
        facts = work.facts()
        has_ksm, all_ksm = facts.has_ksm, facts.all_ksm
        has_blocked, all_blocked = facts.has_blocked, facts.all_blocked
        mapped = work.mapped
        forked = mapped > work.size
        above_cap = mapped > settings.max_page_sharing

        rules = snapshot.meta.rules
        replay = has_ksm & ~all_ksm
        to_zero = np.zeros(len(work.size), np.bool_)
        if settings.use_zero_pages:
            to_zero = facts.zero & ~has_ksm
        if rules.zero_remap_at_split:
            replay |= facts.zero_in_compound & ~all_ksm
        several = work.size > 1
        merging = several & ~has_ksm & ~has_blocked & ~to_zero
        replay |= several & ~has_ksm & has_blocked & ~all_blocked & ~to_zero
        replay |= merging & forked & above_cap
        replay |= work.in_doubt(merging, above_cap)
        if rules.mlock_batch:
            replay |= work.held_by_mlock(several | to_zero)
        if rules.pmd_at_a_time:
            work.close_over_pmds(replay, several | to_zero)
        merging &= ~replay
        to_zero &= ~replay

        if replay.any():
            simple.replay = positions_of(snapshot, work.marked(replay))
        simple.unshared += int((~(replay | merging | to_zero | all_ksm)).sum())
        if merging.any():
            work.merge(merging, settings.max_page_sharing)
        adopted = all_ksm & ~replay
        dups = work.size[adopted]
        simple.chains += int((dups > 1).sum())
        simple.dups += int(dups[dups > 1].sum())
        if adopted.any():
            rows = found.rows[work.of_frames(adopted)]
            work.adopt_ksm(rows)
        if to_zero.any():
            work.zero_pages(to_zero)
    if found.unreadable:
        unread = np.uint8(FrameFlag.UNREADABLE | FrameFlag.KSM)
        work.adopt_ksm(np.flatnonzero((snapshot.frames.flags & unread) == unread).astype(np.uint32))
    return simple


@dataclass(frozen=True)
class _Facts:
    """Of each content, shape (C,)."""

    has_ksm: Bool
    all_ksm: Bool
    zero: Bool
    zero_in_compound: Bool  # that can be split
    has_blocked: Bool  # a mapping that cannot be merged
    all_blocked: Bool  # none that can


class _Work:
    """Arrays by content and by frame, and the outcome under construction.

    A gather of all frames that have equals costs as much as all arithmetic on them, so there is
    one only where some frame can matter.
    """

    def __init__(self, snapshot: Snapshot, found: Contents, visits: Visits) -> None:
        self.snapshot, self.found, self.visits = snapshot, found, visits
        self.size = np.diff(found.bounds)
        self.mapped = np.zeros(len(self.size), np.int64)
        """Mappings of each content."""
        for at, rows, starts in self._blocks():
            np.add.reduceat(visits.counts.take(rows), starts, dtype=np.int64, out=self.mapped[at])
        self.blocked_mappings = blocked_mappings(snapshot)
        self.split_at = np.full(len(snapshot.compounds), len(snapshot.mappings), np.int64)
        """When each compound is split, in the second pass; len(mappings): never."""
        self.simple = Simple(np.zeros(len(snapshot.compounds), np.bool_))

    def _blocks(self) -> Iterator[tuple[slice, U32, I64]]:
        """(contents, their frames, where each one's begin among these), so many that the
        temporaries stay in cache."""
        bounds, start = self.found.bounds, 0
        while start < len(self.size):
            end = int(np.searchsorted(bounds, bounds[start] + _BLOCK, side="right")) - 1
            end = max(end, start + 1)
            rows = self.found.rows[bounds[start] : bounds[end]]
            yield slice(start, end), rows, bounds[start:end] - bounds[start]
            start = end

    def _reduced(self, by: np.ufunc, frames: Bool | None) -> Bool:
        found = np.zeros(len(self.size), np.bool_)
        if frames is not None and frames.any():
            for at, rows, starts in self._blocks():
                by.reduceat(frames.take(rows), starts, out=found[at])
        return found

    def any_of(self, frames: Bool | None) -> Bool:
        """Contents with such a frame; shape (F,) to (C,). None: there is no such frame."""
        return self._reduced(np.logical_or, frames)

    def all_of(self, frames: Bool | None) -> Bool:
        """Contents with such frames only; shape (F,) to (C,)."""
        return self._reduced(np.logical_and, frames)

    def facts(self) -> _Facts:
        """What the frames of each content are."""
        snapshot = self.snapshot
        frames, compounds = snapshot.frames, snapshot.compounds
        ksm = self._flagged(FrameFlag.KSM)
        zero = zero_in_compound = self._flagged(FrameFlag.ZERO)
        blocked: Bool | None = None
        if compounds.pinned.any():
            blocked = np.zeros(len(frames), np.bool_)
            index = np.flatnonzero(in_compound(snapshot))
            blocked[index] = compounds.pinned[frames.compound[index]]
        if zero is not None:
            zero_in_compound = zero & in_compound(snapshot)
            if blocked is not None:
                zero_in_compound &= ~blocked
        stuck = blocked
        if self.blocked_mappings is not None:
            of_mappings = snapshot.mappings.frame[self.blocked_mappings != 0]
            count = np.bincount(of_mappings, minlength=len(frames))
            some, every = count > 0, (count > 0) & (count >= self.visits.counts)
            stuck = every if blocked is None else blocked | every
            blocked = some if blocked is None else blocked | some
        return _Facts(
            has_ksm=self.any_of(ksm),
            all_ksm=self.all_of(ksm),
            zero=self.any_of(zero),
            zero_in_compound=self.any_of(zero_in_compound),
            has_blocked=self.any_of(blocked),
            all_blocked=self.all_of(stuck),
        )

    def _flagged(self, flag: FrameFlag) -> Bool | None:
        found = any_frame(self.snapshot, flag)
        return has(self.snapshot.frames.flags, flag) if found else None

    def compounds_of(self, contents: Bool) -> tuple[I64, U32]:
        """(content, compound) of the frames of these contents that are in a compound page."""
        index = np.flatnonzero(self.of_frames(contents))
        compound = self.snapshot.frames.compound[self.found.rows[index]]
        inside = compound != NO_COMPOUND
        content = np.searchsorted(self.found.bounds, index[inside], side="right") - 1
        return content, compound[inside]

    def of_frames(self, contents: Bool) -> Bool:
        """Frames of these contents, shape (K,)."""
        return np.repeat(contents, self.size)

    def marked(self, contents: Bool) -> Bool:
        """Frames of these contents, shape (F,)."""
        marked = np.zeros(len(self.snapshot.frames), np.bool_)
        marked[self.found.rows[self.of_frames(contents)]] = True
        return marked

    def in_doubt(self, merging: Bool, above_cap: Bool) -> Bool:
        """Contents with two frames in one compound page, where it matters.

        Two pages of one compound page do not merge at their first meeting, so another
        frame may become the KSM frame. It matters if somebody outside the selection maps
        one, and if the order decides which mapping is left over.
        """
        found = np.zeros(len(self.size), np.bool_)
        if not len(self.snapshot.compounds):
            return found
        outside = self.snapshot.frames.mapcount > self.visits.counts
        touched = merging & (above_cap | self.any_of(outside))
        content, compound = self.compounds_of(touched)
        order = np.lexsort((compound, content))
        content, compound = content[order], compound[order]
        found[content[1:][(content[1:] == content[:-1]) & (compound[1:] == compound[:-1])]] = True
        return found

    def held_by_mlock(self, merging: Bool) -> Bool:
        """Contents with pages in mlocked VMAs, if a page of one of these is shared by fork.

        A page that left an mlocked VMA cannot be merged by its other mappers while it waits in
        the batch, which all mlocked pages fill, and which a split of an mlocked THP empties.
        """
        found = np.zeros(len(self.size), np.bool_)
        locked = locked_frames(self.snapshot)
        if locked is None:
            return found
        mine = locked & self.marked(merging)
        if (self.visits.counts[mine] > 1).any():
            found = self.any_of(mine)
            split = np.zeros(len(self.snapshot.compounds), np.bool_)
            split[self.snapshot.frames.compound[locked & in_compound(self.snapshot)]] = True
            content, compound = self.compounds_of(merging)
            found[content[split[compound]]] = True
        return found

    def close_over_pmds(self, replay: Bool, merging: Bool) -> None:
        """Replay all contents that meet in a THP with several PMD mappers."""
        several = split_attempts(self.snapshot) > 1
        if not several.any():
            return
        content, compound = self.compounds_of(np.ones(len(self.size), np.bool_))
        content, compound = content[several[compound]], compound[several[compound]]
        used = np.zeros(len(self.snapshot.compounds), np.bool_)
        used[compound[merging[content]]] = True
        replay[content[used[compound]]] = True

    def adopt_ksm(self, rows: U32) -> None:
        """KSM frames of the target, with all their selected mappings attached."""
        if len(rows):
            self.simple.shared += len(rows)
            self.simple.sharing += int(self.visits.counts[rows].sum()) - len(rows)
            mapped = self.visits.counts[rows].astype(np.int64)
            self.simple.merged.append((rows, np.ones(len(rows), np.int64), mapped, rows))

    def zero_pages(self, contents: Bool) -> None:
        """use_zero_pages: each mapping that is not blocked."""
        simple, frames = self.simple, self.snapshot.frames
        positions = positions_of(self.snapshot, self.marked(contents))
        row = self.snapshot.mappings.frame[positions]
        compound, stays = frames.compound[row], np.zeros(len(row), np.bool_)
        inside = compound != NO_COMPOUND
        stays[inside] = self.snapshot.compounds.pinned[compound[inside]]
        if self.blocked_mappings is not None:
            stays |= self.blocked_mappings[positions] != 0
        # Of those that stay, the first is in the unstable tree after each pass.
        left = np.zeros(len(frames), np.bool_)
        left[row[stays]] = True
        simple.unshared += int(self.any_of(left).sum())
        simple.positions, simple.stays = positions, stays
        if not stays.all():
            self._split(compound[~stays], positions[~stays])
            simple.passes = max(simple.passes, 3)

    def merge(self, contents: Bool, cap: int) -> None:
        """All frames of each content merge, `cap` to a stable node.

        In the order of their first visits the first frame of a node waits in the unstable
        tree, the second becomes the KSM frame, the others find it. A frame that finds all
        nodes full and has no other to meet is left over.
        """
        simple = self.simple
        first = self.visits.first(self.marked(contents))
        rows, size, mapped = self.found.rows, self.size, self.mapped
        if not contents.all():
            rows, size, mapped = rows[self.of_frames(contents)], size[contents], mapped[contents]
        if int(size.max()) > cap:
            rows, size = self._nodes(rows, size, first, cap)
            mapped = np.add.reduceat(
                self.visits.counts[rows], np.cumsum(size) - size, dtype=np.int64
            )
        heads, met = self._first_two(rows, size, first)
        ksm = self.snapshot.mappings.frame[met]
        simple.merged.append((rows, size, mapped, ksm))
        simple.shared += len(size)
        simple.sharing += int(mapped.sum()) - len(size)
        if len(self.snapshot.compounds):
            tried = first[rows]
            tried[rows == np.repeat(heads, size)] = met  # both are touched then
            self._split(self.snapshot.frames.compound[rows], tried)
        simple.passes = max(simple.passes, self._passes(heads, ksm, met, first, mapped > size))

    def _first_two(self, rows: U32, size: I64, first: Positions) -> tuple[U32, I64]:
        """(frame of each node that is visited first, when the second one is)."""
        ends = np.cumsum(size)
        heads, met, start = np.empty(len(size), np.uint32), np.empty(len(size), np.int64), 0
        while start < len(size):
            before = int(ends[start] - size[start])
            end = max(int(np.searchsorted(ends, before + _BLOCK, side="right")), start + 1)
            mine, many = rows[before : int(ends[end - 1])], size[start:end]
            starts = ends[start:end] - many - before
            visit = first.take(mine)
            is_head = visit == np.repeat(np.minimum.reduceat(visit, starts), many)
            heads[start:end] = mine[is_head]
            visit[is_head] = np.iinfo(visit.dtype).max
            met[start:end] = np.minimum.reduceat(visit, starts)
            start = end
        return heads, met

    def _nodes(self, rows: U32, size: I64, first: Positions, cap: int) -> tuple[U32, I64]:
        """(frames, number of them) of each stable node, where contents fill several."""
        simple = self.simple
        big = size > cap
        of_big = np.repeat(big, size)
        mine, many = rows[of_big], size[big]
        content = np.repeat(np.arange(len(many)), many)
        mine = mine[np.lexsort((first[mine], content))]
        nodes = -(-many // cap)
        length = np.full(int(nodes.sum()), cap)
        last = np.cumsum(nodes) - 1
        length[last] = many - (nodes - 1) * cap
        alone = length == 1
        mine, length = mine[~np.repeat(alone, length)], length[~alone]
        simple.unshared += int(alone.sum())
        dups = nodes - alone[last]
        simple.chains += int((dups > 1).sum())
        simple.dups += int(dups[dups > 1].sum())
        return np.concatenate((rows[~of_big], mine)), np.concatenate((size[~big], length))

    def _passes(self, heads: U32, seconds: U32, met: I64, first: Positions, forked: Bool) -> int:
        """Full scans until the first and second frames of these nodes have merged."""
        late = np.full(len(heads), 2, np.uint8)
        compound = self.snapshot.frames.compound
        if len(self.snapshot.compounds):
            both = compound[heads]
            late += (both != NO_COMPOUND) & (both == compound[seconds])  # see in_doubt()
        shared = np.flatnonzero(forked)
        shared = shared[self.visits.counts[heads[shared]] > 1]
        if len(shared):
            # Other mappings of the first frame, visited before the second frame, wait.
            wanted = np.zeros(len(self.snapshot.frames), np.bool_)
            wanted[heads[shared]] = True
            late[shared] += self.visits.second(wanted, first)[heads[shared]] < met[shared]
        return int(late.max(initial=1))

    def _split(self, compound: U32, at: Positions) -> None:
        """These compound pages are split in pass 2, at these positions."""
        inside = compound != NO_COMPOUND
        if not inside.any():
            return
        np.minimum.at(self.split_at, compound[inside], at[inside])
        splits = np.flatnonzero(self.split_at < len(self.snapshot.mappings))
        self.simple.split[splits] = True
        self.simple.splits = list(zip(self.split_at[splits].tolist(), splits.tolist(), strict=True))


def merged_nodes(simple: Simple) -> Nodes:
    """All stable nodes."""
    empty = np.empty(0, np.uint32), _none(), _none(), np.empty(0, np.uint32)
    rows, size, mapped, ksm = zip(*(simple.merged or [empty]), strict=True)
    bounds = np.concatenate(([0], np.cumsum(_joined(size))))
    return Nodes(_joined(rows), bounds, _joined(ksm), _joined(mapped))


def _joined(columns: tuple[NDArray[_Number], ...]) -> NDArray[_Number]:
    return columns[0] if len(columns) == 1 else np.concatenate(columns)


def told_kinds(simple: Simple, frame: U32) -> tuple[U8, I64]:
    """(kind, frame) of `simple.positions`, whose frames are `frame`."""
    kind = np.where(simple.stays, np.uint8(Kind.UNMERGED), np.uint8(Kind.ZERO_PAGE))
    return kind, np.where(simple.stays, frame.astype(np.int64), ZERO_PAGE)
