"""A pre-fork server's memory: python3 prefork.py WORKERS SCALE. Says READY, then sleeps.

Opts in to KSM by prctl(PR_SET_MEMORY_MERGE), also for its workers; they end with it.
"""

import ctypes
import mmap
import os
import random
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_MEMORY_MERGE = 67  # 6.4+
MADV_HUGEPAGE = 14
PAGE = mmap.PAGESIZE
HUGE = 2 << 20

libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def region(pages: int) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def fill(memory: mmap.mmap, contents: list[bytes], first: int = 0) -> None:
    for index, content in enumerate(contents, first):
        memory[index * PAGE : (index + 1) * PAGE] = content


def page(number: int) -> bytes:
    return random.Random(number).randbytes(PAGE)


def thp(contents: list[bytes]) -> mmap.mmap:
    """Memory for a huge page, aligned within a region of two."""
    memory = region(2 * HUGE // PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    first = -address % HUGE // PAGE
    libc.madvise(ctypes.c_void_p(address + first * PAGE), ctypes.c_size_t(HUGE), MADV_HUGEPAGE)
    fill(memory, contents, first)
    return memory


def main() -> None:
    workers, scale = int(sys.argv[1]), int(sys.argv[2])
    prctl(PR_SET_MEMORY_MERGE, 1)
    huge_pages = HUGE // PAGE
    kept = [region(600 * scale), region(200 * scale), region(150 * scale), region(40)]
    fill(kept[0], [page(i % 37) for i in range(600 * scale)])  # many equal
    fill(kept[1], [bytes(PAGE)] * (200 * scale))  # zero
    fill(kept[2], [page(10_000 + i) for i in range(150 * scale)])  # all different
    fill(kept[3], [page(i) for i in range(40)])
    address = ctypes.addressof(ctypes.c_char.from_buffer(kept[3]))
    libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(40 * PAGE), 0)
    kept.append(thp([page(20_000 + i % 300) for i in range(huge_pages)]))
    kept.append(thp([page(30_000 + i) for i in range(huge_pages)]))  # nothing to merge
    kept.append(thp([page(40_000 + i) for i in range(500)]))  # the rest is zero
    for number in range(workers):
        if os.fork() == 0:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            fill(kept[0], [page(50_000 + number)] * 20, 100)
            fill(kept[2], [page(60_000 + i) for i in range(30)])
            own = region(100 * scale)
            fill(own, [page(70_000 + i % 90) for i in range(100 * scale)])
            kept.append(own)
            kept.append(thp([page(80_000 + i % 400) for i in range(huge_pages)]))
            break
    else:
        print("READY", flush=True)
    while True:
        time.sleep(1000)


if __name__ == "__main__":
    main()
