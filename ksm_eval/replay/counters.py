"""The kernel's counters and profit formulas, under the kernel's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ksm_eval.snapshot import I64, Metadata, Vmas


@dataclass(frozen=True)
class Counters:
    """/sys/kernel/mm/ksm by file name, and ksm_rmap_items. Pages, but general_profit: bytes.

    None: this kernel has no such file (Rules), or it depends on how long ksmd ran.
    """

    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    pages_volatile: int
    stable_node_chains: int
    stable_node_dups: int
    ksm_rmap_items: int
    ksm_zero_pages: int | None  # 6.6+
    general_profit: int | None  # 6.4+
    pages_scanned: int | None = None  # 6.6+
    pages_skipped: int | None = None  # 6.7+
    full_scans: int | None = None


@dataclass(frozen=True)
class ProcessCounters:
    """/proc/PID/ksm_stat by name; int64 arrays of shape (P,). Pages, but profit: bytes.

    ksm_rmap_items and ksm_merging_pages are given for every kernel; kernels without
    Rules.process_counters do not show them.
    """

    ksm_rmap_items: I64
    ksm_merging_pages: I64
    ksm_zero_pages: I64 | None  # 6.6+
    ksm_process_profit: I64 | None  # 6.4+


@overload
def profit(merged: int, zero: int | None, items: int, meta: Metadata) -> int | None: ...
@overload
def profit(merged: I64, zero: I64 | None, items: I64, meta: Metadata) -> I64 | None: ...
def profit(
    merged: int | I64, zero: int | I64 | None, items: int | I64, meta: Metadata
) -> int | I64 | None:
    """Bytes: general_profit_show() with pages_sharing, ksm_process_profit() with
    ksm_merging_pages as `merged` (mm/ksm.c, 6.4+; zero pages are part of it since 6.6)."""
    if not meta.rules.general_profit:
        return None
    pages = merged if zero is None else merged + zero
    return pages * meta.page_size - items * meta.sizeof["rmap_item"]


def system_counters(
    meta: Metadata,
    *,
    shared: int,
    sharing: int,
    unshared: int,
    items: int,
    chains: int,
    dups: int,
    zero: int,
    scanned: int | None = None,
    skipped: int | None = None,
    full_scans: int | None = None,
) -> Counters:
    """Counters from ksmd's own variables; what the kernel does not count becomes None."""
    rules = meta.rules
    zero_pages = zero if rules.zero_counter else None
    return Counters(
        pages_shared=shared,
        pages_sharing=sharing,
        pages_unshared=unshared,
        pages_volatile=max(0, items - shared - sharing - unshared),
        stable_node_chains=chains,
        stable_node_dups=dups,
        ksm_rmap_items=items,
        ksm_zero_pages=zero_pages,
        general_profit=profit(sharing, zero_pages, items, meta),
        pages_scanned=scanned if rules.pages_scanned else None,
        pages_skipped=skipped if rules.smart_scan else None,
        full_scans=full_scans,
    )


def process_counters(meta: Metadata, items: I64, merging: I64, zero: I64) -> ProcessCounters:
    """From arrays of shape (P,)."""
    zero_pages = zero if meta.rules.zero_counter else None
    return ProcessCounters(items, merging, zero_pages, profit(merging, zero_pages, items, meta))


def observed_zero_pages(observed: dict[str, I64], processes: int) -> I64:
    """mm->ksm_zero_pages that ksmd has mapped already, shape (P,); they are no candidates."""
    found = observed.get("ksm_zero_pages")
    return np.zeros(processes, np.int64) if found is None else found.astype(np.int64)


def per_vma(vmas: Vmas, marked: NDArray[np.bool_]) -> I64:
    """How many mappings of each VMA are marked, shape (V,)."""
    found = np.zeros(len(vmas), np.int64)
    filled = vmas.offset[1:] > vmas.offset[:-1]  # reduceat() knows no empty runs
    if filled.any():
        found[filled] = np.add.reduceat(marked, vmas.offset[:-1][filled], dtype=np.int64)
    return found


_Sum = TypeVar("_Sum", np.int64, np.float64)


def per_process(vmas: Vmas, of_vma: NDArray[_Sum], processes: int) -> NDArray[_Sum]:
    """Sums of a number that each VMA has by process, shape (P,)."""
    total = np.zeros(processes, of_vma.dtype)
    np.add.at(total, vmas.process, of_vma)
    return total
