"""What ksmd needs for it: time and CPU of a full scan, and how many it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from ksm_eval.decision.advisor import AdvisorSettings, Settled, settle
from ksm_eval.decision.settling import settling
from ksm_eval.replay.converged import Prediction
from ksm_eval.replay.passes import visited
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.scan_time import SECONDS_A_PAGE, full_scan_seconds
from ksm_eval.report.decision import Cost, ScanRow
from ksm_eval.report.words import duration
from ksm_eval.snapshot import Snapshot

OTHERS = (100, 500, 1000, 4000, 10_000)
"""pages_to_scan of the table."""
HOPELESS = 3600.0
"""Seconds. A page must stand still from one scan to the next to merge, and the first merges come
in the second scan: at more than an hour a scan hardly anything in a running program does."""
ASSUMED_HZ = 250
"""Where the target's is not known: the default of kernel/Kconfig.hz."""
_UNREACHABLE = "cannot be reached"
_DEARER = 2.0
_UINT_MAX = 2**32 - 1  # pages_to_scan_store() takes no more
_ENOUGH_PAGES = 100_000
_ENOUGH_CPU = 0.1  # seconds: /proc/PID/stat counts in steps of 10 ms


def seconds_a_page(cpu_seconds: float | None, pages_scanned: int | None) -> float | None:
    """ksmd's CPU time by visits since boot; None where that is too little to divide.

    Neither is reset by `echo 2 > run`. Visits that smart scan skips are in the time and not in
    pages_scanned, so this is what a page that is looked at costs with its share of those.
    """
    if cpu_seconds is None or pages_scanned is None:
        return None
    if cpu_seconds < _ENOUGH_CPU or pages_scanned < _ENOUGH_PAGES:
        return None
    return cpu_seconds / pages_scanned


def cost(
    snapshot: Snapshot,
    settings: Settings,
    prediction: Prediction,
    *,
    target_scan_time: float | None = None,
    measured: float | None = None,
    hz: int | None = None,
    advisor: AdvisorSettings | None = None,
    cpu_seconds: float | None = None,
    replay: bool = False,
) -> Cost:
    """`measured`: seconds_a_page() of this target; `hz`: its ticks; `advisor`: its settings;
    `cpu_seconds`: ksmd's since boot; `replay`: scan by scan, however large (settling())."""
    pages = len(snapshot.mappings)
    each = SECONDS_A_PAGE if measured is None else measured
    timing = _Timing(pages, each, hz or ASSUMED_HZ)
    settled = settling(snapshot, settings, prediction, replay=replay)
    scan = timing.seconds(settings)
    found = _advisor(snapshot, settings, prediction, timing, advisor, cpu_seconds)
    return Cost(
        pages=pages,
        seconds_a_page=each,
        measured=measured is not None,
        source=_source(measured, hz),
        rows=tuple(_rows(timing, settings, target_scan_time)),
        advisor=advisor_sentence(found, advisor or AdvisorSettings()) if found else "",
        passes_to=settled.passes,
        seconds_to={share: scans * scan for share, scans in settled.scans.items()},
        settling=settled.how,
        advisor_row=_advisor_row(found, settings, timing) if found and found.stands else None,
        advisor_seconds_to=(
            {share: found.seconds_of(scans) for share, scans in settled.scans.items()}
            if found
            else {}
        ),
    )


class _Timing:
    """Scans of so many pages."""

    def __init__(self, pages: int, seconds_a_page: float, hz: int) -> None:
        self.pages = pages
        self.each = seconds_a_page
        self.hz = hz
        self.cpu_seconds = pages * seconds_a_page

    def seconds(self, settings: Settings) -> float:
        return full_scan_seconds(self.pages, settings, seconds_a_page=self.each, hz=self.hz)

    def row(self, settings: Settings, *notes: str, kind: str = "other") -> ScanRow:
        seconds = self.seconds(settings)
        hopeless = f"hopeless: a full scan takes {duration(seconds)}" if seconds > HOPELESS else ""
        return ScanRow(
            pages_to_scan=settings.pages_to_scan,
            sleep_millisecs=settings.sleep_millisecs,
            seconds=seconds,
            cpu_percent=100 * self.cpu_seconds / seconds if seconds else 0.0,
            cpu_seconds=self.cpu_seconds,
            note=", ".join(note for note in (*notes, hopeless) if note),
            kind=kind,
            hopeless=bool(hopeless),
        )

    def smallest(self, settings: Settings, target: float) -> int | None:
        """The smallest pages_to_scan that keeps to the target; more never takes longer."""
        low, high = 1, min(self.pages + 1, _UINT_MAX)
        if self.seconds(replace(settings, pages_to_scan=high)) > target:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.seconds(replace(settings, pages_to_scan=middle)) <= target:
                high = middle
            else:
                low = middle + 1
        return low


def _rows(timing: _Timing, settings: Settings, target: float | None) -> Iterator[ScanRow]:
    default = Settings()
    own = (settings.pages_to_scan, settings.sleep_millisecs)
    is_default = own == (default.pages_to_scan, default.sleep_millisecs)
    yield timing.row(settings, "target", "default" if is_default else "", kind="target")
    if settings.sleep_millisecs != default.sleep_millisecs:
        yield timing.row(default, "default", kind="default")
    for pages in OTHERS:
        if pages != settings.pages_to_scan:
            yield timing.row(
                replace(settings, pages_to_scan=pages),
                "default of pages_to_scan" if pages == default.pages_to_scan else "",
            )
    if target is not None:
        yield _row_for(timing, settings, target)


def _row_for(timing: _Timing, settings: Settings, target: float) -> ScanRow:
    """With the target's own sleep_millisecs, or if those alone forbid it the default's."""
    option = f"--target-scan-time {target:g}"
    shorter = replace(settings, sleep_millisecs=Settings().sleep_millisecs)
    for sleep in (settings, shorter):
        pages = timing.smallest(sleep, target)
        if pages is not None:
            return timing.row(replace(sleep, pages_to_scan=pages), option, kind="asked")
    if timing.cpu_seconds > target:
        why = f"{_UNREACHABLE}: the CPU time alone is {duration(timing.cpu_seconds)}"
    else:
        why = f"{_UNREACHABLE}: even all pages in one batch are followed by a sleep"
    everything = min(timing.pages + 1, _UINT_MAX)
    fastest = replace(settings, pages_to_scan=everything)
    return timing.row(fastest, option, why, kind="unreachable")


def _source(measured: float | None, hz: int | None) -> str:
    if measured is None:
        page = (
            "assumed: measured on Linux 6.18 (x86-64) was 1 us a page where most merge, 5 us where "
            "each needs a search of the tree"
        )
    else:
        page = "measured: ksmd's CPU time on this target by the pages it has scanned since boot"
    return page if hz else f"{page}; ticks are taken for those of CONFIG_HZ={ASSUMED_HZ}"


def _visits(snapshot: Snapshot, settings: Settings, prediction: Prediction) -> Iterator[int]:
    """Pages that scan after scan looks at, if all are found in the same one: with smart scan
    those that do not merge are skipped in ever more of them."""
    smart = settings.smart_scan and snapshot.meta.rules.smart_scan
    everything = len(snapshot.mappings)
    merged = int(prediction.processes.ksm_merging_pages.sum())
    for number, plain in enumerate(visited(smart), 1):
        if number <= 2:  # nothing has merged before the second
            yield everything
        else:
            yield prediction.counters.ksm_rmap_items if plain else merged


def _advisor(
    snapshot: Snapshot,
    settings: Settings,
    prediction: Prediction,
    timing: _Timing,
    advisor: AdvisorSettings | None,
    cpu_seconds: float | None,
) -> Settled | None:
    if not snapshot.meta.rules.advisor or not len(snapshot.mappings):
        return None
    return settle(
        _visits(snapshot, settings, prediction),
        settings,
        advisor or AdvisorSettings(),
        seconds_a_page=timing.each,
        hz=timing.hz,
        cpu_before=cpu_seconds or 0.0,
    )


def _advisor_row(found: Settled, settings: Settings, timing: _Timing) -> ScanRow:
    return ScanRow(
        pages_to_scan=found.high,
        sleep_millisecs=settings.sleep_millisecs,
        seconds=found.longest,
        cpu_percent=found.cpu_percent,
        cpu_seconds=timing.cpu_seconds,
        kind="advisor",
        hopeless=found.longest > HOPELESS,
    )


def advisor_sentence(found: Settled, advisor: AdvisorSettings) -> str:
    start = (
        f"advisor_mode scan-time (target {advisor.target_scan_time} s, "
        f"at most {advisor.max_cpu} % of a CPU)"
    )
    cpu = f"{max(found.cpu_percent, 0.1):.1f} % of one CPU"
    after = f" after {found.scans} scans" if found.scans > 1 else ""
    if found.stands:
        around = str(found.low) if found.low == found.high else f"{found.low} to {found.high}"
        text = f"{start} would settle at {around} pages_to_scan{after}"
    else:
        text = (
            f"{start} would not settle: pages_to_scan goes back and forth between {found.low} and "
            f"{found.high}"
        )
    shortest, longest = duration(found.shortest), duration(found.longest)
    if shortest == longest:
        text += f", a full scan in {longest} at {cpu}"
    else:
        text += f", full scans in {shortest} to {longest}, on average at {cpu}"
    why = [_LIMITS[limit] for limit in sorted(found.limits) if limit]
    return text + (f" ({'; '.join(why)})" if why else "")


_LIMITS = {
    "max_cpu": "held down by advisor_max_cpu",
    "max_pages": "held down by advisor_max_pages_to_scan",
    "min_cpu": "held up by the kernel's least of 10 % of a CPU, the target would need less",
}


def asked_for(found: Cost) -> ScanRow | None:
    """The row of --target-scan-time, if that can be reached."""
    return next((row for row in found.rows if row.kind == "asked"), None)


def meets(own: ScanRow, asked: ScanRow) -> bool:
    """Is the target's own setting fast enough already? `asked` has the fewest pages that are, and
    another sleep only if with the target's none are enough."""
    return own.sleep_millisecs == asked.sleep_millisecs and own.pages_to_scan >= asked.pages_to_scan


def worth_writing(found: Cost) -> ScanRow | None:
    """The row to put into sysfs: that of --target-scan-time, unless the target's own meets it;
    else the target's own unless it is slower than what the kernel's advisor aims at, then the
    fewest pages that are not, or the fastest row. None: leave it as it is."""
    own, enough = found.rows[0], AdvisorSettings().target_scan_time
    asked = asked_for(found)
    if asked is not None:
        return None if meets(own, asked) else asked
    if own.seconds <= enough:
        return None
    good = [row for row in found.rows if row.seconds <= enough]
    best = min(good, key=lambda row: row.pages_to_scan, default=None)
    best = best or min(found.rows, key=lambda row: row.seconds)
    return None if math.isclose(best.seconds, own.seconds) else best


def by_advisor(found: Cost) -> ScanRow | None:
    """Where the advisor settles, if pages_to_scan is better left to it: the target's own has to
    change, nobody asked for another time, and it takes neither much more CPU time nor longer than
    the row that would be written instead. With little memory it stops at its maximum, or at the
    tenth of a CPU that is its minimum."""
    row, instead = found.advisor_row, worth_writing(found)
    if row is None or instead is None or asked_for(found) is not None:
        return None
    enough = max(AdvisorSettings().target_scan_time, instead.seconds)
    sensible = row.cpu_percent <= _DEARER * instead.cpu_percent and row.seconds <= 1.1 * enough
    return row if sensible else None
