"""Random memory that stands still, from a seed."""

from __future__ import annotations

from random import Random

from script import DONTNEED, FILE, HUGE, MERGEABLE, NOHUGEPAGE, Script
from workloads import PASSES, Workload

POOL, UNIQUE = 1000, 100_000
ZERO = 0
REGION_PAGES = (8, 160)
WARM_PASSES = 7


class Layout:
    """Writes a script and keeps what it needs to know of the memory it describes."""

    def __init__(self, script: Script, random: Random) -> None:
        self.script = script
        self.random = random
        self.regions: dict[int, dict[int, int]] = {}  # process -> region -> pages
        self.pool = random.choice((3, 20, 80, 200))  # different contents that repeat
        self.unique = UNIQUE
        self.locked: set[tuple[int, int]] = set()  # (process, region)
        self.next_region = 0
        self.next_process = 0
        self.zero_share = random.choice((0, 0.1, 0.3))
        self.unique_share = random.choice((0.1, 0.4, 0.8))

    def content(self) -> int:
        draw = self.random.random()
        if draw < self.zero_share:
            return ZERO
        if draw < self.zero_share + self.unique_share:
            self.unique += 1
            return self.unique
        # A few contents are much more frequent than the rest.
        return POOL + int(self.pool * self.random.random() ** 3)

    def write(self, process: int, region: int, first: int, pages: int) -> None:
        """Runs of pages of random contents."""
        at, end = first, first + pages
        while at < end:
            length = min(end - at, self.random.choice((1, 1, 2, 5, 20)))
            content = self.content()
            if content == ZERO:
                self.script.zero(process, region, at, length)
            elif content > UNIQUE:
                self.script.each(process, region, at, length, content)
                self.unique += length
            elif self.random.random() < 0.5:
                self.script.fill(process, region, at, length, content)
            else:
                self.script.each(process, region, at, length, content)
            at += length

    def new_region(self, process: int) -> None:
        region, self.next_region = self.next_region, self.next_region + 1
        kind = self.random.random()
        if kind < 0.15:
            pages = HUGE * self.random.choice((1, 1, 2))
            self.script.map_thp(process, region, pages // HUGE)
            start = self.random.randrange(0, pages, 64)
            self.write(process, region, start, self.random.choice((1, 64, pages - start)))
            if self.random.random() < 0.5:
                self.script.each(process, region, 0, pages, self.unique + 1)
                self.unique += pages
                self.write(process, region, start, min(40, pages - start))
        elif kind < 0.25:
            pages = self.random.randint(8, 60)
            self.script.map(process, region, pages, FILE)
            self.write(process, region, 0, pages // 2)
        else:
            pages = self.random.randint(*REGION_PAGES)
            self.script.map(process, region, pages)
            if self.random.random() < 0.3:
                self.script.advise(process, region, 0, pages, NOHUGEPAGE)
            self.write(process, region, 0, pages)
        self.regions[process][region] = pages

    def process(self, parent: int | None) -> int:
        number, self.next_process = self.next_process, self.next_process + 1
        if parent is None:
            self.script.start(number)
            self.regions[number] = {}
        else:
            self.script.fork(parent, number)
            self.regions[number] = dict(self.regions[parent])
        return number

    def range_in(self, process: int) -> tuple[int, int, int] | None:
        """Some region and pages of it."""
        if not self.regions[process]:
            return None
        region, pages = self.random.choice(list(self.regions[process].items()))
        first = self.random.randrange(pages)
        return region, first, self.random.randint(1, min(pages - first, 40))


def settings(script: Script, random: Random, *, smart_scan: bool, numa: bool) -> None:
    script.knob("max_page_sharing", random.choice((2, 3, 5, 8, 16, 256, 256)))
    script.knob("use_zero_pages", int(random.random() < 0.4))
    if smart_scan:
        script.knob("smart_scan", int(random.random() < 0.7))
    if numa:
        script.knob("merge_across_nodes", random.randrange(2))


def _memory(script: Script, random: Random, *, smart_scan: bool, numa: bool) -> Layout:
    """Processes that have opted in."""
    settings(script, random, smart_scan=smart_scan, numa=numa)
    layout = Layout(script, random)
    everything = random.random() < 0.7  # opt in with all memory
    for _ in range(random.randint(1, 3)):
        root = layout.process(None)
        for _ in range(random.randint(1, 4)):
            layout.new_region(root)
        if everything:
            script.opt_in(root)
        family = [root]
        for _ in range(random.randint(0, 4)):
            child = layout.process(random.choice(family))
            family.append(child)
            for _ in range(random.randint(0, 4)):
                _change(layout, child, numa)
            if everything:
                script.opt_in(child)
    if not everything:
        before = len(script.lines)
        for process, regions in layout.regions.items():
            for region, pages in regions.items():
                if random.random() < 0.8:
                    script.advise(process, region, 0, pages, MERGEABLE)
        if len(script.lines) == before:  # ksmd would wait for a process to scan
            process, regions = next(iter(layout.regions.items()))
            region, pages = next(iter(regions.items()))
            script.advise(process, region, 0, pages, MERGEABLE)
    return layout


def _write(script: Script, seed: int, *, smart_scan: bool, numa: bool) -> None:
    _memory(script, Random(seed), smart_scan=smart_scan, numa=numa)
    script.ready()
    script.passes(PASSES)


def _write_warm(script: Script, seed: int, *, smart_scan: bool, numa: bool) -> None:
    """Changes between passes of ksmd and inside one, before the dump."""
    random = Random(seed)
    layout = _memory(script, random, smart_scan=smart_scan, numa=numa)
    for _ in range(random.randint(1, 3)):
        script.passes(random.randint(1, 3))
        _change_some(layout, numa)
    if random.random() < 0.7:
        script.cut(random.choice((1, 20, 100, 400)))
        if random.random() < 0.5:
            _change_some(layout, numa)
    script.ready()
    script.passes(WARM_PASSES)


def _change_some(layout: Layout, numa: bool) -> None:
    random, script = layout.random, layout.script
    for _ in range(random.randint(0, 5)):
        process = random.choice(list(layout.regions))
        kind = random.random()
        if kind < 0.15 and len(layout.regions) < 12:
            layout.process(process)
        elif kind < 0.25 and len(layout.regions) > 1:
            script.exit(process)
            del layout.regions[process]
        else:
            _change(layout, process, numa)


def _change(layout: Layout, process: int, numa: bool) -> None:
    """Something that a process does with its memory."""
    random, script = layout.random, layout.script
    target = layout.range_in(process)
    kind = random.random()
    if target is None or kind < 0.3:
        layout.new_region(process)
        return
    region, first, pages = target
    if kind < 0.7:
        layout.write(process, region, first, pages)
    elif kind < 0.78:
        script.protect(process, region, first, pages, 0)
        del layout.regions[process][region]  # nobody writes there again
    elif kind < 0.86:
        if (process, region) not in layout.locked:  # EINVAL
            script.advise(process, region, first, pages, DONTNEED)
    elif kind < 0.93:
        script.pin(process, region, first, min(pages, 6))
    elif numa:
        number, layout.next_region = layout.next_region, layout.next_region + 1
        script.map(process, number, 60)
        script.bind(process, number, 0, 60, random.choice((1, 2, 3)))
        layout.regions[process][number] = 60
        layout.write(process, number, 0, 60)
    else:
        script.lock(process, region, first, pages)
        layout.locked.add((process, region))


def workload(seed: int, *, smart_scan: bool, numa: bool) -> Workload:
    def write(script: Script) -> None:
        _write(script, seed, smart_scan=smart_scan, numa=numa)

    return Workload(f"random-{seed}", f"random memory, seed {seed}", write, numa=numa)


def warm_workload(seed: int, *, smart_scan: bool, numa: bool) -> Workload:
    """Dumped when ksmd has run."""

    def write(script: Script) -> None:
        _write_warm(script, seed, smart_scan=smart_scan, numa=numa)

    return Workload(f"random-warm-{seed}", f"random memory, warm, seed {seed}", write, numa=numa)
