"""The prediction against the real ksmd's counters, on the same memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ksm_eval.cli import run
from tests.fixtures import NAMES, opted_in, truth, vmcore

SETTLED = (
    "pages_shared",
    "pages_sharing",
    "ksm_zero_pages",
    "stable_node_chains",
    "stable_node_dups",
    "general_profit",
)


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A fixture's name and the JSON report of its opted-in processes."""
    name: str = request.param
    return name, _report(name)


_reports: dict[str, dict[str, Any]] = {}


def _report(name: str) -> dict[str, Any]:
    if name not in _reports:
        _reports[name] = evaluate_by_command_line(name)
    return _reports[name]


def evaluate_by_command_line(name: str) -> dict[str, Any]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "report.json"
        pids = [word for pid in opted_in(name) for word in ("--pid", str(pid))]
        code = run(["-q", "-c", str(vmcore(name)), *pids, "--format", "json", "-o", str(out)])
        assert code == 0
        report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_system_counters(case: tuple[str, dict[str, Any]]) -> None:
    name, report = case
    real = truth(name)["passes"][-1]["ksm"]
    compared = {key: real[key] for key in SETTLED if key in real}
    assert {key: report["system"][key] for key in compared} == compared
    volatile = report["system"]["pages_volatile"] + report["system"]["pages_unshared"]
    assert volatile == real["pages_unshared"] + real["pages_volatile"]


def test_rmap_items(case: tuple[str, dict[str, Any]]) -> None:
    """The kernel exports no such global; it is the sum of the four page counters."""
    name, report = case
    real = truth(name)["passes"][-1]["ksm"]
    parts = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
    assert report["system"]["ksm_rmap_items"] == sum(real[part] for part in parts)


def test_phases(case: tuple[str, dict[str, Any]]) -> None:
    """A page that never merges is visited in passes 1, 2, 3, 4, 6, 9, 14, 23 … and skipped
    in the others (should_skip_rmap_item, 6.7+): 13 is a skip phase, 14 a scan phase."""
    name, report = case
    passes = {entry["pass"]: entry["ksm"] for entry in truth(name)["passes"]}
    smart = bool(truth(name)["settings"].get("smart_scan"))
    phases = report["system"].get("phases")
    assert (phases is not None) == smart
    expected = {"scan": passes[14], "skip": passes[13]} if smart else {}
    for phase, real in expected.items():
        for key in ("pages_unshared", "pages_volatile"):
            assert phases[phase][key] == real[key], (phase, key)


def test_processes(case: tuple[str, dict[str, Any]]) -> None:
    name, report = case
    real = truth(name)["passes"][-1]["processes"]
    assert report["processes"]
    for process in report["processes"]:
        expected = real[str(process["pid"])]
        assert {key: process[key] for key in expected} == expected, process["comm"]


def test_ksm_pages_of_every_vma(case: tuple[str, dict[str, Any]]) -> None:
    name, report = case
    real = {
        (vma["pid"], vma["start"], vma["end"]): vma["ksm_pages"]
        for vma in truth(name)["vmas"]
        if "ksm_pages" in vma and vma["name"] != "[vsyscall]"  # no VMA: the gate area
    }
    if not real:
        assert "smart_scan" not in truth(name)["settings"], "only kernels before 6.7 lack KSM:"
        return
    pids = {process["pid"] for process in report["processes"]}
    predicted = {
        (vma["pid"], int(vma["start"], 16), int(vma["end"], 16)): vma.get("ksm_pages") or 0
        for vma in report["vmas"]
    }
    assert predicted == {key: pages for key, pages in real.items() if key[0] in pids}
    assert sum(predicted.values()) > 1000


def test_frames_freed(case: tuple[str, dict[str, Any]]) -> None:
    """Against nr_anon_pages; a few pages move by themselves (stacks of the guest's init)."""
    name, report = case
    real = truth(name)
    before = real["before"]["vmstat"]["nr_anon_pages"]
    after = real["passes"][-1]["vmstat"]["nr_anon_pages"]
    assert report["savings"]["frames_freed"] == pytest.approx(before - after, abs=8)


def test_thps_split(case: tuple[str, dict[str, Any]]) -> None:
    name, report = case
    real = truth(name)
    before = real["before"]["vmstat"]["thp_split_page"]
    after = real["passes"][-1]["vmstat"]["thp_split_page"]
    assert report["savings"]["thps_split"] == after - before


def test_settings_are_the_targets(case: tuple[str, dict[str, Any]]) -> None:
    name, report = case
    real = truth(name)["settings_at_dump"]
    for key, setting in report["settings"].items():
        if key in real:
            assert (int(setting["value"]), setting["source"]) == (real[key], "target"), key
