"""Pid namespaces: a process by the number that the caller sees."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from in_guest.forked import evaluated
from in_guest.processes import Keeper, libc
from in_guest.rights import DOCKER, keep, mask_of, masked, must
from in_guest.targets import VIAS, opened

_NEWNS, _NEWPID = 0x20000, 0x20000000
_PRIVATE, _REC = 1 << 18, 0x4000


def _nothing() -> None: ...


def _entering(keeper: Keeper, more: Callable[[], None] = _nothing) -> Callable[[], None]:
    """Go on in the namespace of a nested keeper, as nsenter --pid and then --mount-proc do."""

    def enter() -> None:
        fd = os.open(f"/proc/{keeper.pid}/ns/pid_for_children", os.O_RDONLY)
        must(libc.setns(fd, _NEWPID), "setns")
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status))
        must(libc.unshare(_NEWNS), "unshare")
        must(libc.mount(b"", b"/", None, _REC | _PRIVATE, None), "private")
        must(libc.mount(b"proc", b"/proc", b"proc", 0, None), "mount")
        more()

    return enter


def _as_docker() -> None:
    masked()
    keep(mask_of(DOCKER | {"sys_admin", "sys_ptrace"}))


def nested(keeper: Keeper, inner: Keeper) -> dict[str, Any]:
    """A process in a namespace of its own, seen from inside and from outside; `outside`, with
    the same memory, is beyond it."""
    outside, pid = keeper.start(1), inner.start(1)
    (outer,) = (number for number in _called("kept") if number != outside)
    found: dict[str, Any] = {"outside": outside, "pid": pid, "outer": outer}
    enter = _entering(inner)
    for via in VIAS:
        for name, words in (
            ("pid", ("--pid", str(pid))),
            ("all", ("--all",)),
            ("beyond", ("--pid", str(outside))),
        ):
            found[f"{via} {name}"] = evaluated(*words, prepare=enter, target=opened(via))
        both = ("--pid", str(outer), "--pid", str(outside))
        found[f"{via} from outside"] = evaluated(*both, target=opened(via))
    found["docker"] = evaluated("--pid", str(pid), prepare=_entering(inner, _as_docker))
    keeper.end(outside)
    inner.end(pid)
    return found


def _called(name: str) -> list[int]:
    """Pids by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        if path.read_text().strip() == name:
            found.append(int(path.parent.name))
    return found
