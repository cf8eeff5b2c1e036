"""Whether the parts of a Snapshot fit together, so that the replay need not ask."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ksm_eval.snapshot import (
    EMPTY,
    NO_COMPOUND,
    Compounds,
    ContentKind,
    Contents,
    FrameFlag,
    Frames,
    KsmdState,
    MappingFlag,
    Metadata,
    Processes,
    Snapshot,
    Vmas,
)

MOST_ADDRESSES = 1 << 56
"""Bytes of address space that a process has at most: x86-64 with five levels of page tables."""


class Invalid(ValueError):
    """The snapshot contradicts itself; the message says where."""


def check(snapshot: Snapshot) -> None:
    """Raise Invalid unless every length, index, order and range is as snapshot.py says."""
    _check_meta(snapshot.meta)
    _lengths(snapshot)
    processes, vmas = snapshot.processes, snapshot.vmas
    _check_processes(processes, snapshot.meta.page_size)
    _check_vmas(vmas, len(processes), len(snapshot.mappings), snapshot.meta.page_size)
    _check_mappings(snapshot)
    _check_frames(snapshot.frames, snapshot.compounds)
    if snapshot.ksmd is not None:
        check_ksmd(snapshot.ksmd, len(processes), snapshot.meta.page_size)
    if snapshot.contents is not None:
        _check_contents(snapshot.contents)


def check_ksmd(state: KsmdState, processes: int, page_size: int) -> None:
    """Raise Invalid unless ksmd's records can be what ksmd itself left there."""
    for name, values in vars(state).items():
        if values is None:
            continue
        if name.startswith("item_"):
            _demand(len(values) == len(state.item_process), f"ksmd.{name} has another length")
        if name.startswith("node_"):
            _demand(len(values) == len(state.node_pfn), f"ksmd.{name} has another length")
        if name.startswith("batch_"):
            _demand(len(values) == len(state.batch_pfn), f"ksmd.{name} has another length")
    _demand(0 <= state.full_scans < 1 << 62, "ksmd.full_scans out of range")
    _demand(-1 <= state.cursor_process < processes, "ksmd.cursor_process out of range")
    _demand(0 <= state.cursor_address < 1 << 64, "ksmd.cursor_address out of range")
    process, node, address = state.item_process, state.item_node, state.item_address
    _demand(((process >= -1) & (process < processes)).all(), "ksmd.item_process out of range")
    _demand(((node >= -1) & (node < len(state.node_pfn))).all(), "ksmd.item_node out of range")
    _demand(not (address & np.uint64(page_size - 1)).any(), "an rmap_item within a page")
    order = np.lexsort((address, process))
    twice = (process[order][1:] == process[order][:-1]) & (
        address[order][1:] == address[order][:-1]
    )
    _demand(not (twice & (process[order][1:] >= 0)).any(), "two rmap_items of one page")
    _demand(not (state.item_unstable & (node >= 0)).any(), "an rmap_item in both trees")
    attached = np.bincount(node[node >= 0], minlength=len(state.node_pfn))
    _demand((attached == state.node_length).all(), "stable nodes do not fit their rmap_items")
    for pfns in (state.node_pfn, state.batch_pfn):
        _demand(not (pfns >> np.uint64(52)).any(), "a PFN of ksmd's out of range")
    _check_tree(state)


def _check_tree(state: KsmdState) -> None:
    """Every stable node in one place, every chain of one content, and a red-black tree."""
    chain, tree = state.node_chain, state.tree
    _demand((chain >= -2).all(), "ksmd.node_chain out of range")
    _demand(tree.ndim == 2 and tree.shape[1] == 5, "ksmd.tree has another shape")
    starts = np.append(True, chain[1:] != chain[:-1])[: len(chain)] | (chain == -1)
    firsts = np.flatnonzero(starts & (chain >= -1))
    chains = chain[firsts][chain[firsts] >= 0]
    _demand(len(np.unique(chains)) == len(chains), "the dups of a chain are not together")
    first = np.sort(tree[:, 0])
    _demand(
        np.array_equal(first[first != EMPTY], firsts),
        "the stable tree does not fit the stable nodes",
    )
    inside = (chain[1:] == chain[:-1]) & (chain[1:] >= 0)
    alive = ~state.node_stale[1:] & ~state.node_stale[:-1]
    _demand(
        (state.node_hash[1:] == state.node_hash[:-1])[inside & alive].all(),
        "a chain of different contents",
    )
    rows = np.arange(len(tree))
    _demand(((tree[:, 1] >= -1) & (tree[:, 1] < rows)).all(), "ksmd.tree has a loop")
    _demand(((tree[:, 2:4] >= 0) & (tree[:, 2:4] <= 1)).all(), "ksmd.tree out of range")
    _demand(((tree[:, 4] >= 0) & (tree[:, 4] < 1 << 16)).all(), "an impossible NUMA node")
    black = [[0, 0] for _ in rows]  # black nodes below, left and right
    taken: set[tuple[int, int]] = set()
    shape = tree.tolist()
    for row in range(len(shape) - 1, -1, -1):
        _, parent, side, red, numa = shape[row]
        left, right = black[row]
        _demand(left == right, "the stable tree is no red-black tree")
        place = (parent, side) if parent >= 0 else (-1, numa)
        _demand(place not in taken, "two nodes of the stable tree in one place")
        taken.add(place)
        if parent >= 0:
            _demand(shape[parent][4] == numa, "the stable tree is no tree")
            _demand(not (red and shape[parent][3]), "the stable tree is no red-black tree")
            black[parent][side] = left + 1 - red
        else:
            _demand(not red, "the stable tree is no red-black tree")
    if state.tree_pruned is not None:
        ago, first = state.tree_pruned, tree[:, 0]
        _demand(len(ago) == len(tree), "ksmd.tree_pruned has another length")
        is_chain = first == EMPTY
        is_chain[first >= 0] = chain[first[first >= 0]] >= 0
        _demand(((ago >= 0) == is_chain).all(), "ksmd.tree_pruned does not fit the chains")
        _demand(((ago >= -1) & (ago < 1 << 62)).all(), "ksmd.tree_pruned out of range")


def _demand(condition: object, problem: str) -> None:
    if not condition:
        raise Invalid(problem)


def _check_meta(meta: Metadata) -> None:
    size = meta.page_size
    _demand(4096 <= size <= 65536 and size & (size - 1) == 0, f"page size {size}")
    _demand(meta.question in ("merge_any", "mergeable_only"), "unknown question")
    _demand(meta.settings.max_page_sharing >= 2, "max_page_sharing below 2")
    limit = 1 << 62  # sums stay within int64
    for mapping in (meta.counters, meta.unreadable, meta.sizeof):
        _demand(all(abs(value) < limit for value in mapping.values()), "a number out of range")
    _demand(all(value >= 0 for value in meta.unreadable.values()), "a negative page count")
    _demand(all(0 < value < 65536 for value in meta.sizeof.values()), "an impossible sizeof")
    _demand(0 <= meta.total_ram_pages < limit, "total_ram_pages out of range")
    _demand(0 <= meta.time < 1 << 34, "time out of range")
    for name in ("pages_to_scan", "sleep_millisecs", "stable_node_chains_prune_millisecs"):
        _demand(0 <= getattr(meta.settings, name) < 1 << 32, f"{name} out of range")


def _lengths(snapshot: Snapshot) -> None:
    processes, vmas = snapshot.processes, snapshot.vmas
    parts: tuple[tuple[str, Any, int], ...] = (
        ("processes", processes, len(processes)),
        ("vmas", vmas, len(vmas)),
        ("mappings", snapshot.mappings, len(snapshot.mappings)),
        ("frames", snapshot.frames, len(snapshot.frames)),
        ("compounds", snapshot.compounds, len(snapshot.compounds)),
    )
    for part, table, rows in parts:
        for column, values in vars(table).items():
            if column == "observed" or values is None:
                continue
            wanted = rows + 1 if column == "offset" else rows
            _demand(len(values) == wanted, f"{part}.{column} has another length")


def _check_processes(processes: Processes, page_size: int) -> None:
    _demand((processes.pid >= 0).all(), "a pid below 0")
    if processes.rss_pages is not None:
        most = MOST_ADDRESSES // page_size
        _demand(
            ((processes.rss_pages >= 0) & (processes.rss_pages <= most)).all(),
            "processes.rss_pages out of range",
        )


def _check_contents(contents: Contents) -> None:
    _demand(len(contents.kind) == len(contents.hash), "contents.kind has another length")
    _demand(bool(np.isin(contents.kind, list(ContentKind)).all()), "contents.kind out of range")
    _demand(len(np.unique(contents.hash)) == len(contents), "a content twice")


def _check_vmas(vmas: Vmas, processes: int, mappings: int, page_size: int) -> None:
    offset = vmas.offset
    _demand(offset[0] == 0 and offset[-1] == mappings, "vmas.offset does not span the mappings")
    _demand((np.diff(offset) >= 0).all(), "vmas.offset is not ascending")
    if not len(vmas):
        return
    process = vmas.process.astype(np.int64)
    _demand(process.max() < processes, "vmas.process out of range")
    step = np.diff(process)
    _demand((step >= 0).all(), "vmas are not by process")
    _demand((vmas.start < vmas.end).all(), "a VMA ends before it starts")
    _demand(not ((vmas.start | vmas.end) & np.uint64(page_size - 1)).any(), "a VMA within a page")
    _demand(
        ((step > 0) | (vmas.start[1:] >= vmas.end[:-1])).all(), "VMAs overlap or are not by address"
    )
    excluded = np.array([bool(reason) for reason in vmas.reason])
    _demand(not np.diff(offset)[excluded].any(), "mappings of a VMA that is not mergeable")


def _check_mappings(snapshot: Snapshot) -> None:
    vmas, mappings, frames = snapshot.vmas, snapshot.mappings, len(snapshot.frames)
    seen = np.zeros(frames, np.bool_)
    if len(mappings):
        _demand(int(mappings.frame.max()) < frames, "mappings.frame out of range")
        seen[mappings.frame] = True
        _flags(mappings.flags, MappingFlag, "mappings.flags")
        pages = (vmas.end - vmas.start) // np.uint64(snapshot.meta.page_size)
        runs = np.diff(vmas.offset)
        _demand((mappings.page < np.repeat(pages, runs)).all(), "a mapping outside its VMA")
        first = np.zeros(len(mappings) + 1, np.bool_)  # of its VMA: may have a lower page
        first[vmas.offset] = True
        ascending = mappings.page[1:] > mappings.page[:-1]
        _demand((ascending | first[1:-1]).all(), "mappings are not by address")
    _demand(seen.all(), "a frame that nothing maps")


def _check_frames(frames: Frames, compounds: Compounds) -> None:
    _demand((frames.pfn[1:] > frames.pfn[:-1]).all(), "frames are not by PFN")
    _demand(not (frames.pfn >> np.uint64(52)).any(), "a PFN out of range")
    _flags(frames.flags, FrameFlag, "frames.flags")
    if frames.order is not None and len(frames):
        _demand(int(frames.order.max()) < len(frames), "frames.order out of range")
    pages = compounds.pages
    _demand(
        ((pages >= 2) & (pages & (pages - np.uint32(1)) == 0)).all(), "an impossible compound size"
    )
    _demand(not (compounds.head >> np.uint64(52)).any(), "a compound's PFN out of range")
    member = frames.compound != NO_COMPOUND
    row = frames.compound[member]
    if len(row):
        _demand(int(row.max()) < len(compounds), "frames.compound out of range")
    seen = np.zeros(len(compounds), np.bool_)
    seen[row] = True
    _demand(seen.all(), "a compound without a frame")


def _flags(
    values: NDArray[np.uint8], known: type[MappingFlag] | type[FrameFlag], name: str
) -> None:
    mask = sum(flag.value for flag in known)
    _demand(not (values & np.uint8(255 ^ mask)).any(), f"{name} has unknown bits")
