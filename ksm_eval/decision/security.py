"""KSM inside one uid, cgroup or user namespace only: what is left of the saving."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ksm_eval.decision.groups import names_of
from ksm_eval.decision.mixing import mixed
from ksm_eval.replay.converged import Prediction, predict
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.subset import without_plain
from ksm_eval.report.decision import Security, Split
from ksm_eval.snapshot import U32, U64, Snapshot

BY = ("uid", "cgroup", "user_ns")

_BLOCK = 1 << 18  # mappings at a time: the temporaries stay in cache

SENTENCE = (
    "The first write to a merged page takes longer than to others, so a process can find out "
    "whether any other that KSM scans has a page that it guesses, and with faulty RAM "
    "(Rowhammer) has been shown to change such pages: merge only what trusts each other."
)
SOURCES = (
    'Suzaki et al., "Memory Deduplication as a Threat to the Guest OS", EuroSec 2011',
    'Barresi et al., "CAIN: Silently Breaking ASLR in the Cloud", WOOT 2015 (CVE-2015-2877)',
    'Bosman et al., "Dedup Est Machina: Memory Deduplication as an Advanced Exploitation '
    'Vector", IEEE S&P 2016',
    'Razavi et al., "Flip Feng Shui: Hammering a Needle in the Software Stack", USENIX '
    "Security 2016",
    "CVE-2024-0564: how long unmapping takes tells of max_page_sharing, so of others' pages",
)


def security(snapshot: Snapshot, settings: Settings, prediction: Prediction) -> Security:
    """Frames freed if only pages of one group might share, and those that only sharing across
    groups frees. A split of which nothing is known is left out."""
    total = prediction.savings.frames_freed
    small = without_plain(snapshot)
    splits = []
    for by in BY:
        group = groups_of(snapshot, by)
        if group is None:
            continue
        mapped = np.unique(group[snapshot.vmas.process[np.diff(snapshot.vmas.offset) > 0]])
        within = total
        if len(mapped) > 1 and total > 0:
            freed = predict(_confined(small, group), settings).savings.frames_freed
            within = min(freed, total)  # see confined()
        splits.append(Split(by, len(mapped), within, total - within))
    return Security(tuple(splits), SENTENCE, SOURCES)


def confined(snapshot: Snapshot, by: str) -> Snapshot:
    """The same memory if KSM could merge only inside one uid, cgroup or user namespace.

    Each frame is of the set of groups that map it: mostly one, and several where a process
    changed its uid or cgroup after a fork. It merges with frames of the same set alone, so nobody
    shares with anybody with whom he does not share that very content already; and as every frame
    stays one frame with all its mappers, what is freed is counted as ever. Too little is
    predicted where a group has an equal of a page that it shares with another group: those two
    could merge, too. Mappers outside the snapshot are of no group.

    Rarely more is freed than without limits, by a few frames: when another page of a content
    becomes the KSM page, one that a stranger maps anyway. What ksmd has merged already stays
    merged; what it remembers is left out. Raises ValueError if nothing is known of the groups.
    """
    group = groups_of(snapshot, by)
    if group is None:
        raise ValueError(f"no {by} is known of any process")
    return _confined(snapshot, group)


def groups_of(snapshot: Snapshot, by: str) -> U32 | None:
    """Number of the group of each process, from 0, shape (P,); None: it is not known of any.
    Those of which it is not known are a group."""
    if by == "user_ns":
        spaces = getattr(snapshot.processes, "user_ns", None)
        if spaces is None or not np.any(spaces):
            return None
        return np.unique(np.asarray(spaces, np.uint32), return_inverse=True)[1].astype(np.uint32)
    names = np.array(names_of(snapshot.processes, by), np.str_)
    if not (names != "").any():
        return None
    return np.unique(names, return_inverse=True)[1].astype(np.uint32)


def _confined(snapshot: Snapshot, group: U32) -> Snapshot:
    frames, order = snapshot.frames, snapshot.frames.order
    members = _sets(snapshot, group)
    if order is not None:
        # Trees of their own, side by side.
        place = np.lexsort((order, members))
        new = np.ones(len(place), np.bool_)
        new[1:] = (members[place][1:] != members[place][:-1]) | (
            order[place][1:] != order[place][:-1]
        )
        ranks = np.empty(len(place), np.uint32)
        ranks[place] = np.cumsum(new, dtype=np.uint32) - np.uint32(1)
        order = ranks
    return replace(
        snapshot, frames=replace(frames, hash=frames.hash ^ mixed(members), order=order), ksmd=None
    )


def _sets(snapshot: Snapshot, group: U32) -> U64:
    """A number for the set of groups that map each frame, shape (F,): the sum of random-looking
    numbers of its members."""
    vmas, mapped = snapshot.vmas, snapshot.mappings.frame
    of_vma = group[vmas.process]
    found = np.zeros(len(snapshot.frames), np.uint64)
    seen = np.full(len(snapshot.frames), len(group), np.uint32)  # the last group that maps it
    # Group by group, so that each counts once; VMAs that follow each other in one go.
    by_group = np.argsort(of_vma, kind="stable")
    by_group = by_group[np.diff(vmas.offset)[by_group] > 0]
    starts = np.ones(len(by_group), np.bool_)
    starts[1:] = (of_vma[by_group[1:]] != of_vma[by_group[:-1]]) | (
        vmas.offset[by_group[1:]] != vmas.offset[by_group[:-1] + 1]
    )
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(by_group))[: len(first)] - 1
    for begin, end in zip(by_group[first].tolist(), by_group[last].tolist(), strict=True):
        number = of_vma[begin]
        for at in range(int(vmas.offset[begin]), int(vmas.offset[end + 1]), _BLOCK):
            rows = mapped[at : min(at + _BLOCK, int(vmas.offset[end + 1]))]
            rows = rows[seen[rows] != number]
            found[rows] = found[rows] + mixed(np.array([number], np.uint64))
            seen[rows] = number
    return found
