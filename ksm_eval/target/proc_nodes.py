"""The NUMA node of each frame, by sysfs' memory blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ksm_eval.snapshot import U16, U64

_SYSTEM = Path("/sys/devices/system")


def nodes(pfns: U64, page_size: int, notes: list[str], system: Path = _SYSTEM) -> U16:
    """Node of each PFN; where that cannot be told 0, with a note."""
    found = np.zeros(len(pfns), np.uint16)
    directories = [path for path in (system / "node").glob("node[0-9]*") if path.is_dir()]
    if len(directories) < 2:
        return found
    try:
        block = int((system / "memory" / "block_size_bytes").read_text(), 16) // page_size
    except (OSError, ValueError):
        notes.append("the NUMA node of a page cannot be told: all are taken to be on one")
        return found
    of_block: dict[int, int] = {}
    for directory in directories:
        for memory in directory.glob("memory[0-9]*"):
            of_block[int(memory.name[6:])] = int(directory.name[4:])
    table = np.zeros(max(of_block, default=0) + 1, np.uint16)
    table[list(of_block)] = list(of_block.values())
    number = (pfns // np.uint64(block)).astype(np.int64)
    known = number < len(table)
    found[known] = table[number[known]]
    return found
