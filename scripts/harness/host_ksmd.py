"""The ksmd of the kernel that we run on, as truth; all is put back afterwards.

For processes that are started here: nothing else is opted in.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ksm_eval.target.proc_tasks import list_groups, read_ksm_stat, read_stat

KSM = Path("/sys/kernel/mm/ksm")
TUNABLES = ("pages_to_scan", "sleep_millisecs", "smart_scan", "use_zero_pages",
            "max_page_sharing", "merge_across_nodes", "advisor_mode",
            "advisor_target_scan_time")  # fmt: skip
ONE_PASS = 4_000_000  # pages_to_scan: more than there is, so that a batch is a full scan
SOON = 60.0  # seconds; for what takes milliseconds on an idle machine


class Unusable(Exception):
    """The host's ksmd cannot be used."""


class Busy(Unusable):
    """Not now: others use it."""


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


def registered(but: Iterable[int] = ()) -> list[str]:
    """Names of the processes that ksmd knows, without those of `but`."""
    found = []
    for group in list_groups().values():
        with suppress(OSError):  # ended
            if group.tgid not in but and read_ksm_stat(group.tgid).registered:
                found.append(group.comm)
    return found


def why_not() -> str:
    """Why the host's ksmd can never be used, "" if it can."""
    if os.geteuid() != 0:
        return "not root"
    if not KSM.is_dir():
        return "the host's kernel has no KSM"
    if not (KSM / "general_profit").exists():
        return "the host's kernel has no PR_SET_MEMORY_MERGE (6.4)"
    return ""


@contextmanager
def ksmd(wait: float = 0) -> Iterator[None]:
    """The host's ksmd for us alone, its settings as they were when we are done.

    `wait`: so many seconds for others to be done with it. Raises Unusable.
    """
    if reason := why_not():
        raise Unusable(reason)
    with (KSM / "run").open() as lock:
        deadline = time.monotonic() + wait
        while not _locked(lock.fileno()):
            if time.monotonic() >= deadline:
                raise Busy("another test uses the host's ksmd")
            time.sleep(0.5)
        if value("run"):
            raise Unusable("ksmd runs on this host")
        alone((), wait)
        before = {name: (KSM / name).read_text() for name in TUNABLES if (KSM / name).exists()}
        if "advisor_mode" in before:
            before["advisor_mode"] = before["advisor_mode"].partition("[")[2].partition("]")[0]
        try:
            put("run", 2)  # counters from 0
            if "advisor_mode" in before:
                put("advisor_mode", "none")  # while it is on, it alone sets pages_to_scan
            yield
        finally:
            _restore(before)


def _restore(before: Mapping[str, str]) -> None:
    """All of it, whatever refuses; ksmd did not run. Raises OSError at the end if some did."""
    off = [("advisor_mode", "none")] if "advisor_mode" in before else []
    steps = [("run", "2"), *off, *before.items(), ("run", "0")]  # the advisor last, if it was on
    refused = []
    for name, text in steps:
        try:
            put(name, text.strip())
        except OSError as error:
            refused.append(f"{name}: {error.strerror}")
    if refused:
        raise OSError(f"ksmd's settings are not as they were: {', '.join(refused)}")


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def alone(ours: Iterable[int], wait: float = 0) -> None:
    """Raises Busy if others use KSM too; QEMU does while it runs."""
    deadline = time.monotonic() + wait
    while others := registered(ours):
        if time.monotonic() >= deadline:
            raise Busy(f"processes of this host use KSM: {others[:3]}")
        time.sleep(0.02)


def passes(number: int, interval: float = 0) -> Iterator[dict[str, int]]:
    """Let ksmd make so many full scans; the counters after each, counted from now on.

    The next begins when the caller asks for it, and `interval` seconds after the one before.
    """
    since = {name: value(name) for name in ("pages_scanned", "pages_skipped")}  # never reset
    put("pages_to_scan", ONE_PASS)
    put("sleep_millisecs", 1_000_000)
    start = time.monotonic()
    for index in range(number):
        done = value("full_scans")
        if index:
            time.sleep(max(0.0, start + index * interval - time.monotonic()))
            put("sleep_millisecs", 1_000_000 + index % 2)  # wakes ksmd for one batch
        else:
            put("run", 1)
        deadline = time.monotonic() + SOON
        while value("full_scans") == done:
            assert time.monotonic() < deadline, "ksmd made no full scan"
            time.sleep(0.01)
        found = counters()
        for name, number_then in since.items():
            found[name] -= number_then
        assert found["full_scans"] == done + 1
        yield found


def ksm_stat(pid: int) -> dict[str, int]:
    words = [line.split() for line in Path(f"/proc/{pid}/ksm_stat").read_text().splitlines()]
    return {name: int(text) for name, text in words if text.lstrip("-").isdecimal()}


def opted_in(pid: int) -> bool:
    """By prctl(PR_SET_MEMORY_MERGE), its own or its parent's."""
    return "ksm_merge_any: yes" in Path(f"/proc/{pid}/ksm_stat").read_text()


def state(pid: int) -> str:
    """The letter of /proc/PID/stat, "" if it has ended."""
    stat = read_stat(pid)
    return "" if stat is None else stat.state


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def tree(pid: int) -> list[int]:
    """A process and all below it, parents first."""
    found = [pid]
    for one in found:
        with suppress(OSError):  # ended meanwhile
            found += children(one)
    return found


def wait_until(pids: Iterable[int], states: str, seconds: float = SOON) -> None:
    """Until all are in one of these states; one that has ended is in every state."""
    deadline = time.monotonic() + seconds
    while not all(state(pid) in states for pid in pids):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not in one of the states {states or 'ended'}: {list(pids)}")
        time.sleep(0.01)


@contextmanager
def stopped(pid: int) -> Iterator[list[int]]:
    """A process and all below it, by SIGSTOP; their pids. They go on afterwards."""
    pids: list[int] = []
    try:
        # What was forked before its parent stopped is found the next time.
        while more := [one for one in tree(pid) if one not in pids]:
            for one in more:
                pids.append(one)
                with suppress(ProcessLookupError):
                    os.kill(one, signal.SIGSTOP)
            wait_until(more, "TZ")
        yield [one for one in pids if state(one) == "T"]
    finally:
        for one in pids:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGCONT)
