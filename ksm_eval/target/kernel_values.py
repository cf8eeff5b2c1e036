"""Single values of a kernel, whatever it calls them."""

from __future__ import annotations

from drgn import FaultError, Program
from drgn.helpers.linux.mm import totalram_pages

from ksm_eval.target.features import enum_value, has_member, has_symbol
from ksm_eval.target.page_table import SwapTypes


def first_value(prog: Program, *names: str) -> int | None:
    """Value of the first of the variables that this kernel has."""
    for name in names:
        try:
            return int(prog[name].value_())
        except (LookupError, FaultError):
            continue
    return None


def total_ram(prog: Program) -> int:
    """Pages of RAM the kernel manages, 0 if unknown."""
    try:
        return int(totalram_pages(prog))
    except (LookupError, FaultError):
        return 0


def record_sizes(prog: Program) -> dict[str, int]:
    """Bytes of ksmd's own records. 5.10 names them without the ksm_ prefix, commit 21fbd59136e0;
    every kernel from 5.10 to 7.3 has 64, 64 and 48, which serve where a type is missing."""
    sizes = {"rmap_item": 64, "stable_node": 64, "mm_slot": 48}
    for record in sizes:
        for kind in (f"struct ksm_{record}", f"struct {record}"):
            try:
                size = prog.type(kind).size
            except LookupError:
                continue
            if size is not None:
                sizes[record] = size
                break
    return sizes


def swap_types(prog: Program) -> SwapTypes:
    exclusive = enum_value(prog, "PG_anon_exclusive") is not None  # 5.19+, commit 6c287605fd56
    # Both functions are there with CONFIG_DEVICE_PRIVATE only, as the types are.
    if has_symbol(prog, "make_device_exclusive"):  # 6.15+: one exclusive type
        device = 3
    elif has_symbol(prog, "make_device_exclusive_range"):  # 5.14+, commit b756a3b5e7ea
        device = 4
    else:
        device = 2 if not exclusive and has_symbol(prog, "migrate_vma_setup") else 0
    return SwapTypes(
        marker=1 if has_member(prog, "struct mm_struct", "mm_mt") else 0,  # 5.19+, always by 6.2
        device=device,
        migration=(3 if exclusive else 2) if has_symbol(prog, "migrate_pages") else 0,
        hwpoison=1 if has_symbol(prog, "memory_failure") else 0,
    )
