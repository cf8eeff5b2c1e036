"""What the C programs and the naive way are told of a vmcore, written once, on no clock."""

from __future__ import annotations

import json
import shutil
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from drgn.helpers.linux.mm import virt_to_phys
from job import SEED

from ksm_eval.collect import collect
from ksm_eval.evaluate import open_target
from ksm_eval.snapshot import U64, MappingFlag, Snapshot, has
from ksm_eval.target import Process, Selection, Vma
from ksm_eval.target.containers import identify
from ksm_eval.target.kernel import KernelTarget
from ksm_eval.target.paging_x86 import image_to_physical
from ksm_eval.target.symbols import vmcoreinfo

NONE = 1 << 62
"""Instead of a number that nothing is compared with equal."""

SAMPLE = 30_000  # pages for the naive way
CHANGED = 0.9  # of the contents that several frames have
DENSITIES = (50, 10)  # percent of the frames that a fragmented set has


def eligible(target: Any, process: Process) -> list[Vma]:
    """The VMAs that collect() walks."""
    vmas: list[Vma] = target.vmas(process, mergeable_only=False)
    return [vma for vma in vmas if not vma.reason and vma.has_anon]


def _head(target: KernelTarget, processes: int) -> list[int]:
    """struct plan of reference.c."""
    prog, layout, paging = target._prog, target._page_layout, target._layout
    pgd = image_to_physical(prog, int(vmcoreinfo(prog)["SYMBOL(swapper_pg_dir)"], 16))
    assert pgd is not None
    huge = paging.huge_zero_pfn
    return [
        *(paging.paging.levels, pgd),
        *(layout.base, layout.size, layout.head, layout.mapping, layout.flags),
        *(layout.zone_shift, layout.zone_mask),
        NONE if layout.zone_device < 0 else layout.zone_device,
        *(paging.zero_pfn, NONE if huge is None else huge, target._max_pfn),
        int(not target.rules().prot_none_offered),
        *(SEED, processes),
    ]


def _sample(snapshot: Snapshot) -> list[tuple[int, int]]:
    """(pid, address) of mappings at equal distances, without those that drgn cannot read."""
    readable = np.flatnonzero(~has(snapshot.mappings.flags, MappingFlag.PROT_NONE))
    count = len(readable)
    at = readable[np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64)]
    vma = np.searchsorted(snapshot.vmas.offset, at, side="right") - 1
    pid = snapshot.processes.pid[snapshot.vmas.process[vma]].tolist()
    page = snapshot.mappings.page[at].astype(np.uint64)
    address = snapshot.vmas.start[vma] + page * np.uint64(snapshot.meta.page_size)
    return list(zip(pid, address.tolist(), strict=True))


def _write(path: Path, pfns: U64) -> None:
    path.write_bytes(pfns.astype(np.uint64).tobytes())


def write_plan(core: Path, out: Path) -> dict[str, Any]:
    """Files in `out`: plan, frames, frames-PERCENT, sample.json."""
    target = open_target(core)
    assert isinstance(target, KernelTarget)
    processes = target.processes(Selection(all=True))
    numbers = array("Q", _head(target, len(processes)))
    for process in processes:
        vmas = eligible(target, process)
        numbers.append(int(virt_to_phys(process.handle.mm.pgd)))  # type: ignore[attr-defined]
        numbers.append(len(vmas))
        for vma in vmas:
            numbers.extend((vma.start, vma.end))
    (out / "plan").write_bytes(numbers.tobytes())
    snapshot = collect(target, Selection(all=True), seed=SEED)
    pfns = snapshot.frames.pfn
    _write(out / "frames", pfns)
    random = np.random.default_rng(1)
    for percent in DENSITIES:
        chosen = random.random(len(pfns)) < percent / 100
        _write(out / f"frames-{percent}", pfns[chosen])
    (out / "sample.json").write_text(json.dumps(_sample(snapshot)))
    return {
        "kernel": snapshot.meta.release,
        "processes": len(snapshot.processes),
        "mappings": len(snapshot.mappings),
        "frames": len(pfns),
        "bytes": core.stat().st_size,
    }


def write_unique(core: Path, out: Path) -> dict[str, Any]:
    """A vmcore like this one, in which random bytes are in most frames that have an equal one."""
    target = open_target(core)
    snapshot = collect(target, Selection(all=True), seed=SEED)
    segments = identify(core).segments
    assert segments is not None
    _, content, size = np.unique(snapshot.frames.hash, return_inverse=True, return_counts=True)
    random = np.random.default_rng(3)
    changed = (size > 1) & (random.random(len(size)) < CHANGED)
    partial = out.with_suffix(".partial")
    shutil.copyfile(core, partial)
    with partial.open("r+b", buffering=0) as file:
        for pfn in snapshot.frames.pfn[changed[content]].astype(np.uint64) << np.uint64(12):
            row = int(np.flatnonzero(segments.address <= pfn)[-1])
            file.seek(int(pfn - segments.address[row] + segments.offset[row]))
            file.write(random.bytes(4096))
    partial.rename(out)
    return {}
