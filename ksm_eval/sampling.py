"""Several samples of what runs, an interval apart: one sample, one full scan of ksmd."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ksm_eval.collect import collect
from ksm_eval.errors import KsmEvalError
from ksm_eval.replay.scan_time import full_scan_seconds
from ksm_eval.snapshot import Snapshot
from ksm_eval.target import WAITING, Progress, Selection, Target

TICK = 0.2  # seconds between two signs of life while waiting


@dataclass
class Samples:
    """What was taken; `moments` are when each was begun, in seconds of the monotonic clock."""

    snapshots: list[Snapshot] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    bytes_read: int = 0
    wanted: int = 1
    interval: float = 0.0
    stopped: KsmEvalError | None = None  # why there are fewer than were asked for


def take_samples(
    open_target: Callable[[], Target],
    selection: Selection,
    *,
    samples: int,
    interval: float | None = None,
    max_rate: float = 0.0,
    mergeable_only: bool = False,
    exact: bool = False,
    max_memory: int = 0,
    jobs: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[float], None] | None = None,
) -> Samples:
    """Collect `samples` snapshots, begun `interval` seconds apart, or as far as they take.

    `interval` None: the time ksmd would need for a full scan of the first one, which is told to
    `announce` before the first wait. `max_rate`: bytes a second, 0 for no limit; `max_memory` and
    `jobs`: as for collect(). The target is opened for each sample anew, and closed behind it:
    nothing is held while waiting. A process that has ended, and another that has its pid, is in no
    later sample. Raises what collect() does for the first sample; a later one that cannot be taken
    ends the series (`stopped`).
    """
    taken = Samples(wanted=samples)
    seed = secrets.randbits(64)  # one for all, so that contents can be compared
    for number in range(1, samples + 1):
        report = _numbered(progress, number, samples)
        if number > 1:
            _wait_until(taken.moments[-1] + taken.interval, taken.interval, report)
        moment = time.monotonic()
        try:
            target = open_target()
            target.meter.max_rate = max_rate
            try:
                snapshot = collect(
                    target,
                    selection,
                    mergeable_only=mergeable_only,
                    exact=exact,
                    max_memory=max_memory,
                    jobs=jobs,
                    progress=report,
                    seed=seed,
                )
            finally:
                taken.bytes_read += target.meter.bytes_read
                target.close()
        except KsmEvalError as error:
            if number == 1:
                raise
            taken.stopped = error
            break
        taken.snapshots.append(snapshot)
        taken.moments.append(moment)
        if number == 1 and samples > 1:
            started = snapshot.processes.start_time
            selection = replace(selection, started_by=int(started.max()))
            if interval is None:
                settings, pages = snapshot.meta.settings, len(snapshot.mappings)
                hz = snapshot.meta.pace.get("hz")
                taken.interval = full_scan_seconds(pages, settings, hz=int(hz) if hz else None)
                if announce is not None:
                    announce(taken.interval)
            else:
                taken.interval = interval
    return taken


def _numbered(progress: Progress | None, number: int, samples: int) -> Progress | None:
    if progress is None or samples == 1:
        return progress

    def numbered(stage: str, done: int, total: int) -> None:
        progress(f"sample {number}/{samples} {stage}", done, total)

    return numbered


def _wait_until(moment: float, interval: float, progress: Progress | None) -> None:
    while (left := moment - time.monotonic()) > 0:
        if progress is not None:
            progress(WAITING, round(max(interval - left, 0)), round(interval))
        time.sleep(min(left, TICK))
