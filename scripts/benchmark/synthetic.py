"""Memories that are nowhere: snapshots of any size, and a target that makes its pages up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.snapshot import (
    NO_COMPOUND,
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
)
from ksm_eval.target import (
    FrameTable,
    KsmdRecords,
    Process,
    Selection,
    TargetInfo,
    Vma,
    WalkedVmas,
)
from ksm_eval.target.meter import Meter

PROCESSES = 32
RULES = Rules(reset_on_leave=False)  # 6.12
SIZES = {"rmap_item": 64, "stable_node": 64, "mm_slot": 48}
FLAGS = MappingFlag.WRITE | MappingFlag.DIRTY
FIRST_PFN = 1 << 12
STRETCH = 64  # pages whose frames follow each other
GROUP = 4  # equal frames of a content that has several

UNIQUE, DUPLICATES = "unique", "duplicates"
SHARE = {UNIQUE: 10, DUPLICATES: 50}  # percent of the frames that have equals


def mixed(number: U64) -> U64:
    """A bijection that looks random: a number's hash."""
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


def content(frame: U64, frames: int, kind: str) -> U64:
    """The content of each frame: of SHARE percent of the frames GROUP have the same, and they
    are far apart."""
    several = frames * SHARE[kind] // 100 // GROUP * GROUP
    groups = np.uint64(max(several // GROUP, 1))
    return np.where(frame < np.uint64(several), frame % groups, frame)


def stretches(frames: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Which frame each page has: stretches in an order without order."""
    whole = frames // STRETCH
    order = np.random.default_rng(2).permutation(whole)
    places = (order[:, None] * STRETCH + np.arange(STRETCH)).ravel()
    return np.append(places, np.arange(whole * STRETCH, frames))


def _per_process(frames: int) -> list[int]:
    return [frames * (i + 1) // PROCESSES - frames * i // PROCESSES for i in range(PROCESSES)]


def snapshot(frames: int, kind: str) -> Snapshot:
    """One mapping a frame, one VMA a process; made in place, so that the making is no peak."""
    counts = _per_process(frames)
    offset = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    block = 1 << 20
    hashes = np.empty(frames, np.uint64)
    for start in range(0, frames, block):
        rows = np.arange(start, min(start + block, frames), dtype=np.uint64)
        hashes[start : start + block] = mixed(content(rows, frames, kind) + np.uint64(1))
    page = np.empty(frames, np.uint32)
    for first, count in zip(offset.tolist(), counts, strict=False):
        page[first : first + count] = np.arange(count, dtype=np.uint32)
    low = np.arange(1, PROCESSES + 1, dtype=np.uint64) << np.uint64(40)
    entries = np.zeros((PROCESSES, len(Entry)), np.uint32)
    entries[:, Entry.CANDIDATE] = counts
    return Snapshot(
        meta=Metadata(
            kind="vmcore",
            path="",
            release="synthetic",
            arch="x86_64",
            page_size=4096,
            time=0.0,
            debug_info="",
            rules=RULES,
            settings=Settings(),
            settings_source={},
            counters={},
            sizeof=SIZES,
            question="merge_any",
        ),
        processes=Processes(
            pid=np.arange(100, 100 + PROCESSES, dtype=np.int32),
            comm=["synthetic"] * PROCESSES,
            cgroup=[""] * PROCESSES,
            uid=np.zeros(PROCESSES, np.uint32),
            start_time=np.arange(PROCESSES, dtype=np.uint64),
            registered=np.zeros(PROCESSES, np.bool_),
            selected=np.ones(PROCESSES, np.bool_),
            observed={},
        ),
        vmas=Vmas(
            process=np.arange(PROCESSES, dtype=np.uint32),
            start=low,
            end=low + np.array(counts, np.uint64) * np.uint64(4096),
            flags=np.zeros(PROCESSES, np.uint64),
            name=[""] * PROCESSES,
            reason=[""] * PROCESSES,
            offset=offset,
            entries=entries,
        ),
        mappings=Mappings(
            frame=stretches(frames).astype(np.uint32),
            page=page,
            flags=np.full(frames, FLAGS, np.uint8),
        ),
        frames=Frames(
            pfn=np.arange(FIRST_PFN, FIRST_PFN + frames, dtype=np.uint64),
            hash=hashes,
            flags=np.zeros(frames, np.uint8),
            mapcount=np.ones(frames, np.uint32),
            node=np.zeros(frames, np.uint16),
            compound=np.full(frames, NO_COMPOUND, np.uint32),
        ),
        compounds=_no_compounds(),
    )


def _no_compounds() -> Compounds:
    return Compounds(
        head=np.empty(0, np.uint64),
        pages=np.empty(0, np.uint32),
        pinned=np.empty(0, np.bool_),
        pmd_mapcount=np.empty(0, np.uint32),
    )


class SyntheticTarget:
    """The memory of snapshot(frames, UNIQUE) as a Target: reading costs one copy, as pread does."""

    def __init__(self, frames: int) -> None:
        self.info = TargetInfo(
            kind="vmcore",
            path="",
            release="synthetic",
            arch="x86_64",
            page_size=4096,
            debug_info="",
            total_ram_pages=frames,
            sizeof=SIZES,
        )
        self.meter = Meter()
        self._frames = frames
        self._counts = _per_process(frames)
        self._pages = np.zeros((256, 512), np.uint64)

    def rules(self) -> Rules:
        return RULES

    def settings(self) -> tuple[Settings, dict[str, str]]:
        return Settings(), {}

    def pace(self) -> dict[str, float]:
        return {}

    def counters(self) -> dict[str, int]:
        return {}

    def processes(self, selection: Selection, *, with_registered: bool = False) -> list[Process]:
        del selection, with_registered
        return [
            Process(100 + row, "synthetic", "", 0, row, False, {}, row) for row in range(PROCESSES)
        ]

    def vmas(self, process: Process, *, mergeable_only: bool) -> list[Vma]:
        del mergeable_only
        assert isinstance(process.handle, int)
        start = (process.handle + 1) << 40
        return [Vma(start, start + self._counts[process.handle] * 4096, 0, "", "")]

    def walk(self, process: Process, vmas: Sequence[Vma]) -> WalkedVmas:
        del vmas
        assert isinstance(process.handle, int)
        first, count = sum(self._counts[: process.handle]), self._counts[process.handle]
        # Frames of a process are its own, in stretches without order.
        pfn = (stretches(count) + (FIRST_PFN + first)).astype(np.uint64)
        return WalkedVmas(
            offset=np.array([0, count], np.int64),
            pfn=pfn,
            page=np.arange(count, dtype=np.uint32),
            flags=np.full(count, FLAGS, np.uint8),
            entries=np.zeros((1, len(Entry)), np.uint32),
        )

    def frames(self, pfns: U64) -> FrameTable:
        n = len(pfns)
        return FrameTable(
            entry=np.zeros(n, np.uint8),
            flags=np.zeros(n, np.uint8),
            mapcount=np.ones(n, np.uint32),
            node=np.zeros(n, np.uint16),
            compound=np.full(n, NO_COMPOUND, np.uint32),
            compounds=_no_compounds(),
        )

    def ksmd(self, processes: Sequence[Process]) -> KsmdRecords | None:
        del processes
        return None

    def pte_behind(self, heads: U64, pages: U32) -> None:
        del heads, pages

    def still_mapped(self, pfns: U64) -> NDArray[np.bool_]:
        return np.ones(len(pfns), np.bool_)

    def core(self) -> None:
        """No other process has it."""

    def places(self, pfns: U64) -> U64:
        return pfns

    def read_into(self, buffer: memoryview, place: int) -> None:
        first, count = place - FIRST_PFN, len(buffer) // 4096
        rows = np.arange(first, first + count, dtype=np.uint64)
        self._pages[:count, 0] = content(rows, self._frames, UNIQUE)
        buffer[:] = self._pages[:count].tobytes()

    def close(self) -> None:
        """Nothing to do."""
