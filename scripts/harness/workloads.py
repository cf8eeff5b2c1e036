"""Static workloads by name: what is in memory when it is dumped, before ksmd first runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from script import (
    ANONYMOUS,
    DROPPABLE,
    FILE,
    HUGE,
    MERGEABLE,
    NOHUGEPAGE,
    PAGEOUT,
    SHARED,
    THP,
    Script,
)

PASSES = 14
"""With smart scan, pass 14 visits all pages that did not merge, pass 13 skips them."""

HOT, PRELOAD, REWRITTEN, BEFORE_FORK, FILE_COW = 1, 1000, 2000, 3000, 4500
SUBPAGES, UNIQUE = 5000, 10000


@dataclass(frozen=True)
class Workload:
    name: str
    about: str
    write: Callable[[Script], None]
    numa: bool = False  # two nodes
    late: bool = False  # processes register after the dump
    all_vmas: bool = True  # the processes opted in with all their memory


def pre_fork_server(
    script: Script, *, workers: int = 4, hot: int = 90, opt_in: bool = True
) -> None:
    """A pre-fork server: process 0, workers 1 …; and 8, which shares nothing by fork."""
    server = script.start(0)
    script.map(server, 0, 120)
    script.each(server, 0, 0, 90, PRELOAD)
    script.each(server, 0, 90, 30, PRELOAD + 75)  # 15 of them equal to others
    script.map(server, 1, 80)
    script.each(server, 1, 0, 80, BEFORE_FORK)
    script.map(server, 2, 30)
    script.fill(server, 2, 0, 20, HOT)
    script.zero(server, 2, 20, 10)
    script.map(server, 3, 64)  # never written: the zero page
    script.touch(server, 3, 0, 32)
    script.map_thp(server, 4, 2)
    script.each(server, 4, 0, 64, PRELOAD)
    script.zero(server, 4, 64, 64)
    script.each(server, 4, 128, 2 * HUGE - 128, SUBPAGES)
    script.map(server, 5, 24, FILE)
    script.each(server, 5, 0, 8, FILE_COW)
    script.touch(server, 5, 8, 16)
    script.map(server, 6, 32, SHARED)
    script.fill(server, 6, 0, 32, HOT)
    if opt_in:
        script.opt_in(server)
    for worker in range(1, workers + 1):
        unique = UNIQUE * worker
        script.fork(server, worker)
        script.each(worker, 1, 0, 60, REWRITTEN)  # alike in all workers
        script.map(worker, 10, 40)
        script.each(worker, 10, 0, 40, unique)
        script.map(worker, 11, hot)
        script.fill(worker, 11, 0, hot, HOT)
        script.map(worker, 12, 30)
        script.zero(worker, 12, 0, 30)
        script.each(worker, 5, 8, 4, FILE_COW + 20)
        if worker == 3:  # its THP is mapped by PTEs, the others keep the PMD
            script.each(worker, 4, 300, 1, unique + 500)
        script.opt_in(worker) if opt_in else None
    loner = script.start(8)
    script.map(loner, 0, 80)
    script.each(loner, 0, 0, 40, UNIQUE * 8)
    script.each(loner, 0, 40, 40, PRELOAD)
    if opt_in:
        script.opt_in(loner)


def _run(script: Script, passes: int = PASSES) -> None:
    script.ready()
    script.passes(passes)


def _base(script: Script) -> None:
    pre_fork_server(script)
    outsider = script.fork(2, 9)  # shares its parent's frames, and is not scanned
    script.opt_out(outsider)
    never = script.start(10)
    script.map(never, 0, 40)
    script.fill(never, 0, 0, 40, HOT)
    _run(script)


def _zero_pages(script: Script) -> None:
    script.knob("use_zero_pages", 1)
    pre_fork_server(script)
    _run(script)


def _cap(script: Script) -> None:
    script.knob("max_page_sharing", 8)
    pre_fork_server(script)
    _run(script)


def _smart_scan_off(script: Script) -> None:
    script.knob("smart_scan", 0)
    pre_fork_server(script)
    _run(script, 6)


def numa_memory(script: Script) -> None:
    """Two nodes, merge_across_nodes=0."""
    script.knob("merge_across_nodes", 0)
    for process in (0, 1, 2):
        script.start(process)
        for region, nodes in ((0, 1), (1, 2), (2, 3)):
            script.map(process, region, 120)
            script.bind(process, region, 0, 120, nodes)
            script.each(process, region, 0, 60, PRELOAD)
            script.fill(process, region, 60, 40, HOT)
            script.each(process, region, 100, 20, UNIQUE * (process + 1) + 100 * region)
        script.map_thp(process, 3, 1)
        script.bind(process, 3, 0, HUGE, 1 + process % 2)
        script.each(process, 3, 0, HUGE, PRELOAD)
        script.opt_in(process)
    for child in (3, 4):
        script.fork(0, child)
        script.each(child, 2, 0, 30, REWRITTEN)


def _nodes(script: Script) -> None:
    numa_memory(script)
    _run(script)


def _madvise(script: Script) -> None:
    pre_fork_server(script, opt_in=False)
    for process in (0, 1, 2, 4, 8):
        script.advise(process, 0, 0, 60, MERGEABLE)
    for process in (1, 2, 3):
        script.advise(process, 11, 10, 60, MERGEABLE)
        script.advise(process, 1, 0, 80, MERGEABLE)
    script.advise(4, 4, 0, HUGE, MERGEABLE)
    _run(script)


def _last_bytes(script: Script) -> None:
    for process in (0, 1, 2):
        script.start(process)
        script.map(process, 0, 200)
        script.last(process, 0, 0, 120, 1)
        script.last(process, 0, 120, 80, UNIQUE * (process + 1))
        script.opt_in(process)
    script.fork(2, 3)
    script.last(3, 0, 0, 40, UNIQUE * 9)
    _run(script)


def _swap(script: Script) -> None:
    script.swap_on()
    pre_fork_server(script)
    for worker in range(1, 5):
        script.advise(worker, 11, 0, 60, PAGEOUT)
        script.advise(worker, 12, 0, 10, PAGEOUT)
    script.touch(3, 11, 0, 30)
    script.same(2, 11, 0, 30)
    # MADV_PAGEOUT leaves pages alone that several processes map, so fork comes afterwards. While
    # another process still refers to the swap entry, a page that was read is in the swap cache.
    parent = script.start(20)
    script.map(parent, 0, 100)
    script.each(parent, 0, 0, 100, PRELOAD)
    script.map(parent, 1, 60)
    script.fill(parent, 1, 0, 60, HOT)
    script.advise(parent, 0, 0, 100, PAGEOUT)
    script.advise(parent, 1, 0, 60, PAGEOUT)
    script.opt_in(parent)
    for child in (21, 22):
        script.fork(parent, child)
    script.touch(21, 0, 0, 50)
    script.touch(22, 0, 40, 40)
    script.touch(21, 1, 0, 40)
    script.each(22, 0, 0, 20, UNIQUE * 9)
    script.same(parent, 1, 20, 10)
    _run(script)


def _pinned(script: Script) -> None:
    script.start(0)
    script.map(0, 0, 200)
    for group in range(50):  # pinned first of four, pinned last of four
        script.fill(0, 0, group * 4, 4, PRELOAD + group)
    for group in range(50):
        script.pin(0, 0, group * 4 + (0 if group < 25 else 3), 1)
    script.map(0, 1, 40)
    script.each(0, 1, 0, 20, UNIQUE)
    script.fill(0, 1, 20, 20, HOT)
    script.splice(0, 1, 0, 8)
    script.splice(0, 1, 20, 4)
    script.map_thp(0, 2, 2)
    script.each(0, 2, 0, 2 * HUGE, SUBPAGES)
    script.each(0, 2, 0, 32, PRELOAD)
    script.each(0, 2, HUGE, 32, PRELOAD)
    script.pin(0, 2, HUGE + 100, 1)  # the second cannot be split
    script.opt_in(0)
    script.start(1)
    script.map(1, 0, 60)
    script.each(1, 0, 0, 60, PRELOAD)
    script.opt_in(1)
    for child in (2, 3):
        script.fork(1, child)
        script.pin(child, 0, 50, 4)
        script.each(child, 0, 0, 10, UNIQUE * child)
    _run(script)


def _thp(script: Script) -> None:
    server = script.start(0)
    script.map_thp(server, 0, 8)
    for thp in range(8):
        script.each(server, 0, thp * HUGE, HUGE, SUBPAGES + thp * 1000)
    script.zero(server, 0, 0, 200)
    for thp in (1, 2, 3):
        script.each(server, 0, thp * HUGE + 100, 100, PRELOAD)
    for page in range(0, 64, 2):  # equal subpages of one THP
        script.fill(server, 0, 4 * HUGE + page, 1, PRELOAD + 300)
    script.zero(server, 0, 5 * HUGE + 500, 12)
    script.fill(server, 0, 5 * HUGE, 1, PRELOAD)
    script.map(server, 1, 40)
    script.fill(server, 1, 0, 20, HOT)
    script.each(server, 1, 20, 20, PRELOAD)
    script.opt_in(server)
    for child in (1, 2, 3):
        script.fork(server, child)
        script.map_thp(child, 2, 2)
        script.each(child, 2, 0, 2 * HUGE, UNIQUE * child)
        script.each(child, 2, 200, 50, PRELOAD + 20)
        script.zero(child, 2, HUGE, HUGE)
        script.each(child, 0, child * HUGE, 1, UNIQUE * child + 5000)
    script.lock(3, 2, HUGE, HUGE)
    script.each(3, 2, HUGE, 1, HOT)
    _run(script)


def _large_folios(script: Script) -> None:
    """Folios of 64 KiB."""
    script.need(f"{THP}/hugepages-64kB")
    script.write(f"{THP}/hugepages-64kB/enabled", "always")
    server = script.start(0)
    script.map(server, 0, 256)
    script.each(server, 0, 0, 256, SUBPAGES)
    script.each(server, 0, 0, 40, PRELOAD)
    script.fill(server, 0, 70, 4, HOT)
    script.zero(server, 0, 130, 20)
    script.map(server, 1, 64)
    script.each(server, 1, 0, 64, PRELOAD)
    script.map(server, 2, 64)
    script.advise(server, 2, 0, 64, NOHUGEPAGE)
    script.each(server, 2, 0, 64, PRELOAD)
    script.opt_in(server)
    for child in (1, 2):
        script.fork(server, child)
        script.each(child, 0, 200, 8, UNIQUE * child)
        script.map(child, 3, 96)
        script.each(child, 3, 0, 96, PRELOAD + 30)
    _run(script)


def _prot_none(script: Script, *, first: bool) -> None:
    process = script.start(0)
    region = -1 if first else 20
    script.map(process, region, 40)
    script.each(process, region, 0, 30, UNIQUE * 5)
    script.fill(process, region, 30, 10, HOT)
    script.protect(process, region, 0, 40, 0)
    script.map(process, 0, 150)
    script.each(process, 0, 0, 100, PRELOAD)
    script.fill(process, 0, 100, 50, HOT)
    script.opt_in(process)
    for child in (1, 2):
        script.fork(process, child)
        script.map(child, 1, 120)
        script.each(child, 1, 0, 80, PRELOAD + 40)
        script.each(child, 1, 80, 40, UNIQUE * child)
        script.opt_in(child)
    _run(script)


def _late(script: Script) -> None:
    pre_fork_server(script, opt_in=False)
    for process in script.processes:
        script.rehearse(process)
    script.ready()
    for process in sorted(script.processes):
        script.opt_in(process)
    script.passes(PASSES)


def _special(script: Script) -> None:
    """Memory that must not count, or is special in some way."""
    process = script.start(0)
    script.map(process, 0, 60)
    script.each(process, 0, 0, 60, PRELOAD)
    script.map(process, 1, 60, SHARED)
    script.each(process, 1, 0, 60, PRELOAD)
    script.map(process, 2, 60, FILE)
    script.each(process, 2, 0, 30, PRELOAD)
    script.map(process, 3, 60, DROPPABLE)
    script.map(process, 4, 60, ANONYMOUS)
    script.lock(process, 4, 0, 60)
    script.each(process, 4, 0, 60, PRELOAD)
    script.map_thp(process, 5, 1)
    script.touch(process, 5, 0, 1)  # the huge zero page
    script.map_thp(process, 6, 1)
    script.zero(process, 6, 0, HUGE)
    script.each(process, 6, 100, 40, PRELOAD)
    script.opt_in(process)
    script.fork(process, 1)
    script.each(1, 0, 0, 20, PRELOAD + 20)
    script.fork(1, 2)
    script.each(2, 0, 0, 20, PRELOAD + 30)
    _run(script)


def _mlocked_thp(script: Script) -> None:
    """THPs with zero subpages, mlocked whole or in part by one of those that share them."""
    process = script.start(0)
    script.map(process, 0, 40)
    script.each(process, 0, 0, 40, PRELOAD)
    script.map_thp(process, 2, 2)
    script.each(process, 2, 0, 2 * HUGE, SUBPAGES)
    for first in (0, HUGE):
        script.each(process, 2, first, 16, PRELOAD + first // 32)
        script.zero(process, 2, first + 100, 50)
    script.lock(process, 2, 0, HUGE)
    script.lock(process, 2, HUGE + 120, 40)
    script.opt_in(process)
    for child in (1, 2):
        script.fork(process, child)
        script.opt_in(child)
    script.lock(1, 2, HUGE + 100, 10)
    _run(script)


STATIC = [
    Workload("base", "pre-fork server, THPs, file COW, an unscanned sharer", _base),
    Workload("zero-pages", "use_zero_pages=1", _zero_pages),
    Workload("cap", "max_page_sharing=8", _cap),
    Workload("nodes", "two NUMA nodes, merge_across_nodes=0", _nodes, numa=True),
    Workload("smart-scan-off", "smart_scan=0", _smart_scan_off),
    Workload("madvise", "MADV_MERGEABLE for a part of the memory", _madvise, all_vmas=False),
    Workload("last-bytes", "pages that differ in their last bytes", _last_bytes),
    Workload("swap", "pages swapped out, and in again to the swap cache", _swap),
    Workload("pinned", "pages and a THP pinned by io_uring and vmsplice", _pinned),
    Workload("thp", "THPs with equal and zero subpages, shared by fork", _thp),
    Workload("large-folios", "64 KiB folios (mTHP)", _large_folios),
    Workload(
        "prot-none-first", "PROT_NONE pages scanned first", lambda s: _prot_none(s, first=True)
    ),
    Workload(
        "prot-none-last", "PROT_NONE pages scanned last", lambda s: _prot_none(s, first=False)
    ),
    Workload("late", "dumped before the processes registered", _late, late=True),
    Workload("mlocked-thp", "THPs that a parent has mlocked, wholly and in part", _mlocked_thp),
    Workload("special", "mlocked, shared, droppable memory, huge zero page", _special),
]
