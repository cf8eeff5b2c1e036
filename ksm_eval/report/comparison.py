"""Comparison: what `ksm-eval compare` has to say, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One figure; None: that report does not have it."""

    name: str
    old: int | None
    new: int | None


@dataclass(frozen=True)
class GroupChange:
    """Processes of one comm or cgroup; None in all of `old`: appeared, in all of `new`: went."""

    by: str  # "comm" or "cgroup"
    name: str
    processes: Change
    mappings: Change
    ksm_merging_pages: Change
    gain: Change  # bytes of PSS that they lose

    @property
    def what(self) -> str:
        if self.processes.old is None:
            return "appeared"
        return "went" if self.processes.new is None else "changed"


@dataclass(frozen=True)
class Comparison:
    old: str  # paths
    new: str
    differ: tuple[tuple[str, str, str], ...]  # (what, old, new): figures hardly compare then
    incomplete: tuple[str, ...]  # what could not be read, by report
    fell: float | None  # share by which net_bytes fell; None: from 0 to a loss
    savings: tuple[Change, ...]  # all of them, net_bytes first
    counters: tuple[Change, ...]  # those that changed
    groups: tuple[GroupChange, ...]  # those that changed, largest first for each `by`
