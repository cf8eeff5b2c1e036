"""The running kernel's rules and settings without drgn: BTF, kallsyms' names, sysfs.

The same feature tests as target/features.py; where a variable has no name (kernels without
KALLSYMS_ALL), the sysfs file that shows it stands for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ksm_eval.errors import TargetError
from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.target.btf import Btf, Kind
from ksm_eval.target.page_table import SwapTypes
from ksm_eval.target.release import is_6_11

KSM = Path("/sys/kernel/mm/ksm")
_THP = Path("/sys/kernel/mm/transparent_hugepage")
_TUNABLES = (
    "max_page_sharing",
    "use_zero_pages",
    "merge_across_nodes",
    "smart_scan",
    "pages_to_scan",
    "sleep_millisecs",
    "stable_node_chains_prune_millisecs",
)


class Names:
    """What the running kernel has: functions, types, members, enumerators."""

    def __init__(self, btf: Btf | None, kallsyms: frozenset[str]) -> None:
        self._btf = btf
        self._kallsyms = kallsyms
        self.complete = btf is not None

    def symbol(self, name: str) -> bool:
        found = name in self._kallsyms
        return found or (self._btf is not None and bool(self._btf.find(name, Kind.FUNC)))

    def _structs(self, name: str) -> list[int]:
        return [] if self._btf is None else self._btf.find(name, Kind.STRUCT)

    def has_type(self, name: str) -> bool:
        return bool(self._structs(name)) or (
            self._btf is not None and bool(self._btf.find(name, Kind.ENUM, Kind.ENUM64))
        )

    def member(self, struct: str, member: str) -> bool:
        """Also in a struct or union without a name inside it."""
        return any(self._has(id_, member) for id_ in self._structs(struct))

    def _has(self, id_: int, member: str) -> bool:
        btf = self._btf
        assert btf is not None
        if btf.kind(id_) not in (Kind.STRUCT, Kind.UNION):
            return False
        return any(
            part.name == member
            or (not part.name and self._has(btf.skip_modifiers(part.type), member))
            for part in btf.members(id_)
        )

    def enumerator(self, name: str) -> bool:
        return self._btf is not None and bool(self._btf.find_enumerator(name))

    def size(self, *structs: str) -> int | None:
        for struct in structs:
            for id_ in self._structs(struct):
                assert self._btf is not None
                return self._btf.size(id_)
        return None

    def elements(self, struct: str, member: str) -> int | None:
        """Of a member that is an array."""
        for id_ in self._structs(struct):
            assert self._btf is not None
            for part in self._btf.members(id_):
                if part.name == member and self._btf.kind(part.type) == Kind.ARRAY:
                    return self._btf.array(part.type)[1]
        return None

    def parameters(self, function: str) -> int | None:
        """None if its type is not known."""
        if self._btf is None:
            return None
        for id_ in self._btf.find(function, Kind.FUNC):
            return len(self._btf.params(self._btf.target(id_)))
        return None


def read_names(notes: list[str]) -> tuple[Names, str]:
    """And where they come from, for the report."""
    btf = None
    try:
        btf = Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
    except (OSError, TargetError):
        notes.append(
            "the running kernel has no usable BTF: sizes of ksmd's structs and some of its rules "
            "are assumed to be those of most kernels"
        )
    try:
        text = Path("/proc/kallsyms").read_bytes()
    except OSError:
        text = b""
    symbols = (line.split(b"\t")[0].rsplit(b" ", 1)[-1] for line in text.split(b"\n"))
    names = frozenset(name.decode("utf-8", "replace") for name in symbols)
    parts = [*(["BTF"] if btf else []), *(["kallsyms"] if len(names) > 1 else []), "/proc", "sysfs"]
    return Names(btf, names), " + ".join(parts)


def detect_rules(names: Names, notes: list[str], sysfs: Path = KSM, thp: Path = _THP) -> Rules:
    """The rules of this kernel; doubts are added to `notes`."""
    folio_walk = names.symbol("folio_walk_start")  # 6.12+, commit aa39ca6940f1
    # See target/features.py: 6.1 to 6.4 with NUMA balancing, without the range walk.
    refused = (
        names.member("mm_struct", "mm_mt")
        and not folio_walk
        and not names.enumerator("FOLL_HONOR_NUMA_FAULT")
        and names.member("task_struct", "numa_faults")
    )
    item = "ksm_rmap_item" if names.has_type("ksm_rmap_item") else "rmap_item"
    general_profit = (sysfs / "general_profit").exists()  # 6.4+
    _doubt_pmd(names, notes)
    copies = names.member("mm_struct", "ksm_rmap_items")
    if copies and general_profit and not names.symbol("ksm_next_page_pmd_entry"):
        notes.append(
            "kernel text cannot be read through /proc: assumed that a forked process starts with "
            "counters of 0 (6.4 to 6.16 and their early stable updates copy its parent's); matters "
            "only for processes that were forked from one with merged pages"
        )
    return Rules(
        checksum_first=folio_walk or is_6_11(os.uname().release),
        zero_remap_at_split=(thp / "shrink_underused").exists(),  # shows split_underused_thp
        prot_none_offered=names.symbol("ksm_next_page_pmd_entry") or not refused,
        prot_none_unreadable=refused,
        smart_scan=(sysfs / "smart_scan").exists(),
        zero_counter=(sysfs / "ksm_zero_pages").exists(),
        pages_scanned=(sysfs / "pages_scanned").exists(),
        advisor=(sysfs / "advisor_mode").exists(),
        general_profit=general_profit,
        process_counters=Path("/proc/self/ksm_merging_pages").exists(),
        fork_copies_counters=copies and not general_profit,
        reset_on_leave=names.member(item, "linear_page_index"),
        pmd_at_a_time=False,
        mlock_batch=_mlock_batch(names),
        anon_exclusive=names.enumerator("PG_anon_exclusive"),
    )


def _doubt_pmd(names: Names, notes: list[str]) -> None:
    """Kernels from 6.16 to early 6.19 have Rules.pmd_at_a_time; stable updates, 6.18.y too,
    repaired it. Only the machine code tells (target/features.py), and a kernel that runs today
    most likely has the repair."""
    if names.parameters("split_huge_pmd_locked") == 4 and not names.symbol("zero_page_pfn"):
        notes.append(
            "kernel text cannot be read through /proc: assumed that splitting a THP unmaps all "
            "processes at once (6.16 to early 6.19 did not); matters only for single passes over "
            "THPs shared by fork"
        )


def _mlock_batch(names: Names) -> int:
    """Size of the per-CPU batch that pages of mlocked VMAs pass through, 0 if there is none."""
    # 5.18+, commit 2fbb0c10d1e8; until 6.2 mlock_page_drain_local()
    if not (names.symbol("mlock_drain_local") or names.symbol("mlock_page_drain_local")):
        return 0
    return names.elements("folio_batch", "folios") or names.elements("pagevec", "pages") or 31


def swap_types(names: Names) -> SwapTypes:
    """How pagemap numbers entries that are neither present nor in a swap file."""
    if names.symbol("make_device_exclusive"):  # 6.15+: one exclusive type
        device = 3
    elif names.symbol("make_device_exclusive_range"):  # 5.14+, commit b756a3b5e7ea
        device = 4
    else:
        device = 2 if names.symbol("migrate_vma_setup") else 0
    migration = 3 if names.enumerator("PG_anon_exclusive") else 2  # 5.19+, commit 6c287605fd56
    return SwapTypes(
        marker=1 if names.member("mm_struct", "mm_mt") else 0,
        device=device,
        migration=migration if names.symbol("migrate_pages") else 0,
        hwpoison=1 if names.symbol("memory_failure") else 0,
    )


def record_sizes(names: Names) -> dict[str, int]:
    """Bytes of ksmd's own records; the same from 5.10 to 7.3 where the types are not known."""
    known = {"rmap_item": 64, "stable_node": 64, "mm_slot": 48}
    return {name: names.size(f"ksm_{name}", name) or assumed for name, assumed in known.items()}


@dataclass(frozen=True)
class Sysfs:
    """/sys/kernel/mm/ksm as it is now."""

    settings: Settings
    source: dict[str, str]
    counters: dict[str, int]


def read_sysfs(rules: Rules, directory: Path = KSM) -> Sysfs:
    """Tunables and counters. Raises TargetError where the kernel has no KSM."""
    values: dict[str, int] = {}
    try:
        files = sorted(directory.iterdir())
    except OSError as error:
        raise TargetError(
            f"{directory} cannot be read: {error.strerror}",
            "the kernel must have CONFIG_KSM, and /sys must be mounted",
        ) from error
    for file in files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.lstrip("-").isdecimal():
            values[file.name] = int(text)
    settings = Settings(smart_scan=rules.smart_scan)
    source = dict.fromkeys(_TUNABLES, "kernel default")
    for name in _TUNABLES:
        if name in values:
            kind = type(getattr(settings, name))
            settings = replace(settings, **{name: kind(values[name])})
            source[name] = "target"
    counters = {
        name: value
        for name, value in values.items()
        if name not in _TUNABLES and not name.startswith("advisor_")
    }
    parts = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
    if all(part in counters for part in parts):  # pages_volatile is what is left of it
        counters["ksm_rmap_items"] = sum(counters[part] for part in parts)
    return Sysfs(settings, source, counters)
