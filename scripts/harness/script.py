"""The script that a guest's PID 1 carries out (init.c), written by workloads.

Processes and regions are numbers chosen by the workload. Region R is at the same address in
every process and boot; -1 is below the program, so the first that ksmd sees.
"""

from __future__ import annotations

from dataclasses import dataclass

KSM = "/sys/kernel/mm/ksm"
THP = "/sys/kernel/mm/transparent_hugepage"
HUGE = 512

MERGEABLE = 12  # madvise()
HUGEPAGE = 14
NOHUGEPAGE = 15
DONTNEED = 4
PAGEOUT = 21
ANONYMOUS, SHARED, FILE, HUGETLB, DROPPABLE = range(5)  # kinds of regions


@dataclass(frozen=True)
class Point:
    """Where the guest's counters are read."""

    full_scans: int
    pages: int = 0  # that were scanned of the pass that follows


@dataclass(frozen=True)
class Dump:
    """Where the host dumps."""

    points: int  # before it
    processes: list[int]  # that run


class Script:
    """Lines in the order in which they happen."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.processes: list[int] = []  # that run now
        self.points: list[Point] = []
        self.dumps: list[Dump] = []

    def _say(self, *words: object) -> None:
        self.lines.append(" ".join(str(word) for word in words))

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    # ---- the kernel ----

    def need(self, path: str) -> None:
        """The workload is skipped if this file does not exist."""
        self._say("need", path)

    def write(self, path: str, value: object) -> None:
        self._say("write", path, value)

    def knob(self, name: str, value: object) -> None:
        self.need(f"{KSM}/{name}")
        self.write(f"{KSM}/{name}", value)

    def swap_on(self) -> None:
        """zram is built in into the small kernels, Debian has brd as a module."""
        self._say("insmod", "/brd.ko")
        self._say("swap")

    def insmod(self, name: str) -> None:
        """A module of the initramfs; nothing where the kernel has it built in."""
        self._say("insmod", f"/{name}.ko")

    def disk(self) -> None:
        self._say("disk")

    def run(self, *words: object) -> None:
        """[NAME=VALUE …] PATH [ARGUMENT …]: a program of the disk. No word has a space."""
        self._say("run", *words)

    def usage(self, tag: str) -> None:
        """Print what reading must not change."""
        self._say("usage", tag)

    def ready(self) -> None:
        """The host dumps here."""
        self._say("ready")
        self.dumps.append(Dump(len(self.points), list(self.processes)))

    def wait(self) -> None:
        """As ready(), but nothing is printed, and so nothing allocated and freed."""
        self._say("wait")

    def passes(self, count: int) -> None:
        """So many full scans; the first one finishes a pass that cut() began."""
        self.lines += ["pass"] * count
        scans = self.points[-1].full_scans if self.points else 0
        self.points += [Point(scans + number) for number in range(1, count + 1)]

    def cut(self, pages: int) -> None:
        """ksmd scans so many pages more, which must not be all that are left of the pass."""
        self._say("cut", pages)
        last = self.points[-1] if self.points else Point(0)
        self.points.append(Point(last.full_scans, last.pages + pages))

    def step(self) -> None:
        """Of a changing workload: a dump in one boot, a pass of ksmd in the other."""
        self._say("step")

    def sleep(self, milliseconds: int) -> None:
        """Only in the boot with KSM."""
        self._say("sleep", milliseconds)

    # ---- processes ----

    def start(self, process: int) -> int:
        self._say("start", process)
        self.processes.append(process)
        return process

    def fork(self, parent: int, child: int) -> int:
        self._say("fork", parent, child)
        self.processes.append(child)
        return child

    def exit(self, process: int) -> None:
        self._say("exit", process)
        self.processes.remove(process)

    def opt_in(self, process: int) -> None:
        self._say("optin", process)

    def opt_out(self, process: int) -> None:
        self._say("optout", process)

    def rehearse(self, process: int) -> None:
        """Write all that opt_in() writes, so that it makes no new page later."""
        self._say("rehearse", process)

    # ---- memory: process, region, then pages within the region ----

    def map(self, process: int, region: int, pages: int, kind: int = ANONYMOUS) -> None:
        self._say("map", process, region, 0, pages, kind)

    def map_thp(self, process: int, region: int, count: int) -> None:
        self.map(process, region, count * HUGE)
        self.advise(process, region, 0, count * HUGE, HUGEPAGE)

    def fill(self, process: int, region: int, first: int, pages: int, content: int) -> None:
        """Equal pages."""
        self._say("fill", process, region, first, pages, content)

    def each(self, process: int, region: int, first: int, pages: int, content: int) -> None:
        """Pages of content, content + 1, …"""
        self._say("each", process, region, first, pages, content)

    def last(self, process: int, region: int, first: int, pages: int, content: int) -> None:
        """As each(), but the pages differ in their last eight bytes only."""
        self._say("last", process, region, first, pages, content)

    def half_random(self, process: int, region: int, first: int, pages: int, content: int) -> None:
        """As each(), but only a half of each page compresses."""
        self._say("half", process, region, first, pages, content)

    def zero(self, process: int, region: int, first: int, pages: int) -> None:
        """Write zeros."""
        self._say("zero", process, region, first, pages)

    def touch(self, process: int, region: int, first: int, pages: int) -> None:
        """Read only."""
        self._say("touch", process, region, first, pages)

    def same(self, process: int, region: int, first: int, pages: int) -> None:
        """Write what is there already."""
        self._say("same", process, region, first, pages)

    def advise(self, process: int, region: int, first: int, pages: int, advice: int) -> None:
        self._say("advise", process, region, first, pages, advice)

    def protect(self, process: int, region: int, first: int, pages: int, rights: int) -> None:
        self._say("protect", process, region, first, pages, rights)

    def unmap(self, process: int, region: int, first: int, pages: int) -> None:
        self._say("unmap", process, region, first, pages)

    def lock(self, process: int, region: int, first: int, pages: int) -> None:
        self._say("lock", process, region, first, pages)

    def bind(self, process: int, region: int, first: int, pages: int, nodes: int) -> None:
        """Before the first touch. `nodes` is a mask; of several nodes the pages alternate."""
        self._say("bind", process, region, first, pages, nodes)

    def pin(self, process: int, region: int, first: int, pages: int) -> None:
        """As io_uring's fixed buffers, until the process exits."""
        self._say("pin", process, region, first, pages)

    def peek(self, process: int, region: int, first: int, pages: int) -> None:
        """Read from outside the process, which leaves its pages in a per-CPU batch."""
        self._say("peek", process, region, first, pages)

    def storm(self, process: int) -> None:
        """Descendants that come and go from now on."""
        self._say("storm", process)

    def splice(self, process: int, region: int, first: int, pages: int) -> None:
        """Into a pipe: a reference a page. At most 16 pages."""
        self._say("splice", process, region, first, pages)
