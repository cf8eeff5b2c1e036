"""Pids as the caller sees them -> those of the initial pid namespace, by which drgn goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from drgn import FaultError, Object, Program
from drgn.helpers.linux.pid import for_each_task

from ksm_eval.errors import UsageError
from ksm_eval.target import Selection

INITIAL: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO, include/linux/proc_ns.h


def own_namespace() -> int:
    """Inode number of the caller's pid namespace."""
    return Path("/proc/self/ns/pid").stat().st_ino


def translated(
    prog: Program, selection: Selection, notes: list[str], namespace: int | None = None
) -> Selection:
    """`selection` with the pids of the initial namespace, where the caller is in another.

    UsageError for a pid that does not exist in the caller's namespace.
    """
    namespace = own_namespace() if namespace is None else namespace
    if namespace == INITIAL:
        return selection
    notes.append("pids in this report are those of the host, not of this pid namespace")
    if not selection.pids:
        return selection
    outer = {}
    for task in for_each_task(prog):
        try:
            inner = _pid_in(task.thread_pid, namespace)
            if inner is not None:
                outer[inner] = task.pid.value_()
        except FaultError:  # it ended meanwhile
            continue
    for pid in selection.pids:
        if pid not in outer:
            raise UsageError(f"pid {pid} does not exist in this pid namespace")
    return replace(selection, pids=tuple(outer[pid] for pid in selection.pids))


def _pid_in(pid: Object, namespace: int) -> int | None:
    """pid_nr_ns(), kernel/pid.c: the number of a struct pid in a namespace, if it has one."""
    for level in range(pid.level.value_() + 1):
        upid = pid.numbers[level]
        if upid.ns.ns.inum.value_() == namespace:
            return int(upid.nr.value_())
    return None
