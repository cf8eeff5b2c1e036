"""The counters after each full scan of a memory that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ksm_eval.replay.counters import process_counters, profit
from ksm_eval.replay.ksmd import MAX_AGE, SKIPS, simulate
from ksm_eval.replay.plain import Divided, divide
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.state import PassResult
from ksm_eval.snapshot import Snapshot


@dataclass(frozen=True)
class Passes:
    """`results[n]` is after n+1 full scans."""

    results: list[PassResult]
    inexact: list[int]  # passes that needed the order of the contents, which is not known


def simulate_passes(snapshot: Snapshot, settings: Settings, passes: int) -> Passes:
    """As ksmd.simulate(), which is the reference, with plain pages counted in bulk."""
    divided = divide(snapshot)
    replay = simulate(divided.rest, settings, passes)
    smart = settings.smart_scan and snapshot.meta.rules.smart_scan
    visits_of_plain = visited(smart)
    results = []
    visits = skips = 0
    for number, of_rest in enumerate(replay.passes, 1):
        scanned = next(visits_of_plain)
        visits += scanned
        skips += not scanned
        # The first visit notes the checksum; a page that is skipped is in no tree.
        unshared = divided.frames if scanned and number > 1 else 0
        results.append(_with_plain(of_rest, divided, unshared, visits, skips))
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
    of_rest: PassResult, divided: Divided, unshared: int, visits: int, skips: int
) -> PassResult:
    counters, processes, meta = of_rest.counters, of_rest.processes, divided.whole.meta
    items = counters.ksm_rmap_items + divided.mappings
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
            pages_scanned=None if scanned is None else scanned + visits * divided.mappings,
            pages_skipped=None if skipped is None else skipped + skips * divided.mappings,
        ),
        processes=process_counters(
            meta,
            processes.ksm_rmap_items + divided.items(),
            processes.ksm_merging_pages,
            0 * processes.ksm_rmap_items
            if processes.ksm_zero_pages is None
            else processes.ksm_zero_pages,
        ),
    )
