"""What ksmd arrives at, without running it: a closed form where there is one.

A content whose mappings all merge into one stable node, or into full ones, needs no
replay; see `simple.classify()`. The others are replayed, all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.contents import Kind, any_frame, poisoned
from ksm_eval.replay.counters import (
    Counters,
    ProcessCounters,
    observed_zero_pages,
    per_process,
    process_counters,
    system_counters,
)
from ksm_eval.replay.ksmd import Ksmd
from ksm_eval.replay.plain import tell_apart
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.savings import Outcome, Placed, Savings, savings, vma_of
from ksm_eval.replay.simple import Simple, classify, merged_nodes, told_kinds
from ksm_eval.replay.state import FREED, STABLE, UNSTABLE
from ksm_eval.replay.visits import Visits
from ksm_eval.snapshot import I64, FrameFlag, Snapshot, Vmas, has

FIRST_PASS = 41
"""After this pass old pages have just been visited, as after each 9th later: with smart
scan they are visited in pass 23, 32, 41 …, and skipped in all others from 24 on."""
PERIOD = 18
"""Passes after which everything repeats: 9, and where undone merges start over (7.3) 2."""
MOST_PASSES = FIRST_PASS + 20 * PERIOD


@dataclass(frozen=True)
class Prediction:
    """The settled state. Arrays: P processes, V VMAs, M mappings."""

    counters: Counters  # in a scan phase: pages_unshared as after a pass that visits all pages
    skip_phase: Counters  # after a pass that skips all old pages; without smart scan the same
    processes: ProcessCounters  # shape (P,)
    ksm_pages: I64  # smaps' KSM: in pages, shape (V,)
    savings: Savings
    stable_nodes: int  # chains included
    passes: int  # full scans after which the settled counters stand, at most one too many
    settled: bool  # False: they still moved after MOST_PASSES
    replayed: int  # mappings that needed a replay
    unreadable: int  # mappings of frames that could not be read: in pages_volatile
    orphans: int  # mappings of KSM frames without a stable node: merges undone
    placed: Placed


def predict(snapshot: Snapshot, settings: Settings) -> Prediction:
    """The state ksmd settles in on a memory that stands still.

    KSM frames of the target count with the selected mappings only; KSM zero pages of the
    selected processes (`Processes.observed`) are in ksm_zero_pages. Raises TargetError if
    the outcome depends on the order of contents and the snapshot does not tell it.
    """
    replay: _Settled | None = None
    if poisoned(snapshot):
        visits = Visits(snapshot)
        simple = Simple(np.zeros(len(snapshot.compounds), np.bool_))
        replay = _settle(Ksmd(snapshot, settings))
    else:
        found = tell_apart(snapshot, settings)
        visits = Visits(snapshot)
        simple = classify(snapshot, settings, found, visits)
        if len(simple.replay):
            replay = _settle(Ksmd(snapshot, settings, simple.replay, simple.splits))
    placed = _placed(snapshot, simple, replay)
    shared, sharing = simple.shared, simple.sharing
    chains, dups = simple.chains, simple.dups
    unshared = skip_unshared = simple.unshared
    if settings.smart_scan and snapshot.meta.rules.smart_scan:
        skip_unshared = 0
    passes = simple.passes
    if replay is not None:
        ksmd = replay.ksmd
        shared += ksmd.stable.shared
        sharing += ksmd.stable.sharing
        chains += ksmd.stable.chains
        dups += ksmd.stable.dups
        unshared += replay.unshared
        skip_unshared += replay.skip_unshared
        passes = max(passes, ksmd.counter_pass)

    vmas, count = snapshot.vmas, len(snapshot.processes)
    of_vma = _told(vmas, placed)
    merging = of_vma[Kind.MERGED]
    if len(placed.nodes.frames):
        merging = merging + visits.marked(placed.nodes.marked(len(snapshot.frames)))
    of_items = np.diff(vmas.offset) - of_vma[Kind.ZERO_PAGE] - of_vma[Kind.REMAPPED]
    zero = per_process(vmas, of_vma[Kind.ZERO_PAGE], count)
    zero += observed_zero_pages(snapshot.processes.observed, count)
    items = int(of_items.sum())

    def counters(unshared: int) -> Counters:
        return system_counters(
            snapshot.meta,
            shared=shared,
            sharing=sharing,
            unshared=unshared,
            items=items,
            chains=chains,
            dups=dups,
            zero=int(zero.sum()),
        )

    return Prediction(
        counters=counters(unshared),
        skip_phase=counters(skip_unshared),
        processes=process_counters(
            snapshot.meta,
            per_process(vmas, of_items, count),
            per_process(vmas, merging, count),
            zero,
        ),
        ksm_pages=merging + of_vma[Kind.ORPHAN],
        savings=savings(snapshot, visits, placed, items, shared + chains),
        stable_nodes=shared + chains,
        passes=passes,
        settled=replay is None or replay.settled,
        replayed=0 if replay is None else len(replay.ksmd.positions),
        unreadable=_unreadable(snapshot, visits),
        orphans=int(of_vma[Kind.ORPHAN].sum()),
        placed=placed,
    )


def _unreadable(snapshot: Snapshot, visits: Visits) -> int:
    if not any_frame(snapshot, FrameFlag.UNREADABLE):
        return 0
    return int(visits.counts[has(snapshot.frames.flags, FrameFlag.UNREADABLE)].sum())


def _placed(snapshot: Snapshot, simple: Simple, replay: _Settled | None) -> Placed:
    kind, frame = told_kinds(simple, snapshot.mappings.frame[simple.positions])
    positions, split = simple.positions, simple.split
    if replay is not None:
        part = replay.ksmd.outcome()
        positions = np.append(positions, replay.ksmd.positions)
        kind, frame = np.append(kind, part.kind), np.append(frame, part.frame)
        split = split | part.split
    return Placed(merged_nodes(simple), positions, Outcome(kind, frame, split))


def _told(vmas: Vmas, placed: Placed) -> I64:
    """Mappings that are told one by one, by kind and VMA."""
    found = np.zeros((len(Kind), len(vmas)), np.int64)
    if len(placed.positions):
        np.add.at(found, (placed.told.kind, vma_of(vmas, placed.positions)), 1)
    return found


@dataclass(frozen=True)
class _Settled:
    ksmd: Ksmd
    unshared: int
    skip_unshared: int
    settled: bool


def _settle(ksmd: Ksmd) -> _Settled:
    """Run until nothing can change any more.

    Passes 1 to 4 visit every page, so after one of these without a change only contents
    with several frames left can still change: when a page that blocks its twins is skipped
    in a pass in which they are not. Only those are replayed further.
    """
    # Merges that wait for the mlock batch come a pass later, and what follows from them.
    slack = 1 if ksmd.mlock_size else 0
    while ksmd.passes < 4 and (ksmd.passes < 3 or ksmd.event_pass >= ksmd.passes - slack):
        ksmd.full_scan()
    state = np.frombuffer(bytes(ksmd.state), np.uint8)
    if ksmd.poisoned or ksmd.event_pass == ksmd.passes:
        moving = (state != STABLE) & (state != FREED)
    else:
        moving = _still_moving(ksmd, state)
    left = (state == UNSTABLE) & ~moving
    unshared = skip_unshared = int(left.sum())
    if ksmd.smart_scan:
        # A KSM page is never skipped, with a stable node or without.
        skip_unshared = int((left & ksmd.orphaned()).sum())
    if not moving.any():
        return _Settled(ksmd, unshared, skip_unshared, True)
    ksmd.visits = np.flatnonzero(moving).tolist()
    changing = before = ksmd.unshared - unshared
    quiet, period = (27, PERIOD) if ksmd.smart_scan else (4, 2)
    settled = False
    while not settled and ksmd.passes < MOST_PASSES:
        before = changing
        ksmd.full_scan()
        changing = ksmd.unshared - unshared
        in_phase = (ksmd.passes - FIRST_PASS) % period == 0
        settled = in_phase and ksmd.passes - ksmd.event_pass >= quiet
    skip_unshared += before if ksmd.smart_scan else changing
    return _Settled(ksmd, unshared + changing, skip_unshared, settled)


def _still_moving(ksmd: Ksmd, state: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Items of contents with an unmerged frame that may yet find a twin, or a node with room."""
    frame = np.array(ksmd.frame, np.int64)
    moving = np.zeros(len(frame), np.bool_)
    rest = np.flatnonzero((state != STABLE) & (frame >= 0))
    content = np.array(ksmd.content, np.int64)[frame[rest]]
    rest, content = rest[content >= 0], content[content >= 0]
    if not len(rest):
        return moving
    f = frame[rest]
    compound = np.array(ksmd.compound, np.int64)[f]
    unsplittable = np.append(np.frombuffer(ksmd.unsplittable, np.uint8), 0)
    blocked = np.frombuffer(ksmd.blocked, np.uint8)[rest] | unsplittable[compound]
    blocked = (blocked != 0) & ~ksmd.orphaned()[rest]
    free = np.bincount(content[~blocked], minlength=int(content.max()) + 1) > 0
    order = np.lexsort((f, content))
    distinct = np.ones(len(order), np.bool_)
    distinct[1:] = (f[order][1:] != f[order][:-1]) | (content[order][1:] != content[order][:-1])
    partner = np.bincount(content[order][distinct], minlength=len(free)) > 1
    length = np.array(ksmd.stable.length, np.int64)
    room = np.array(ksmd.stable.content, np.int64)[length < ksmd.stable.cap]
    partner[room[(room >= 0) & (room < len(partner))]] = True
    moving_content = free & partner
    if ksmd.smart_scan:
        # A page that started over (7.3) is skipped in other passes than the rest.
        young = np.frombuffer(ksmd.age, np.uint8)[rest] < ksmd.passes
        moving_content[content[young & ~ksmd.orphaned()[rest]]] = True
    unsplit = np.append(np.frombuffer(bytes(ksmd.split), np.uint8), 1)[compound] == 0
    if (moving_content[content] & unsplit & ~blocked).any():
        # Such a split takes zero subpages with it.
        for items in ksmd.zero_subpages.values():
            moving_content[[ksmd.content[ksmd.frame[i]] for i in items]] = True
    moving[rest] = moving_content[content]
    return moving
