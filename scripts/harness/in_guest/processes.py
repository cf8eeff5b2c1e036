"""Processes to look at, whose pages say whose they are; imports nothing that is large.

Page P of region N at its own address holds N, a tag and P, and is complete when it appears
there: it was written at another address, which is the same in all processes. So whatever a
snapshot says of such an address can be checked.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PAGE = 4096
PAGES = 16  # of a region
SCRATCH = 0x1F0000000000
BASE = 0x200000000000
SPAN = 1 << 20
END = BASE + (1 << 24) * SPAN
VMAS = 1 << 20  # first region of the process that maps and unmaps
KEPT = 24  # regions that it has at a time

_RW = mmap.PROT_READ | mmap.PROT_WRITE
_FIXED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
_MAY_MOVE_FIXED = 3
_MADV_DONTNEED = 4
_PR_SET_NAME = 15
_PR_SET_PDEATHSIG = 1
_NEWPID = 0x20000000

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
_SIZE = ctypes.c_size_t(PAGES * PAGE)


def content(region: int, tag: int, page: int) -> bytes:
    return struct.pack("<QQQQ", region, tag, page, 1) * (PAGE // 32)


def address(region: int) -> int:
    return BASE + region * SPAN


def add_region(region: int, tag: int = 0) -> None:
    scratch = ctypes.c_void_p(SCRATCH)
    libc.mmap(scratch, _SIZE, _RW, _FIXED, -1, ctypes.c_long(0))
    for page in range(PAGES):
        ctypes.memmove(SCRATCH + page * PAGE, content(region, tag, page), PAGE)
    libc.mremap(scratch, _SIZE, _SIZE, _MAY_MOVE_FIXED, ctypes.c_void_p(address(region)))


def _child(name: str) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def _storm() -> None:
    """Processes that come and go; one in eight stays for some seconds."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    region = 0
    while True:
        region += 1
        if os.fork() == 0:
            add_region(region)
            time.sleep(0.05 if region % 8 else 1 + region % 5)
            os._exit(0)
        time.sleep(0.03)


def _threads() -> None:
    add_region(VMAS - 1)
    while True:
        threads = [threading.Thread(target=time.sleep, args=(0.002,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.01)


def _vmas() -> None:
    """Maps, protects, empties and unmaps."""
    region = VMAS
    while True:
        add_region(region)
        oldest = ctypes.c_void_p(address(region - KEPT))
        if region - KEPT >= VMAS:
            libc.munmap(oldest, _SIZE)
        if region - VMAS > 4:
            libc.mprotect(ctypes.c_void_p(address(region - 3)), ctypes.c_size_t(4 * PAGE), 0)
            half = ctypes.c_void_p(address(region - 4) + 8 * PAGE)
            libc.madvise(half, ctypes.c_size_t(8 * PAGE), _MADV_DONTNEED)
        region += 1
        time.sleep(0.05)


class Churner:
    """One of these; stands still until go()."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        read, self._write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._write)
                os.setpgid(0, 0)
                os.nice(5)  # two emulated CPUs are few
                _child(kind)
                if os.read(read, 1):
                    {"storm": _storm, "threads": _threads, "vmas": _vmas}[kind]()
            finally:
                os._exit(0)
        os.close(read)
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)

    def go(self) -> None:
        os.write(self._write, b"g")

    def close(self) -> None:
        with suppress(OSError):  # also if it is closed already
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class Keeper:
    """A small process whose children can be started with a pid of one's choice, and ended.
    `nested`: it is the first of a pid namespace, /proc/PID/ns/pid_for_children of `pid`."""

    def __init__(self, *, nested: bool = False) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self._commands)
                _child("keeper")
                if nested and (libc.unshare(_NEWPID) or os.fork()):
                    os.wait()
                    return
                _child("keeper")
                for line in os.fdopen(commands):
                    name, *words = line.split()
                    run = _start if name == "start" else _end
                    os.write(answers, b"%d\n" % run(*map(int, words)))
            finally:
                os._exit(0)
        os.close(commands)
        os.close(answers)
        self._answer = os.fdopen(self._answers)

    def _ask(self, *words: object) -> int:
        os.write(self._commands, (" ".join(map(str, words)) + "\n").encode())
        return int(self._answer.readline())

    def start(self, region: int, tag: int = 0, uid: int = 0, pid: int = 0) -> int:
        """A process with one region; with this pid, if it is not 0. Its pid."""
        return self._ask("start", region, tag, uid, pid)

    def end(self, pid: int) -> None:
        self._ask("end", pid)

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _start(region: int, tag: int, uid: int, wanted: int) -> int:
    for _ in range(100):
        if wanted:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(wanted - 1))
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            if wanted in (0, os.getpid()):
                _child("kept")
                add_region(region, tag)
                if uid:
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                os.write(write, b"r")
                while True:
                    time.sleep(1000)
            os._exit(0)
        os.close(write)
        os.read(read, 1)
        os.close(read)
        if wanted in (0, pid):
            return pid
        os.waitpid(pid, 0)
    sys.exit(f"pid {wanted} cannot be had")


def _end(pid: int, *_: int) -> int:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid
