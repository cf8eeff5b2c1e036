"""Synthetic snapshots: a builder for hand-made cases, and hypothesis strategies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.snapshot import (
    NO_COMPOUND,
    Compounds,
    Entry,
    FrameFlag,
    Frames,
    MappingFlag,
    Mappings,
    Metadata,
    Processes,
    Snapshot,
    Vmas,
)

ZERO = "zero"
"""The content of a zero page; any other text is a content of its own."""

LOCKED = 0x2000

KERNEL_6_1 = Rules(
    checksum_first=False,
    zero_remap_at_split=False,
    prot_none_unreadable=True,
    smart_scan=False,
    zero_counter=False,
    pages_scanned=False,
    advisor=False,
    general_profit=False,
    fork_copies_counters=True,
    reset_on_leave=False,
)
KERNEL_6_12 = Rules(reset_on_leave=False)
KERNEL_6_18 = Rules(reset_on_leave=False, pmd_at_a_time=True)
KERNEL_7_3 = Rules()


@dataclass
class Builder:
    """Frames, then processes that map them; `build()` fills in all the rest.

    A mapping is a frame number; every process has its mappings in VMAs of its own.
    """

    rules: Rules = KERNEL_6_12
    frames: list[tuple[str, int, int, int]] = field(default_factory=list)
    outside: dict[int, int] = field(default_factory=dict)
    rank: dict[str, int] | None = None  # content -> memcmp order
    compounds: list[tuple[int, bool]] = field(default_factory=list)
    vmas: list[tuple[int, int, list[tuple[int, int]]]] = field(default_factory=list)
    processes: int = 0
    zero_before: list[int] = field(default_factory=list)

    def frame(
        self,
        content: str,
        flags: int = 0,
        *,
        node: int = 0,
        compound: int = NO_COMPOUND,
        outside: int = 0,
    ) -> int:
        """`outside`: mappings by processes that are not selected."""
        self.frames.append((content, flags, node, compound))
        self.outside[len(self.frames) - 1] = outside
        return len(self.frames) - 1

    def thp(self, contents: Sequence[str], *, pinned: bool = False) -> list[int]:
        """The frames of a new compound page."""
        self.compounds.append((len(contents), pinned))
        number = len(self.compounds) - 1
        return [self.frame(content, compound=number) for content in contents]

    def process(self, *mapped: int, flags: int = 0, vma_flags: int = 0) -> None:
        """A process with one VMA that maps these frames."""
        self.processes += 1
        self.vma(*mapped, flags=flags, vma_flags=vma_flags)

    def vma(self, *mapped: int, flags: int = 0, vma_flags: int = 0) -> None:
        """One more VMA of the last process."""
        pairs = [(frame, flags) for frame in mapped]
        self.vmas.append((self.processes - 1, vma_flags, pairs))

    def _pmd_mapcount(self, mapped: list[tuple[int, int]]) -> NDArray[np.uint32]:
        """Processes that map each compound whole: those of any of its pages, and if there
        are some, all outside mappers too."""
        whole = [0] * len(self.compounds)
        huge = Counter(frame for frame, flag in mapped if flag & MappingFlag.HUGE)
        for frame, mappers in huge.items():
            compound = self.frames[frame][3]
            if compound != NO_COMPOUND:
                whole[compound] = max(whole[compound], mappers + self.outside[frame])
        return np.array(whole, np.uint32)

    def build(self, settings: Settings | None = None) -> Snapshot:
        n = len(self.frames)
        every = [pair for _, _, pairs in self.vmas for pair in pairs]
        selected = np.bincount([frame for frame, _ in every] or [0], minlength=n)
        mapped = selected + np.array([self.outside[i] for i in range(n)], np.int64).reshape(n)
        names = sorted({content for content, *_ in self.frames})
        number = {name: i * 0x9E3779B97F4A7C15 % 2**64 for i, name in enumerate(names)}
        lengths = [len(pairs) for _, _, pairs in self.vmas]
        offset = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        count = len(self.vmas)
        start = np.arange(1, count + 1, dtype=np.uint64) << np.uint64(32)
        entries = np.zeros((count, len(Entry)), np.uint32)
        entries[:, Entry.CANDIDATE] = lengths
        flags = [
            flag | (FrameFlag.ZERO if content == ZERO else 0) for content, flag, _, _ in self.frames
        ]
        observed = {"ksm_zero_pages": np.array(self.zero_before)} if self.zero_before else {}
        order = None
        if self.rank is not None:
            order = np.array([self.rank[content] for content, *_ in self.frames], np.uint32)
        return Snapshot(
            meta=Metadata(
                kind="vmcore",
                path="",
                release="synthetic",
                arch="x86_64",
                page_size=4096,
                time=0.0,
                debug_info="",
                rules=self.rules,
                settings=settings or Settings(),
                settings_source={},
                counters={},
                sizeof={"rmap_item": 64, "stable_node": 64, "mm_slot": 48},
                question="merge_any",
            ),
            processes=Processes(
                pid=np.arange(100, 100 + self.processes, dtype=np.int32),
                comm=["test"] * self.processes,
                cgroup=[""] * self.processes,
                uid=np.zeros(self.processes, np.uint32),
                start_time=np.arange(self.processes, dtype=np.uint64),
                registered=np.zeros(self.processes, np.bool_),
                selected=np.ones(self.processes, np.bool_),
                observed=observed,
            ),
            vmas=Vmas(
                process=np.array([row for row, _, _ in self.vmas], np.uint32),
                start=start,
                end=start + np.array(lengths, np.uint64) * np.uint64(4096),
                flags=np.array([flag for _, flag, _ in self.vmas], np.uint64),
                name=[""] * count,
                reason=[""] * count,
                offset=offset,
                entries=entries,
            ),
            mappings=Mappings(
                frame=np.array([frame for frame, _ in every], np.uint32),
                page=np.concatenate([np.arange(k, dtype=np.uint32) for k in [*lengths, 0]]),
                flags=np.array([flag for _, flag in every], np.uint8),
            ),
            frames=Frames(
                pfn=np.arange(1000, 1000 + n, dtype=np.uint64),
                hash=np.array([number[content] for content, *_ in self.frames], np.uint64),
                flags=np.array(flags, np.uint8),
                mapcount=mapped.astype(np.uint32),
                node=np.array([node for _, _, node, _ in self.frames], np.uint16),
                compound=np.array([c for *_, c in self.frames], np.uint32),
                order=order,
            ),
            compounds=Compounds(
                head=np.arange(len(self.compounds), dtype=np.uint64),
                pages=np.array([pages for pages, _ in self.compounds], np.uint32),
                pinned=np.array([pinned for _, pinned in self.compounds], np.bool_),
                pmd_mapcount=self._pmd_mapcount(every),
            ),
        )


def rules() -> st.SearchStrategy[Rules]:
    """The kernels there are, and mixtures that a backport could make."""
    mixture = st.builds(
        Rules,
        checksum_first=st.booleans(),
        zero_remap_at_split=st.booleans(),
        smart_scan=st.booleans(),
        reset_on_leave=st.booleans(),
        pmd_at_a_time=st.booleans(),
        mlock_batch=st.integers(0, 5),
        anon_exclusive=st.booleans(),
    )
    return st.sampled_from([KERNEL_6_1, KERNEL_6_12, KERNEL_6_18, KERNEL_7_3]) | mixture


def settings() -> st.SearchStrategy[Settings]:
    return st.builds(
        Settings,
        max_page_sharing=st.sampled_from([2, 3, 4, 5, 8, 256]),
        use_zero_pages=st.booleans(),
        merge_across_nodes=st.booleans(),
        smart_scan=st.booleans(),
    )


_FRAME_FLAGS = [0, 0, 0, 0, FrameFlag.PINNED, FrameFlag.EXCLUSIVE, FrameFlag.UNREADABLE]
_PINNED = FrameFlag.PINNED | FrameFlag.EXCLUSIVE
_WRITABLE = MappingFlag.WRITE | MappingFlag.DIRTY


@st.composite
def snapshots(draw: st.DrawFn, *, warm: bool = True, prot_none: bool = True) -> Snapshot:
    """Forked processes over frames of few contents, some in compound pages."""
    builder = Builder(rules=draw(rules()))
    contents = st.sampled_from([ZERO, ZERO, "a", "a", "a", "b", "b", "c", "d"])
    kinds = [*_FRAME_FLAGS, _PINNED, *([FrameFlag.KSM] if warm else [])]
    small = st.tuples(contents, st.sampled_from(kinds), st.integers(0, 1))
    for content, flags, node in draw(st.lists(small, max_size=12)):
        builder.frame(content, flags, node=node, outside=draw(st.sampled_from([0, 0, 0, 1])))
    for subpages in draw(st.lists(st.lists(contents, min_size=2, max_size=4), max_size=3)):
        builder.thp(subpages, pinned=draw(st.sampled_from([False, False, False, True])))
    if not builder.frames:
        builder.frame("a")
    number = st.integers(0, len(builder.frames) - 1)
    flag = st.sampled_from([0, 0, _WRITABLE, *([MappingFlag.PROT_NONE] if prot_none else [])])
    vma_flags = st.sampled_from([0, 0, 0, LOCKED])
    previous: list[int] = []
    for forked in draw(st.lists(st.booleans(), min_size=1, max_size=5)):
        mapped = list(previous) if forked else []
        mapped += draw(st.lists(number, max_size=14))
        builder.process(*mapped, flags=draw(flag), vma_flags=draw(vma_flags))
        previous = mapped
    return _tidy(builder, draw(st.permutations([ZERO, "a", "b", "c", "d"])), prot_none)


def _tidy(builder: Builder, order: Sequence[str], prot_none: bool) -> Snapshot:
    """Drop frames nobody maps; THPs are mapped by PMD where a process has all of one."""
    used = sorted({frame for _, _, pairs in builder.vmas for frame, _ in pairs})
    row = {frame: i for i, frame in enumerate(used)}
    members: dict[int, set[int]] = {}
    for frame in used:
        members.setdefault(builder.frames[frame][3], set()).add(frame)
    shaped = prot_none and builder.rules.prot_none_unreadable
    tidy = Builder(
        rules=builder.rules,
        frames=[builder.frames[frame] for frame in used],
        outside={row[frame]: builder.outside[frame] for frame in used},
        compounds=builder.compounds,
        rank={name: i for i, name in enumerate(order)} if shaped else None,
        processes=builder.processes,
    )
    for process, vma_flags, pairs in builder.vmas:
        have = {frame for frame, _ in pairs}
        flagged = []
        for frame, flags in pairs:
            compound = builder.frames[frame][3]
            whole = compound != NO_COMPOUND and members[compound] <= have
            flagged.append((row[frame], flags | (MappingFlag.HUGE if whole else 0)))
        tidy.vmas.append((process, vma_flags, flagged))
    return tidy.build()
