"""What the tests of ksm_eval/decision share: what became of each mapping, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import Prediction
from ksm_eval.snapshot import FrameFlag, Snapshot
from tests.snapshots import snapshots


@st.composite
def groups(draw: st.DrawFn) -> Snapshot:
    """Any snapshot, of processes of several uids, cgroups and comms."""
    snapshot = draw(snapshots())
    processes = snapshot.processes
    for row in range(len(processes)):
        processes.uid[row] = draw(st.sampled_from([0, 0, 1001, 0xFFFFFFFF]))
        processes.cgroup[row] = draw(st.sampled_from(["", "/a", "/a", "/b"]))
        processes.comm[row] = draw(st.sampled_from(["one", "two"]))
    return snapshot


@dataclass
class Mapped:
    """One mapping, before and after."""

    position: int
    process: int
    vma: int
    frame: int
    kind: int
    target: int


@dataclass
class Told:
    """A prediction as lists."""

    mappings: list[Mapped] = field(default_factory=list)
    mappers: dict[int, list[int]] = field(default_factory=dict)  # frame -> processes, each time
    outside: dict[int, int] = field(default_factory=dict)
    now: dict[int, int] = field(default_factory=dict)  # frame -> mappings of the snapshot
    freed: set[int] = field(default_factory=set)
    copies: int = 0
    contents: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # readable frames

    def flags(self, snapshot: Snapshot, frame: int) -> FrameFlag:
        return FrameFlag(int(snapshot.frames.flags[frame]))


def tell(snapshot: Snapshot, prediction: Prediction, across_nodes: bool) -> Told:
    """One mapping after the other."""
    result, found = prediction.placed.outcome(snapshot), Told()
    offset = snapshot.vmas.offset
    for vma, process in enumerate(snapshot.vmas.process.tolist()):
        for position in range(int(offset[vma]), int(offset[vma + 1])):
            frame = int(snapshot.mappings.frame[position])
            kind, target = int(result.kind[position]), int(result.frame[position])
            found.mappings.append(Mapped(position, process, vma, frame, kind, target))
            found.mappers.setdefault(frame, []).append(process)
            found.now[target] = found.now.get(target, 0) + 1
    for frame, mappers in found.mappers.items():
        found.outside[frame] = max(int(snapshot.frames.mapcount[frame]) - len(mappers), 0)
        gone = {m.kind for m in found.mappings if m.frame == frame and m.target != frame}
        stranger = found.outside[frame] and Kind.REMAPPED not in gone
        if not found.now.get(frame) and not stranger:
            found.freed.add(frame)
        if not snapshot.frames.flags[frame] & FrameFlag.UNREADABLE:
            node = 0 if across_nodes else int(snapshot.frames.node[frame])
            key = (int(snapshot.frames.hash[frame]), node)
            found.contents.setdefault(key, []).append(frame)
    found.copies = len({target for target in found.now if target >= len(snapshot.frames)})
    return found


def pss(snapshot: Snapshot, told: Told, vma: int) -> tuple[float, float]:
    """Of a VMA, before and after."""
    before = after = 0.0
    for mapping in told.mappings:
        if mapping.vma != vma:
            continue
        outside = told.outside[mapping.frame]
        before += snapshot.meta.page_size / (len(told.mappers[mapping.frame]) + outside)
        if mapping.target < 0:
            continue
        stay = told.outside.get(mapping.target, 0)
        if any(m.frame == mapping.target and m.kind == Kind.REMAPPED for m in told.mappings):
            stay = 0
        after += snapshot.meta.page_size / (told.now[mapping.target] + stay)
    return before, after


def allclose(left: object, right: object) -> bool:
    return bool(np.allclose(np.asarray(left, float), np.asarray(right, float)))
