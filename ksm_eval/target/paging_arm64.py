"""arm64 page-table entries, with pages of 4, 16 and 64 KiB.

arch/arm64/include/asm/pgtable-hwdef.h and pgtable-prot.h, the same from 5.10 to 7.3 but for
what is told apart here: entries that are present to software only, swap entries (pgtable.h),
and LPA2 (6.9+).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from drgn import FaultError, Program

from ksm_eval.snapshot import U8, U64
from ksm_eval.target.features import enum_value, has_symbol, vmcoreinfo_number
from ksm_eval.target.page_table import Bools

VALID = 1 << 0
TABLE = 1 << 1  # of a valid entry: points to a table, or in the last level to a page
RDONLY = 1 << 7  # AP[2]
NG = 1 << 11
WRITE = 1 << 51  # DBM: may be written; hardware that tracks dirty pages clears RDONLY then
DIRTY = 1 << 55
SPECIAL = 1 << 56

PRESENT_INVALID = NG  # 6.10+, commit 55564814a838
PROT_NONE = 1 << 58  # until 6.9
PMD_PRESENT_INVALID = 1 << 59  # until 6.9: a THP being split; in PTEs always 0


@dataclass(frozen=True)
class Arm64Paging:
    """See page_table.Paging."""

    page_shift: int  # 12, 14 or 16
    va_bits: int  # of user addresses: vabits_actual
    invalid_bits: int = PRESENT_INVALID  # any of them makes a not valid entry present
    swap_type_shift: int = 6

    @property
    def levels(self) -> int:
        """ARM64_HW_PGTABLE_LEVELS(): where a 52-bit kernel runs on 48-bit hardware the
        folded level has no table."""
        return (self.va_bits - 4) // (self.page_shift - 3)

    @property
    def top_entries(self) -> int:
        """PTRS_PER_PGD. The tables of a kernel for 52 bits may be larger; more is not used."""
        below = (self.page_shift - 3) * (self.levels - 1) + self.page_shift
        return 1 << self.va_bits - below

    @property
    def leaf_levels(self) -> int:
        """PUD blocks (1 GiB) exist with 4 KiB pages only: pud_sect(), hugetlb."""
        return 3 if self.page_shift == 12 else 2

    @property
    def physical_bits(self) -> int:
        return 52

    @property
    def deciding(self) -> int:
        return VALID | RDONLY | self.invalid_bits | WRITE | DIRTY | SPECIAL

    @property
    def lpa2(self) -> bool:
        """TCR_EL1.DS: where 4 and 16 KiB pages have 52-bit virtual addresses they have
        52-bit physical ones (lpa2_is_enabled(); CONFIG_ARM64_LPA2 needs VA_BITS_52)."""
        return self.va_bits == 52 and self.page_shift != 16

    def is_table(self, entry: U64) -> Bools:
        table: Bools = (entry & np.uint64(VALID | TABLE)) == np.uint64(VALID | TABLE)
        return table

    def present(self, entry: U64, huge: bool) -> Bools:
        """pte_present(), pmd_present()."""
        del huge
        present: Bools = (entry & np.uint64(VALID | self.invalid_bits)) != 0
        return present

    def address(self, entry: U64) -> U64:
        """__pte_to_phys(). Bits 51:48 of 64 KiB pages are in 15:12 (0 without
        PA_BITS_52); with LPA2 bits 51:50 are in 9:8, which else are the shareability."""
        low = entry & np.uint64((1 << (50 if self.lpa2 else 48)) - (1 << self.page_shift))
        if self.page_shift == 16:
            low |= (entry & np.uint64(0xF << 12)) << np.uint64(36)
        elif self.lpa2:
            low |= (entry & np.uint64(0x3 << 8)) << np.uint64(42)
        return low

    def prot_none(self, entry: U64) -> Bools:
        inaccessible: Bools = (entry & np.uint64(VALID)) == 0
        return inaccessible

    def writable(self, entry: U64) -> Bools:
        writable: Bools = (entry & np.uint64(WRITE)) != 0
        return writable

    def dirty(self, entry: U64) -> Bools:
        """pte_sw_dirty() or pte_hw_dirty(), whether or not the hardware tracks it."""
        by_hardware = (entry & np.uint64(WRITE | RDONLY)) == np.uint64(WRITE)
        dirty: Bools = by_hardware | ((entry & np.uint64(DIRTY)) != 0)
        return dirty

    def special(self, entry: U64) -> Bools:
        special: Bools = (entry & np.uint64(SPECIAL)) != 0
        return special

    def swap_type(self, entry: U64) -> U8:
        return ((entry >> np.uint64(self.swap_type_shift)) & np.uint64(31)).astype(np.uint8)


def paging(prog: Program) -> Arm64Paging:
    """The target's paging."""
    t1sz = vmcoreinfo_number(prog, "NUMBER(TCR_EL1_T1SZ)")  # 5.12+, commit bbdbc11804ff
    va_bits = vmcoreinfo_number(prog, "NUMBER(VA_BITS)") or 48
    overlaid = _present_invalid_overlays_ng(prog)
    if overlaid:
        swap_type_shift = 6
    else:  # 5.19+ keeps PG_anon_exclusive in bit 2, commit 570ef363509b
        swap_type_shift = 3 if enum_value(prog, "PG_anon_exclusive") is not None else 2
    return Arm64Paging(
        page_shift=prog["PAGE_SHIFT"].value_(),
        # User and kernel addresses have vabits_actual bits each.
        va_bits=64 - t1sz if t1sz else va_bits,
        invalid_bits=PRESENT_INVALID if overlaid else PROT_NONE | PMD_PRESENT_INVALID,
        swap_type_shift=swap_type_shift,
    )


def _present_invalid_overlays_ng(prog: Program) -> bool:
    """6.10+ (commit 55564814a838): shown by PAGE_NONE, the first of protection_map."""
    try:
        page_none = prog.read_u64(prog.symbol("protection_map").address)
    except (LookupError, FaultError):  # static: needs KALLSYMS_ALL
        return has_symbol(prog, "__arm64_sys_mseal")  # 6.10+, commit 8be7258aad44
    return not page_none & PROT_NONE


def image_to_physical(prog: Program, address: int) -> int | None:
    """Physical address of a static variable of the kernel; None if that cannot be known."""
    offset = vmcoreinfo_number(prog, "NUMBER(kimage_voffset)")
    return None if offset is None else (address - offset) & ((1 << 64) - 1)
