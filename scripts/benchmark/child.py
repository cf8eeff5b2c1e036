"""One measurement of the Python side, in a process of its own: its last line is JSON."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import xxhash  # noqa: E402
from clock import Clock  # noqa: E402
from job import SEED, checksum, measured  # noqa: E402

from ksm_eval.errors import KsmEvalError, TargetError  # noqa: E402
from ksm_eval.footprint import available_bytes  # noqa: E402
from ksm_eval.target import Selection, Target  # noqa: E402

Found = dict[str, Any]
DIRECT = "direct"
"""Attribute of a KernelTarget: how it reads the file without drgn; None: it does not."""


def plan(core: str, out: str) -> Found:
    from plan import write_plan

    return write_plan(Path(core), Path(out))


def unique(core: str, out: str) -> Found:
    from plan import write_unique

    return write_unique(Path(core), Path(out))


def _opened(core: str, via: str) -> Target:
    """`via`: "drgn" for all reads through prog.read, else as ksm-eval itself would."""
    from ksm_eval.evaluate import open_target

    target = open_target(Path(core))
    if via == "drgn":
        if getattr(target, DIRECT, None) is None:
            raise TargetError("ksm-eval has no other way than drgn here", "")
        setattr(target, DIRECT, None)
    return target


def job(core: str, via: str = "", jobs: str = "1") -> Found:
    """VMAs to counters on a vmcore."""
    return measured(_opened(core, via), Selection(all=True), jobs=int(jobs))[2]


def frames(core: str, file: str, via: str = "") -> Found:
    """Read and hash these frames."""
    from ksm_eval.sweep import sweep

    target, clock = _opened(core, via), Clock()
    pfns = np.fromfile(file, np.uint64)
    target.frames(pfns)  # a target may want to have seen them
    with clock.stage("read and hash"):
        swept = sweep(target, pfns, SEED)
    return {
        **clock.measurement(),
        "pages": len(pfns),
        "results": {"frames": len(pfns), "checksum": checksum(pfns, swept.hash)},
    }


def naive(core: str, file: str, mappings: str) -> Found:
    """A page at a time out of each process, into a dict; a sample, scaled to all mappings."""
    from drgn.helpers.linux.mm import access_process_vm
    from drgn.helpers.linux.pid import find_task

    from ksm_eval.evaluate import open_target
    from ksm_eval.target.kernel import KernelTarget

    target = open_target(Path(core))
    assert isinstance(target, KernelTarget)
    sample = json.loads(Path(file).read_text())
    task = {pid: find_task(target._prog, pid) for pid in {pid for pid, _ in sample}}
    seen: dict[int, int] = {}
    clock = Clock()
    with clock.stage("sample"):
        for pid, address in sample:
            digest = xxhash.xxh3_64_intdigest(access_process_vm(task[pid], address, 4096))
            seen[digest] = seen.get(digest, 0) + 1
    found = clock.measurement()
    scale = int(mappings) / len(sample)
    return {
        **found,
        "seconds": found["seconds"] * scale,
        "cpu": found["cpu"] * scale,
        "pages": int(mappings),
        "sampled": len(sample),
    }


def proc_plan(pid: str, out: str) -> Found:
    from proc_plan import write_plan

    return write_plan(int(pid), Path(out))


def proc(pid: str) -> Found:
    """VMAs to counters of a live process, through /proc."""
    from ksm_eval.evaluate import open_live

    snapshot, _, found = measured(open_live("proc"), Selection(pids=(int(pid),)))
    if not snapshot.processes.selected.all():
        return {"failed": "this host's ksmd works on other processes, which take part"}
    return found


def settled(frames: str, kind: str) -> Found:
    from replays import settled

    return settled(int(frames), kind)


def exact(frames: str, passes: str) -> Found:
    from replays import exact

    return exact(int(frames), int(passes))


def whole(frames: str) -> Found:
    from replays import whole

    return whole(int(frames))


MEASUREMENTS: dict[str, Callable[..., Found]] = {
    function.__name__: function
    for function in (plan, unique, job, frames, naive, proc_plan, proc, settled, exact, whole)
}
SPARE = 1 << 30  # bytes of memory that are left to others


def main(name: str, *arguments: str) -> int:
    room = available_bytes() - SPARE
    # Of memory that is the process's own: a file that is mapped does not count.
    resource.setrlimit(resource.RLIMIT_DATA, (room, room))
    try:
        found = MEASUREMENTS[name](*arguments)
    except MemoryError:
        found = {"failed": f"does not fit into the {room >> 20} MiB of memory that were left"}
    except KsmEvalError as error:
        found = {"failed": error.message}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
