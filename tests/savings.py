"""What an outcome saves, a mapping at a time: what savings.savings() is held against."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ksm_eval.replay.contents import Kind
from ksm_eval.replay.savings import Outcome, Savings
from ksm_eval.snapshot import NO_COMPOUND, Snapshot


def simple_savings(snapshot: Snapshot, outcome: Outcome, items: int, stable_nodes: int) -> Savings:
    """`outcome` is of all mappings."""
    frames, page_size = snapshot.frames, snapshot.meta.page_size
    before, after = snapshot.mappings.frame.tolist(), outcome.frame.tolist()
    kinds = outcome.kind.tolist()
    selected, placed = Counter(before), Counter(after)
    outside = {f: max(n - selected[f], 0) for f, n in enumerate(frames.mapcount.tolist())}
    left: dict[int, set[int]] = {}
    for frame, kind in zip(before, kinds, strict=True):
        left.setdefault(frame, set()).add(kind)
    merged = zero = thp_zero = 0
    for frame, kind in left.items():
        if Kind.REMAPPED in kind:
            outside[frame] = 0
        if placed[frame] or outside[frame]:
            continue
        thp_zero += Kind.REMAPPED in kind
        zero += Kind.ZERO_PAGE in kind and Kind.REMAPPED not in kind
        merged += Kind.ZERO_PAGE not in kind and Kind.REMAPPED not in kind
    merged -= len({frame for frame in after if frame >= len(frames)})

    def pss(of_mapping: list[int], mapped: Counter[int], other: dict[int, int]) -> list[float]:
        found = [0.0] * len(snapshot.processes)
        for vma, process in enumerate(snapshot.vmas.process.tolist()):
            for frame in of_mapping[snapshot.vmas.offset[vma] : snapshot.vmas.offset[vma + 1]]:
                if frame >= 0:
                    found[process] += page_size / (mapped[frame] + other.get(frame, 0))
        return found

    others = {f: max(n - selected[f], 0) for f, n in enumerate(frames.mapcount.tolist())}
    huge = {
        compound
        for compound in set(frames.compound.tolist()) - {NO_COMPOUND}
        if snapshot.compounds.pages[compound] == page_size // 8
    }
    sizes = snapshot.meta.sizeof
    return Savings(
        frames_freed=merged + zero + thp_zero,
        merged=merged,
        zero=zero,
        thp_zero=thp_zero,
        thps=len(huge),
        thps_split=sum(bool(outcome.split[compound]) for compound in huge),
        compounds_split=int(outcome.split.sum()),
        metadata_bytes=items * sizes["rmap_item"]
        + stable_nodes * sizes["stable_node"]
        + len(snapshot.processes) * sizes["mm_slot"],
        pss_before=np.array(pss(before, selected, others)),
        pss_after=np.array(pss(after, placed, outside)),
    )
