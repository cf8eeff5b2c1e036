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
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import task_cpu

from ksm_eval.target.tasks import PF_KTHREAD

# mm/swap.c and mm/mlock.c; those that a kernel has.
_LRU = ("cpu_fbatches", "lru_pvecs", "lru_rotate")  # 5.18+; before
_MLOCK = ("mlock_fbatch", "mlock_pvec")  # 6.3+; before
_FLAGS = 3  # LRU_FOLIO and NEW_FOLIO of mm/mlock.c, in the low bits of its pointers
_LARGEST = 64  # more than any kernel's PAGEVEC_SIZE: a batch that is torn or none


def batched_pages(prog: Program) -> dict[int, int]:
    """Address of struct page -> references of batches; empty where the variables are not known."""
    found: Counter[int] = Counter()
    try:
        cpus = list(for_each_online_cpu(prog))
    except (LookupError, FaultError):
        return {}
    for name in (*_LRU, *_MLOCK):
        for cpu in cpus:
            found.update(_of_cpu(prog, name, cpu))
    return dict(found)


def waiting(prog: Program) -> tuple[list[int], list[int]]:
    """struct page of each entry: those of mm/mlock.c's batch on the CPU on which ksmd last ran, in
    their order, and all others."""
    mlock = _of_ksmd(prog)
    others = Counter(batched_pages(prog))
    others.subtract(mlock)
    return mlock, list(others.elements())


def _of_ksmd(prog: Program) -> list[int]:
    try:
        for task in for_each_task(prog):
            if task.comm.string_() == b"ksmd" and task.flags.value_() & PF_KTHREAD:
                cpu = task_cpu(task)
                return [page for name in _MLOCK for page in _of_cpu(prog, name, cpu)]
    except (LookupError, FaultError):
        pass
    return []


def _of_cpu(prog: Program, name: str, cpu: int) -> list[int]:
    try:
        return list(_pointers(per_cpu(prog[name], cpu)))
    except (LookupError, FaultError):
        return []


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
