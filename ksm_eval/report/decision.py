"""What to do with the figures: the part of a Report that advises. docs/json-schema.md tells each
field. Units as in model.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """The first thing to read. Where ksmd has run, all but general_profit is about what is yet to
    come."""

    worth: str  # "yes", "little" (under 1 % of PSS), "no" (costs more), "nothing" to merge
    sentence: str  # in plain words, with the figures
    frames_freed: int
    net_bytes: int
    share_of_rss: float | None  # net_bytes of the selected processes' RSS, 0 to 1; None: unknown
    share_of_ram: float | None  # and of the host's
    general_profit: int | None  # as the kernel would show it; None: this kernel has none
    profit_explained: str  # why general_profit is not net_bytes; "" where it needs no words
    caveats: tuple[str, ...]  # what makes it less certain: one sample, what could not be read …
    rss_bytes: int | None = None  # of the selected processes; None: unknown


@dataclass(frozen=True)
class GroupRow:
    """Processes of one cgroup, comm or uid together, best first."""

    name: str  # the cgroup's path, the comm, the uid; "" of a process that has none
    processes: int
    mappings: int
    ksm_merging_pages: int
    ksm_process_profit: int | None
    pss_before: int
    pss_after: int
    metadata_bytes: int  # its rmap_items
    net_bytes: int  # pss_before - pss_after - metadata_bytes


@dataclass(frozen=True)
class Choice:
    """The smallest set found, to 1 % of its size, that gives `share` of the saving, 90 % or more:
    the best by the PSS that they lose, and what they free together is a prediction of its own.
    KSM needs both sides of a pair, and all that map a frame: it is not the sum of their gains."""

    of: str  # "processes" or "vmas"
    members: tuple[str, ...]  # the first 100: "1234 (comm)", "1234 (comm) 0x7f00-0x7f10 [heap]"
    size: int  # how many it takes
    considered: int  # how many there were
    frames_freed: int
    share: float  # of the frames that all of them would free, 0 to 1


@dataclass(frozen=True)
class Madvise:
    """A VMA worth madvise(MADV_MERGEABLE), best first; the first 100 of them. Its gain is that
    with all others: where pages are shared since a fork, the parent's VMA may have to be there
    though it gains nothing, see Choice."""

    pid: int
    comm: str
    start: int
    end: int
    name: str
    ksm_pages: int
    gain_bytes: int  # PSS that it loses, less its rmap_items
    covered: float  # share of all gain by this VMA and those before it, 0 to 1


@dataclass(frozen=True)
class Content:
    """One content that merges. Never an excerpt of it."""

    hash: str  # 16 hex digits, under the key of this run
    kind: str  # "zero", "constant byte", "repeated word", "other" or "" where it was not looked at
    mappings: int
    frames: int
    processes: int


@dataclass(frozen=True)
class Kinds:
    """What kind of duplicates there are.

    The frames freed, by where their equals are: zero_frames + inside_process + between_processes
    - copies = frames_freed. And those that stay though they are too many: `blocked`.
    """

    zero_frames: int  # freed frames of zero pages, by whatever means
    inside_process: int  # freed frames that have an equal in a process that maps them
    between_processes: int  # that only another process has
    copies: int  # frames that ksmd made in vain: merges that it had to undo
    fork_shared: int  # mappings beyond the first of their frame: shared already, no saving
    contents: int  # that several frames have
    top: tuple[Content, ...]  # that merge, by frames
    concentration: tuple[tuple[int, int], ...]  # (contents, frames freed by them), best first
    thps_split: int
    pages_per_split: float | None  # frames freed in split THPs by THPs split
    blocked: Mapping[str, int]
    """Why frames beyond the first of a content stay -> frames; without reasons that there are not.
    "pinned": more references than mappings explain, or a twin in the way has; "cap":
    max_page_sharing; "outside": merged, but a process that was not selected maps it; "prot_none":
    PROT_NONE pages in the unstable tree (6.1); "other": a THP that holds both, mlocked pages …"""


@dataclass(frozen=True)
class Reason:
    """Why memory is not eligible, and what could be done about it."""

    reason: str
    vmas: int
    bytes: int  # of address space, or of pages where it is about single pages
    advice: str


@dataclass(frozen=True)
class Split:
    """Frames freed if only pages of one uid (cgroup, user namespace) might share, and the rest. A
    page that several of them map since a fork shares with those of just the same ones."""

    by: str  # "uid", "cgroup" or "user_ns"
    groups: int
    within: int
    across: int


@dataclass(frozen=True)
class Security:
    splits: tuple[Split, ...]
    sentence: str  # on side channels
    sources: tuple[str, ...]


@dataclass(frozen=True)
class ScanRow:
    """One way to set pages_to_scan and sleep_millisecs."""

    pages_to_scan: int
    sleep_millisecs: int
    seconds: float  # a full scan, from its begin to that of the next
    cpu_percent: float  # of one CPU, while it scans
    cpu_seconds: float  # a full scan
    note: str = ""  # "target", "default", "--target-scan-time 60", "hopeless: …"; several by ", "
    kind: str = "other"
    """"target": its own; "default"; "asked": the fewest pages for --target-scan-time;
    "unreachable": none are enough for that; "advisor": where that settles; "other"."""
    hopeless: bool = False  # a full scan takes more than an hour


@dataclass(frozen=True)
class Cost:
    """What ksmd needs for it."""

    pages: int  # candidate mappings: what the first scans visit; smart scan skips some later
    seconds_a_page: float
    measured: bool  # False: assumed; `source` says by whom and where
    source: str
    rows: tuple[ScanRow, ...]  # the first is the target's own
    advisor: str  # what the scan-time advisor would settle at; "" if the kernel has none
    # "50", "90", "99" percent of the frames freed -> full scans from the first that finds these
    # pages, the one that gets there counts; empty if nothing is freed.
    passes_to: Mapping[str, int]
    seconds_to: Mapping[str, float]  # the same at the target's own settings; ends within a scan
    settling: str = ""  # how passes_to was found: "replayed", or "at most: …"
    advisor_row: ScanRow | None = None  # where the advisor settles; None: it does not, or is none
    # seconds_to under the advisor, from where advisor_mode is written; empty if there is none.
    advisor_seconds_to: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WhatIf:
    """The same memory evaluated otherwise."""

    name: str  # "max_page_sharing=64", "without 1234 (comm)"
    kind: str  # the setting, "thp", "process", or "current" of the report itself
    current: bool  # how the target is set
    pages_shared: int
    pages_sharing: int
    frames_freed: int
    net_bytes: int
    difference: int  # net_bytes less that of the report


@dataclass(frozen=True)
class Step:
    """What to type next."""

    title: str
    commands: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Pair:
    """Frames that merge of contents that two of the processes that gain most both have. What both
    map since a fork does not count."""

    first: int  # rows in Report.processes, first <= second
    second: int  # the same as `first`: duplicates inside the process
    frames: int  # content by content the smaller of the two counts; inside: all but one


@dataclass(frozen=True)
class Decision:
    verdict: Verdict
    group_by: str  # "cgroup", "comm" or "uid"
    groups: tuple[GroupRow, ...]
    choices: tuple[Choice, ...]
    madvise: tuple[Madvise, ...]
    kinds: Kinds
    why_not: tuple[Reason, ...]
    security: Security
    cost: Cost
    what_if: tuple[WhatIf, ...]  # with --what-if
    pairs: tuple[Pair, ...]  # who shares with whom, the largest first
    page_classes: Mapping[str, int]
    """Candidate mappings by what becomes of them; their sum is all. "merged": a KSM page;
    "zero_page": by use_zero_pages; "thp_zero": by a THP split; "duplicate": stays, though other
    frames have this content; "fork_shared": no other frame has it, other processes map it;
    "unique"; "copied": a copy that ksmd made in vain; "unreadable"."""
    next_steps: tuple[Step, ...]
    what_if_left_out: tuple[str, ...] = ()  # what could not be asked of this target, and why
