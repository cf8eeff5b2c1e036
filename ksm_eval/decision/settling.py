"""How many full scans it takes until the saving is there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ksm_eval.decision.fate import fate_of
from ksm_eval.replay.converged import Prediction
from ksm_eval.replay.ksmd import Ksmd
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.savings import Nodes, Placed, savings
from ksm_eval.replay.subset import without_plain
from ksm_eval.replay.visits import Visits
from ksm_eval.snapshot import Snapshot
from ksm_eval.tables import BLOCK

SHARES = (50, 90, 99)  # percent
SMALL = 200_000  # mappings; their replay takes less than a second a scan
_NO_NODES = Nodes(
    frames=np.empty(0, np.uint32),
    bounds=np.zeros(1, np.int64),
    ksm=np.empty(0, np.uint32),
    mappings=np.empty(0, np.int64),
)
_MOST = 40  # full scans replayed


@dataclass(frozen=True)
class Settling:
    """By percent of the frames freed in the end, as text: "50" …; empty if nothing is."""

    passes: dict[str, int] = field(default_factory=dict)  # full scans, the last one begun counts
    scans: dict[str, float] = field(default_factory=dict)  # the same with the part of the last one
    how: str = ""


def settling(
    snapshot: Snapshot, settings: Settings, prediction: Prediction, *, replay: bool = False
) -> Settling:
    """Counted from the first scan that finds these pages. `replay`: however large.

    Small memory is replayed scan by scan; between the ends of two scans the saving is taken to
    grow evenly. Of large memory bounds are given. Where all merges in the obvious way and in the
    second scan (in the first ksmd notes the checksums), a frame goes as the scan comes to its last
    mapping; some wait for a fourth; what is not obvious may take until the counters stand.
    """
    final = prediction.savings.frames_freed
    if final <= 0:
        return Settling()
    rest = without_plain(snapshot)
    if replay or len(rest.mappings) <= SMALL:
        return _replayed(rest, settings, prediction, final)
    return _estimated(snapshot, prediction, final)


def _replayed(rest: Snapshot, settings: Settings, prediction: Prediction, final: int) -> Settling:
    ksmd, visits = Ksmd(rest, settings), Visits(rest)
    positions = np.arange(len(rest.mappings))
    freed = [0]
    while len(freed) <= min(max(prediction.passes, 2), _MOST) and freed[-1] * 100 < final * 99:
        ksmd.full_scan()
        placed = Placed(_NO_NODES, positions, ksmd.outcome())
        freed.append(savings(rest, visits, placed, 0, 0).frames_freed)
    found = Settling(how="replayed")
    for share in SHARES:
        wanted = final * share / 100
        number = next((n for n, count in enumerate(freed) if count >= wanted), None)
        if number is None:  # still moving after _MOST scans
            found.passes[str(share)] = prediction.passes
            found.scans[str(share)] = float(prediction.passes)
            continue
        before = freed[number - 1]
        found.passes[str(share)] = number
        found.scans[str(share)] = number - 1 + (wanted - before) / (freed[number] - before)
    return found


def _estimated(snapshot: Snapshot, prediction: Prediction, final: int) -> Settling:
    found = Settling(how="at most: large memory is not replayed scan by scan")
    late = min(prediction.replayed, final)  # a mapping frees one frame at most
    # What merges in the obvious way waits for two more scans at most (simple.py: _passes()).
    obvious = min(max(prediction.passes, 2), 4)
    parts = _parts_of_second_scan(snapshot, prediction)
    for share in SHARES:
        wanted = math.ceil(final * share / 100)
        number = obvious if wanted <= final - late else max(prediction.passes, obvious)
        found.passes[str(share)] = number
        inside = number == 2 and wanted <= len(parts)
        found.scans[str(share)] = 1 + float(parts[wanted - 1]) if inside else float(number)
    return found


def _parts_of_second_scan(snapshot: Snapshot, prediction: Prediction) -> NDArray[np.float64]:
    """For each frame that goes, ascending, where its last mapping is in the scan, 0 to 1."""
    fate = fate_of(snapshot, prediction)
    mapped = snapshot.mappings.frame
    last = np.zeros(len(snapshot.frames), np.int64)
    for begin in range(0, len(mapped), BLOCK):
        rows = mapped[begin : begin + BLOCK]
        last[rows] = np.arange(begin, begin + len(rows))  # of equal rows the last one stays
    parts: NDArray[np.float64] = np.sort(last[fate.freed] + 1) / max(len(mapped), 1)
    return parts
