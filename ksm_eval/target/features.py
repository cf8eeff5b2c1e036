"""Feature tests: which of ksmd's rules this kernel has.

Each asks for a member, type or symbol. Only names that are never inlined are asked for:
variables, struct members, exported or callback functions. Where none tells, the machine code
does; the release is asked in one case, in which that does not either.
"""

from __future__ import annotations

import re

from drgn import Architecture, FaultError, Program, TypeKind

from ksm_eval.errors import TargetError
from ksm_eval.replay.rules import Rules
from ksm_eval.target.machine_code import (
    flag_cleared_aarch64,
    flag_cleared_x86,
    stored_before_call_aarch64,
    stored_before_call_x86,
)
from ksm_eval.target.release import is_6_11


def has_symbol(prog: Program, name: str) -> bool:
    """Is there a variable or function of this name?"""
    try:
        prog.symbol(name)
    except LookupError:
        return False
    return True


def has_member(prog: Program, kind: str, member: str) -> bool:
    try:
        return bool(prog.type(kind).has_member(member))
    except (LookupError, TypeError):
        return False


def enum_value(prog: Program, name: str) -> int | None:
    """An enumerator's value, None if this kernel has none of that name."""
    try:
        value = prog.constant(name).value_()
    except LookupError:
        return None
    return int(value)


def vmcoreinfo_number(prog: Program, key: str) -> int | None:
    """An integer of VMCOREINFO such as "NUMBER(sme_mask)"; None if absent."""
    text = prog["VMCOREINFO"].string_().decode("ascii", "replace")
    match = re.search(rf"^{re.escape(key)}=(-?\w+)$", text, re.MULTILINE)
    if match is None:
        return None
    return int(match[1], 0)


def _split_parameters(prog: Program) -> int | None:
    """Parameters of split_huge_pmd_locked(); None if its type is not known."""
    try:
        function = prog.function("split_huge_pmd_locked").type_
    except LookupError:
        return None
    return len(function.parameters) if function.kind == TypeKind.FUNCTION else None


def _pmd_at_a_time(prog: Program, notes: list[str]) -> bool:
    """Does try_to_migrate_one() (mm/rmap.c) stop at the first PMD it splits?

    From 6.16 (commit 60fbb14396d5 made split_huge_pmd_locked() take 4 parameters) until a
    repair in 6.18 and 6.19 stable, which clears TTU_SPLIT_HUGE_PMD and goes on. Only the machine
    code tells the two apart: the repair is an AND with ~TTU_SPLIT_HUGE_PMD behind the call.
    """
    if _split_parameters(prog) != 4:
        return False
    if has_symbol(prog, "zero_page_pfn"):  # 7.1+
        return False
    try:
        caller = prog.symbol("try_to_migrate_one")
        callee = prog.symbol("split_huge_pmd_locked").address
        text = prog.read(caller.address, caller.size)
    except (LookupError, FaultError):
        pass
    else:
        flag = enum_value(prog, "TTU_SPLIT_HUGE_PMD") or 4
        cleared = flag_cleared_aarch64 if _is_arm(prog) else flag_cleared_x86
        repaired = cleared(text, caller.address, callee, flag)
        if repaired is not None:
            return not repaired
    notes.append(
        "the kernel's text cannot be read: assumed that it has the repair of THP splits that were "
        "done one process at a time (6.16 to early 6.18 and 6.19); matters only for THPs shared "
        "by fork"
    )
    return False


def _is_arm(prog: Program) -> bool:
    return prog.platform is not None and prog.platform.arch == Architecture.AARCH64


def _fork_copies_counters(prog: Program, general_profit: bool, notes: list[str]) -> bool:
    """Does a child start with its parent's counters in mm_struct?

    Until a repair of ksm_fork() in 6.18, 6.17, 6.12 and 6.6 stable (commit 4d6fc29f3634), which
    sets them to 0 before it calls __ksm_enter(). It is inlined, into dup_mmap() or what that is
    inlined into.
    """
    if not has_member(prog, "struct mm_struct", "ksm_rmap_items"):
        return False
    stored = stored_before_call_aarch64 if _is_arm(prog) else stored_before_call_x86
    for name in ("dup_mmap", "dup_mm", "copy_mm", "copy_process"):
        try:
            offset = prog.type("struct mm_struct").member("ksm_merging_pages").bit_offset // 8
            caller, callee = prog.symbol(name), prog.symbol("__ksm_enter").address
            text = prog.read(caller.address, caller.size)
        except (LookupError, FaultError):
            continue
        repaired = stored(text, caller.address, callee, offset)
        if repaired is not None:
            return not repaired
    # Of the kernels that are in support those with a general_profit have the repair, 6.1 has not.
    # The range walk of 6.18 and 6.12 stable is younger.
    if general_profit and not has_symbol(prog, "ksm_next_page_pmd_entry"):
        notes.append(
            "the kernel's text cannot be read: assumed that it has the repair of the counters of "
            "forked processes (6.4 to 6.16 and their early stable updates have not); matters only "
            "for processes that were forked from one with merged pages"
        )
    return not general_profit


def _mlock_batch(prog: Program) -> int:
    """Size of the per-CPU batch that pages of mlocked VMAs pass through, 0 if there is none."""
    # 5.18+, commit 2fbb0c10d1e8; until 6.2 mlock_page_drain_local()
    if not any(has_symbol(prog, f"mlock_{name}") for name in ("drain_local", "page_drain_local")):
        return 0
    try:
        length = prog.type("struct folio_batch").member("folios").type.length
    except LookupError:
        length = prog.type("struct pagevec").member("pages").type.length
    return int(length)


def detect_rules(prog: Program, notes: list[str]) -> Rules:
    """The rules of this kernel; doubts are added to `notes`. TargetError if it has no KSM."""
    if not (
        has_symbol(prog, "ksm_madvise")
        or _has_type(prog, "struct ksm_rmap_item")
        or _has_type(prog, "struct rmap_item")
    ):
        raise TargetError(
            "the target's kernel is built without KSM",
            "it would have to be built with CONFIG_KSM",
        )
    folio_walk = has_symbol(prog, "folio_walk_start")  # 6.12+, commit aa39ca6940f1
    maple = has_member(prog, "struct mm_struct", "mm_mt")  # 6.1+
    range_walk = has_symbol(prog, "ksm_next_page_pmd_entry")  # 6.18+ and stable 6.1, 6.12
    # follow_page() refuses PROT_NONE pages in 6.1 to 6.4, until FOLL_HONOR_NUMA_FAULT made that
    # the caller's choice (6.5, commit d74943a2f3cd), and only with NUMA balancing: without it
    # pte_protnone() is constant 0. Since 6.12 it is folio_walk_start(), which takes them.
    refused = (
        maple
        and not folio_walk
        and enum_value(prog, "FOLL_HONOR_NUMA_FAULT") is None
        and has_member(prog, "struct task_struct", "numa_faults")
    )
    item = "struct ksm_rmap_item" if _has_type(prog, "struct ksm_rmap_item") else "struct rmap_item"
    zero_counter = has_symbol(prog, "ksm_zero_pages") or has_member(
        prog, "struct mm_struct", "ksm_zero_pages"
    )
    general_profit = has_symbol(prog, "ksm_process_profit")  # 6.4+, commit d21077fbc2fc
    return Rules(
        checksum_first=folio_walk
        or is_6_11(prog["UTS_RELEASE"].string_().decode("ascii", "replace")),
        # The variable is static; its sysfs function is there without KALLSYMS_ALL, too.
        zero_remap_at_split=has_symbol(prog, "split_underused_thp")
        or has_symbol(prog, "split_underused_thp_show"),
        prot_none_offered=range_walk or not refused,
        prot_none_unreadable=refused,
        smart_scan=has_symbol(prog, "ksm_smart_scan") or has_member(prog, item, "remaining_skips"),
        zero_counter=zero_counter,
        pages_scanned=has_symbol(prog, "ksm_pages_scanned") or zero_counter,
        advisor=has_symbol(prog, "ksm_advisor") or _has_type(prog, "enum ksm_advisor_type"),
        general_profit=general_profit,
        process_counters=has_member(prog, "struct mm_struct", "ksm_merging_pages"),
        fork_copies_counters=_fork_copies_counters(prog, general_profit, notes),
        reset_on_leave=has_member(prog, item, "linear_page_index"),
        pmd_at_a_time=_pmd_at_a_time(prog, notes),
        mlock_batch=_mlock_batch(prog),
        anon_exclusive=enum_value(prog, "PG_anon_exclusive") is not None,
    )


def _has_type(prog: Program, name: str) -> bool:
    try:
        prog.type(name)
    except LookupError:
        return False
    return True
