"""Changing workloads by name: one dump a step in a boot without KSM, one pass of the real ksmd
a step in a second boot of the same script."""

from __future__ import annotations

from random_changing import STEPS
from script import DONTNEED, HUGE, Script
from workloads import HOT, PRELOAD, REWRITTEN, UNIQUE, Workload


def step(script: Script) -> None:
    """ksmd's passes are further apart than chains are pruned, as the replay takes it."""
    script.sleep(1200)
    script.step()


def prepare(script: Script) -> None:
    script.knob("stable_node_chains_prune_millisecs", 1000)


def _start(script: Script) -> None:
    prepare(script)
    server = script.start(0)
    script.map(server, 0, 100)
    script.each(server, 0, 0, 60, PRELOAD)
    script.each(server, 0, 60, 40, PRELOAD + 30)
    script.map(server, 1, 60)
    script.fill(server, 1, 0, 60, HOT)
    script.map_thp(server, 2, 1)
    script.each(server, 2, 0, HUGE, UNIQUE)
    script.each(server, 2, 0, 32, PRELOAD)
    script.opt_in(server)
    for child in (1, 2):
        script.fork(server, child)
        script.map(child, 3, 80)
        script.each(child, 3, 0, 40, PRELOAD + 10)
        script.each(child, 3, 40, 40, UNIQUE * (child + 2))
        script.opt_in(child)


def _refork(script: Script) -> None:
    """Fork after the pages were merged, then write in some of the children."""
    _start(script)
    for _ in range(4):
        step(script)
    for child in (3, 4, 5):
        script.fork(1, child)
    step(script)
    script.each(3, 0, 0, 30, UNIQUE * 6)
    script.each(4, 0, 20, 30, REWRITTEN)
    script.each(5, 0, 20, 30, REWRITTEN)
    for _ in range(5):
        step(script)


def _zero_fork(script: Script) -> None:
    """KSM zero pages of a process that writes some, forks, and writes again, as its child does."""
    script.knob("use_zero_pages", 1)
    process = script.start(0)
    script.map(process, 0, 60)
    script.zero(process, 0, 0, 40)
    script.each(process, 0, 40, 20, PRELOAD)
    script.opt_in(process)
    for number in range(STEPS):
        if number == 4:
            script.each(process, 0, 0, 5, UNIQUE)
            script.fork(process, 1)
            script.opt_in(1)
        if number == 6:
            script.each(process, 0, 5, 5, UNIQUE + 10)
            script.each(1, 0, 10, 5, UNIQUE + 20)
        step(script)


def _rewrite(script: Script) -> None:
    _start(script)
    for number in range(STEPS):
        # Every step other contents; alike in two processes.
        script.each(1, 3, 60, 10, UNIQUE * 20 + 100 * number)
        script.each(1, 3, 70, 10, REWRITTEN + 100 * number)
        script.each(2, 3, 70, 10, REWRITTEN + 100 * number)
        if number % 3 == 1:
            script.each(2, 3, 40, 20, UNIQUE * 21 + 100 * number)
            script.each(1, 3, 0, 20, REWRITTEN + 5000 + 100 * number)
        if number == 5:
            script.each(0, 1, 0, 30, REWRITTEN)  # half of a merged area
            script.each(2, 2, 100, 20, PRELOAD)
        if number == 7:  # back to what it was
            script.fill(0, 1, 0, 30, HOT)
        step(script)


def _unmap(script: Script) -> None:
    _start(script)
    for number in range(STEPS):
        if number == 3:
            script.unmap(0, 0, 40, 30)
            script.advise(1, 1, 0, 30, DONTNEED)
        if number == 4:
            script.map(0, 10, 60)
            script.each(0, 10, 0, 60, PRELOAD)
            script.opt_in(0)
        if number == 5:
            script.fill(1, 1, 10, 10, HOT)
            script.advise(2, 2, 0, HUGE, DONTNEED)
        if number == 6:
            script.each(2, 2, 0, HUGE, UNIQUE * 30)
            script.unmap(2, 3, 0, 80)
        if number == 7:
            script.map(0, 0, 100)  # in its place, and no page as it was
            script.each(0, 0, 0, 100, PRELOAD + 50)
            script.opt_in(0)
        step(script)


def _exit_and_late_start(script: Script) -> None:
    _start(script)
    for number in range(STEPS):
        if number == 3:
            script.exit(1)
        if number == 4:
            late = script.start(10)
            script.map(late, 0, 60)
            script.each(late, 0, 0, 60, PRELOAD + 20)
            script.opt_in(late)
        if number == 6:
            script.fork(10, 11)
            script.each(11, 0, 0, 10, PRELOAD)
        if number == 7:
            script.exit(2)
        if number == 8:
            script.exit(10)
        step(script)


def _same_content(script: Script) -> None:
    """Writes that no sample can see."""
    _start(script)
    for number in range(STEPS):
        if number in (4, 6):
            script.same(0, 0, 0, 50)
            script.same(1, 3, 0, 40)
        step(script)


CHANGING = [
    Workload("refork", "fork after pages were merged", _refork),
    Workload("zero-fork", "zero pages written before a fork, and after it", _zero_fork),
    Workload("rewrite", "pages rewritten every step, every third step, and back", _rewrite),
    Workload("unmap", "unmapped, dropped and new memory", _unmap),
    Workload("exit-late", "processes that exit and that start late", _exit_and_late_start),
]
SAME_CONTENT = [
    Workload("same-content", "merged pages rewritten with what they hold", _same_content),
]
