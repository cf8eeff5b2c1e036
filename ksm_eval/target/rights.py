"""What the caller may not do, in one line, and the command that would work."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Final

from ksm_eval.errors import TargetError

_BITS: Final = {  # include/uapi/linux/capability.h
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_SYS_RAWIO": 17,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
}
_NEEDED: Final = {
    "kcore": ("CAP_SYS_RAWIO",),  # open_kcore(), fs/proc/kcore.c
    "proc": ("CAP_SYS_ADMIN", "CAP_SYS_PTRACE"),  # frame numbers; memory of other users
}
_INITIAL_USER_NAMESPACE: Final = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h

NO_PTRACE: Final = "no permission to read it (CAP_SYS_PTRACE)"


def _effective() -> int:
    """CapEff, as a mask."""
    for line in Path("/proc/self/status").read_text(errors="replace").split("\n"):
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _in_user_namespace() -> bool:
    return Path("/proc/self/ns/user").stat().st_ino != _INITIAL_USER_NAMESPACE


def missing(via: str) -> list[str]:
    """Capabilities that reading by "kcore" or "proc" needs, and we have not."""
    have = _effective()
    needed = [name for name in _NEEDED[via] if not have >> _BITS[name] & 1]
    # The files are root's alone; either of the two reads them all the same.
    if os.geteuid() and not have & (
        1 << _BITS["CAP_DAC_OVERRIDE"] | 1 << _BITS["CAP_DAC_READ_SEARCH"]
    ):
        needed.append("CAP_DAC_READ_SEARCH")
    return needed


def hint() -> str:
    """The command that would work."""
    if os.geteuid():
        return "run it as root: sudo ksm-eval …"
    return (
        "run it on the host: sudo ksm-eval …; or give the container what it needs: docker run "
        "--pid=host --cap-add SYS_ADMIN --cap-add SYS_PTRACE …"
    )


def refused(via: str, what: str) -> TargetError:
    """`what` failed by "kcore" or "proc", and the most likely reason is what we may not do."""
    if _in_user_namespace():
        return TargetError(
            f"{what}: ksm-eval runs in a user namespace, where not even root may",
            "run it in the host's: sudo ksm-eval … on the host, or docker run --userns=host "
            "--pid=host --cap-add SYS_ADMIN --cap-add SYS_PTRACE …",
        )
    other = "proc" if via == "kcore" else "kcore"
    lacking = missing(via)
    who = f"uid {os.geteuid()}" if os.geteuid() else "root"
    reason = f"{what}: ksm-eval runs as {who} without {_listed(lacking)}" if lacking else what
    if lacking and not missing(other) and (other == "proc" or Path("/proc/kcore").is_file()):
        return TargetError(reason, f"use --via {other}, which does without; or {hint()}")
    return TargetError(reason, hint())


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def check_open_files(error: OSError) -> None:
    """TargetError if `error` only says that no more files may be open."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise TargetError(
            f"no more than {limit} files may be open, and each process takes two",
            "raise the limit with `ulimit -n`, or select fewer processes",
        ) from error
