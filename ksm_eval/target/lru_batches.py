"""References that per-CPU LRU batches hold on pages: ksmd empties them before each full scan.

A page that was just faulted in, activated (by a read through /proc/PID/mem, too), made lazyfree
or mlocked waits in a batch with one reference more than its mappings explain, and that is no pin
(lru_add_drain_all() in ksm_do_scan path scan_get_next_rmap_item(), mm/ksm.c, 5.10 to 7.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from drgn import FaultError, Object, Program, TypeKind
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.percpu import per_cpu

# mm/swap.c and mm/mlock.c; those that a kernel has.
_VARIABLES = (
    *("cpu_fbatches", "mlock_fbatch"),  # 5.18+ and 6.3+
    *("lru_pvecs", "lru_rotate", "mlock_pvec"),  # before
)
_FLAGS = 3  # LRU_FOLIO and NEW_FOLIO of mm/mlock.c, in the low bits of its pointers
_LARGEST = 64  # more than any kernel's PAGEVEC_SIZE: a batch that is torn or none


def batched_pages(prog: Program) -> dict[int, int]:
    """Address of struct page -> references of batches; empty where the variables are not known."""
    found: Counter[int] = Counter()
    try:
        cpus = list(for_each_online_cpu(prog))
    except (LookupError, FaultError):
        return {}
    for name in _VARIABLES:
        try:
            variable = prog[name]
        except LookupError:
            continue
        for cpu in cpus:
            try:
                found.update(_pointers(per_cpu(variable, cpu)))
            except (LookupError, FaultError):
                continue
    return dict(found)


def _pointers(value: Object) -> Iterator[int]:
    """Of all batches in a structure (struct folio_batch 5.16+, struct pagevec until 6.4)."""
    if value.type_.kind != TypeKind.STRUCT:
        return
    names = {member.name for member in value.type_.members or ()}
    pages = names & {"folios", "pages"}
    if "nr" in names and pages:
        batch = value.member_(pages.pop())
        count = value.nr.value_()
        for slot in range(count if count <= _LARGEST else 0):
            yield batch[slot].value_() & ~_FLAGS
        return
    for name in names:
        if name is not None:
            yield from _pointers(value.member_(name))
