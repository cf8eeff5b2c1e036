"""Two JSON reports side by side: reading them, and what differs. Pure but for read_report().

A report comes from a file that anybody may have written: only what is used is looked at, and that
is checked. Whatever is wrong with it is one TargetError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from ksm_eval.errors import TargetError
from ksm_eval.report.comparison import Change, Comparison, GroupChange
from ksm_eval.report.model import SCHEMA_VERSION

LARGEST: Final = 1 << 29
"""Bytes of a file: a report has some 200 a VMA."""
_INT_LIMIT: Final = 1 << 62
_SAVINGS: Final = (
    *("net_bytes", "frames_freed", "bytes_freed", "metadata_bytes"),
    *("thps_split", "pss_before", "pss_after"),
)
_OF_GROUPS: Final = ("comm", "cgroup")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Group:
    """Processes of one comm or cgroup together."""

    processes: int
    mappings: int
    ksm_merging_pages: int
    gain: int  # bytes of PSS that they lose


@dataclass(frozen=True)
class Reading:
    """What of a JSON report is compared."""

    path: str
    facts: Mapping[str, str]  # what makes figures incomparable if it differs, as text
    incomplete: str  # "" if all could be read
    savings: Mapping[str, int]
    counters: Mapping[str, int]
    groups: Mapping[str, Mapping[str, Group]]  # by -> name -> figures

    @property
    def net_bytes(self) -> int:
        return self.savings["net_bytes"]


def read_report(path: Path) -> Reading:
    """Raises TargetError if it is no JSON report of this schema version."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise TargetError(
            f"cannot read {path}: {error.strerror}", "give two JSON reports"
        ) from None
    if len(data) > LARGEST:
        raise TargetError(f"{path} is too large for a JSON report ({LARGEST >> 20} MiB)")
    try:
        document = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # of UTF-8 and of too long integers, too
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise TargetError(f"{path} is no JSON: {reason}", _HINT) from None
    try:
        return reading(str(path), document)
    except _WrongError as error:
        raise TargetError(f"{path} is no report that can be compared: {error}", _HINT) from None


_HINT: Final = "write reports with --format json"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class _WrongError(Exception):
    """Where the document is not what the schema says."""


def reading(path: str, document: object) -> Reading:
    """Raises _WrongError."""
    top = _as(document, dict, "the document")
    version = top.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        told = version if isinstance(version, int) else "none"
        raise _WrongError(f"its schema_version is {told}, this program knows {SCHEMA_VERSION}")
    target = _member(top, "target", dict)
    completeness = _member(top, "completeness", dict)
    savings = _member(top, "savings", dict)
    processes = [_as(row, dict, "a process") for row in _member(top, "processes", list)]
    return Reading(
        path,
        facts=_facts(top, target),
        incomplete=_incomplete(completeness),
        savings={name: _integer(savings, name) for name in _SAVINGS},
        counters=_counters(_member(top, "system", dict)),
        groups={by: _groups(processes, by) for by in _OF_GROUPS},
    )


def _facts(top: dict[str, Any], target: dict[str, Any]) -> dict[str, str]:
    selection = [_as(word, str, "selection") for word in _member(top, "selection", list)]
    facts = {
        "selection": " ".join(selection),
        "question": _member(top, "question", str),
        "kernel": _member(target, "release", str),
        "architecture": _member(target, "arch", str),
        "page size": str(_integer(target, "page_size")),
        "target": _member(target, "kind", str),
    }
    for name, setting in _member(top, "settings", dict).items():
        value = _as(setting, dict, f"the setting {name}").get("value")
        if not isinstance(value, bool | int) or abs(value) >= _INT_LIMIT:
            raise _WrongError(f"the value of {name} is no number")
        facts[name] = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    calm = top.get("calm")
    facts["samples"] = "1" if calm is None else str(_integer(_as(calm, dict, "calm"), "samples"))
    return facts


def _incomplete(completeness: dict[str, Any]) -> str:
    share = completeness.get("share_unreadable")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise _WrongError("share_unreadable is not from 0 to 1")
    lost = len(_member(completeness, "processes_lost", list))
    told = [f"{100 * share:.3g} % of the pages could not be read"] if share else []
    return ", ".join([*told, f"{lost} processes could not be read"] if lost else told)


def _counters(system: dict[str, Any]) -> dict[str, int]:
    """Of them anything that is a number: a later version may have more."""
    return {name: _integer(system, name) for name in system if name not in ("phase", "phases")}


def _groups(processes: list[dict[str, Any]], by: str) -> dict[str, Group]:
    found: dict[str, Group] = {}
    for row in processes:
        name, old = _member(row, by, str), found.get(row[by], Group(0, 0, 0, 0))
        gain = _integer(row, "pss_before") - _integer(row, "pss_after")
        found[name] = Group(
            old.processes + 1,
            old.mappings + _integer(row, "mappings"),
            old.ksm_merging_pages + _integer(row, "ksm_merging_pages"),
            old.gain + gain,
        )
    return found


def _as(value: object, kind: type[_T], what: str) -> _T:
    if not isinstance(value, kind):
        raise _WrongError(f"{what} is no {_KINDS[kind]}")
    return value


_KINDS: Final[Mapping[type, str]] = {dict: "object", list: "array", str: "string"}


def _member(parent: dict[str, Any], name: str, kind: type[_T]) -> _T:
    if name not in parent:
        raise _WrongError(f"it has no {name}")
    return _as(parent[name], kind, name)


def _integer(parent: dict[str, Any], name: str) -> int:
    value = parent.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= _INT_LIMIT:
        raise _WrongError(f"{name} is no integer, or too large")
    return value


def compare(old: Reading, new: Reading) -> Comparison:
    """What differs; what is equal is left out, but for the savings."""
    return Comparison(
        old=old.path,
        new=new.path,
        differ=tuple(
            (name, old.facts.get(name, "-"), new.facts.get(name, "-"))
            for name in _union(old.facts, new.facts)
            if old.facts.get(name) != new.facts.get(name)
        ),
        incomplete=tuple(
            f"{reading.path}: {reading.incomplete}" for reading in (old, new) if reading.incomplete
        ),
        fell=fell(old.net_bytes, new.net_bytes),
        savings=tuple(
            Change(name, old.savings.get(name), new.savings.get(name)) for name in _SAVINGS
        ),
        counters=_changes(old.counters, new.counters),
        groups=tuple(
            change for by in _OF_GROUPS for change in _group_changes(by, old.groups, new.groups)
        ),
    )


def fell(old: int, new: int) -> float | None:
    """By how much of the old gain (0 to 1 and more) the new one is less; 0 if it is not.
    None: there was no gain to take a share of, and now there is a loss."""
    if new >= old:
        return 0.0
    return (old - new) / abs(old) if old else None


def is_worse(comparison: Comparison, limit: float) -> bool:
    """Whether the gain fell by more than `limit` (a share)."""
    return comparison.fell is None or comparison.fell > limit


def _changes(old: Mapping[str, int], new: Mapping[str, int]) -> tuple[Change, ...]:
    changes = (Change(name, old.get(name), new.get(name)) for name in _union(old, new))
    return tuple(change for change in changes if change.old != change.new)


def _group_changes(
    by: str,
    old: Mapping[str, Mapping[str, Group]],
    new: Mapping[str, Mapping[str, Group]],
) -> list[GroupChange]:
    """The largest change of gain first."""

    def part(groups: Mapping[str, Group], name: str, figure: Callable[[Group], int]) -> int | None:
        return figure(groups[name]) if name in groups else None

    found = []
    for name in _union(old[by], new[by]):
        if old[by].get(name) == new[by].get(name):
            continue
        pairs = [
            Change(label, part(old[by], name, figure), part(new[by], name, figure))
            for label, figure in _FIGURES.items()
        ]
        found.append(GroupChange(by, name, *pairs))
    return sorted(
        found, key=lambda row: (-abs((row.gain.new or 0) - (row.gain.old or 0)), row.name)
    )


_FIGURES: Final[Mapping[str, Callable[[Group], int]]] = {
    "processes": lambda group: group.processes,
    "mappings": lambda group: group.mappings,
    "ksm_merging_pages": lambda group: group.ksm_merging_pages,
    "gain": lambda group: group.gain,
}


def _union(old: Iterable[str], new: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*old, *new]))
