"""The same frozen processes by /proc/kcore and by /proc: two snapshots, row by row.

What /proc cannot tell is named here, and counted apart: all else must be equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from in_guest.targets import VIAS, opened
from ksm_eval.collect import collect
from ksm_eval.snapshot import NO_COMPOUND, Entry, Frames, MappingFlag, Snapshot, has
from ksm_eval.snapshot import FrameFlag as F
from ksm_eval.target import Selection
from ksm_eval.target.proc_maps import SHOWN
from ksm_eval.target.proc_tasks import NS_PER_TICK

SEED = 0x5EED
EXAMPLES = 5
# Of a frame, no file of /proc has references beyond mappings, nor PG_anon_exclusive: what
# pagemap calls exclusive is a page that is mapped once.
HIDDEN_IN_FRAMES = F.PINNED | F.EXCLUSIVE
# Of a VMA that has an anon_vma but no anonymous page, /proc does not count what else is mapped:
# it shows no anon_vma, and ksmd finds nothing there.
# Names that drgn gives to what the kernel calls otherwise: a VMA that only touches the heap, and
# a file without a name.
NAMES = {"[heap]": "", "[tmpfs]": "/dev/zero (deleted)"}
# Start times are in clock ticks; smaps has letters for some of vm_flags only (SHOWN). Before
# 6.14 nothing tells which processes have opted in until ksmd has seen them: it scans those first.
# Of resident pages, /proc leaves out before 6.16 what CPUs have not yet added: not compared.
# Compounds.pte_behind, in the kernels that have Rules.pmd_at_a_time, is not compared.
# general_profit is a file of sysfs alone, which computes it from the other counters.
# Of an entry, pagemap has neither the right to write nor the dirty bit.
HIDDEN_IN_MAPPINGS = MappingFlag.WRITE | MappingFlag.DIRTY


def taken() -> dict[str, Snapshot]:
    """All processes of the workload, and the guest's first one, by both ways."""
    wanted = Selection(comms=("init",))
    return {via: collect(opened(via), wanted, seed=SEED, exact=True) for via in VIAS}


def _differences(
    what: str, left: Iterable[object], right: Iterable[object], where: Iterable[object]
) -> list[str]:
    """Rows of two columns that differ; `where` names the rows."""
    left, right, where = list(left), list(right), list(where)
    if len(left) != len(right):
        return [f"{what}: {len(left)} rows by kcore, {len(right)} by proc"]
    rows = [row for row, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]]
    shown = [f"{what} of {where[row]}: {left[row]}, {right[row]}" for row in rows[:EXAMPLES]]
    return shown + ([f"{what}: {len(rows)} rows in all"] if len(rows) > EXAMPLES else [])


def _tables(snapshot: Snapshot) -> dict[str, dict[str, list[Any]]]:
    """Every column as it must be by both ways; processes by pid, see `known` in compared()."""
    processes, vmas, frames = snapshot.processes, snapshot.vmas, snapshot.frames
    assert processes.ppid is not None
    assert processes.user_ns is not None
    assert snapshot.contents is not None
    by_pid = np.argsort(processes.pid)
    by_vma = np.lexsort((vmas.start, processes.pid[vmas.process]))
    counts = np.diff(vmas.offset)
    has_anon = vmas.entries[:, Entry.CANDIDATE] + vmas.entries[:, Entry.SWAP] > 0
    entries = np.where(has_anon[:, None], vmas.entries, 0)
    vma_names = [
        f"{processes.pid[row]} {start:#x}"
        for row, start in zip(vmas.process.tolist(), vmas.start.tolist(), strict=True)
    ]
    vma_of = np.repeat(by_vma, counts[by_vma])
    rows = np.concatenate([np.arange(*vmas.offset[vma : vma + 2]) for vma in by_vma.tolist()])
    frame, page, flags = (
        column[rows] for column in (snapshot.mappings.frame, snapshot.mappings.page,
                                    snapshot.mappings.flags)
    )  # fmt: skip
    large = frames.compound != NO_COMPOUND
    compound = np.where(large, frames.compound, 0).astype(np.intp)

    def of(order: NDArray[np.intp], values: Sequence[Any] | NDArray[Any]) -> list[Any]:
        return [values[row] for row in order.tolist()]

    return {
        "processes": {
            "": of(by_pid, processes.pid),
            "comm": of(by_pid, processes.comm),
            "cgroup": of(by_pid, processes.cgroup),
            "uid": of(by_pid, processes.uid),
            "start_time": of(by_pid, processes.start_time // np.uint64(NS_PER_TICK)),
            "selected": of(by_pid, processes.selected),
            "ppid": of(by_pid, processes.ppid),
            "user_ns": of(by_pid, processes.user_ns),
            **{name: of(by_pid, column) for name, column in processes.observed.items()},
        },
        "vmas": {
            "": of(by_vma, vma_names),
            "end": of(by_vma, vmas.end),
            "name": [NAMES.get(name, name) for name in of(by_vma, vmas.name)],
            "reason": of(by_vma, vmas.reason),
            "flags": of(by_vma, vmas.flags & np.uint64(SHOWN)),
            "mappings": of(by_vma, counts),
            **{f"entries {kind.name}": of(by_vma, entries[:, kind]) for kind in Entry},
        },
        "mappings": {
            "": [
                f"{vma_names[vma]} + {number}"
                for vma, number in zip(vma_of.tolist(), page.tolist(), strict=True)
            ],
            "pfn": frames.pfn[frame].tolist(),
            "flags": (flags & ~np.uint8(HIDDEN_IN_MAPPINGS)).tolist(),
        },
        "frames": {
            "": [f"PFN {pfn:#x}" for pfn in frames.pfn.tolist()],
            "hash": frames.hash.tolist(),
            "flags": (frames.flags & ~np.uint8(HIDDEN_IN_FRAMES)).tolist(),
            "mapcount": frames.mapcount.tolist(),
            "node": frames.node.tolist(),
            "order": [] if frames.order is None else frames.order.tolist(),
            **{
                f"compound {field}": _of_compound(frames, column, compound, large)
                for field, column in (
                    ("head", snapshot.compounds.head),
                    ("pages", snapshot.compounds.pages),
                    ("pmd_mapcount", snapshot.compounds.pmd_mapcount),
                )
            },
        },
        "contents": {
            "": [f"{value:#x}" for value in snapshot.contents.hash.tolist()],
            "kind": snapshot.contents.kind.tolist(),
        },
    }


def _of_compound(
    frames: Frames,
    column: NDArray[Any],
    compound: NDArray[np.intp],
    large: NDArray[np.bool_],
) -> list[int]:
    if not len(column):
        return [0] * len(frames)
    found: list[int] = np.where(large, column[compound], 0).tolist()
    return found


def compared() -> dict[str, Any]:
    """Differences, how many rows were compared, and what only kcore told."""
    snapshots = taken()
    kcore, proc = (snapshots[via] for via in ("kcore", "proc"))
    left, right = _tables(kcore), _tables(proc)
    differences = []
    for table, columns in left.items():
        others = right[table]
        if columns[""] != others[""]:
            differences += _differences(table, columns[""], others[""], columns[""])
            continue
        for column in sorted({*columns, *others} - {""}):
            differences += _differences(
                f"{table} {column}",
                *(columns.get(column, []), others.get(column, []), columns[""]),
            )
    for name in (field.name for field in fields(kcore.meta)):
        values = [getattr(snapshot.meta, name) for snapshot in (kcore, proc)]
        if name == "counters":
            values = [{k: v for k, v in value.items() if k != "general_profit"} for value in values]
        if name not in ("kind", "time", "debug_info", "notes") and values[0] != values[1]:
            differences.append(f"meta {name}: {values[0]}, {values[1]}")
    flags = kcore.frames.flags
    return {
        "differences": differences,
        "rows": {table: len(columns[""]) for table, columns in left.items()},
        "seen": {  # so that none of it is compared by its absence
            "HUGE": int(has(kcore.mappings.flags, MappingFlag.HUGE).sum()),
            "PROT_NONE": int(has(kcore.mappings.flags, MappingFlag.PROT_NONE).sum()),
            "ZERO": int(has(flags, F.ZERO).sum()),
            "SWAPCACHE": int(has(flags, F.SWAPCACHE).sum()),
            "shared": int((kcore.frames.mapcount > 1).sum()),
            "compounds": len(kcore.compounds),
            "reasons": sorted(set(kcore.vmas.reason)),
            "swapped": int(kcore.vmas.entries[:, Entry.SWAP].sum()),
        },
        "hidden": {  # what only kcore tells
            "PINNED": int(has(flags, F.PINNED).sum()),
            "EXCLUSIVE": int(has(flags, F.EXCLUSIVE).sum()),
            "WRITE": int(has(kcore.mappings.flags, MappingFlag.WRITE).sum()),
            "DIRTY": int(has(kcore.mappings.flags, MappingFlag.DIRTY).sum()),
            "registered": int(kcore.processes.registered.sum()),
        },
    }
