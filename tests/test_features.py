"""Rules that no symbol shows."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from drgn import Program

from ksm_eval.evaluate import open_target
from ksm_eval.replay.rules import Rules
from ksm_eval.target import features, proc_rules
from ksm_eval.target.release import is_6_11
from tests.fixtures import target, vmcore


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("6.11.0-29-generic", True),  # Ubuntu
        ("6.11.10+bpo-amd64", True),  # Debian
        ("6.11.11-300.fc41.x86_64", True),
        ("6.11", True),
        ("6.11-rc1", True),
        ("6.10.14", False),
        ("6.12.117", False),
        ("6.110.1", False),
        ("6.1.11", False),
        ("16.11.0", False),
        ("5.10.0-46-cloud-amd64", False),
        ("", False),
    ],
)
def test_the_one_release_that_is_told_by_its_name(release: str, expected: bool) -> None:
    assert is_6_11(release) is expected


def rules_of(name: str, monkeypatch: pytest.MonkeyPatch, release: str, hidden: str) -> Rules:
    """Of a fixture, with another release, and without a symbol."""
    has = features.has_symbol

    def has_symbol(prog: Program, symbol: str) -> bool:
        return symbol != hidden and has(prog, symbol)

    monkeypatch.setattr(features, "has_symbol", has_symbol)
    monkeypatch.setattr(features, "is_6_11", lambda _: is_6_11(release))
    with closing(open_target(vmcore(name))) as vm:
        return features.detect_rules(vm._prog, [])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("release", "hidden", "first"),
    [
        ("6.12.117", "", True),
        ("6.9.2", "", True),  # the feature test comes first
        ("6.11.4", "folio_walk_start", True),
        ("6.10.14", "folio_walk_start", False),
    ],
)
def test_checksum_first(
    release: str, hidden: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rules_of("x86_64-6.12-tiny", monkeypatch, release, hidden).checksum_first is first


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("x86_64-6.1-tiny", True),
        ("x86_64-6.12-tiny", False),
        ("aarch64-6.12-4k", False),
        ("aarch64-6.12-64k", False),
    ],
)
def test_whether_fork_copies_the_counters(name: str, copied: bool) -> None:
    """ksm_fork() of 6.1.192 and 6.12.117, include/linux/ksm.h; it is inlined in different
    functions of these kernels."""
    prog = target(name)._prog  # type: ignore[attr-defined]
    notes: list[str] = []
    assert features._fork_copies_counters(prog, not copied, notes) is copied
    # Whatever would be taken for it without the machine code.
    assert features._fork_copies_counters(prog, copied, notes) is copied
    assert notes == []


def test_whether_fork_copies_the_counters_without_the_kernels_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not in this fixture: by the age of the kernel; a note where that leaves a doubt."""
    prog = target("x86_64-6.12-debian-cloud")._prog  # type: ignore[attr-defined]
    has = features.has_symbol
    for general_profit, range_walk, doubts in (
        (False, False, 0),
        (False, True, 0),
        (True, False, 1),
        (True, True, 0),
    ):
        monkeypatch.setattr(
            features,
            "has_symbol",
            lambda prog, name, walk=range_walk: (
                walk if name == "ksm_next_page_pmd_entry" else has(prog, name)
            ),
        )
        notes: list[str] = []
        copied = features._fork_copies_counters(prog, general_profit, notes)
        assert copied is not general_profit
        assert len(notes) == doubts


@pytest.mark.parametrize(
    ("general_profit", "range_walk", "doubts"),
    [(False, False, 0), (False, True, 0), (True, False, 1), (True, True, 0)],
)
def test_whether_fork_copies_the_counters_through_proc(
    general_profit: bool, range_walk: bool, doubts: int, tmp_path: Path
) -> None:
    class Kernel(proc_rules.Names):
        def member(self, struct: str, member: str) -> bool:
            return (struct, member) == ("mm_struct", "ksm_rmap_items")

    if general_profit:
        (tmp_path / "general_profit").write_text("0\n")
    names = Kernel(None, frozenset(["ksm_next_page_pmd_entry"] if range_walk else []))
    notes: list[str] = []
    rules = proc_rules.detect_rules(names, notes, tmp_path, tmp_path)
    assert rules.fork_copies_counters is not general_profit
    assert len(notes) == doubts
