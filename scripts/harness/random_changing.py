"""Random memory that changes from step to step, from a seed."""

from __future__ import annotations

from random import Random

import random_static
from random_static import POOL, UNIQUE, ZERO
from script import DONTNEED, HUGE, Script
from workloads import Workload

STEPS = 10


class Memory:
    """Writes a script and knows what each page holds, so that no write changes nothing.

    Nor do several: a page that was written between two steps never holds what it did before.
    """

    def __init__(self, script: Script, random: Random, *, same_content: bool) -> None:
        self.script = script
        self.random = random
        self.same_content = same_content
        self.pages: dict[int, dict[tuple[int, int], int | None]] = {}  # process -> page -> content
        self.before: dict[int, dict[tuple[int, int], int | None]] = {}  # the same at the last step
        self.unique = UNIQUE
        self.pool = random.choice((10, 40, 120))
        self.next_region = 0
        self.next_process = 0

    def content(self) -> int:
        draw = self.random.random()
        if draw < 0.08:
            return ZERO
        if draw < 0.4:
            self.unique += 1
            return self.unique
        return POOL + int(self.pool * self.random.random() ** 2)

    def write(self, process: int, region: int, page: int, pages: int) -> None:
        known, before = self.pages[process], self.before.get(process, {})
        at, end = page, page + pages
        while at < end:
            content = self.content()
            length = 0
            while at + length < end and length < 12:
                key = (region, at + length)
                if key not in known or content in (known[key], before.get(key)):
                    break
                known[key] = content
                length += 1
            if content == ZERO:
                self.script.zero(process, region, at, length)
            elif length:
                self.script.fill(process, region, at, length, content)
            at += max(1, length)

    def new_region(self, process: int) -> None:
        region, self.next_region = self.next_region, self.next_region + 1
        if self.random.random() < 0.15:
            pages = HUGE
            self.script.map_thp(process, region, 1)
            first = self.unique + 1
            self.unique += pages
            self.script.each(process, region, 0, pages, first)
            for page in range(pages):
                self.pages[process][region, page] = first + page
            self.write(process, region, 100, 40)
        else:
            pages = self.random.randint(8, 80)
            self.script.map(process, region, pages)
            for page in range(pages):
                self.pages[process][region, page] = None
            self.write(process, region, 0, pages)

    def new_process(self, parent: int | None) -> None:
        if len(self.script.processes) >= 9:
            return
        number, self.next_process = self.next_process, self.next_process + 1
        if parent is None:
            self.script.start(number)
            self.pages[number] = {}
            self.new_region(number)
            self.new_region(number)
        else:
            self.script.fork(parent, number)
            self.pages[number] = dict(self.pages[parent])
            self.before[number] = dict(self.before.get(parent, {}))

    def some_range(self, process: int) -> tuple[int, int, int] | None:
        if not self.pages[process]:
            return None
        region, page = self.random.choice(list(self.pages[process]))
        length = 1
        limit = self.random.choice((1, 4, 16, 40))
        while length < limit and (region, page + length) in self.pages[process]:
            length += 1
        return region, page, length

    def change(self, process: int) -> None:
        kind = self.random.random()
        found = self.some_range(process)
        if found is None or kind < 0.1:
            self.new_region(process)
            self.script.opt_in(process)  # new areas too, where there is no prctl
            return
        region, page, pages = found
        known = self.pages[process]
        if kind < 0.75:
            self.write(process, region, page, pages)
            if self.same_content:
                self.script.same(process, region, page, pages)
                again = self.some_range(process)
                assert again is not None
                self.script.same(process, *again)
        elif kind < 0.87:
            self.script.advise(process, region, page, pages, DONTNEED)
            for at in range(page, page + pages):
                known[region, at] = None
        else:
            self.script.unmap(process, region, page, pages)
            for at in range(page, page + pages):
                del known[region, at]


def _write(script: Script, seed: int, *, smart_scan: bool, same_content: bool) -> None:
    random = Random(seed)
    script.knob("stable_node_chains_prune_millisecs", 1000)
    random_static.settings(script, random, smart_scan=smart_scan, numa=False)
    memory = Memory(script, random, same_content=same_content)
    for _ in range(random.randint(1, 2)):
        memory.new_process(None)
    for _ in range(random.randint(0, 3)):
        memory.new_process(random.choice(script.processes))
    for process in list(script.processes):
        script.opt_in(process)
    for number in range(STEPS):
        for process in list(script.processes) if number else []:
            for _ in range(random.choice((0, 0, 1, 2, 4))):
                memory.change(process)
        draw = random.random()
        if number > 1 and draw < 0.25:
            memory.new_process(random.choice(script.processes))
        elif number > 1 and draw < 0.35:
            memory.new_process(None)
            script.opt_in(script.processes[-1])
        elif number > 1 and draw < 0.5 and len(script.processes) > 1:
            script.exit(random.choice(script.processes))
        script.sleep(1200)
        script.step()
        memory.before = {process: dict(pages) for process, pages in memory.pages.items()}


def workload(seed: int, *, smart_scan: bool, same_content: bool) -> Workload:
    def write(script: Script) -> None:
        _write(script, seed, smart_scan=smart_scan, same_content=same_content)

    name = f"random-{'same-' if same_content else 'changing-'}{seed}"
    about = "with" if same_content else "without"
    return Workload(name, f"random changes {about} same-content writes, seed {seed}", write)
