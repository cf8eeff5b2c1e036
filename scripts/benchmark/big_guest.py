"""The vmcore of a pre-fork server: made once in QEMU, and kept in the work directory."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "harness"), str(HERE.parent / "guests")]

import qemu  # noqa: E402
from guest_run import Truth, run  # noqa: E402
from kernels import KernelError, find, image  # noqa: E402
from script import Script  # noqa: E402

MEMORY = 4096  # MiB
WORKERS = 32
PAGES = 315_000  # of the server; the workers have them all since fork
PAIRS = 78_500  # contents that two of these pages have; the others have one each
OWN = 9_100  # pages that each worker writes: a half alike in all workers, a half like no other
CHUNK = 20_000  # pages a command: it is to end within a minute, on a busy host too

UNIQUE, PAIR, ALIKE, WORKER = 1_000_000, 2_000_000, 3_000_000, 10_000_000


class NoGuest(Exception):
    """The guest cannot be made here."""


def _filled(script: Script, process: int, first: int, pages: int, content: int) -> None:
    for at in range(0, pages, CHUNK):
        script.half_random(process, 0, first + at, min(CHUNK, pages - at), content + at)


def workload() -> Script:
    """33 processes, THPs off for them: 10.4 M mappings on 606,000 frames."""
    script = Script()
    server = script.start(0)
    script.map(server, 0, PAGES)
    for half in range(2):
        _filled(script, server, half * PAIRS, PAIRS, PAIR)
    _filled(script, server, 2 * PAIRS, PAGES - 2 * PAIRS, UNIQUE)
    for worker in range(1, WORKERS + 1):
        script.fork(server, worker)
    for worker in range(1, WORKERS + 1):
        # Every third page from somewhere else: what a worker writes is not one piece.
        _filled(script, worker, worker * 1000, OWN // 2, ALIKE)
        _filled(script, worker, 2 * PAIRS + worker * 2000, OWN // 2, WORKER * worker)
    script.ready()
    return script


def make(work: Path, elf: Path) -> None:
    """Raises NoGuest, with the reason."""
    missing = [tool for tool in ("qemu-system-x86_64", "musl-gcc") if not shutil.which(tool)]
    if missing:
        raise NoGuest(f"not installed: {' '.join(missing)}")
    free = shutil.disk_usage(work).free
    if free < 3 * MEMORY << 20:
        raise NoGuest(f"{work} has only {free >> 30} GiB left")
    qemu.TIMEOUT = 3600
    (work / "harness").mkdir(parents=True, exist_ok=True)
    elf.parent.mkdir(parents=True, exist_ok=True)
    (kernel,) = find(["6.12"])

    def dumped(number: int, path: Path, truth: Truth) -> None:
        del number, truth
        path.rename(elf)

    partial = elf.with_suffix(".partial")
    try:
        booted = image(replace(kernel, memory=MEMORY), work)
        run(booted, workload().text(), work, partial, dumped=dumped)
    except (KernelError, qemu.GuestError) as error:
        raise NoGuest(str(error)) from None
