"""How long ksmd takes for a full scan."""

from __future__ import annotations

import math

from ksm_eval.replay.rules import Settings

SECONDS_A_PAGE = 2e-6
"""Assumed CPU time of one visit. Measured on 6.18: 1 us where most pages merge, 5 us where none
does and each needs a search of the tree."""


def full_scan_seconds(
    pages: int,
    settings: Settings,
    *,
    seconds_a_page: float = SECONDS_A_PAGE,
    hz: int | None = None,
) -> float:
    """Wall time of one pass over `pages` rmap_items, none of them skipped.

    ksm_scan_thread() (mm/ksm.c) sleeps sleep_millisecs behind every pages_to_scan pages; the one
    page more is the call that notices the end of the pass. With the scan-time advisor (6.8+)
    pages_to_scan is what it has set just now. `hz`: see sleep_seconds().
    """
    batch = max(settings.pages_to_scan, 1)
    batches = math.ceil((pages + 1) / batch)
    asleep = sleep_seconds(settings.sleep_millisecs, min(batch, pages) * seconds_a_page, hz)
    return batches * asleep + pages * seconds_a_page


def sleep_seconds(millisecs: int, work: float, hz: int | None) -> float:
    """Of one sleep behind `work` seconds of a batch; with `hz` the target's ticks count.

    msecs_to_jiffies() rounds up, and a timer (kernel/time/timer.c) fires at a tick, one more than
    asked for lest it be early. So ksmd always wakes at a tick, and until then loses what is left
    of the tick in which its batch ended: all but the work of a batch within one tick, half a tick
    on average behind a longer one. A sleep of 0 is none.
    """
    if hz is None or millisecs == 0:
        return millisecs / 1000
    tick = 1 / hz
    return math.ceil(millisecs * hz / 1000) * tick + max(tick - work, tick / 2)
