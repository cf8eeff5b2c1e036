"""x86-64 page-table entries. arch/x86/include/asm/pgtable_types.h, the same from 5.10 to 7.3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from drgn import Program

from ksm_eval.snapshot import U8, U64
from ksm_eval.target.features import vmcoreinfo_number
from ksm_eval.target.page_table import Bools

PAGE_SHIFT = 12
PRESENT = 1 << 0
RW = 1 << 1
DIRTY = 1 << 6
PSE = 1 << 7  # huge, in a PMD or PUD; PAT in a PTE
PROTNONE = 1 << 8  # _PAGE_GLOBAL, meaningful when not PRESENT
SPECIAL = 1 << 9
SAVED_DIRTY = 1 << 58  # 6.6+ with shadow stacks: dirty moved aside when write-protected
PHYSICAL_MASK = (1 << 52) - (1 << PAGE_SHIFT)
SWP_TYPE_SHIFT = 59  # arch/x86/include/asm/pgtable_64.h
START_KERNEL_MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map, page_64_types.h


@dataclass(frozen=True)
class X86Paging:
    """See page_table.Paging."""

    levels: int  # 4 or 5
    sme_mask: int = 0  # AMD memory encryption bit of a physical address, 0 if off
    page_shift: int = PAGE_SHIFT
    top_entries: int = 512
    leaf_levels: int = 3
    physical_bits: int = 46  # what the struct pages of 4 levels cover
    deciding: int = PRESENT | RW | DIRTY | PROTNONE | SPECIAL | SAVED_DIRTY

    def is_table(self, entry: U64) -> Bools:
        """PROT_NONE huge entries keep PSE."""
        table: Bools = (entry & np.uint64(PRESENT | PSE)) == np.uint64(PRESENT)
        return table

    def present(self, entry: U64, huge: bool) -> Bools:
        """pte_present(); and pmd_present(): a huge PMD being split keeps only PSE."""
        bits = PRESENT | PROTNONE | (PSE if huge else 0)
        present: Bools = (entry & np.uint64(bits)) != 0
        return present

    def address(self, entry: U64) -> U64:
        """PROT_NONE entries store it inverted (L1TF; pgtable-invert.h, 4.19+)."""
        plain = entry
        if not int(np.bitwise_and.reduce(entry, axis=None)) & PRESENT:
            plain = np.where(self.prot_none(entry), ~entry, entry)
        return np.asarray(plain & np.uint64(PHYSICAL_MASK & ~self.sme_mask), np.uint64)

    def prot_none(self, entry: U64) -> Bools:
        inaccessible: Bools = (entry & np.uint64(PRESENT)) == 0
        return inaccessible

    def writable(self, entry: U64) -> Bools:
        writable: Bools = (entry & np.uint64(RW)) != 0
        return writable

    def dirty(self, entry: U64) -> Bools:
        dirty: Bools = (entry & np.uint64(DIRTY | SAVED_DIRTY)) != 0
        return dirty

    def special(self, entry: U64) -> Bools:
        special: Bools = (entry & np.uint64(SPECIAL)) != 0
        return special

    def swap_type(self, entry: U64) -> U8:
        return (entry >> np.uint64(SWP_TYPE_SHIFT)).astype(np.uint8)


def paging(prog: Program) -> X86Paging:
    """The target's paging."""
    return X86Paging(
        levels=5 if vmcoreinfo_number(prog, "NUMBER(pgtable_l5_enabled)") else 4,
        sme_mask=vmcoreinfo_number(prog, "NUMBER(sme_mask)") or 0,
    )


def image_to_physical(prog: Program, address: int) -> int | None:
    """Physical address of a static variable of the kernel; None if that cannot be known."""
    base = vmcoreinfo_number(prog, "NUMBER(phys_base)")
    return None if base is None else address - START_KERNEL_MAP + base
