"""How long ksmd takes for a full scan."""

from __future__ import annotations

import math

from ksm_eval.replay.rules import Settings

SECONDS_A_PAGE = 2e-6
"""Assumed CPU time of one visit. Measured on 6.18: 1 us where most pages merge, 5 us where none
does and each needs a search of the tree."""


def full_scan_seconds(pages: int, settings: Settings) -> float:
    """Wall time of one pass over `pages` rmap_items, none of them skipped.

    ksm_scan_thread() (mm/ksm.c) sleeps sleep_millisecs behind every pages_to_scan pages; the one
    page more is the call that notices the end of the pass. With the scan-time advisor (6.8+)
    pages_to_scan is what it has set just now.
    """
    batches = math.ceil((pages + 1) / max(settings.pages_to_scan, 1))
    return batches * settings.sleep_millisecs / 1000 + pages * SECONDS_A_PAGE
