"""VMAs, and why ksmd would or would not scan each."""

from __future__ import annotations

from drgn import FaultError, Object
from drgn.helpers.linux.mm import for_each_vma, vma_name

from ksm_eval.target import Vma
from ksm_eval.target.vma_rules import ineligible

S_DAX = 1 << 13  # include/linux/fs.h


def _is_dax(vma: Object) -> bool:
    """vma_is_dax(), include/linux/fs.h."""
    return bool(vma.vm_file) and bool(vma.vm_file.f_inode.i_flags.value_() & S_DAX)


def list_vmas(mm: Object, *, mergeable_only: bool) -> list[Vma]:
    """The VMAs of an mm by address. Raises FaultError if the list itself cannot be read,
    ValueError if it is none: torn, while the process changes it."""
    vmas: list[Vma] = []
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
        start, end = vma.vm_start.value_(), vma.vm_end.value_()
        if not (vmas[-1].end if vmas else 0) <= start < end:
            raise ValueError("VMAs out of order")
        vmas.append(
            Vma(
                start=start,
                end=end,
                flags=flags,
                name=name,
                reason=ineligible(flags, dax=dax, mergeable_only=mergeable_only),
                # No anon_vma, no anonymous page: ksmd passes over it, and so do we.
                has_anon=bool(vma.anon_vma.value_()),
            )
        )
    return vmas
