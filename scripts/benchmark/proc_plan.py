"""What the C twin of the /proc target is told: the address ranges of a process."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

from job import SEED
from plan import eligible

from ksm_eval.evaluate import open_live
from ksm_eval.target import Selection


def write_plan(pid: int, out: Path) -> dict[str, Any]:
    """The file proc-plan in `out`."""
    target = open_live("proc")
    (process,) = target.processes(Selection(pids=(pid,)))
    vmas = eligible(target, process)
    numbers = array("Q", [pid, SEED, len(vmas)])
    for vma in vmas:
        numbers.extend((vma.start, vma.end))
    (out / "proc-plan").write_bytes(numbers.tobytes())
    return {"kernel": target.info.release, "ranges": len(vmas)}
