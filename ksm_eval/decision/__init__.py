"""What to do with a prediction: computed here, on arrays alone; said by report/.

Each module answers one question with rows of report/decision.py; decide() asks them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from ksm_eval.decision.advisor import AdvisorSettings
from ksm_eval.decision.cost import cost, seconds_a_page
from ksm_eval.decision.fate import fate_of
from ksm_eval.decision.groups import group_rows
from ksm_eval.decision.kinds import kinds, page_classes
from ksm_eval.decision.next_steps import next_steps
from ksm_eval.decision.pairs import pairs
from ksm_eval.decision.security import security
from ksm_eval.decision.verdict import verdict
from ksm_eval.decision.what_if import left_out, what_if
from ksm_eval.decision.where import choices, madvise, process_gains
from ksm_eval.decision.why_not import reasons
from ksm_eval.replay.converged import Prediction
from ksm_eval.replay.rules import Settings
from ksm_eval.report.decision import Cost, Decision, Step
from ksm_eval.report.model import Completeness, Savings, Stillness
from ksm_eval.snapshot import Snapshot

MOST_REPLAYED = 500_000
"""Mappings that the prediction had to replay: with more, a choice, for which some 15 others are
predicted, takes minutes."""


_CONFINED = (
    Step(
        "Opt in one of them only",
        (),
        "ksmd knows no such limit: what has opted in shares with all that has. Evaluate the "
        "processes of one uid or cgroup alone, and opt in these, to keep the others out",
    ),
)


@dataclass(frozen=True)
class Questions:
    """What a user may ask besides."""

    group_by: str | None = None  # "cgroup", "comm" or "uid"; None: the first that tells any apart
    target_scan_time: float | None = None  # seconds
    what_if: bool = False


def decide(
    snapshot: Snapshot,
    settings: Settings,
    prediction: Prediction,
    saved: Savings,
    complete: Completeness,
    calm: Stillness | None,
    questions: Questions,
) -> Decision:
    """`saved`, `complete` and `calm`: as in the report."""
    fate = fate_of(snapshot, prediction)
    found = verdict(snapshot, prediction, saved, complete=complete, calm=calm)
    advised = madvise(snapshot, prediction, fate)
    why_not = reasons(snapshot)
    costs = _cost(snapshot, settings, prediction, questions.target_scan_time)
    otherwise = what_if(snapshot, settings, prediction) if questions.what_if else ()
    few = prediction.replayed <= MOST_REPLAYED
    group_by = questions.group_by or _tells_apart(snapshot)
    return Decision(
        verdict=found,
        group_by=group_by,
        groups=group_rows(snapshot, prediction, group_by),
        choices=choices(snapshot, settings, prediction, fate) if few else (),
        madvise=advised,
        kinds=kinds(snapshot, settings, prediction, fate),
        why_not=why_not,
        security=security(snapshot, settings, prediction),
        cost=costs,
        what_if=otherwise,
        pairs=pairs(snapshot, prediction, fate),
        page_classes=page_classes(snapshot, prediction, fate),
        next_steps=_CONFINED
        if "--within" in snapshot.meta.selection
        else next_steps(
            snapshot,
            settings,
            costs,
            advised,
            found,
            what_if=otherwise,
            why_not=why_not,
            gains=process_gains(snapshot, prediction, fate),
        ),
        what_if_left_out=left_out(snapshot, settings) if questions.what_if else (),
    )


def _tells_apart(snapshot: Snapshot) -> str:
    processes = snapshot.processes
    for by, names in (("cgroup", processes.cgroup), ("comm", processes.comm)):
        if len({names[row] for row in processes.selected.nonzero()[0].tolist()}) > 1:
            return by
    return "comm"


def _cost(
    snapshot: Snapshot, settings: Settings, prediction: Prediction, target: float | None
) -> Cost:
    pace, scanned = snapshot.meta.pace, snapshot.meta.counters.get("pages_scanned")
    seconds = pace.get("ksmd_cpu_seconds")
    advisor = {
        name.removeprefix("advisor_"): int(value)
        for name, value in pace.items()
        if name.startswith("advisor_")
    }
    return cost(
        snapshot,
        settings,
        prediction,
        target_scan_time=target,
        measured=seconds_a_page(seconds, scanned),
        hz=int(pace["hz"]) if "hz" in pace else None,
        advisor=AdvisorSettings(**advisor) if advisor else None,
        cpu_seconds=seconds,
    )
