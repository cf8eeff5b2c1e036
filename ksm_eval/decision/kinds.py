"""What kind of duplicates there are, and what becomes of every page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ksm_eval.decision.blocked import blocked
from ksm_eval.decision.equal import Equal, equal_frames
from ksm_eval.decision.fate import Fate, fate_of, frames_with, positions_of, vma_of
from ksm_eval.decision.inside import parts
from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import Prediction
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.savings import thps
from ksm_eval.report.decision import Content, Kinds
from ksm_eval.snapshot import I64, FrameFlag, Snapshot, has

Bool = NDArray[np.bool_]

TOP = 20
"""Contents that are shown one by one."""

POINTS = 64
"""Of the concentration curve, at most."""

_NAMES = ("", "zero", "constant byte", "repeated word", "other")  # by Contents.kind


def kinds(
    snapshot: Snapshot, settings: Settings, prediction: Prediction, fate: Fate | None = None
) -> Kinds:
    """Frames freed, and those that stay, by kind: see Kinds."""
    fate = fate or fate_of(snapshot, prediction)
    equal = equal_frames(snapshot, settings.merge_across_nodes)
    zero = has(snapshot.frames.flags, FrameFlag.ZERO)
    freed_of = equal.sums(fate.freed[equal.rows])
    inside, between = _places(snapshot, fate, equal, freed_of)
    split = np.append(fate.split & thps(snapshot), False)
    of_compound = np.minimum(snapshot.frames.compound[fate.freed], len(split) - 1)
    thps_split = prediction.savings.thps_split
    return Kinds(
        zero_frames=int((fate.freed & zero).sum()),
        inside_process=inside,
        between_processes=between,
        copies=fate.copies,
        fork_shared=len(snapshot.mappings) - int(np.count_nonzero(fate.counts)),
        contents=int((equal.sizes() > 1).sum()),
        top=_top(snapshot, fate, equal),
        concentration=_concentration(freed_of),
        thps_split=thps_split,
        pages_per_split=int(split[of_compound].sum()) / thps_split if thps_split else None,
        blocked=blocked(snapshot, settings, fate, equal),
    )


def page_classes(
    snapshot: Snapshot, prediction: Prediction, fate: Fate | None = None
) -> dict[str, int]:
    """Candidate mappings by what becomes of them: see Decision.page_classes."""
    fate = fate or fate_of(snapshot, prediction)
    frames, equal = snapshot.frames, equal_frames(snapshot, across_nodes=True)
    names = ["unique", "merged", "zero_page", "thp_zero", "copied"]  # by Kind
    names += ["fork_shared", "duplicate", "unreadable"]
    stays = np.full(len(frames), names.index("unique"))
    stays[fate.counts + fate.outside > 1] = names.index("fork_shared")
    stays[equal.rows[np.repeat(equal.sizes() > 1, equal.sizes())]] = names.index("duplicate")
    stays[has(frames.flags, FrameFlag.UNREADABLE)] = names.index("unreadable")
    of_frame = np.where(fate.kind == Kind.UNMERGED, stays, fate.kind)
    whole = ~fate.one_by_one
    found = np.bincount(of_frame[whole], weights=fate.counts[whole], minlength=len(names))
    told = np.where(
        fate.told_kind == Kind.UNMERGED, stays[snapshot.mappings.frame[fate.told]], fate.told_kind
    )
    found += np.bincount(told, minlength=len(names))
    return {name: int(number) for name, number in zip(names, found, strict=True)}


def _places(snapshot: Snapshot, fate: Fate, equal: Equal, freed_of: I64) -> tuple[int, int]:
    """Freed frames with an equal in a process that maps them, and the other ones; no zero pages.

    Of the frames of a content that merge, those that processes link with each other are a part:
    without any other process they would be one frame. What is freed is taken for these first.
    """
    zero = has(snapshot.frames.flags, FrameFlag.ZERO)[equal.rows]
    merging = frames_with(snapshot, fate, Kind.MERGED)[equal.rows] & ~zero
    linked = equal.sums(merging) - parts(snapshot, equal, merging)
    freed = np.where(equal.most(zero.astype(np.int64)) > 0, 0, freed_of)
    inside = int(np.minimum(linked, freed).sum())
    return inside, int(freed.sum()) - inside


def _concentration(freed_of: I64) -> tuple[tuple[int, int], ...]:
    best = np.sort(freed_of[freed_of > 0])[::-1]
    if not len(best):
        return ()
    freed = np.cumsum(best)
    points = np.unique(np.rint(np.geomspace(1, len(best), POINTS)).astype(np.int64))
    return tuple(zip(points.tolist(), freed[points - 1].tolist(), strict=True))


def _top(snapshot: Snapshot, fate: Fate, equal: Equal) -> tuple[Content, ...]:
    gone = frames_with(snapshot, fate, Kind.MERGED) | (fate.freed & (fate.counts > 0))
    merges = equal.most(gone[equal.rows].astype(np.int64)) > 0
    size = equal.sizes()
    hashes = snapshot.frames.hash[equal.rows[equal.bounds[:-1]]]
    # Of equal ones the first: hashes depend on the key of the run.
    best = np.lexsort((equal.rows[equal.bounds[:-1]], -size, ~merges))[:TOP]
    best = best[merges[best]]
    number = np.full(len(snapshot.frames), -1)  # place in `best` of each frame
    for place, content in enumerate(best.tolist()):
        number[equal.rows[equal.bounds[content] : equal.bounds[content + 1]]] = place
    positions = positions_of(snapshot.mappings.frame, number >= 0)
    of_mapping = number[snapshot.mappings.frame[positions]]
    process = snapshot.vmas.process[vma_of(snapshot.vmas, positions)].astype(np.int64)
    count = max(len(snapshot.processes), 1)
    people = np.unique(of_mapping * count + process) // count
    return tuple(
        Content(
            hash=f"{int(hashes[content]):016x}",
            kind=kind,
            mappings=mappings,
            frames=int(size[content]),
            processes=processes,
        )
        for content, kind, mappings, processes in zip(
            best.tolist(),
            _kinds_of(snapshot, equal, best),
            np.bincount(of_mapping, minlength=len(best)).tolist(),
            np.bincount(people, minlength=len(best)).tolist(),
            strict=True,
        )
    )


def _kinds_of(snapshot: Snapshot, equal: Equal, wanted: I64) -> list[str]:
    """What these contents are, as far as it was looked at."""
    rows = equal.rows[equal.bounds[:-1][wanted]]
    known = getattr(snapshot, "contents", None)
    kinds: dict[int, int] = {}
    if known is not None:
        kinds = dict(zip(known.hash.tolist(), known.kind.tolist(), strict=True))
    zero = has(snapshot.frames.flags, FrameFlag.ZERO)[rows].tolist()
    hashes = snapshot.frames.hash[rows].tolist()
    return [
        "zero" if is_zero else _NAMES[kinds.get(number, 0)]
        for is_zero, number in zip(zero, hashes, strict=True)
    ]
