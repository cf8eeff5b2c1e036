"""The counters after each full scan of a memory that stands still."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ksm_eval.replay.contents import poisoned
from ksm_eval.replay.counters import per_process, process_counters, profit
from ksm_eval.replay.ksmd import MAX_AGE, SKIPS, simulate
from ksm_eval.replay.plain import positions_of, tell_apart
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.state import PassResult
from ksm_eval.snapshot import I64, FrameFlag, Metadata, Snapshot


@dataclass(frozen=True)
class Passes:
    """`results[n]` is after n+1 full scans."""

    results: list[PassResult]
    inexact: list[int]  # passes that needed the order of the contents, which is not known


def simulate_passes(
    snapshot: Snapshot, settings: Settings, passes: int, tick: Callable[[int], None] | None = None
) -> Passes:
    """As ksmd.simulate(), which is the reference, with plain pages counted in bulk."""
    if snapshot.frames.order is not None or poisoned(snapshot):
        # The order of contents decides, also of plain ones.
        replay = simulate(snapshot, settings, passes, tick=tick)
        return Passes(replay.passes, replay.inexact)
    found = tell_apart(snapshot, settings)
    kept = np.zeros(len(snapshot.frames), np.bool_)
    kept[found.rows] = True
    if found.unreadable:
        unread = np.uint8(FrameFlag.UNREADABLE | FrameFlag.KSM)
        kept |= (snapshot.frames.flags & unread) == unread
    positions = positions_of(snapshot, kept)
    replay = simulate(snapshot, settings, passes, positions=positions, tick=tick)
    items = np.diff(snapshot.vmas.offset) - np.diff(
        np.searchsorted(positions, snapshot.vmas.offset)
    )
    of_process = per_process(snapshot.vmas, items, len(snapshot.processes))
    smart = settings.smart_scan and snapshot.meta.rules.smart_scan
    visits_of_plain = visited(smart)
    results = []
    visits = skips = 0
    for number, of_rest in enumerate(replay.passes, 1):
        scanned = next(visits_of_plain)
        visits += scanned
        skips += not scanned
        # The first visit notes the checksum; a page that is skipped is in no tree.
        unshared = found.plain if scanned and number > 1 else 0
        results.append(_with_plain(of_rest, snapshot.meta, of_process, unshared, visits, skips))
    return Passes(results, replay.inexact)


def visited(smart: bool) -> Iterator[bool]:
    """In which passes a page that never merges is visited: should_skip_rmap_item()."""
    age = skips = 0
    while True:
        if not smart or age < 3:
            yield True
        elif skips:
            skips -= 1
            yield False
        else:
            skips = SKIPS[age]
            yield True
        age = min(age + 1, MAX_AGE)


def _with_plain(
    of_rest: PassResult, meta: Metadata, plain: I64, unshared: int, visits: int, skips: int
) -> PassResult:
    """`plain`: mappings of plain frames of each process."""
    counters, processes = of_rest.counters, of_rest.processes
    mappings = int(plain.sum())
    items = counters.ksm_rmap_items + mappings
    merged = counters.pages_shared + counters.pages_sharing
    all_unshared = counters.pages_unshared + unshared
    scanned, skipped = counters.pages_scanned, counters.pages_skipped
    return replace(
        of_rest,
        counters=replace(
            counters,
            pages_unshared=all_unshared,
            pages_volatile=max(0, items - merged - all_unshared),
            ksm_rmap_items=items,
            general_profit=profit(counters.pages_sharing, counters.ksm_zero_pages, items, meta),
            pages_scanned=None if scanned is None else scanned + visits * mappings,
            pages_skipped=None if skipped is None else skipped + skips * mappings,
        ),
        processes=process_counters(
            meta,
            processes.ksm_rmap_items + plain,
            processes.ksm_merging_pages,
            0 * processes.ksm_rmap_items
            if processes.ksm_zero_pages is None
            else processes.ksm_zero_pages,
        ),
    )
