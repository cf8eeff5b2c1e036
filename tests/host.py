"""This host's own ksmd as truth (scripts/harness/host_ksmd.py), and processes to evaluate."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ksm_eval.target.proc_tasks import read_stat

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts/harness"))

import host_ksmd  # noqa: E402
from host_ksmd import ksm_stat, put, wait_until  # noqa: E402

__all__ = [
    "frozen_prefork",
    "host_ksmd",
    "ksm_stat",
    "ksmd",
    "put",
    "scan",
    "wait_ended",
    "wait_until_runs",
]

PREFORK = Path(__file__).parent / "prefork.py"


@contextmanager
def ksmd() -> Iterator[None]:
    """The host's ksmd for us alone; skips where it cannot be used."""
    try:
        with host_ksmd.ksmd():
            yield
    except host_ksmd.Unusable as reason:
        pytest.skip(str(reason))


def scan(passes: int) -> list[dict[str, int]]:
    """The counters after each of so many full scans."""
    return list(host_ksmd.passes(passes))


def wait_until_runs(pid: int, comm: str) -> None:
    """Until exec has come that far, and the program has nothing to do."""
    deadline = time.monotonic() + 60
    while (stat := read_stat(pid)) is None or (stat.comm, stat.state) != (comm, "S"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_ended(pid: int) -> None:
    """A zombie has no memory any more."""
    wait_until([pid], "Z", 10)


@contextmanager
def frozen_prefork(workers: int = 3, scale: int = 1) -> Iterator[list[int]]:
    """A parent and its workers, stopped; their pids, the parent's first."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", str(PREFORK), str(workers), str(scale)],
        stdout=subprocess.PIPE,
    )
    pids = [process.pid]
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"READY\n"
        pids = host_ksmd.tree(process.pid)
        wait_until(pids, "S", 120)  # the workers have filled their memory
        with host_ksmd.stopped(process.pid) as frozen:
            assert len(frozen) == 1 + workers
            yield frozen
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        wait_until(pids, "", 10)
