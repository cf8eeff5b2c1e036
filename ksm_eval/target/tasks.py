"""Which mms are asked about: by pid, tree, comm, cgroup, or all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from drgn import FaultError, Object, Program, ProgramFlags
from drgn.helpers.linux.cgroup import cgroup_path
from drgn.helpers.linux.list import list_for_each_entry
from drgn.helpers.linux.pid import for_each_task

from ksm_eval.errors import TargetError, UsageError
from ksm_eval.target import Process, Selection
from ksm_eval.target.mm_counters import MM_ANONPAGES, MmCounters, mm_counters, rss_pages
from ksm_eval.target.pid_ns import INITIAL, number, tgid_number
from ksm_eval.target.selecting import select

INVALID_UID = 0xFFFFFFFF  # include/linux/uidgid.h: for a process whose credentials are not there
PF_KTHREAD = 0x00200000  # include/linux/sched.h; a macro, so not in debug info
ATTEMPTS = 5  # of what a running kernel may change while it is read


@dataclass(frozen=True)
class Handle:
    """What a KernelTarget remembers of a Process."""

    mm: Object
    task: Object  # the thread that `mm` was found in
    task_start: int
    explicit: bool  # selected by its own pid: that it ends meanwhile is an error

    def still_there(self) -> bool:
        """The same process with the same mm: it has not ended, and no other took its place."""
        try:
            return bool(
                self.task.mm.value_() == self.mm.value_()
                and _start_time(self.task) == self.task_start
            )
        except FaultError:
            return False


def _start_time(task: Object) -> int:
    """ns since boot."""
    try:
        return int(task.start_boottime.value_())  # 5.5+, commit cf25e24db61c
    except AttributeError:
        return int(task.real_start_time.value_())


@dataclass
class _Group:
    """A thread group: its tasks' pids, and the first mm found among them. Pids are those that
    the caller sees, below 0 of what is outside of his pid namespace."""

    tgid: int
    leader: Object
    pids: list[int]
    mm: Object | None
    owner: Object  # the task that `mm` is of
    parent: int  # tgid of real_parent

    @property
    def comm(self) -> str:
        return bytes(self.leader.comm.string_()).decode("utf-8", "backslashreplace")

    @property
    def started(self) -> int:
        return _start_time(self.leader)

    @property
    def has_memory(self) -> bool:
        return self.mm is not None


def _list_groups(prog: Program, namespace: int) -> dict[int, _Group]:
    groups: dict[int, _Group] = {}
    for task in for_each_task(prog):
        try:
            _add_task(groups, task, namespace)
        except FaultError:
            if not prog.flags & ProgramFlags.IS_LIVE:
                raise  # else it went away while it was looked at
    return groups


def _add_task(groups: dict[int, _Group], task: Object, namespace: int) -> None:
    tgid = tgid_number(task, namespace)
    pid = number(task, namespace)
    group = groups.get(tgid)
    if group is None:
        parent = max(0, tgid_number(task.real_parent, namespace))
        groups[tgid] = group = _Group(tgid, task, [], None, task, parent)
    group.pids.append(pid)
    if pid == tgid:
        group.leader = task
    kernel_thread = task.flags.value_() & PF_KTHREAD
    if group.mm is None and not kernel_thread:
        mm = task.mm.read_()
        if mm.value_():
            group.mm, group.owner = mm, task


def _groups(prog: Program, namespace: int) -> dict[int, _Group]:
    """All thread groups by tgid. A zombie leader's live threads still count."""
    live = bool(prog.flags & ProgramFlags.IS_LIVE)
    for _ in range(ATTEMPTS - 1 if live else 0):
        with suppress(FaultError):  # a task went away while the list was read
            return _list_groups(prog, namespace)
    try:
        return _list_groups(prog, namespace)
    except LookupError as error:
        raise TargetError(
            f"the target's symbols or types cannot be used: {error}",
            "give the kernel's vmlinux with DWARF, or its complete System.map, by -s/--symbols",
        ) from None
    except FaultError as error:
        raise TargetError(
            f"the task list cannot be read: {error.message}",
            "try again"
            if live
            else "the dump lacks kernel pages: old makedumpfile versions drop too much of new "
            "kernels with -d 8 and up; take the dump with -d 1 or -d 17",
        ) from None


def _cgroup_paths(prog: Program) -> Callable[[Object], str]:
    """task -> cgroup v2 path, memoised by cgroup; "" on a kernel without cgroups."""
    paths: dict[int, str] = {}

    def path(task: Object) -> str:
        try:
            cgroup = task.cgroups.dfl_cgrp.read_()
            key = cgroup.value_()
            if key not in paths:
                paths[key] = cgroup_path(cgroup).decode("utf-8", "backslashreplace")
            return paths[key]
        except (AttributeError, LookupError, FaultError):
            return ""

    del prog
    return path


def _registered_mms(prog: Program, notes: list[str]) -> Iterator[int]:
    """mm addresses on ksmd's list, in scan order (ksm_mm_head; mm/ksm.c, 5.10 to 7.3)."""
    try:
        try:
            head = prog["ksm_mm_head"].slot.mm_node  # 6.1+, commit 58730ab6c7ca
            for slot in list_for_each_entry(
                "struct ksm_mm_slot", head.address_of_(), "slot.mm_node"
            ):
                yield slot.slot.mm.value_()
        except AttributeError:
            head = prog["ksm_mm_head"].mm_list
            kind = prog["ksm_mm_head"].type_.type_name()
            for slot in list_for_each_entry(kind, head.address_of_(), "mm_list"):
                yield slot.mm.value_()
    except (KeyError, LookupError, FaultError):
        # No KALLSYMS_ALL (ksm_mm_head is static), or a slot that is not in the dump.
        notes.append(
            "ksmd's list of processes cannot be read: scan order is taken to be by start time"
        )


def _observed(mm: Object) -> dict[str, int]:
    """The kernel's own per-process counters, those this kernel has (/proc/PID/ksm_stat)."""
    found: dict[str, int] = {}
    for name in ("ksm_rmap_items", "ksm_merging_pages", "ksm_zero_pages"):
        try:
            member = mm.member_(name)
        except LookupError:
            continue
        try:
            found[name] = member.counter.value_()  # atomic_long_t ksm_zero_pages, 6.10+
        except AttributeError:
            found[name] = member.value_()
    return found


def _merge_any(mm: Object) -> bool:
    """MMF_VM_MERGE_ANY, 6.4+. Its number is a macro: 29, and 30 from 6.7 on, where 29 is
    MMF_HAS_MDWE_NO_INHERIT, which is never without 28, MMF_HAS_MDWE."""
    flags = mm.flags
    try:
        bits = flags.value_()
        if not isinstance(bits, int):  # mm_flags_t, 6.18+
            bits = flags.member_("__mm_flags")[0].value_()
    except (LookupError, TypeError):
        return False
    return bool(bits & 1 << 30) or (bits >> 28 & 3) == 2


def _user_ns(task: Object) -> int:
    """Inode number, 0 if unreadable. Of real_cred, as /proc/PID/ns/user has it: what others must
    have rights over to act on the task (__ptrace_may_access()). `cred`, by which it acts itself,
    is for moments another's (override_creds())."""
    try:
        return int(task.real_cred.user_ns.ns.inum.value_())
    except (AttributeError, LookupError, FaultError):
        return 0


def _process(
    group: _Group,
    counters: MmCounters,
    cgroup: Callable[[Object], str],
    registered: bool,
    selected: bool,
    explicit: bool,
) -> Process:
    assert group.mm is not None
    leader = group.leader
    try:
        uid = leader.real_cred.uid.val.value_()
    except FaultError:
        uid = INVALID_UID
    observed, merge_any, unreadable = dict[str, int](), False, ""
    try:
        observed, merge_any = _observed(group.mm), _merge_any(group.mm)
    except FaultError:
        unreadable = "its mm cannot be read"
    pages = counters(group.mm)
    return Process(
        pid=max(0, group.tgid),
        comm=group.comm,
        cgroup=cgroup(leader),
        uid=uid,
        start_time=group.started,
        registered=registered,
        observed=observed,
        handle=Handle(group.mm, group.owner, _start_time(group.owner), explicit),
        selected=selected,
        ppid=group.parent,
        rss_pages=rss_pages(pages),
        user_ns=_user_ns(leader),
        unreadable=unreadable,
        anon_pages=0 if pages is None else pages[MM_ANONPAGES],
        merge_any=merge_any,
    )


def select_processes(
    prog: Program,
    selection: Selection,
    notes: list[str],
    *,
    with_registered: bool = False,
    namespace: int = INITIAL,
    own: int = 0,
) -> list[Process]:
    """The selected mms in ksmd's scan order, one entry each; with those that ksmd scans
    already if `with_registered`.

    Pids are those of the pid namespace `namespace`, and only what is in it can be selected:
    the pid of others that ksmd scans is 0. `own` is left out unless it is asked for by pid.

    The order is that of ksm_mm_head for mms ksmd knows; the others follow by start
    time, as if they registered in that order (__ksm_enter, mm/ksm.c). Doubts go to `notes`.
    Raises UsageError for a selection that names nothing, TargetError for an unreadable list.
    """
    groups = _groups(prog, namespace)
    cgroup, counters = _cgroup_paths(prog), mm_counters(prog)
    pids = set(selection.pids)
    seen = {tgid: group for tgid, group in groups.items() if tgid >= 0}
    chosen = select(seen, selection, lambda tgid: cgroup(groups[tgid].leader))
    if own in chosen and pids.isdisjoint(groups[own].pids):
        chosen.remove(own)
        notes.append("ksm-eval's own process is left out")
    rank = {mm: position for position, mm in enumerate(_registered_mms(prog, notes))}
    wanted = {mm.value_() for tgid in chosen if (mm := groups[tgid].mm) is not None}
    if not wanted:
        raise UsageError("the selection has no process with memory of its own")
    by_mm: dict[int, Process] = {}
    for group in groups.values():
        if group.mm is None:
            continue
        address = group.mm.value_()
        selected = address in wanted
        if not (selected and group.tgid in chosen) and not (with_registered and address in rank):
            continue
        explicit = not pids.isdisjoint(group.pids)
        try:
            process = _process(group, counters, cgroup, address in rank, selected, explicit)
        except FaultError:
            if not prog.flags & ProgramFlags.IS_LIVE:
                raise
            notes.append(f"pid {group.tgid} ended while it was read and is left out")
            continue
        # CLONE_VM without CLONE_THREAD (vfork): the eldest stands for the mm.
        known = by_mm.get(address)
        if known is None or (process.start_time, process.pid) < (known.start_time, known.pid):
            by_mm[address] = process
    last = len(rank)
    return [
        process
        for _, process in sorted(
            by_mm.items(),
            key=lambda item: (rank.get(item[0], last), item[1].start_time, item[1].pid),
        )
    ]
