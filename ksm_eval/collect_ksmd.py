"""ksmd's own records -> KsmdState: which page each rmap_item is about."""

from __future__ import annotations

import numpy as np

from ksm_eval.snapshot import U32, U64, KsmdState, Vmas
from ksm_eval.sweep import sweep
from ksm_eval.target import KsmdRecords, Target


def ksmd_state(
    target: Target, records: KsmdRecords, vmas: Vmas, page: U32, checksum: U32, seed: int
) -> KsmdState:
    """`page` and `checksum` have a row a mapping, in the snapshot's order; of the checksums only
    is kept whether they are those that ksmd has."""
    vma = np.repeat(np.arange(len(vmas)), np.diff(vmas.offset))
    size = np.uint64(target.info.page_size)
    address = vmas.start[vma] + page.astype(np.uint64) * size
    process = vmas.process[vma].astype(np.int64)
    current = np.zeros(len(records.row), np.bool_)
    for row in np.unique(records.row[records.row >= 0]).tolist():
        first, last = np.searchsorted(process, (row, row + 1)).tolist()
        items = np.flatnonzero(records.row == row)
        if first < last:
            at = np.searchsorted(address[first:last], records.address[items])
            at = first + np.minimum(at, last - first - 1)
            same = address[at] == records.address[items]
            current[items] = same & (checksum[at] == records.checksum[items])
    return KsmdState(
        item_process=records.row,
        item_dying=records.dying,
        item_address=records.address,
        item_unstable=records.unstable,
        item_seqnr=records.seqnr,
        item_node=records.stable_node,
        item_current=current,
        item_age=records.age,
        item_skips=records.skips,
        node_pfn=records.node_pfn,
        node_hash=_hashes(target, records, seed),
        node_length=records.node_length,
        node_chain=records.node_chain,
        node_stale=records.node_stale,
        tree=records.tree,
        batch_pfn=records.batch_pfn,
        batch_mlock=records.batch_mlock,
        full_scans=records.full_scans,
        cursor_process=records.cursor_row,
        cursor_address=records.cursor_address,
        tree_pruned=records.tree_pruned,
    )


def _hashes(target: Target, records: KsmdRecords, seed: int) -> U64:
    """Contents of the KSM pages; of a node whose page is gone 0."""
    found = np.zeros(len(records.node_pfn), np.uint64)
    rows = np.flatnonzero(~records.node_stale)
    rows = rows[np.argsort(records.node_pfn[rows], kind="stable")]
    found[rows] = sweep(target, records.node_pfn[rows], seed).hash
    return found
