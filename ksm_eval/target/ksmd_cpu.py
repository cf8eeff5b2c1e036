"""CPU time that ksmd has had since boot, and the clock it sleeps by."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ksm_eval.target.proc_tasks import PF_KTHREAD, PROC

if TYPE_CHECKING:
    from drgn import Program

KTHREADD = 2
_COMM = "ksmd"
_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h


def ksmd_cpu_seconds(prog: Program) -> float | None:
    """Of a kernel through drgn, live or dumped; None if it has no ksmd or it cannot be read.

    task_struct.se.sum_exec_runtime is what task_sched_runtime() starts from, which the scan-time
    advisor uses: ns, as of the last tick or switch.
    """
    from drgn import FaultError  # not needed for /proc
    from drgn.helpers.linux.pid import find_task, for_each_task

    try:
        kthreadd = find_task(prog, KTHREADD)
        for task in for_each_task(prog):
            if (
                task.comm.string_() == _COMM.encode()
                and task.flags.value_() & PF_KTHREAD
                and task.real_parent.value_() == kthreadd.value_()
            ):
                return int(task.se.sum_exec_runtime.value_()) / 1e9
    except (FaultError, LookupError, AttributeError):
        return None
    return None


def proc_ksmd_cpu_seconds(proc: Path = PROC) -> float | None:
    """Of the running kernel; None if ksmd is not seen, as in a pid namespace of a container."""
    pid = _proc_ksmd(proc)
    if pid is None:
        return None
    try:
        return int((proc / pid / "schedstat").read_text().split()[0]) / 1e9  # CONFIG_SCHED_INFO
    except (OSError, ValueError, IndexError):
        pass
    words = _stat(proc, pid)
    if words is None:
        return None
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime


def _proc_ksmd(proc: Path) -> str | None:
    """Its pid. Programs may call themselves ksmd, but not be kthreadd's."""
    for entry in proc.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if (entry / "comm").read_text() != _COMM + "\n":
                continue
        except (OSError, UnicodeDecodeError):
            continue
        words = _stat(proc, entry.name)
        if words and int(words[1]) == KTHREADD and int(words[6]) & PF_KTHREAD:
            return entry.name
    return None


def _stat(proc: Path, pid: str) -> list[str] | None:
    """Words of /proc/PID/stat behind the name, from the state on."""
    try:
        return (proc / pid / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def live_hz() -> int | None:
    """CONFIG_HZ of the running kernel: its coarse clocks step by ticks."""
    try:
        return round(1 / time.clock_getres(_MONOTONIC_COARSE))
    except (OSError, ZeroDivisionError):
        return None
