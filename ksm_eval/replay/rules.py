"""What differs between kernels, as named features, and ksmd's tunables.

Found in the target by feature tests (target/features.py), not by version number.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """/sys/kernel/mm/ksm tunables, under their file names; the defaults are mm/ksm.c's."""

    max_page_sharing: int = 256
    use_zero_pages: bool = False
    merge_across_nodes: bool = True
    smart_scan: bool = True
    pages_to_scan: int = 100
    sleep_millisecs: int = 20
    stable_node_chains_prune_millisecs: int = 2000


@dataclass(frozen=True)
class Rules:
    """How this kernel's ksmd behaves. Defaults: a current kernel (7.x)."""

    checksum_first: bool = True
    """6.11+: cmp_and_merge_page() checks the checksum before it searches the stable tree,
    and a chain with one dup left collapses at any walk (before: only when pruning)."""
    zero_remap_at_split: bool = True
    """6.12+: splitting an anonymous THP maps its all-zero subpages to the shared zero page."""
    prot_none_offered: bool = True
    """The scan offers PROT_NONE pages (all kernels but 6.1.y before the range walk)."""
    prot_none_unreadable: bool = False
    """6.1.y: get_mergeable_page() refuses PROT_NONE pages: in the unstable tree they block."""
    smart_scan: bool = True
    """6.7+: pages that did not merge are skipped in ever more passes."""
    zero_counter: bool = True
    """6.6+: ksm_zero_pages is counted and is part of the profit."""
    pages_scanned: bool = True
    """6.6+: /sys/kernel/mm/ksm/pages_scanned exists."""
    advisor: bool = True
    """6.8+: the scan-time advisor exists."""
    general_profit: bool = True
    """6.4+: general_profit and ksm_process_profit exist, as does PR_SET_MEMORY_MERGE."""
    process_counters: bool = True
    """5.19+: mm_struct has ksm_merging_pages."""
    fork_copies_counters: bool = False
    """6.1.y, and up to a repair in 6.17, 6.12 and 6.6 stable: a forked child starts with its
    parent's mm counters, and zero pages that it inherits are not added to the system's
    ksm_zero_pages."""
    reset_on_leave: bool = True
    """7.3+: an item that leaves the stable tree loses checksum, age and skips."""
    pmd_at_a_time: bool = False
    """6.16 to early 6.19: one attempt to split a THP unmaps only one process's PMD."""
    mlock_batch: int = 31
    """Entries of the per-CPU batch of mm/mlock.c (5.18+; 15 until 6.10), 0 if there is none:
    a page that left an mlocked VMA has one reference more while it is in there."""
    anon_exclusive: bool = True
    """5.19+: PG_anon_exclusive exists; write_protect_page() checks references of such pages."""
