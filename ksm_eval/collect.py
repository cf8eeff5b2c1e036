"""Target -> Snapshot: select, list VMAs, walk, classify, read and hash."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ksm_eval.collect_ksmd import ksmd_state
from ksm_eval.content_kinds import content_kinds
from ksm_eval.errors import TargetError
from ksm_eval.footprint import available_bytes
from ksm_eval.memcmp_order import with_memcmp_order
from ksm_eval.save_check import Invalid, check_ksmd
from ksm_eval.snapshot import (
    I64,
    NO_COMPOUND,
    U8,
    U32,
    U64,
    Compounds,
    Entry,
    Frames,
    MappingFlag,
    Mappings,
    Metadata,
    Processes,
    Snapshot,
    Vmas,
    has,
)
from ksm_eval.sweep import sweep
from ksm_eval.tables import table_fits
from ksm_eval.target import (
    WALKING,
    WENT_AWAY,
    FrameTable,
    Gone,
    Process,
    Progress,
    Selection,
    Target,
    TargetInfo,
    Unreadable,
    Vma,
    WalkedVmas,
    rights,
)

BYTES_A_MAPPING = 280
"""Of memory that collecting and the settled state take at most, where each mapping has its own
frame. Measured through /proc with a million of them, beside 36 MiB for code: collecting 145 where
pages adjoin, 155 where none do; the settled state 233 where each content is there twice."""
BYTES_EXACT = 550
"""The same with `exact`: collecting 258, three passes 471 where each content is there twice."""
_BLOCK = 1 << 18  # mappings for which numbers of 8 bytes are in memory at once


@dataclass
class _Walked:
    """Every present, normal entry of the selected processes, before frames are known."""

    processes: list[Process] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # processes that could not be read, and why
    gone: list[str] = field(default_factory=list)  # those that ended meanwhile
    vmas: list[tuple[int, Vma]] = field(default_factory=list)  # (process row, VMA)
    pfn: list[U64] = field(default_factory=list)
    page: list[U32] = field(default_factory=list)
    flags: list[U8] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # entries of each VMA
    entries: list[U32] = field(default_factory=list)  # a row a VMA

    def add(
        self, process: Process, vmas: list[Vma], walked: WalkedVmas, scanned: list[int]
    ) -> None:
        """`scanned`: which of `vmas` the rows of `walked` are about."""
        found = dict(zip(scanned, range(len(scanned)), strict=True))
        none = np.zeros(len(Entry), np.uint32)
        for index, vma in enumerate(vmas):
            self.vmas.append((len(self.processes), vma))
            position = found.get(index)
            if position is None:
                self.counts.append(0)
                self.entries.append(none)
            else:
                self.counts.append(int(walked.offset[position + 1] - walked.offset[position]))
                self.entries.append(walked.entries[position])
        self.pfn.append(walked.pfn)
        self.page.append(walked.page)
        self.flags.append(walked.flags)
        self.processes.append(process)


def collect(
    target: Target,
    selection: Selection,
    *,
    mergeable_only: bool = False,
    progress: Progress | None = None,
    seed: int | None = None,
    exact: bool = False,
) -> Snapshot:
    """Read everything the replay needs about the selected processes.

    `exact`: also the order of the contents where single passes depend on it, so that
    simulate() is exact in each; the settled state does not need it.
    `seed` keys the content hashes; by default a random one that is not kept, so that
    a saved snapshot cannot be searched for known contents. Results do not depend on it.
    Raises UsageError for a selection that names nothing, TargetError for a target that
    cannot answer.
    """
    info = target.info
    counters = target.counters()
    # Where ksmd has worked already, what others offer it takes part in what merges.
    warm = bool(counters.get("ksm_rmap_items") or counters.get("pages_shared"))
    processes = target.processes(selection, with_registered=warm)
    bytes_a_mapping = BYTES_EXACT if exact else BYTES_A_MAPPING
    walked = _walk(target, processes, mergeable_only, bytes_a_mapping, progress)
    if not any(process.selected for process in walked.processes):
        raise _nothing_read(info, walked)
    if walked.gone:
        info.notes.append(
            f"{len(walked.gone)} processes ended while they were read and are left out: "
            + ", ".join(walked.gone)
        )
    pfns, row = _distinct(walked.pfn)
    walked.pfn.clear()
    table = target.frames(pfns)
    rules = target.rules()
    entries = np.array(walked.entries, np.uint32).reshape(len(walked.vmas), len(Entry))
    dropped = _count_entries(entries, walked.counts, table.entry, row)
    flags = np.concatenate([np.empty(0, np.uint8), *walked.flags])
    if not rules.prot_none_offered:
        dropped = np.union1d(dropped, np.flatnonzero(has(flags, MappingFlag.PROT_NONE)))
    page = np.concatenate([np.empty(0, np.uint32), *walked.page])
    counts = np.array(walked.counts, np.int64)
    if len(dropped):
        keep = np.ones(len(row), np.bool_)
        keep[dropped] = False
        row, page, flags = row[keep], page[keep], flags[keep]
        counts -= np.bincount(_vma_of(walked.counts, dropped), minlength=len(counts))
    used = np.zeros(len(pfns), np.bool_)
    used[row] = True
    frame_rows = np.flatnonzero(used)
    if len(frame_rows) < len(pfns):
        row = (np.cumsum(used, dtype=np.uint32) - np.uint32(1))[row]
    compounds, compound = _compounds(table, frame_rows)
    if rules.pmd_at_a_time:
        compounds = _with_order(target, compounds, compound, table.mapcount[frame_rows])
    seed = secrets.randbits(64) if seed is None else seed
    records = target.ksmd(walked.processes) if warm else None
    swept = sweep(target, pfns[frame_rows], seed, progress, checksums=records is not None)
    _refuse_if_filtered(swept.unreadable, len(frame_rows))
    frames = Frames(
        pfn=pfns[frame_rows],
        hash=swept.hash,
        flags=(table.flags[frame_rows] | swept.flags).astype(np.uint8),
        mapcount=table.mapcount[frame_rows],
        node=table.node[frame_rows],
        compound=compound,
    )
    settings, source = target.settings()
    unreadable = Counter(swept.unreadable)
    lost = int(entries[:, Entry.UNREADABLE].sum())
    if lost:
        dump = "page table or struct page not in the dump"
        unreadable[dump if info.kind == "vmcore" else WENT_AWAY] += lost
    mappings = Mappings(frame=row, page=page, flags=flags)
    vmas = _vma_table(walked, counts, entries)
    ksmd = None
    if records is not None and swept.checksum is not None:
        checksum = swept.checksum[mappings.frame]
        ksmd = ksmd_state(target, records, vmas, mappings.page, checksum, seed)
        try:
            check_ksmd(ksmd, len(walked.processes), info.page_size)
        except Invalid as error:
            info.notes.append(f"ksmd's own records cannot be used: {error}")
            ksmd = None
    return Snapshot(
        meta=Metadata(
            kind=info.kind,
            path=info.path,
            release=info.release,
            arch=info.arch,
            page_size=info.page_size,
            time=time.time(),
            debug_info=info.debug_info,
            rules=rules,
            settings=settings,
            settings_source=source,
            counters=counters,
            sizeof=info.sizeof,
            question="mergeable_only" if mergeable_only else "merge_any",
            selection=selection.words(),
            unreadable=dict(unreadable),
            lost=walked.lost,
            notes=list(info.notes),
            total_ram_pages=info.total_ram_pages,
        ),
        processes=_process_table(walked.processes),
        vmas=vmas,
        mappings=mappings,
        frames=with_memcmp_order(target, frames, rules, mappings, settings, ksmd, exact=exact),
        compounds=compounds,
        ksmd=ksmd,
        contents=content_kinds(target, frames, seed),
    )


def _walk(
    target: Target,
    processes: list[Process],
    mergeable_only: bool,
    bytes_a_mapping: int,
    progress: Progress | None,
) -> _Walked:
    walked = _Walked()
    left, mappings = available_bytes(), 0
    for done, process in enumerate(processes):
        reason = process.unreadable
        if not reason:
            try:
                only = mergeable_only or process.merge_any or not process.selected
                vmas = target.vmas(process, mergeable_only=only)
                scanned = [i for i, vma in enumerate(vmas) if not vma.reason and vma.has_anon]
                found = target.walk(process, [vmas[i] for i in scanned])
            except Gone:
                walked.gone.append(f"{process.pid} ({process.comm})")
            except Unreadable as error:
                reason = error.reason
            else:
                walked.add(process, vmas, found, scanned)
                mappings += len(found.pfn)
                _require_memory(mappings, bytes_a_mapping * mappings, left)
        if reason:
            walked.lost.append(f"pid {process.pid} ({process.comm}): {reason}")
        if progress is not None:
            progress(WALKING, done + 1, len(processes))
    return walked


def _require_memory(mappings: int, needed: int, left: int) -> None:
    """`left` when none of them had been read."""
    if needed > left:
        raise TargetError(
            f"{mappings} pages need {needed >> 20} MiB of memory, and this machine has only "
            f"{left >> 20} MiB left",
            "select fewer processes, or evaluate a vmcore on a larger machine",
        )


def _nothing_read(info: TargetInfo, walked: _Walked) -> TargetError:
    if not walked.lost:
        return TargetError("all of the selected processes ended while they were read", "try again")
    hint = "the dump lacks kernel pages; take it with makedumpfile -d 17 or unfiltered"
    if rights.NO_PTRACE in walked.lost[0]:
        hint = rights.hint()
    elif info.kind != "vmcore":
        hint = "try again while the processes run"
    return TargetError(f"none of the selected processes can be read: {walked.lost[0]}", hint)


def _distinct(walked: list[U64]) -> tuple[U64, U32]:
    """The distinct PFNs ascending, and the row of each mapping's PFN in them."""
    mappings = sum(map(len, walked))
    if not mappings:
        return np.empty(0, np.uint64), np.empty(0, np.uint32)
    top = 1 + max(int(pfn.max()) for pfn in walked if len(pfn))
    row = np.empty(mappings, np.uint32)
    bounds = np.cumsum([0, *map(len, walked)]).tolist()
    if not table_fits(5 * top, mappings):
        ascending = np.concatenate(walked)
        ascending.sort()
        first = np.ones(mappings, np.bool_)
        np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
        pfns = ascending[first]
        del ascending, first
        for start, pfn in zip(bounds, walked, strict=False):
            for begin in range(0, len(pfn), _BLOCK):
                part = pfn[begin : begin + _BLOCK]
                row[start + begin : start + begin + len(part)] = np.searchsorted(pfns, part)
        return pfns, row
    seen = np.zeros(top, np.bool_)
    for pfn in walked:
        seen[pfn] = True
    pfns = np.flatnonzero(seen).astype(np.uint64)
    of_pfn = np.empty(top, np.uint32)
    of_pfn[pfns] = np.arange(len(pfns), dtype=np.uint32)
    for start, end, pfn in zip(bounds, bounds[1:], walked, strict=False):
        row[start:end] = of_pfn[pfn]
    return pfns, row


def _vma_of(counts: list[int], positions: I64) -> I64:
    """Row of the VMA that each mapping is in; `counts`: mappings of each VMA."""
    return np.searchsorted(np.cumsum(counts), positions, side="right")


def _count_entries(entries: U32, counts: list[int], entry: U8, row: U32) -> I64:
    """Add the present entries to `entries`, by VMA and kind (`entry` of each frame). Returns which
    mappings are no candidates."""
    entries[:, Entry.CANDIDATE] += np.array(counts, np.uint32)
    if not (entry != Entry.CANDIDATE).any():
        return np.empty(0, np.int64)
    others = np.flatnonzero((entry != Entry.CANDIDATE)[row])
    vma = _vma_of(counts, others)
    np.add.at(entries, (vma, entry[row[others]].astype(np.intp)), np.uint32(1))
    entries[:, Entry.CANDIDATE] -= np.bincount(vma, minlength=len(entries)).astype(np.uint32)
    return others


def _compounds(table: FrameTable, rows: NDArray[np.int64]) -> tuple[Compounds, U32]:
    """The compounds of the frames in `rows`, and each frame's row in them."""
    large = np.flatnonzero(table.head_pages[rows] > 1)
    heads = table.head[rows[large]]
    first = np.ones(len(heads), np.bool_)
    first[1:] = heads[1:] != heads[:-1]  # frames ascend, so a compound's are together
    one = rows[large[first]]
    compound = np.full(len(rows), NO_COMPOUND, np.uint32)
    compound[large] = np.cumsum(first) - 1
    return (
        Compounds(
            head=table.head[one],
            pages=table.head_pages[one],
            pinned=table.head_pinned[one],
            pmd_mapcount=table.head_pmd_mapcount[one],
        ),
        compound,
    )


def _with_order(target: Target, compounds: Compounds, compound: U32, mapcount: U32) -> Compounds:
    """`compound` and `mapcount` have a row a frame."""
    member = compound != NO_COMPOUND
    row = compound[member]
    mixed = np.zeros(len(compounds), np.bool_)  # some page has more than the PMDs
    np.logical_or.at(mixed, row, mapcount[member] > compounds.pmd_mapcount[row])
    mixed &= compounds.pmd_mapcount > 0
    behind = target.pte_behind(compounds.head[mixed], compounds.pages[mixed])
    if behind is None:
        return compounds
    mixed[mixed] = behind
    return replace(compounds, pte_behind=mixed)


def _refuse_if_filtered(unreadable: dict[str, int], frames: int) -> None:
    filtered = sum(n for reason, n in unreadable.items() if "filtered" in reason)
    if filtered * 2 > frames:
        raise TargetError(
            f"the dump was filtered: {filtered} of {frames} anonymous pages are not in it",
            "take it with makedumpfile -d 17 (or -d 1, -d 16): levels 8 and up to 15, 24 to 31 "
            "drop user pages, which is all that KSM looks at",
        )


def _process_table(processes: list[Process]) -> Processes:
    names = set.intersection(*(set(process.observed) for process in processes))
    rss = [p.rss_pages for p in processes if p.rss_pages is not None]
    return Processes(
        pid=np.array([p.pid for p in processes], np.int32),
        comm=[p.comm for p in processes],
        cgroup=[p.cgroup for p in processes],
        uid=np.array([p.uid for p in processes], np.uint32),
        start_time=np.array([p.start_time for p in processes], np.uint64),
        registered=np.array([p.registered for p in processes], np.bool_),
        selected=np.array([p.selected for p in processes], np.bool_),
        observed={
            name: np.array([p.observed[name] for p in processes], np.int64)
            for name in sorted(names)
        },
        ppid=np.array([p.ppid for p in processes], np.int32),
        rss_pages=np.array(rss, np.int64) if len(rss) == len(processes) else None,
        user_ns=np.array([p.user_ns for p in processes], np.uint32),
    )


def _vma_table(walked: _Walked, counts: NDArray[np.int64], entries: U32) -> Vmas:
    vmas = [vma for _, vma in walked.vmas]
    return Vmas(
        process=np.array([row for row, _ in walked.vmas], np.uint32),
        start=np.array([vma.start for vma in vmas], np.uint64),
        end=np.array([vma.end for vma in vmas], np.uint64),
        flags=np.array([vma.flags for vma in vmas], np.uint64),
        name=[vma.name for vma in vmas],
        reason=[vma.reason for vma in vmas],
        offset=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        entries=entries,
    )
