"""Evaluations of what changes meanwhile. Every page says whose it is: see processes.py."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import xxhash

from in_guest import processes
from in_guest.processes import BASE, END, PAGE, SPAN, Churner, Keeper
from in_guest.targets import VIAS, opened
from ksm_eval.collect import collect
from ksm_eval.evaluate import evaluate_snapshot
from ksm_eval.snapshot import FrameFlag, Snapshot, has
from ksm_eval.target import Process, Selection, Vma, WalkedVmas

SEED = 0x5EED
RUNS = 2
A, B = 1000, 2000  # regions
STEPS = (  # between which another takes the place of the second of two processes
    ("walking", 1, True),  # before it is walked
    ("walking", 1, False),
    ("walking", 2, True),  # before its frames are looked at
    ("reading", 1, True),  # before they are read
)


def checked(snapshot: Snapshot, tag: int = 0) -> dict[str, Any]:
    """How many pages of regions have what they must have, and which have not."""
    vmas, frames, mappings = snapshot.vmas, snapshot.frames, snapshot.mappings
    unreadable = has(frames.flags, FrameFlag.UNREADABLE)
    right, lost, wrong = 0, 0, list[str]()
    for row, start in enumerate(vmas.start.tolist()):
        if not BASE <= start < END:
            continue
        region, first = divmod(start - BASE, SPAN)
        for at in range(*vmas.offset[row : row + 2].tolist()):
            frame = int(mappings.frame[at])
            page = int(mappings.page[at]) + first // PAGE
            expected = xxhash.xxh3_64_intdigest(processes.content(region, tag, page), SEED)
            if unreadable[frame]:
                lost += 1
            elif int(frames.hash[frame]) == expected:
                right += 1
            else:
                pid = int(snapshot.processes.pid[vmas.process[row]])
                wrong.append(f"pid {pid}, region {region}, page {page}")
    return {"right": right, "unreadable": lost, "wrong": len(wrong), "examples": wrong[:5]}


def _seen(
    via: str, selection: Selection, step: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """`step` is told when a process was walked, and before frames are read."""
    start = time.monotonic()
    try:
        target = opened(via)
        walk, read_into = target.walk, target.read_into

        def walked(process: Process, vmas: Sequence[Vma]) -> WalkedVmas:
            try:
                return walk(process, vmas)
            finally:
                step("walking")

        def read(buffer: memoryview, place: int) -> None:
            step("reading")
            read_into(buffer, place)

        target.walk, target.read_into = walked, read  # type: ignore[method-assign]
        snapshot = collect(target, selection, seed=SEED)
        report = evaluate_snapshot(snapshot)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    return {
        **checked(snapshot),
        "processes": len(snapshot.processes),
        "comms": sorted(set(snapshot.processes.comm)),
        "lost": snapshot.meta.lost,
        "gone": [note for note in snapshot.meta.notes if "ended while" in note],
        "reasons": snapshot.meta.unreadable,
        "share": report.completeness.share_unreadable,
        "seconds": round(time.monotonic() - start, 1),
    }


def raced(churners: list[Churner]) -> dict[str, Any]:
    """Of all processes, while others come and go, and have threads and VMAs that do."""
    for churner in churners:
        churner.go()
    by_kind = {churner.kind: churner.pid for churner in churners}
    found: dict[str, Any] = {}
    for via in VIAS:
        everything = [_seen(via, Selection(all=True)) for _ in range(RUNS)]
        pids = (by_kind["threads"], by_kind["vmas"])
        found[via] = {"all": everything, "named": _seen(via, Selection(pids=pids))}
    for churner in churners:
        churner.close()
    return found


def recycled(keeper: Keeper) -> dict[str, Any]:
    """A process ends, and its pid is another's: between two steps of an evaluation."""
    found: dict[str, Any] = {}
    for via in VIAS:
        for stage, at, named in STEPS:
            key = f"{via}, {stage} {at}, {'by pid' if named else 'by name'}"
            found[key] = _recycled(keeper, via, stage, at, named)
    return found


def _recycled(keeper: Keeper, via: str, stage: str, at: int, named: bool) -> dict[str, Any]:
    """The second of two processes is replaced after `at` steps of `stage`."""
    first, second = keeper.start(B), keeper.start(A)
    steps = {"walking": 0, "reading": 0}
    other = 0

    def step(now: str) -> None:
        nonlocal other
        steps[now] += 1
        if steps[stage] == at and not other:
            keeper.end(second)
            other = keeper.start(A, tag=1, pid=second)

    selection = Selection(pids=(first, second)) if named else Selection(comms=("kept",))
    seen = _seen(via, selection, step)
    for pid in (first, second):
        keeper.end(pid)
    return {**seen, "pid": second, "same": other == second}
