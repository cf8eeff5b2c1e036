"""The scan-time advisor (6.8+): scan_time_advisor() of mm/ksm.c, in its own integers.

After every full scan it sets pages_to_scan anew. advisor_min_pages_to_scan is only where it
starts: afterwards nothing but a tenth of a CPU bounds it from below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from ksm_eval.replay.rules import Settings
from ksm_eval.replay.scan_time import sleep_seconds

EWMA_WEIGHT = 30
MIN_CPU = 10
"""KSM_ADVISOR_MIN_CPU"""

_SCANS = 400
_LAST = 90  # of these; smart scan visits old pages every 9th scan


@dataclass(frozen=True)
class AdvisorSettings:
    """/sys/kernel/mm/ksm/advisor_*; the defaults are mm/ksm.c's."""

    target_scan_time: int = 200
    max_cpu: int = 70
    max_pages_to_scan: int = 30000
    min_pages_to_scan: int = 500


@dataclass(frozen=True)
class State:
    """ksm_thread_pages_to_scan and advisor_ctx."""

    pages: int
    change: int = 0
    scan_time: int = 0
    limit: str = ""  # what decided pages: "max_cpu", "min_cpu", "max_pages" or the target time


def step(state: State, scan_time: int, cpu_percent: int, settings: AdvisorSettings) -> State:
    """After a full scan of `scan_time` whole seconds."""
    scan_time = scan_time or 1
    cpu_percent = cpu_percent or 1
    last = state.scan_time or scan_time
    factor = settings.target_scan_time * 100 // scan_time or 1
    change = scan_time * 100 // last or 1
    change = ((100 - EWMA_WEIGHT) * state.change + EWMA_WEIGHT * change) // 100
    pages, limit = state.pages * 100 // factor * change // 100, ""
    per_percent = state.pages // cpu_percent or 1  # per_page_cost
    if pages > per_percent * settings.max_cpu:
        pages, limit = per_percent * settings.max_cpu, "max_cpu"
    if pages < per_percent * MIN_CPU:
        pages, limit = per_percent * MIN_CPU, "min_cpu"
    if pages > settings.max_pages_to_scan:
        pages, limit = settings.max_pages_to_scan, "max_pages"
    return State(pages, change, scan_time, limit)


@dataclass(frozen=True)
class Scan:
    """One full scan under the advisor."""

    pages_to_scan: int  # while it ran
    seconds: float  # by the kernel's clock, which leaves out the sleep behind the last batch
    wall: float  # from its begin to that of the next
    cpu_percent: float  # of one CPU
    limit: str  # what had decided pages_to_scan


def simulate(
    visits: Iterable[int],
    settings: Settings,
    advisor: AdvisorSettings,
    *,
    seconds_a_page: float,
    hz: int | None,
    cpu_before: float = 0.0,
) -> list[Scan]:
    """One scan for each number of pages visited, from where advisor_mode is written.

    `cpu_before`: CPU seconds that ksmd has had since boot. The first scan is charged with all of
    it, since advisor_ctx.cpu_time starts at 0.
    """
    state = State(advisor.min_pages_to_scan)
    scans: list[Scan] = []
    owed = cpu_before
    for pages in visits:
        batch = max(state.pages, 1)
        cpu = pages * seconds_a_page
        asleep = sleep_seconds(settings.sleep_millisecs, min(batch, pages) * seconds_a_page, hz)
        sleeps = math.ceil((pages + 1) / batch) - 1  # the clock stops before the last one
        seconds = sleeps * asleep + cpu
        wall = seconds + asleep
        scans.append(Scan(batch, seconds, wall, 100 * cpu / (wall or 1), state.limit))
        scan_time = int(seconds) or 1
        charged = int((cpu + owed) * 1000) * 100 // (scan_time * 1000)
        owed = 0.0
        state = step(state, scan_time, charged, advisor)
    return scans


@dataclass(frozen=True)
class Settled:
    """What the advisor arrives at; where `low` is not `high` it goes back and forth."""

    low: int  # pages_to_scan
    high: int
    shortest: float  # seconds of a full scan, from its begin to that of the next
    longest: float
    cpu_percent: float  # on average
    scans: int  # until it is within low to high for good
    limits: frozenset[str]
    walls: tuple[float, ...]  # seconds of each scan from the first on

    @property
    def stands(self) -> bool:
        return self.high <= self.low * 1.1

    def seconds_of(self, scans: float) -> float:
        """Of the first so many scans, the last of them a part."""
        whole = min(int(scans), len(self.walls) - 1)
        return sum(self.walls[:whole]) + (scans - whole) * self.walls[whole]


def settle(
    visits: Iterable[int],
    settings: Settings,
    advisor: AdvisorSettings,
    *,
    seconds_a_page: float,
    hz: int | None,
    cpu_before: float = 0.0,
) -> Settled:
    """`visits`: pages of scan after scan, without end."""
    scans = simulate(
        islice(visits, _SCANS),
        settings,
        advisor,
        seconds_a_page=seconds_a_page,
        hz=hz,
        cpu_before=cpu_before,
    )
    last = scans[-_LAST:]
    low = min(scan.pages_to_scan for scan in last)
    high = max(scan.pages_to_scan for scan in last)
    outside = [n for n, scan in enumerate(scans, 1) if not low <= scan.pages_to_scan <= high]
    seconds = [scan.wall for scan in last]
    busy = sum(scan.cpu_percent * scan.wall for scan in last)
    return Settled(
        low=low,
        high=high,
        shortest=min(seconds),
        longest=max(seconds),
        cpu_percent=busy / sum(seconds) if sum(seconds) else 0.0,
        scans=outside[-1] if outside else 0,
        limits=frozenset(scan.limit for scan in last),
        walls=tuple(scan.wall for scan in scans),
    )
