"""This host's own ksmd as truth, and processes to evaluate; all is put back afterwards."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ksm_eval.target.proc_tasks import list_groups, read_ksm_stat

KSM = Path("/sys/kernel/mm/ksm")
PREFORK = Path(__file__).parent / "prefork.py"
TUNABLES = ("pages_to_scan", "sleep_millisecs", "smart_scan", "use_zero_pages",
            "max_page_sharing", "merge_across_nodes", "advisor_mode")  # fmt: skip
ONE_PASS = 4_000_000  # pages_to_scan: more than there is, so that a batch is a full scan


def value(name: str) -> int:
    return int((KSM / name).read_text())


def put(name: str, number: int | str) -> None:
    (KSM / name).write_text(f"{number}\n")


def counters() -> dict[str, int]:
    return {
        file.name: int(text)
        for file in sorted(KSM.iterdir())
        if (text := file.read_text().strip()).lstrip("-").isdecimal()
    }


def why_not() -> str:
    """Why the host's ksmd cannot be used, "" if it can."""
    if os.geteuid() != 0:
        return "not root"
    if not KSM.is_dir():
        return "the host's kernel has no KSM"
    if not (KSM / "general_profit").exists():
        return "the host's kernel has no PR_SET_MEMORY_MERGE (6.4)"
    if value("run"):
        return "ksmd runs on this host"
    registered = [
        group.comm for group in list_groups().values() if read_ksm_stat(group.tgid).registered
    ]
    return f"processes of this host use KSM: {registered[:3]}" if registered else ""


@contextmanager
def ksmd() -> Iterator[None]:
    """The host's ksmd for us alone, its settings as they were when we are done."""
    with (KSM / "run").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pytest.skip("another test uses the host's ksmd")
        reason = why_not()
        if reason:
            pytest.skip(reason)
        before = {name: (KSM / name).read_text() for name in TUNABLES if (KSM / name).exists()}
        if "advisor_mode" in before:
            before["advisor_mode"] = before["advisor_mode"].partition("[")[2].partition("]")[0]
        run = value("run")
        try:
            put("run", 2)  # counters from 0
            yield
        finally:
            put("run", 2)
            for name, text in before.items():
                put(name, text.strip())
            put("run", run)


def scan(passes: int) -> list[dict[str, int]]:
    """Let ksmd make so many full scans; the counters after each, counted from now on."""
    since = {name: value(name) for name in ("pages_scanned", "pages_skipped")}  # never reset
    put("pages_to_scan", ONE_PASS)
    put("sleep_millisecs", 1_000_000)
    after = []
    for number in range(passes):
        done = value("full_scans")
        if number:
            put("sleep_millisecs", 1_000_000 + number % 2)  # wakes ksmd for one batch
        else:
            put("run", 1)
        deadline = time.monotonic() + 60
        while value("full_scans") == done:
            assert time.monotonic() < deadline, "ksmd made no full scan"
            time.sleep(0.01)
        after.append(counters())
        for name, number_then in since.items():
            after[-1][name] -= number_then
        assert after[-1]["full_scans"] == done + 1
    return after


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_ended(pid: int) -> None:
    """A zombie has no memory any more."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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
        pids += children(process.pid)
        assert len(pids) == 1 + workers
        deadline = time.monotonic() + 120
        while {_state(pid) for pid in pids} != {"S"}:  # the workers have filled their memory
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        while {_state(pid) for pid in pids} != {"T"}:
            time.sleep(0.01)
        yield pids
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)
