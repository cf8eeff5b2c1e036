"""Duplicates that stay, and why."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ksm_eval.decision.equal import Equal
from ksm_eval.decision.fate import Fate
from ksm_eval.replay.contents import (
    Kind,
    blocked_mappings,
    in_compound,
    poisoned,
)
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import Snapshot

Bool = NDArray[np.bool_]


def blocked(snapshot: Snapshot, settings: Settings, fate: Fate, equal: Equal) -> dict[str, int]:
    """Frames beyond the first of each content that are still mapped, by reason: see Kinds."""
    rows, content = equal.rows, equal.content
    if not len(rows):
        return {}
    stays = ~fate.freed[rows]
    node = _nodes(fate, len(snapshot.frames))[rows]
    pinned = _pinned(snapshot)[rows]
    empty = fate.after[rows] == 0  # of the selected processes
    # One has to stay: if there is one, the page that the others share.
    rank = np.where(node, 3, np.where(empty, 1, np.where(pinned, 0, 2)))
    index = np.arange(len(rows))
    best = equal.most(np.where(stays, rank * len(rows) + len(rows) - 1 - index, -1))
    stays[len(rows) - 1 - best[best >= 0] % len(rows)] = False

    mapped = equal.sums(fate.counts[rows])
    has_pinned = equal.most(pinned.astype(np.int64)) > 0
    full = (mapped > settings.max_page_sharing) & (equal.most(node.astype(np.int64)) > 0)
    reasons = {
        "pinned": pinned,
        "outside": empty,
        "cap": node | full[content],
        "prot_none": np.full(len(rows), poisoned(snapshot)),
        "other": np.ones(len(rows), np.bool_),
    }
    reasons["pinned"] = pinned | (has_pinned[content] & ~node & ~empty)
    found = {}
    for reason, of_row in reasons.items():
        mine = stays & of_row
        stays &= ~of_row
        if mine.any():
            found[reason] = int(mine.sum())
    return found


def _nodes(fate: Fate, frames: int) -> Bool:
    """KSM pages, shape (F,)."""
    found = np.zeros(len(fate.after), np.bool_)
    found[fate.target[(fate.kind == Kind.MERGED) & ~fate.one_by_one]] = True
    found[fate.told_target[fate.told_kind == Kind.MERGED]] = True
    return found[:frames]


def _pinned(snapshot: Snapshot) -> Bool:
    """Frames with a mapping that cannot be merged for their references, shape (F,)."""
    found = np.zeros(len(snapshot.frames), np.bool_)
    mappings = blocked_mappings(snapshot)
    if mappings is not None:
        found[snapshot.mappings.frame[mappings != 0]] = True
    inside = np.flatnonzero(in_compound(snapshot))
    found[inside] |= snapshot.compounds.pinned[snapshot.frames.compound[inside]]
    return found
