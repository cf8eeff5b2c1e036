"""VMAs, and why ksmd would or would not scan each."""

from __future__ import annotations

from drgn import FaultError, Object
from drgn.helpers.linux.mm import for_each_vma, vma_name

from ksm_eval.target import Vma

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

S_DAX = 1 << 13  # include/linux/fs.h

NOT_MERGEABLE = "not madvised"
"""Reason under --mergeable-only: could be mergeable, but VM_MERGEABLE is not set."""

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


def _is_dax(vma: Object) -> bool:
    """vma_is_dax(), include/linux/fs.h."""
    return bool(vma.vm_file) and bool(vma.vm_file.f_inode.i_flags.value_() & S_DAX)


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


def list_vmas(mm: Object, *, mergeable_only: bool) -> list[Vma]:
    """The VMAs of an mm by address. Raises FaultError if the list itself cannot be read."""
    vmas = []
    for vma in for_each_vma(mm):
        flags = vma.vm_flags.value_()
        try:
            name = vma_name(vma).decode("utf-8", "backslashreplace")
        except (FaultError, LookupError, AttributeError):
            name = "?"  # a dentry is not in the dump
        try:
            dax = _is_dax(vma)
        except FaultError:
            dax = False  # by far the likelier; pages of a DAX file itself are no candidates
        vmas.append(
            Vma(
                start=vma.vm_start.value_(),
                end=vma.vm_end.value_(),
                flags=flags,
                name=name,
                reason=ineligible(flags, dax=dax, mergeable_only=mergeable_only),
                # No anon_vma, no anonymous page: ksmd passes over it, and so do we.
                has_anon=bool(vma.anon_vma.value_()),
            )
        )
    return vmas
