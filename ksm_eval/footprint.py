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
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def available_bytes() -> int:
    """Memory that this process may take without harm to others; a terabyte if unknown."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 40


def max_rss_bytes() -> int:
    """The most memory it has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
