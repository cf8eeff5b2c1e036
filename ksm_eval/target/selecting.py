"""Which thread groups a Selection means, wherever the list of them comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Protocol

from ksm_eval.errors import UsageError
from ksm_eval.target import Selection


class Group(Protocol):
    """A thread group."""

    @property
    def tgid(self) -> int: ...

    @property
    def pids(self) -> list[int]:
        """Its tasks; of any that the selection may name."""

    @property
    def parent(self) -> int:
        """tgid of real_parent."""

    @property
    def comm(self) -> str: ...

    @property
    def started(self) -> int:
        """As Process.start_time."""

    @property
    def has_memory(self) -> bool:
        """False: a kernel thread or a zombie."""


def select(
    groups: Mapping[int, Group], selection: Selection, cgroup: Callable[[int], str]
) -> set[int]:
    """tgids of the selection; `cgroup` gives the v2 path of a tgid.

    Raises UsageError for a part of the selection that matches nothing.
    """
    chosen: set[int] = set()
    by_pid = {pid: group.tgid for group in groups.values() for pid in group.pids}
    by = selection.started_by
    for pid in selection.pids:
        if by is not None and (pid not in by_pid or groups[by_pid[pid]].started > by):
            continue  # it has ended
        if pid not in by_pid:
            raise UsageError(f"pid {pid} does not exist in the target", "see --all for what does")
        group = groups[by_pid[pid]]
        if not group.has_memory and not selection.children:
            raise UsageError(
                f"pid {pid} ({group.comm}) has no memory of its own: a kernel thread or a zombie",
                "choose a process with user memory",
            )
        chosen.add(group.tgid)
    for pattern in selection.comms:
        called = [group for group in groups.values() if fnmatchcase(group.comm, pattern)]
        if not called:
            raise UsageError(
                f"no process is called {pattern!r} in the target",
                "give the name in /proc/PID/comm, at most 15 characters, or a glob such as 'php*'",
            )
        if not selection.children and not any(group.has_memory for group in called):
            raise UsageError(
                f"all that is called {pattern!r} in the target has no memory of its own: "
                "kernel threads or zombies",
                "choose a process with user memory",
            )
        chosen |= {group.tgid for group in called}
    for wanted in selection.cgroups:
        prefix = "/" + wanted.strip("/")
        below = prefix.rstrip("/") + "/"
        matched = {
            group.tgid
            for group in groups.values()
            if group.has_memory and (cgroup(group.tgid) + "/").startswith(below)
        }
        if not matched:
            raise UsageError(
                f"no process is in cgroup {prefix!r} or below it in the target",
                "give the cgroup v2 path as in /proc/PID/cgroup, without the leading 0::",
            )
        chosen |= matched
    if selection.children:
        chosen = _below(groups, chosen)
    if selection.all:
        chosen = set(groups)
    return chosen


def _below(groups: Mapping[int, Group], roots: set[int]) -> set[int]:
    """`roots` and all their descendants, by real_parent."""
    children: dict[int, list[int]] = {}
    for group in groups.values():
        children.setdefault(group.parent, []).append(group.tgid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        tgid = todo.pop()
        if tgid not in found:
            found.add(tgid)
            todo.extend(children.get(tgid, ()))
    return found
