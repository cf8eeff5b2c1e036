"""Where the saving is: VMAs worth madvise(), and the fewest processes or VMAs that give most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ksm_eval.decision.fate import Fate, fate_of, items_by_vma, largest_by_frame, pss_by_vma
from ksm_eval.replay.converged import Prediction, predict
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.subset import subset_of_vmas, without_plain
from ksm_eval.report.decision import Choice, Madvise
from ksm_eval.snapshot import I64, Snapshot

Bool = NDArray[np.bool_]
F64 = NDArray[np.float64]

ENOUGH = 0.9
"""Share of the frames freed that a Choice has to reach."""

NEAR = 100
"""A choice is made where one smaller by 1 in NEAR would not do: each that is tried costs a
prediction. Below twice NEAR that is a single member."""

ROWS = 100
"""Processes or VMAs that are named at most."""


def vma_gains(snapshot: Snapshot, prediction: Prediction, fate: Fate | None = None) -> F64:
    """PSS that each VMA loses, less its rmap_items, in bytes, shape (V,)."""
    fate = fate or fate_of(snapshot, prediction)
    before, after = pss_by_vma(snapshot, fate)
    return before - after - items_by_vma(snapshot, fate) * snapshot.meta.sizeof["rmap_item"]


def process_gains(snapshot: Snapshot, prediction: Prediction, fate: Fate | None = None) -> F64:
    """The same of each process, shape (P,)."""
    gains = np.zeros(len(snapshot.processes))
    np.add.at(gains, snapshot.vmas.process, vma_gains(snapshot, prediction, fate))
    return gains


def madvise(
    snapshot: Snapshot, prediction: Prediction, fate: Fate | None = None
) -> tuple[Madvise, ...]:
    """The VMAs of selected processes that gain, best first; at most ROWS of them. `covered` is of
    the gain of all of them."""
    vmas, processes = snapshot.vmas, snapshot.processes
    gain = np.rint(vma_gains(snapshot, prediction, fate)).astype(np.int64)
    eligible = np.array([not reason for reason in vmas.reason], np.bool_)
    rows = np.flatnonzero((gain > 0) & eligible & processes.selected[vmas.process])
    rows = rows[np.argsort(-gain[rows], kind="stable")]
    covered = np.cumsum(gain[rows]) / max(int(gain[rows].sum()), 1)
    return tuple(
        Madvise(
            pid=int(processes.pid[vmas.process[row]]),
            comm=processes.comm[vmas.process[row]],
            start=int(vmas.start[row]),
            end=int(vmas.end[row]),
            name=vmas.name[row],
            ksm_pages=int(prediction.ksm_pages[row]),
            gain_bytes=int(gain[row]),
            covered=float(share),
        )
        for row, share in zip(rows[:ROWS].tolist(), covered[:ROWS].tolist(), strict=True)
    )


def choices(
    snapshot: Snapshot, settings: Settings, prediction: Prediction, fate: Fate | None = None
) -> tuple[Choice, ...]:
    """The smallest beginning of the processes, and of the VMAs, by the PSS that they lose, that
    frees ENOUGH of the frames: each one tried is predicted for itself. Empty where nothing is
    freed.

    That more of them free more is taken for granted, and all but always so.
    """
    fate = fate or fate_of(snapshot, prediction)
    total = prediction.savings.frames_freed
    if total <= 0:
        return ()
    before, after = pss_by_vma(snapshot, fate)
    search = _Search(snapshot, settings, fate, total)
    return (
        search.choice(_processes(snapshot, before - after)),
        search.choice(_vmas(snapshot, before - after)),
    )


@dataclass(frozen=True)
class _Candidates:
    """What a choice is made of, the best first. N of them."""

    of: str
    order: I64  # rows in Processes or Vmas, shape (N,)
    rank: I64  # place in `order` of each VMA, or of its process; N of one that is not in it; (V,)
    name: Callable[[int], str]


def _processes(snapshot: Snapshot, gain_of_vma: F64) -> _Candidates:
    processes, vmas = snapshot.processes, snapshot.vmas
    gain = np.zeros(len(processes))
    np.add.at(gain, vmas.process, gain_of_vma)
    mapped = np.zeros(len(processes), np.bool_)
    mapped[vmas.process[np.diff(vmas.offset) > 0]] = True
    order = _best(mapped & processes.selected, gain)

    def name(row: int) -> str:
        return f"{processes.pid[row]} ({processes.comm[row]})"

    return _Candidates("processes", order, _ranks(order, len(processes))[vmas.process], name)


def _vmas(snapshot: Snapshot, gain_of_vma: F64) -> _Candidates:
    processes, vmas = snapshot.processes, snapshot.vmas
    wanted = (np.diff(vmas.offset) > 0) & processes.selected[vmas.process]
    order = _best(wanted, gain_of_vma)

    def name(row: int) -> str:
        process, where = vmas.process[row], vmas.name[row]
        text = f"{processes.pid[process]} ({processes.comm[process]}) "
        text += f"{vmas.start[row]:#x}-{vmas.end[row]:#x}"
        return f"{text} {where}" if where else text

    return _Candidates("vmas", order, _ranks(order, len(vmas)), name)


def _best(wanted: Bool, gain: F64) -> I64:
    rows = np.flatnonzero(wanted)
    return rows[np.argsort(-gain[rows], kind="stable")]


def _ranks(order: I64, count: int) -> I64:
    found = np.full(count, len(order))
    found[order] = np.arange(len(order))
    return found


class _Search:
    def __init__(self, snapshot: Snapshot, settings: Settings, fate: Fate, total: int) -> None:
        self.snapshot, self.settings = snapshot, settings
        self.fate, self.total = fate, total
        self.small = without_plain(snapshot)
        vmas = snapshot.vmas
        # What is there only because ksmd works on it already stays.
        self.always = ~snapshot.processes.selected[vmas.process]

    def choice(self, of: _Candidates) -> Choice:
        count, enough = len(of.order), ENOUGH * self.total
        known = {count: self.total}
        if not self.always.any():
            known[0] = 0

        def freed(members: int) -> int:
            if members not in known:
                part = subset_of_vmas(self.small, (of.rank < members) | self.always)
                known[members] = predict(part, self.settings).savings.frames_freed
            return known[members]

        few, many = -1, count  # so few are not enough; so many are
        guess, step = self._guess(of, enough), max(count // NEAR, 1)
        while many - few > max(many // NEAR, 1):
            tried = min(max(guess, few + 1), many - 1)
            if freed(tried) >= enough:
                many, guess = tried, tried - step
            else:
                few, guess = tried, tried + step
            step *= 2
            if few >= 0 and many < count:
                guess = (few + many) // 2
        return Choice(
            of=of.of,
            members=tuple(of.name(row) for row in of.order[: min(many, ROWS)].tolist()),
            size=many,
            considered=count,
            frames_freed=freed(many),
            share=freed(many) / self.total,
        )

    def _guess(self, of: _Candidates, enough: float) -> int:
        """A frame is freed only if all that map it are chosen, so it may take as many as that
        have all mappers of enough of the freed frames."""
        last = np.where(self.always, -1, of.rank)
        needed = np.sort(largest_by_frame(self.snapshot, last)[self.fate.freed])
        if not len(needed):
            return len(of.order)
        return int(needed[min(int(enough), len(needed) - 1)]) + 1
