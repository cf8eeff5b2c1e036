"""Which mms are asked about, through /proc."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cmp_to_key
from pathlib import Path

from ksm_eval.errors import TargetError, UsageError
from ksm_eval.target import Process, Selection
from ksm_eval.target.rights import NO_PTRACE, check_open_files, hint
from ksm_eval.target.selecting import select

PROC = Path("/proc")
PF_KTHREAD = 0x00200000  # include/linux/sched.h
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
INVALID_UID = 0xFFFFFFFF
_KCMP = {"x86_64": 312, "aarch64": 272}  # system call number
_KCMP_VM = 1


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says of a task."""

    comm: str
    state: str
    parent: int
    flags: int
    start_time: int  # clock ticks since boot
    size: int  # bytes of address space; 0 without an mm
    image: tuple[int, ...]  # start_code, start_stack, start_brk, arg_start: new at every exec

    @property
    def has_memory(self) -> bool:
        return self.size > 0 and not self.flags & PF_KTHREAD and self.state not in "ZX"


def read_stat(pid: int) -> Stat | None:
    """None if there is no such task (any more)."""
    try:
        raw = (PROC / str(pid) / "stat").read_bytes()
    except OSError as error:
        check_open_files(error)
        return None
    left, right = raw.index(b"("), raw.rindex(b")")  # the name may hold anything
    words = raw[right + 2 :].split()
    return Stat(
        comm=raw[left + 1 : right].decode("utf-8", "backslashreplace"),
        state=words[0].decode(),
        parent=int(words[1]),
        flags=int(words[6]),
        start_time=int(words[19]),
        size=int(words[20]),
        image=tuple(int(words[i]) for i in (23, 25, 44, 45)),
    )


@dataclass
class ProcGroup:
    """A thread group; `task` is the thread whose mm is read: the leader, unless a zombie."""

    tgid: int
    stat: Stat
    task: int
    pids: list[int]
    explicit: bool = False  # selected by its own --pid: that it ends meanwhile is an error

    @property
    def parent(self) -> int:
        return self.stat.parent

    @property
    def comm(self) -> str:
        return self.stat.comm

    @property
    def started(self) -> int:
        return self.stat.start_time * NS_PER_TICK

    @property
    def has_memory(self) -> bool:
        return self.stat.has_memory or self.task != self.tgid

    def still_there(self) -> bool:
        """The same process with the same mm: its pid was not taken by another, no exec."""
        now = read_stat(self.tgid)
        return (
            now is not None
            and (now.start_time, now.image) == (self.stat.start_time, self.stat.image)
            and (self.task != self.tgid or now.has_memory)
        )


def _thread_with_memory(tgid: int) -> int:
    """A living thread of a zombie leader, or the leader itself."""
    try:
        tids = sorted(int(entry.name) for entry in (PROC / str(tgid) / "task").iterdir())
    except OSError:
        return tgid
    for tid in tids:
        stat = read_stat(tid)
        if stat is not None and stat.has_memory:
            return tid
    return tgid


def list_groups() -> dict[int, ProcGroup]:
    """All thread groups that the caller sees, by tgid."""
    groups = {}
    for entry in PROC.iterdir():
        if entry.name.isdecimal():
            tgid = int(entry.name)
            stat = read_stat(tgid)
            if stat is not None:
                task = _thread_with_memory(tgid) if stat.state == "Z" else tgid
                groups[tgid] = ProcGroup(tgid, stat, task, [tgid])
    return groups


def _status(pid: int, key: str) -> list[str]:
    """The words of one line of /proc/PID/status; none if there is no such task."""
    try:
        text = (PROC / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return []
    for line in text.split("\n"):
        if line.startswith(key + ":"):
            return line.split()[1:]
    return []


def user_ns(pid: int) -> int:
    """Inode number of its user namespace, 0 if unreadable."""
    try:
        name = (PROC / str(pid) / "ns" / "user").readlink().name  # user:[4026531837]
    except OSError as error:
        check_open_files(error)
        return 0
    number = name.removeprefix("user:[").removesuffix("]")
    return int(number) if number.isdecimal() else 0


def cgroup_path(tgid: int) -> str:
    """cgroup v2 path as the caller's cgroup namespace shows it, "" if unknown."""
    try:
        text = (PROC / str(tgid) / "cgroup").read_text(errors="backslashreplace")
    except OSError:
        return ""
    for line in text.split("\n"):
        if line.startswith("0::"):
            return line[3:].removesuffix(" (deleted)")
    return ""


@dataclass(frozen=True)
class KsmStat:
    """/proc/PID/ksm_stat (6.0+) and ksm_merging_pages (5.19+)."""

    observed: dict[str, int] = field(default_factory=dict)
    registered: bool = False
    merge_any: bool = False


def read_ksm_stat(pid: int) -> KsmStat:
    """Raises OSError (PermissionError) if they may not be read."""
    directory = PROC / str(pid)
    observed: dict[str, int] = {}
    yes = any_ = False
    try:
        for line in (directory / "ksm_stat").read_text().split("\n"):
            name, _, value = line.partition(" ")
            if value.strip().lstrip("-").isdecimal():
                observed[name] = int(value)
            else:  # ksm_merge_any: yes, ksm_mergeable: yes (6.14+, commit bf4b87e8)
                yes |= value.strip() == "yes"
                any_ |= (name, value.strip()) == ("ksm_merge_any:", "yes")
        if "ksm_merging_pages" not in observed:
            text = (directory / "ksm_merging_pages").read_text()
            if text:  # empty: no mm
                observed["ksm_merging_pages"] = int(text)
    except FileNotFoundError:
        pass
    kept = ("ksm_rmap_items", "ksm_merging_pages", "ksm_zero_pages")
    # Before 6.14 an mm without rmap_items may be registered too: no file tells.
    return KsmStat(
        {name: observed[name] for name in kept if name in observed},
        yes or observed.get("ksm_rmap_items", 0) > 0,
        any_,
    )


class _Kcmp:
    """kcmp(KCMP_VM): do two tasks share their mm?"""

    def __init__(self) -> None:
        self._number = _KCMP.get(platform.machine())
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.failed = False

    def order(self, a: int, b: int) -> int:
        """<0, 0, >0, by an order that the kernel keeps; by pid if it does not tell."""
        found = -1
        if self._number is not None:
            found = self._libc.syscall(
                ctypes.c_long(self._number), ctypes.c_long(a), ctypes.c_long(b),
                ctypes.c_long(_KCMP_VM), ctypes.c_long(0), ctypes.c_long(0),
            )  # fmt: skip
        if found not in (0, 1, 2):
            self.failed = True
            return a - b
        return (0, -1, 1)[found]


def _one_per_mm(groups: Iterable[ProcGroup], notes: list[str]) -> list[list[ProcGroup]]:
    """Thread groups by mm: more than one each where CLONE_VM came without CLONE_THREAD."""
    images: dict[tuple[int, ...], list[ProcGroup]] = {}
    for group in groups:
        images.setdefault(group.stat.image, []).append(group)
    kcmp = _Kcmp()
    mms: list[list[ProcGroup]] = []
    for alike in images.values():  # forks of one program, or the very same mm
        alike.sort(key=cmp_to_key(lambda a, b: kcmp.order(a.task, b.task)))
        start = len(mms)
        for group in alike:
            if len(mms) > start and kcmp.order(mms[-1][0].task, group.task) == 0:
                mms[-1].append(group)
            else:
                mms.append([group])
    if kcmp.failed:
        notes.append(
            "kcmp() does not work for all processes: some that share their memory (vfork) may be "
            "counted twice"
        )
    return mms


def select_processes(
    selection: Selection, notes: list[str], *, with_registered: bool = False
) -> list[Process]:
    """The selected mms by start time, the order in which ksmd would come to know them, behind
    those that it knows already, where /proc tells which; with all that it scans already if
    `with_registered`.

    `handle` is a ProcGroup. Raises UsageError for a selection that names nothing.
    """
    groups = list_groups()
    named = _add_threads(groups, selection.pids)
    chosen = select(groups, selection, cgroup_path)
    for tgid in named:
        groups[tgid].explicit = True
    own = int((PROC / "self").readlink().name)  # getpid() is of the caller's pid namespace
    if own in chosen and own not in named:
        chosen.remove(own)
        notes.append("ksm-eval's own process is left out")
    wanted = {tgid for tgid in chosen if tgid in groups and groups[tgid].has_memory}
    if not wanted:
        raise UsageError("the selection has no process with memory of its own")
    extra = _registered(groups, wanted | {own}) if with_registered else set()
    processes = []
    for mm in _one_per_mm((groups[tgid] for tgid in sorted(wanted | extra)), notes):
        eldest = min(mm, key=lambda group: (group.stat.start_time, group.tgid))
        eldest.explicit = any(group.explicit for group in mm)
        processes.append(_process(eldest, any(group.tgid in wanted for group in mm)))
    processes.sort(key=lambda one: (not one.registered, one.start_time, one.pid))
    if any(process.registered for process in processes):
        notes.append(
            "ksmd's list of processes cannot be read through /proc: scan order is taken to be by "
            "start time"
        )
    return processes


def _add_threads(groups: Mapping[int, ProcGroup], pids: Iterable[int]) -> set[int]:
    """Enter those of `pids` that are threads into their groups; the tgids of all of them."""
    named = set()
    for pid in pids:
        words = [str(pid)] if pid in groups else _status(pid, "Tgid")
        if words and int(words[0]) in groups:
            named.add(int(words[0]))
            groups[int(words[0])].pids.append(pid)
    return named


def _registered(groups: Mapping[int, ProcGroup], without: set[int]) -> set[int]:
    found = set()
    for tgid, group in groups.items():
        if tgid not in without and group.has_memory:
            try:
                if read_ksm_stat(group.task).registered:
                    found.add(tgid)
            except PermissionError as error:
                raise TargetError(
                    f"/proc/{tgid}/ksm_stat may not be read, and ksmd runs on this host",
                    hint(),
                ) from error
            except OSError:
                continue  # ended
    return found


def _process(group: ProcGroup, selected: bool) -> Process:
    unreadable = ""
    try:
        ksm = read_ksm_stat(group.task)
    except OSError as error:
        ksm = KsmStat()
        if isinstance(error, PermissionError):
            unreadable = NO_PTRACE
    uid = _status(group.tgid, "Uid")
    anon = _status(group.task, "RssAnon")  # kB
    rss = _status(group.task, "VmRSS")  # kB; before 6.16 without what each CPU has not yet added
    return Process(
        pid=group.tgid,
        comm=group.comm,
        cgroup=cgroup_path(group.tgid),
        uid=int(uid[0]) if uid else INVALID_UID,
        start_time=group.started,
        registered=ksm.registered,
        observed=ksm.observed,
        handle=group,
        selected=selected,
        ppid=group.parent,
        rss_pages=int(rss[0]) * 1024 // PAGE_SIZE if rss else None,
        user_ns=user_ns(group.task),
        unreadable=unreadable,
        anon_pages=int(anon[0]) * 1024 // PAGE_SIZE if anon else 0,
        merge_any=ksm.merge_any,
    )
