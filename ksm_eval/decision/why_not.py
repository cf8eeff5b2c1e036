"""Why memory is not eligible, and what could be done about it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ksm_eval.report.decision import Reason
from ksm_eval.snapshot import Entry, FrameFlag, MappingFlag, Snapshot, has

ADVICE = {
    # VMAs: target/vma_rules.py
    "VM_MERGEABLE not set": "offer it: prctl(PR_SET_MEMORY_MERGE), systemd's MemoryKSM=yes, or "
    "madvise(MADV_MERGEABLE) on these VMAs",
    "shared mapping": "KSM merges private anonymous memory only; for QEMU guests use "
    "memory-backend-ram without share=on (memfd and virtiofs need it shared: no KSM then)",
    "hugetlb": "hugetlbfs pages are never merged: use ordinary memory, with transparent huge "
    "pages if it must be huge (ksmd splits those)",
    "DAX": "pages are the storage itself, mapped directly: put a private copy into anonymous "
    "memory, or leave it",
    "VM_PFNMAP": "a driver's or device's memory (GPU, MMIO, VFIO) without struct pages: nothing "
    "to be done",
    "VM_IO": "I/O memory of a device: nothing to be done",
    "VM_MIXEDMAP": "a driver mapped its own pages here: nothing to be done in the program",
    "VM_DROPPABLE": "the kernel may drop it at any time (vgetrandom()): it is small, leave it",
    "VM_DONTEXPAND": "mapped by a driver or the kernel (vvar, vdso, io_uring's rings, perf): it is "
    "small, leave it",
    # Pages in VMAs that ksmd scans
    "page of a file": "KSM skips the page cache, which processes that map one file share already; "
    "copies of a file under several names (containers): share their image layers",
    "zero page": "is the shared zero page already: takes no memory",
    "special": "not ordinary memory (a PFN map): nothing to be done",
    "swapped out": "swap it in before it is judged (swapoff, or touch it): ksmd looks at present "
    "pages only, and does not swap in",
    "being migrated": "was just being moved (compaction, NUMA balancing): will be there in the "
    "next scan; take another sample",
    "device memory": "is in a device now (GPU, HMM), or ZONE_DEVICE: ksmd cannot look at it",
    "poisoned": "a memory error or a guard marker (userfaultfd): nothing to be done",
    "could not be read": "not in the dump, or gone: use makedumpfile -d 17 (or -d 1, or no "
    "filter), or read the running kernel again",
    "pinned": "RDMA, VFIO, io_uring buffers or O_DIRECT hold it: unregister those buffers, or "
    "madvise(MADV_UNMERGEABLE) for such VMAs so that ksmd does not try again and again",
    "pinned THP": "one pinned page keeps the THP from being split: put RDMA, VFIO or io_uring "
    "buffers into VMAs of their own, or MADV_NOHUGEPAGE",
    "PROT_NONE": "this kernel (6.1 to 6.4) cannot read such pages in its tree, and they block "
    "others: use a later kernel, or turn numa_balancing off if it made them",
}
"""Reason -> advice; every reason that reasons() gives is here."""

_ENTRIES = {
    Entry.FILE: "page of a file",
    Entry.ZERO_PAGE: "zero page",
    Entry.SPECIAL: "special",
    Entry.SWAP: "swapped out",
    Entry.MIGRATION: "being migrated",
    Entry.DEVICE: "device memory",
    Entry.POISON: "poisoned",
    Entry.UNREADABLE: "could not be read",
}


def advice(reason: str) -> str:
    return ADVICE.get(reason, "")


@dataclass
class _Total:
    vmas: set[int] = field(default_factory=set)
    bytes: int = 0


def reasons(snapshot: Snapshot) -> tuple[Reason, ...]:
    """Of the selected processes, largest first.

    Whole VMAs count with their address space, single pages in VMAs that ksmd scans with
    their size, once for each mapping.
    """
    totals: dict[str, _Total] = {}

    def add(reason: str, vma: int, count: int) -> None:
        total = totals.setdefault(reason, _Total())
        total.vmas.add(vma)
        total.bytes += count

    vmas, page_size = snapshot.vmas, snapshot.meta.page_size
    selected = snapshot.processes.selected[vmas.process]
    size = (vmas.end - vmas.start).astype(np.int64).tolist()
    for vma in np.flatnonzero(selected).tolist():
        if vmas.reason[vma]:
            add(vmas.reason[vma], vma, size[vma])
    for kind, reason in _ENTRIES.items():
        column = vmas.entries[:, kind]
        for vma in np.flatnonzero((column > 0) & selected).tolist():
            if not vmas.reason[vma]:
                add(reason, vma, int(column[vma]) * page_size)
    for reason, marked in _pages(snapshot).items():
        positions = np.flatnonzero(marked)
        owner = np.searchsorted(vmas.offset, positions, side="right") - 1
        rows, counts = np.unique(owner[selected[owner]], return_counts=True)
        for vma, count in zip(rows.tolist(), counts.tolist(), strict=True):
            add(reason, vma, count * page_size)
    found = [
        Reason(reason, len(total.vmas), total.bytes, advice(reason))
        for reason, total in totals.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.bytes, one.reason)))


def _pages(snapshot: Snapshot) -> dict[str, NDArray[np.bool_]]:
    """Candidate mappings that ksmd looks at in vain, shape (M,) each."""
    frames, mappings, compounds = snapshot.frames, snapshot.mappings, snapshot.compounds
    compound = frames.compound.astype(np.int64)
    inside = compound < len(compounds)  # NO_COMPOUND is beyond
    pinned_thp = np.zeros(len(frames), np.bool_)
    pinned_thp[inside] = compounds.pinned[compound[inside]]
    pinned = has(frames.flags, FrameFlag.PINNED) & ~inside
    unread = has(frames.flags, FrameFlag.UNREADABLE)
    found = {
        "pinned": pinned[mappings.frame],
        "pinned THP": pinned_thp[mappings.frame],
        "could not be read": unread[mappings.frame],
    }
    if snapshot.meta.rules.prot_none_unreadable:
        found["PROT_NONE"] = has(mappings.flags, MappingFlag.PROT_NONE)
    return found
