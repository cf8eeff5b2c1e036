"""Pids as the caller sees them; drgn has those of the initial pid namespace."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from drgn import Object

INITIAL: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def own_namespace() -> int:
    """Inode number of the pid namespace whose pids the caller's /proc shows."""
    try:
        return Path("/proc/1/ns/pid").stat().st_ino
    except OSError:  # no right to look at it: most likely the caller's own
        return Path("/proc/self/ns/pid").stat().st_ino


def own_pid() -> int:
    """The caller's, as its /proc shows it."""
    return int(Path("/proc/self").readlink().name)


def number(task: Object, namespace: int) -> int:
    """pid_nr_ns(), kernel/pid.c: the task's number in a namespace; one below 0 where it has none,
    because it is outside."""
    outer = int(task.pid.value_())
    if namespace == INITIAL:
        return outer
    pid = task.thread_pid
    for level in range(pid.level.value_(), 0, -1):
        upid = pid.numbers[level]
        if upid.ns.ns.inum.value_() == namespace:
            return int(upid.nr.value_())
    return -outer


def tgid_number(task: Object, namespace: int) -> int:
    """number() of its thread group's leader."""
    return task.tgid.value_() if namespace == INITIAL else number(task.group_leader, namespace)
