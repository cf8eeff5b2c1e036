"""Which VMAs ksmd would scan, from their flags alone."""

from __future__ import annotations

# include/linux/mm.h. Macros, so in no debug info before 6.19 (enum vma_flag); the numbers
# are the same from 5.10 to 7.3 on 64-bit.
VM_SHARED = 0x8
VM_MAYSHARE = 0x80
VM_PFNMAP = 0x400
VM_IO = 0x4000
VM_DONTEXPAND = 0x40000
VM_HUGETLB = 0x400000
VM_MIXEDMAP = 0x10000000
VM_MERGEABLE = 0x80000000
VM_DROPPABLE = 1 << 40  # 6.11+, commit 9651fcedf7b9; the bit was free before

NOT_MERGEABLE = "VM_MERGEABLE not set"
"""Could be mergeable; the reason under --mergeable-only, and where PR_SET_MEMORY_MERGE is set."""

# The most telling first: a hugetlb VMA is VM_DONTEXPAND and often VM_SHARED too.
_EXCLUDED = (
    (VM_HUGETLB, "hugetlb"),
    (VM_PFNMAP, "VM_PFNMAP"),
    (VM_IO, "VM_IO"),
    (VM_MIXEDMAP, "VM_MIXEDMAP"),
    (VM_DROPPABLE, "VM_DROPPABLE"),
    (VM_SHARED, "shared mapping"),
    (VM_MAYSHARE, "shared mapping"),
    (VM_DONTEXPAND, "VM_DONTEXPAND"),
)


def ineligible(flags: int, *, dax: bool, mergeable_only: bool) -> str:
    """Why a VMA is not mergeable, "" if it is.

    vma_ksm_compatible() of mm/ksm.c (6.4+), ksm_madvise() before; VM_SAO (powerpc) and
    VM_SPARC_ADI belong to architectures that are not supported here. VM_MERGEABLE set
    already decides, whatever else is set.
    """
    if flags & VM_MERGEABLE:
        return ""
    for bit, reason in _EXCLUDED:
        if flags & bit:
            return reason
    if dax:
        return "DAX"
    return NOT_MERGEABLE if mergeable_only else ""
