"""What this process costs the host it runs on, and how it steps back behind the workload."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from contextlib import suppress
from pathlib import Path

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # system call number
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, include/uapi/linux/ioprio.h
_LOWEST = 19
_workers_rss = 0


def step_back() -> None:
    """Lowest CPU priority, disk only when nobody else wants it, and of all processes the first
    that the kernel ends if memory runs out. What the system refuses is left as it is."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _LOWEST)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(
            ctypes.c_long(number),
            ctypes.c_long(_IOPRIO_WHO_PROCESS),
            ctypes.c_long(0),
            ctypes.c_long(_IOPRIO_IDLE),
        )
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def cpu_seconds() -> float:
    """User and system time so far of this process and of workers that have ended."""
    all_of_it = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in all_of_it)


def available_bytes() -> int:
    """Memory that this process may take without harm to others, of the machine and of its own
    cgroup; a terabyte if unknown."""
    found = 1 << 40
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found = int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):  # "max" is no number, and the root has no such file
        cgroup = Path("/sys/fs/cgroup") / _own_cgroup()
        limit, used = (int((cgroup / f"memory.{n}").read_text()) for n in ("max", "current"))
        found = min(found, max(limit - used, 0))
    return found


def _own_cgroup() -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::/"):
            return line[4:]
    raise ValueError("no cgroup v2")


def add_workers(max_rss: int) -> None:
    """Count `max_rss` bytes of workers that ran at the same time."""
    global _workers_rss
    _workers_rss = max(_workers_rss, max_rss)


def max_rss_bytes() -> int:
    """The most memory that it and its workers have had. Not ru_maxrss: that starts from what the
    parent had."""
    return _own_status("VmHWM") + _workers_rss


def rss_bytes() -> int:
    """The memory it has now."""
    return _own_status("VmRSS")


def _own_status(name: str) -> int:
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
