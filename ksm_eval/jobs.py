"""sweep() by several processes, with the same result to the byte.

A kdump takes libkdumpfile 10 to 30 microseconds a page, under Python's lock, so only processes
help. Each is a fresh interpreter and opens the vmcore itself: a libkdumpfile context cannot be
shared, and a fork() would copy the locks of whatever threads there are (the progress bar's,
numpy's). It is handed a few thousand frames at a time, so none waits for a slow one, and its memory
does not grow with the vmcore. The other end of its socket is closed when this process ends, however
that happens, and so it ends too.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from ksm_eval import footprint
from ksm_eval.errors import TargetError
from ksm_eval.snapshot import U64
from ksm_eval.sweep import Sweep, sweep
from ksm_eval.target import READING, Progress, Target
from ksm_eval.worker import Failed, Part, Task

MOST = 8  # workers, if nobody says how many: a disk would not keep up with more
WORTH_IT = 256 << 20
"""Bytes to read from which a second worker pays: it takes 0.2 s to start, in which one
reads 10,000 pages of a kdump, and there is not always a processor free."""
WORKER_BYTES = 128 << 20  # memory that must be left for each
PART = 16 << 20  # bytes that are handed out at once
PARTS_EACH = 4  # at the least, so that all end at about the same time

_log = logging.getLogger(__name__)

_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[1:]; from ksm_eval.worker import main; sys.exit(main())"
)
_PACKAGES = str(Path(__file__).parent.parent)


def sweep_in_jobs(
    target: Target,
    pfns: U64,
    seed: int,
    progress: Progress | None = None,
    *,
    checksums: bool = False,
    jobs: int | None = None,
    max_memory: int = 0,
) -> Sweep:
    """sweep() by at most `jobs` processes; None: as many as help. `max_memory` (bytes, 0: any) is
    for all of them.

    By this one alone where no other could read the target, and where --max-rate is to hold for
    all together. Raises TargetError if a worker ends before its time.
    """
    core = None if target.meter.max_rate else target.core()
    workers = _worth_it(target, len(pfns)) if jobs is None else min(jobs, len(pfns))
    if max_memory and workers > 1:
        workers = _fitting(workers, max_memory)
        if jobs is not None and workers < min(jobs, len(pfns)):
            _log.warning("--max-memory is enough for %d of %d processes", workers, jobs)
    if core is None or workers < 2:
        return sweep(target, pfns, seed, progress, checksums=checksums)
    part = min(PART // target.info.page_size, len(pfns) // (PARTS_EACH * workers))
    started: list[_Worker] = []
    try:
        with _blocked_interrupt():
            _start(workers, started)
        if not started:
            return sweep(target, pfns, seed, progress, checksums=checksums)
        for worker in started:
            worker.send(Task(core, target.info, seed, checksums))
        swept, bytes_read = _by_workers(started, pfns, max(part, 1), checksums, progress)
    finally:
        for worker in started:
            worker.stop()
    target.meter.wait(bytes_read)
    footprint.add_workers(sum(worker.max_rss_bytes for worker in started))
    return swept


def _fitting(jobs: int, max_memory: int) -> int:
    """How many of so many workers the memory is enough for; 1: none beside this process."""
    return max(1, min(jobs, (max_memory - footprint.rss_bytes()) // WORKER_BYTES))


def _worth_it(target: Target, frames: int) -> int:
    """ELF is read as fast as memory is; it is unpacking that takes processors."""
    if not target.info.container.startswith("kdump"):
        return 1
    if frames * target.info.page_size < WORTH_IT:
        return 1
    cpus = len(os.sched_getaffinity(0))
    return min(cpus, MOST, footprint.available_bytes() // WORKER_BYTES)


@contextmanager
def _blocked_interrupt() -> Iterator[None]:
    """Ctrl-C reaches all processes of the terminal, and it is this one that ends the others: so
    they have it blocked, from their first instruction. (Here another thread may still take it.)"""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _start(count: int, started: list[_Worker]) -> None:
    for number in range(count):
        try:
            started.append(_Worker())
        except OSError as error:  # of a container's limit of processes, say
            _log.warning("only %d of %d processes could start: %s", number, count, error)
            break


class _Worker:
    """A process, and what to talk to it by. OSError if it cannot be started."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                # -I: what lies in the current directory is no module of ours.
                [sys.executable, "-I", "-c", _PROGRAM, *filter(os.path.isabs, sys.path), _PACKAGES],
                stdin=theirs.fileno(),  # for both directions
                stdout=subprocess.DEVNULL,
                stderr=None if _debugging() else subprocess.DEVNULL,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # numpy's; else one a CPU
            )
            self.connection = Connection(ours.detach())
        self.max_rss_bytes = 0

    def send(self, message: Task | U64) -> None:
        try:
            self.connection.send(message)
        except OSError:
            self.receive()  # it may have said why it ended
            raise

    def receive(self) -> Part:
        try:
            message: Part | Failed = self.connection.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(message, Failed):
            raise TargetError(message.message, message.hint)
        self.max_rss_bytes = message.max_rss_bytes
        return message

    def _ended(self) -> TargetError:
        code = self.process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "if memory ran out, use fewer --jobs" if code == -signal.SIGKILL else "use --jobs 1"
        return TargetError(f"a worker process {how}", hint)

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _debugging() -> bool:
    return sys.stderr is not None and _log.isEnabledFor(logging.DEBUG)


def _by_workers(
    workers: list[_Worker], pfns: U64, part: int, checksums: bool, progress: Progress | None
) -> tuple[Sweep, int]:
    """What they find, and the bytes they read; `part` frames at a time."""
    hashes = np.zeros(len(pfns), np.uint64)
    flags = np.zeros(len(pfns), np.uint8)
    checksum = np.zeros(len(pfns), np.uint32) if checksums else None
    unreadable: dict[int, dict[str, int]] = {}  # by the first row of a part
    parts = iter(range(0, len(pfns), part))
    asked: dict[Connection, tuple[_Worker, int]] = {}
    idle = workers
    done = bytes_read = 0
    while True:
        for worker, first in zip(idle, parts, strict=False):  # no part is taken for nobody
            worker.send(pfns[first : first + part])
            asked[worker.connection] = worker, first
        if not asked:
            break
        idle = []
        ready = wait([worker.connection for worker, _ in asked.values()])
        for worker, first in [asked.pop(c) for c in ready if isinstance(c, Connection)]:
            found = worker.receive()
            rows = slice(first, first + part)
            hashes[rows], flags[rows] = found.swept.hash, found.swept.flags
            if checksum is not None and found.swept.checksum is not None:
                checksum[rows] = found.swept.checksum
            if found.swept.unreadable:
                unreadable[first] = found.swept.unreadable
            bytes_read += found.bytes_read
            done += len(found.swept.hash)
            idle.append(worker)
        if progress is not None:
            progress(READING, done, len(pfns))
    reasons: Counter[str] = Counter()
    for first in sorted(unreadable):  # in the order of one process, which reports print
        reasons.update(unreadable[first])
    return Sweep(hashes, flags, dict(reasons), checksum), bytes_read
