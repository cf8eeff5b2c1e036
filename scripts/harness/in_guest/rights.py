"""ksm-eval with less than root has: what it says, and what is enough."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from in_guest.forked import evaluated
from in_guest.processes import Keeper, libc

NOBODY = 65534
CAPABILITIES = {
    "chown": 0, "dac_override": 1, "dac_read_search": 2, "fowner": 3, "fsetid": 4, "kill": 5,
    "setgid": 6, "setuid": 7, "setpcap": 8, "net_bind_service": 10, "net_raw": 13,
    "sys_rawio": 17, "sys_chroot": 18, "sys_ptrace": 19, "sys_admin": 21, "mknod": 27,
    "audit_write": 29, "setfcap": 31, "syslog": 34,
}  # fmt: skip
# What Docker leaves a container that is not privileged.
DOCKER = frozenset(CAPABILITIES) - {
    "dac_read_search", "sys_rawio", "sys_ptrace", "sys_admin", "syslog",
}  # fmt: skip
EVERYTHING = (1 << 41) - 1
_PR_SET_KEEPCAPS = 8
_PR_SET_DUMPABLE = 4
_NEWNS, _NEWUSER = 0x20000, 0x10000000
_BIND, _PRIVATE, _REC = 0x1000, 1 << 18, 0x4000


def mask_of(names: frozenset[str] | set[str]) -> int:
    return sum(1 << CAPABILITIES[name] for name in names)


def must(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


def keep(mask: int, uid: int = 0) -> None:
    """Go on as `uid` with these capabilities, as a program does that was started so."""
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        libc.prctl(_PR_SET_KEEPCAPS, ctypes.c_ulong(1), 0, 0, 0)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = (ctypes.c_uint32 * 6)(low, low, low, high, high, high)
    libc.capget(header, (have := (ctypes.c_uint32 * 6)()))
    for row in range(6):
        sets[row] &= have[row - row % 3 + 1]  # no more than is permitted
    must(libc.capset(header, sets), "capset")
    libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)


def _user(*names: str) -> Callable[[], None]:
    return lambda: keep(mask_of(set(names)), NOBODY)


def _root_without(*names: str) -> Callable[[], None]:
    return lambda: keep(EVERYTHING & ~mask_of(set(names)))


def _user_namespace() -> None:
    """unshare --map-root-user"""
    must(libc.unshare(_NEWUSER), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text("0 0 1")
    Path("/proc/self/gid_map").write_text("0 0 1")


def masked() -> None:
    """Of mounts of its own, /dev/null in the place of /proc/kcore."""
    must(libc.unshare(_NEWNS), "unshare")
    must(libc.mount(b"", b"/", None, _REC | _PRIVATE, None), "private")
    must(libc.mount(b"/dev/null", b"/proc/kcore", None, _BIND, None), "bind")


def _docker(*more: str) -> Callable[[], None]:
    def prepare() -> None:
        masked()
        keep(mask_of(DOCKER | set(more)))

    return prepare


def tried(keeper: Keeper) -> dict[str, Any]:
    """Each: of a process of another user."""
    pid = keeper.start(1, uid=1000)
    target = ("--pid", str(pid))
    kcore, proc = (("--via", via, *target) for via in ("kcore", "proc"))
    found = {
        "user": evaluated(*target, prepare=_user()),
        "user kcore": evaluated(*kcore, prepare=_user()),
        "user proc": evaluated(*proc, prepare=_user()),
        "no ptrace": evaluated(*proc, prepare=_root_without("sys_ptrace")),
        "no admin": evaluated(*proc, prepare=_root_without("sys_admin")),
        "no rawio": evaluated(*kcore, prepare=_root_without("sys_rawio")),
        "user namespace": evaluated(*target, prepare=_user_namespace),
        "user namespace kcore": evaluated(*kcore, prepare=_user_namespace),
        "docker": evaluated(*target, prepare=_docker()),
        # These must do.
        "docker least": evaluated(*target, prepare=_docker("sys_admin", "sys_ptrace")),
        "user kcore least": evaluated(*kcore, prepare=_user("sys_rawio", "dac_read_search")),
        "user proc least": evaluated(
            *proc, prepare=_user("sys_admin", "sys_ptrace", "dac_read_search")
        ),
        "user proc no dac": evaluated(*proc, prepare=_user("sys_admin", "sys_ptrace")),
    }
    keeper.end(pid)
    return {**found, "pid": pid}


def locked_down() -> dict[str, Any]:
    """The kernel is locked down by now: confidentiality."""
    target = ("--comm", "init", "--mergeable-only")
    return {
        "level": Path("/sys/kernel/security/lockdown").read_text().strip(),
        "kcore": evaluated("--via", "kcore", *target),
        "auto": evaluated(*target),
    }
