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
from ksm_eval.jobs import sweep_in_jobs
from ksm_eval.listening import heard
from ksm_eval.listening import walked as walk_heard
from ksm_eval.memcmp_order import with_memcmp_order
from ksm_eval.memory import Memory
from ksm_eval.memory import memory as memory_now
from ksm_eval.save_check import Invalid, check_ksmd
from ksm_eval.snapshot import (
    I64,
    NO_COMPOUND,
    U8,
    U32,
    Compounds,
    Entry,
    Frames,
    MappingFlag,
    Mappings,
    Metadata,
    Pfns,
    Processes,
    Snapshot,
    Vmas,
    has,
)
from ksm_eval.tables import BLOCK, constant, joined, table_fits, take, without
from ksm_eval.target import (
    CLASSIFYING,
    ORDERING,
    RECORDS,
    WALKING_PROCESSES,
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

_OTHER = 0xFFFFFF00  # instead of a frame's row, plus Entry: the mapping is no candidate


@dataclass
class _Walked:
    """Every present, normal entry of the selected processes, before frames are known."""

    processes: list[Process] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # processes that could not be read, and why
    gone: list[str] = field(default_factory=list)  # those that ended meanwhile
    vmas: list[tuple[int, Vma]] = field(default_factory=list)  # (process row, VMA)
    pfn: list[Pfns] = field(default_factory=list)
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
    max_memory: int = 0,
    jobs: int | None = None,
) -> Snapshot:
    """Read everything the replay needs about the selected processes.

    `exact`: also the order of the contents where single passes depend on it, so that
    simulate() is exact in each; the settled state does not need it.
    `seed` keys the content hashes; by default a random one that is not kept, so that
    a saved snapshot cannot be searched for known contents. Results do not depend on it.
    `max_memory`: bytes that this process may have, 0 for all that the machine can spare.
    `jobs`: worker processes that read a vmcore, at most; by default as many as help.
    Raises UsageError for a selection that names nothing, TargetError for a target that
    cannot answer, or needs more memory than there is.
    """
    info = target.info
    counters = target.counters()
    # Where ksmd has worked already, what others offer it takes part in what merges.
    warm = bool(counters.get("ksm_rmap_items") or counters.get("pages_shared"))
    processes = target.processes(selection, with_registered=warm)
    memory = memory_now(max_memory, info.page_size, exact=exact, proc=info.kind == "procfs")
    _require_enough(processes, mergeable_only or warm, memory)
    walked = _walk(target, processes, mergeable_only, memory, progress)
    if not any(process.selected for process in walked.processes):
        raise _nothing_read(info, walked)
    if walked.gone:
        info.notes.append(
            f"{len(walked.gone)} processes ended while they were read and are left out: "
            + ", ".join(walked.gone)
        )
    pfns = _distinct(walked.pfn)
    memory.require(sum(walked.counts), len(pfns))
    with heard(target, progress, CLASSIFYING):
        table = target.frames(pfns)
    row = _rows(walked.pfn, pfns, table.entry)
    rules = target.rules()
    entries = np.array(walked.entries, np.uint32).reshape(len(walked.vmas), len(Entry))
    dropped = _count_entries(entries, walked.counts, row)
    flags = joined(walked.flags, np.uint8)
    used = table.entry == Entry.CANDIDATE
    if not rules.prot_none_offered:
        dropped = np.union1d(dropped, np.flatnonzero(has(flags, MappingFlag.PROT_NONE)))
    page = joined(walked.page, np.uint32)
    counts = np.array(walked.counts, np.int64)
    if len(dropped):
        row, page = without(row, dropped), without(page, dropped)
        flags = without(flags, dropped)
        counts -= np.bincount(_vma_of(walked.counts, dropped), minlength=len(counts))
        if not rules.prot_none_offered:
            row, used = _renumbered(row, used)
    pfns, table = _of_frames(pfns, table, used)
    compounds = table.compounds
    if rules.pmd_at_a_time:
        compounds = _with_order(target, compounds, table.compound, table.mapcount)
    seed = secrets.randbits(64) if seed is None else seed
    with heard(target, progress, RECORDS):
        records = target.ksmd(walked.processes) if warm else None
    swept = sweep_in_jobs(
        target,
        pfns,
        seed,
        progress,
        checksums=records is not None,
        jobs=jobs,
        max_memory=max_memory,
    )
    _refuse_if_filtered(swept.unreadable, len(pfns))
    frames = Frames(
        pfn=pfns,
        hash=swept.hash,
        flags=table.flags | swept.flags,
        mapcount=table.mapcount,
        node=table.node,
        compound=table.compound,
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
        with heard(target, progress, RECORDS):
            ksmd = ksmd_state(target, records, vmas, mappings.page, checksum, seed)
        try:
            check_ksmd(ksmd, len(walked.processes), info.page_size)
        except Invalid as error:
            info.notes.append(f"ksmd's own records cannot be used: {error}")
            ksmd = None
    with heard(target, progress, ORDERING):
        frames = with_memcmp_order(target, frames, rules, mappings, settings, ksmd, exact=exact)
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
            pace=target.pace(),
        ),
        processes=_process_table(walked.processes),
        vmas=vmas,
        mappings=mappings,
        frames=frames,
        compounds=compounds,
        ksmd=ksmd,
        contents=content_kinds(target, frames, seed),
    )


def _walk(
    target: Target,
    processes: list[Process],
    mergeable_only: bool,
    memory: Memory,
    progress: Progress | None,
) -> _Walked:
    walked = _Walked()
    mappings = done = 0
    pages = sum(process.anon_pages for process in processes)
    for number, process in enumerate(processes):
        if progress is not None and not pages:
            progress(WALKING_PROCESSES, number, len(processes))
        reason = process.unreadable
        if not reason:
            try:
                only = mergeable_only or process.merge_any or not process.selected
                vmas = target.vmas(process, mergeable_only=only)
                scanned = [i for i, vma in enumerate(vmas) if not vma.reason and vma.has_anon]
                with walk_heard(target, progress, done, process.anon_pages, pages):
                    found = target.walk(process, [vmas[i] for i in scanned])
            except Gone:
                walked.gone.append(f"{process.pid} ({process.comm})")
            except Unreadable as error:
                reason = error.reason
            else:
                walked.add(process, vmas, found, scanned)
                mappings += len(found.pfn)
                memory.require(mappings)
        if reason:
            walked.lost.append(f"pid {process.pid} ({process.comm}): {reason}")
        done += process.anon_pages
    return walked


def _require_enough(processes: list[Process], partly: bool, memory: Memory) -> None:
    """Before anything is walked, by the kernel's own counts of what is read as a whole (`partly`:
    of nothing). Processes may share their frames, but one has one of its own for each page."""
    whole = [p.anon_pages for p in processes if not (partly or p.merge_any)]
    memory.require(sum(whole), max(whole, default=0), clearly=True)


def _nothing_read(info: TargetInfo, walked: _Walked) -> TargetError:
    if not walked.lost:
        return TargetError("all of the selected processes ended while they were read", "try again")
    hint = "the dump lacks kernel pages; take it with makedumpfile -d 17 or unfiltered"
    if rights.NO_PTRACE in walked.lost[0]:
        hint = rights.hint()
    elif info.kind != "vmcore":
        hint = "try again while the processes run"
    return TargetError(f"none of the selected processes can be read: {walked.lost[0]}", hint)


def _distinct(walked: list[Pfns]) -> Pfns:
    """The distinct PFNs, ascending."""
    mappings = sum(map(len, walked))
    top = 1 + max((int(pfn.max()) for pfn in walked if len(pfn)), default=0)
    number: type[np.uint32] | type[np.uint64] = np.uint32 if top <= 1 << 32 else np.uint64
    if not table_fits(top, mappings):
        ascending: Pfns = np.concatenate([np.empty(0, number), *walked]).astype(number)
        ascending.sort()
        first = np.ones(mappings, np.bool_)
        np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
        return ascending[first]
    seen = np.zeros(top, np.bool_)
    for pfn in walked:
        for begin in range(0, len(pfn), BLOCK):
            seen[pfn[begin : begin + BLOCK]] = True
    pfns: Pfns = np.empty(np.count_nonzero(seen), number)
    found = 0
    for begin in range(0, top, BLOCK):
        some = np.flatnonzero(seen[begin : begin + BLOCK]) + begin
        pfns[found : found + len(some)] = some
        found += len(some)
    return pfns


def _rows(walked: list[Pfns], pfns: Pfns, entry: U8) -> U32:
    """Row of each mapping's frame among the candidates of the ascending `pfns`; of others _OTHER
    and their Entry. Empties `walked`, whose arrays would be in the way."""
    number = np.cumsum(entry == Entry.CANDIDATE, dtype=np.uint32)
    number -= np.uint32(1)
    others = np.flatnonzero(entry != Entry.CANDIDATE)
    number[others] = entry[others] + np.uint32(_OTHER)
    row = np.empty(sum(map(len, walked)), np.uint32)
    top = 1 + int(pfns[-1]) if len(pfns) else 0
    of_pfn: U32 | None = None
    if table_fits(4 * top, len(row)):
        of_pfn = np.empty(top, np.uint32)
        for begin in range(0, len(pfns), BLOCK):
            part = slice(begin, begin + BLOCK)
            of_pfn[pfns[part]] = number[part]
        del number
    end = len(row)
    while walked:
        mapped = walked.pop()
        rows = row[end - len(mapped) : end]
        end -= len(mapped)
        if of_pfn is not None:
            take(of_pfn, mapped, rows)
        else:
            for begin in range(0, len(mapped), BLOCK):
                part = slice(begin, begin + BLOCK)
                rows[part] = number[np.searchsorted(pfns, mapped[part].astype(pfns.dtype))]
    return row


def _vma_of(counts: list[int], positions: I64) -> I64:
    """Row of the VMA that each mapping is in; `counts`: mappings of each VMA."""
    return np.searchsorted(np.cumsum(counts), positions, side="right")


def _count_entries(entries: U32, counts: list[int], row: U32) -> I64:
    """Add the present entries to `entries`, by VMA and kind (`row` as from _rows()). Returns which
    mappings are no candidates."""
    entries[:, Entry.CANDIDATE] += np.array(counts, np.uint32)
    others = np.flatnonzero(row >= np.uint32(_OTHER))
    if len(others):
        vma = _vma_of(counts, others)
        kind = (row[others] - np.uint32(_OTHER)).astype(np.intp)
        np.add.at(entries, (vma, kind), np.uint32(1))
        entries[:, Entry.CANDIDATE] -= np.bincount(vma, minlength=len(entries)).astype(np.uint32)
    return others


def _renumbered(row: U32, used: NDArray[np.bool_]) -> tuple[U32, NDArray[np.bool_]]:
    """Rows among the candidates (`used`) that still have a mapping, and which these are."""
    mapped = np.zeros(np.count_nonzero(used), np.bool_)
    mapped[row] = True
    used[used] = mapped
    return (np.cumsum(mapped, dtype=np.uint32) - np.uint32(1))[row], used


def _of_frames(pfns: Pfns, table: FrameTable, used: NDArray[np.bool_]) -> tuple[Pfns, FrameTable]:
    """Of the frames in `used` only. Columns that say the same of all take no memory."""
    columns = {name: getattr(table, name) for name in ("entry", "flags", "mapcount", "node")}
    compound, compounds = table.compound, table.compounds
    if not used.all():
        pfns, compound = pfns[used], compound[used]
        columns = {name: column[used] for name, column in columns.items()}
        inside = compound != NO_COMPOUND
        kept = np.zeros(len(compounds), np.bool_)
        kept[compound[inside]] = True
        compound[inside] = (np.cumsum(kept, dtype=np.uint32) - np.uint32(1))[compound[inside]]
        compounds = Compounds(
            head=compounds.head[kept],
            pages=compounds.pages[kept],
            pinned=compounds.pinned[kept],
            pmd_mapcount=compounds.pmd_mapcount[kept],
        )
    columns["node"] = constant(columns["node"])
    return pfns, FrameTable(**columns, compound=constant(compound), compounds=compounds)


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
        merge_any=np.array([p.merge_any for p in processes], np.bool_),
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
