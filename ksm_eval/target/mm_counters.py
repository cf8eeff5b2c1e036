"""mm->rss_stat: how many pages of each kind a process has resident."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from drgn import FaultError, Object, Program
from drgn.helpers.linux.cpumask import for_each_possible_cpu

# include/linux/mm_types_task.h
MM_FILEPAGES: Final = 0
MM_ANONPAGES: Final = 1  # KSM pages included
MM_SHMEMPAGES: Final = 3
_RESIDENT: Final = (MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES)
_NR: Final = 4
_SIZE: Final = 4  # bytes of an s32
_MOST: Final = 1 << 40  # pages; more are of a counter that was torn, or of another's memory

MmCounters: TypeAlias = Callable[[Object], "list[int] | None"]
"""mm -> its counters, none below 0; None where they cannot be read."""


def rss_pages(counters: list[int] | None) -> int | None:
    """VmRSS of /proc/PID/status (task_mem(), fs/proc/task_mmu.c), in pages."""
    if counters is None:
        return None
    pages = sum(counters[kind] for kind in _RESIDENT)
    return pages if pages <= _MOST else None


def mm_counters(prog: Program) -> MmCounters:
    """get_mm_counter_sum() of every kind: what status shows since 6.16 (commit 82241a83cd15, also
    in 6.6 and 6.12 stable), and equal to what smaps adds up.

    From 6.2 (commit f1a7941243c1) until then status leaves out what the CPUs have not yet added,
    each less than percpu_counter_batch pages of a kind (32, or twice the number of CPUs). Before
    6.2 threads may keep up to 64 events to themselves (SPLIT_RSS_COUNTING), which status leaves
    out, and so is it here.
    """
    offsets: list[int] = []  # of each CPU's variables

    def read(mm: Object) -> list[int] | None:
        try:
            found = _counters(prog, mm, offsets)
        except (AttributeError, LookupError, TypeError, FaultError):
            return None
        return [max(0, count) for count in found]

    return read


def _counters(prog: Program, mm: Object, offsets: list[int]) -> list[int]:
    counters = mm.rss_stat
    try:
        return [counters.count[kind].counter.value_() for kind in range(_NR)]
    except AttributeError:
        pass  # struct percpu_counter[], 6.2+
    counters = counters.read_()
    found = [int(counters[kind].count.value_()) for kind in range(_NR)]
    try:
        parts = [int(counters[kind].counters.value_()) for kind in range(_NR)]
    except AttributeError:
        return found  # without CONFIG_SMP the count is all
    if not offsets:
        # Not only those online: what an offline CPU had was added and set to 0
        # (percpu_counter_cpu_dead()), and a panic on arm64 takes CPUs offline without that.
        of_cpu = prog["__per_cpu_offset"]
        offsets += [int(of_cpu[cpu].value_()) for cpu in for_each_possible_cpu(prog)]
    for offset in offsets:
        for kind, value in enumerate(_of_cpu(prog, parts, offset)):
            found[kind] += value
    return found


def _of_cpu(prog: Program, parts: list[int], offset: int) -> list[int]:
    """What one CPU has not yet added to the counters."""
    places = [(part + offset) % (1 << 64) for part in parts]
    if places == [places[0] + _SIZE * kind for kind in range(_NR)]:
        # Since 6.6 they are allocated together (commit 14ef95be6f55), one read for all.
        return list(struct.unpack(f"<{_NR}i", prog.read(places[0], _SIZE * _NR)))
    return [struct.unpack("<i", prog.read(place, _SIZE))[0] for place in places]
