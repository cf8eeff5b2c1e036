"""Report: what a run has to say, as plain Python values. docs/json-schema.md tells each field.

Units: pages are pages of `target.page_size` bytes; everything named bytes, pss or profit is in
bytes. A counter that the target's kernel does not have is absent from its mapping, or None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ksm_eval.report.decision import Decision

SCHEMA_VERSION = 1
"""Grows when a field is renamed, removed or changes its meaning; not when one is added."""


@dataclass(frozen=True)
class TargetFacts:
    """Whose memory it is."""

    kind: str  # "vmcore", "kernel", "qemu", "procfs"
    path: str
    release: str
    arch: str
    page_size: int
    time: float  # seconds since the epoch when the memory was read
    total_ram_pages: int
    sizeof: Mapping[str, int]  # bytes of rmap_item, stable_node, mm_slot


@dataclass(frozen=True)
class Setting:
    value: int | bool
    source: str  # "target", "kernel default" or "option"


@dataclass(frozen=True)
class Completeness:
    """What could not be read. Candidates among it are counted as pages that never merge."""

    mappings: int  # candidate mappings found
    mappings_unreadable: int  # of these, mappings of unreadable frames
    frames: int  # distinct frames behind them
    frames_unreadable: int
    entries_lost: int  # page-table entries that could not be read: mappings never found
    share_unreadable: float  # 0 to 1, of all entries that are or may be candidates
    processes_lost: tuple[str, ...]  # selected, but nothing of them could be read: pid and reason
    reasons: Mapping[str, int]  # reason -> pages


@dataclass(frozen=True)
class Phase:
    """The two counters that smart scan changes from pass to pass."""

    pages_unshared: int
    pages_volatile: int


@dataclass(frozen=True)
class System:
    """/sys/kernel/mm/ksm as it will be, by file name, and ksm_rmap_items."""

    counters: Mapping[str, int]
    phase: str | None = None  # of `phases`: the one in `counters`; None without smart scan
    phases: Mapping[str, Phase] | None = None  # "scan": all are visited; "skip": old ones are not


@dataclass(frozen=True)
class Pass:
    """After one full scan."""

    number: int  # from 1
    counters: Mapping[str, int]  # as System.counters, and pages_scanned, pages_skipped, full_scans
    exact: bool  # False: depends on an order or a time that the snapshot does not tell
    cow_breaks: int = 0  # merged mappings written since the scan before, where samples show it


@dataclass(frozen=True)
class Stillness:
    """Candidate mappings of the last sample: calm + new + unread + changed = mappings.

    From `counters` on: once settled, if only calm pages ever merge. Report.system and .savings
    are if all do, and stay as they are.
    """

    samples: int
    seconds: float | None  # from the first sample to the last; None: not known (vmcores)
    scan_seconds: float  # what ksmd would take for one full scan: samples closer see less change
    mappings: int
    calm: int  # there with equal contents in every sample
    new: int  # not there in every sample
    unread: int  # could not be read in every sample
    changed: int
    fork_shared: int  # beyond the first of their frame: pages_volatile unless merged, yet calm
    counters: Mapping[str, int]
    frames_freed: int
    bytes_freed: int
    net_bytes: int
    cow_breaks_per_second: float | None  # writes to merged pages; None: fewer than three samples


@dataclass(frozen=True)
class VerifyRow:
    """One counter where ksmd has run. None: the kernel or the records do not tell it."""

    counter: str
    target: int | None  # as its kernel shows it
    records: int | None  # as ksmd's own records add up to
    difference: int | None  # records - target
    after: tuple[int | None, ...]  # predicted, after one, two … more full scans


@dataclass(frozen=True)
class Savings:
    """Memory really gained, unlike general_profit, which counts mappings."""

    frames_freed: int
    bytes_freed: int
    frames_freed_by: Mapping[str, int]  # "merged", "zero", "thp_zero"; their sum is frames_freed
    frames_merged_now: int  # KSM pages that are there already
    metadata_bytes: int  # ksmd's records once settled
    metadata_bytes_now: int  # of these, what a ksmd that has run takes already
    net_bytes: int  # bytes_freed - (metadata_bytes - metadata_bytes_now)
    thps: int  # THPs with candidate pages
    thps_split: int
    pss_before: int  # of all selected processes' candidate pages
    pss_after: int


@dataclass(frozen=True)
class ProcessRow:
    """One mm, in ksmd's scan order; counters as in /proc/PID/ksm_stat."""

    pid: int
    comm: str
    cgroup: str
    uid: int
    mappings: int  # candidate pages
    ksm_rmap_items: int
    ksm_merging_pages: int
    ksm_zero_pages: int | None
    ksm_process_profit: int | None
    pss_before: int  # bytes, of the candidate pages
    pss_after: int
    calm_pages: int | None = None  # with several samples
    new_pages: int | None = None  # of these, not there in every sample


@dataclass(frozen=True)
class VmaRow:
    """One VMA; either `ksm_pages` or `ineligible` is None."""

    pid: int
    start: int
    end: int
    name: str
    mappings: int  # candidate pages
    ksm_pages: int | None  # smaps' KSM:, in pages
    ineligible: str | None  # why ksmd will not look at it
    calm_pages: int | None = None  # with several samples


@dataclass(frozen=True)
class Ineligible:
    """All VMAs that one reason excludes."""

    reason: str
    vmas: int
    bytes: int  # of address space


@dataclass(frozen=True)
class Report:
    """What was asked, what is missing, what ksmd would report, what it would gain."""

    target: TargetFacts
    debug_info: str
    question: str  # "merge_any" or "mergeable_only"
    selection: tuple[str, ...]  # as on the command line: ("--comm", "web*", "--children")
    completeness: Completeness
    settings: Mapping[str, Setting]
    system: System
    observed: Mapping[str, int]  # the target's own counters, by file name
    savings: Savings
    processes: tuple[ProcessRow, ...]
    vmas: tuple[VmaRow, ...]
    ineligible: tuple[Ineligible, ...]  # largest first
    entries: Mapping[str, int]  # page-table entries of mergeable VMAs by kind, in pages
    notes: tuple[str, ...]
    timeline: tuple[Pass, ...] = ()  # with --passes, or a pass a sample
    calm: Stillness | None = None  # where there were several samples
    verify: tuple[VerifyRow, ...] = ()  # with --verify
    decision: Decision | None = None  # None with --verify only

    def _repr_html_(self) -> str:
        """For notebooks."""
        from ksm_eval.report.to_html import to_fragment  # which imports this module

        return to_fragment(self)


@dataclass(frozen=True)
class Run:
    """The run that made a report: all that differs when the same snapshot is evaluated again."""

    version: str  # of ksm-eval
    drgn: str | None  # version of drgn, None if it was not used
    command: tuple[str, ...]
    time: float  # seconds since the epoch when it ended
    duration: float  # seconds
    cpu_seconds: float  # user and system time, of --jobs too
    bytes_read: int  # of the target: pages, page tables, struct pages
    max_rss_bytes: int  # the most memory it had, with --jobs together
    snapshot: str | None  # the file evaluated, None if memory was read
