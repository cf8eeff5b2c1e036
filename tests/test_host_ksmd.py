"""The prediction through /proc against the ksmd of the kernel that the tests run on.

Only processes that are started here opt in, and the host's settings are put back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ksm_eval.cli import run
from tests import host

PASSES = 16
SETTINGS: list[dict[str, int]] = [
    {},
    {"use_zero_pages": 1},
    {"max_page_sharing": 5},
    {"smart_scan": 0},
]
SYSTEM = ("pages_shared", "pages_sharing", "ksm_zero_pages", "stable_node_chains",
          "stable_node_dups", "general_profit")  # fmt: skip


def vmstat(name: str) -> int:
    for line in Path("/proc/vmstat").read_text().splitlines():
        key, _, number = line.partition(" ")
        if key == name:
            return int(number)
    raise LookupError(name)


def memory(pids: list[int]) -> dict[str, int]:
    """THPs split on the whole host; anonymous PSS of the processes in kB."""
    pss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                pss += int(line.split()[1])
    return {"thp_split_page": vmstat("thp_split_page"), "pss": pss}


def smaps_ksm(pid: int) -> dict[int, int]:
    """Start of each VMA -> KSM: in pages."""
    found, start = {}, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if not line[0].isupper():
            start = int(line.partition("-")[0], 16)
        elif line.startswith("KSM:"):
            found[start] = int(line.split()[1]) // 4
    return found


@pytest.fixture(
    params=SETTINGS, ids=lambda changed: " ".join(changed) or "defaults", scope="module"
)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The report of frozen processes, and what ksmd then made of them."""
    out = tmp_path_factory.mktemp("host") / "report.json"
    with host.ksmd():
        for name, number in request.param.items():
            host.put(name, number)
        with host.frozen_prefork() as pids:
            words = ["--pid", str(pids[0]), "--children", "--passes", str(PASSES), "-q"]
            code = run([*words, "--format", "json", "-o", str(out)])
            assert code == 0
            before = memory(pids)
            passes = host.scan(PASSES)
            return {
                "settings": request.param,
                "report": json.loads(out.read_text()),
                "passes": passes,
                "pids": pids,
                "ksm_stat": {pid: host.ksm_stat(pid) for pid in pids},
                "smaps": {pid: smaps_ksm(pid) for pid in pids},
                "before": before,
                "after": memory(pids),
            }


def test_every_process_is_there(case: dict[str, Any]) -> None:
    assert [process["pid"] for process in case["report"]["processes"]] == case["pids"]
    assert case["report"]["completeness"]["share_unreadable"] == 0
    assert case["report"]["target"]["kind"] == "procfs"


def test_settings_are_the_hosts(case: dict[str, Any]) -> None:
    for name, number in case["settings"].items():
        assert case["report"]["settings"][name] == {"value": number, "source": "target"}


def test_settled_counters(case: dict[str, Any]) -> None:
    real, predicted = case["passes"][-1], case["report"]["system"]
    assert {name: predicted[name] for name in SYSTEM} == {name: real[name] for name in SYSTEM}
    both = ("pages_unshared", "pages_volatile")
    assert sum(predicted[name] for name in both) == sum(real[name] for name in both)
    assert real["pages_sharing"] > 1000


def test_every_pass(case: dict[str, Any]) -> None:
    for entry, real in zip(case["report"]["timeline"], case["passes"], strict=True):
        assert entry["exact"]
        same = {name for name in entry if name in real} - {"pass", "exact"}
        assert len(same) >= 10
        assert {name: entry[name] for name in same} == {name: real[name] for name in same}, entry[
            "pass"
        ]


def test_processes(case: dict[str, Any]) -> None:
    for process in case["report"]["processes"]:
        real = case["ksm_stat"][process["pid"]]
        names = ("ksm_rmap_items", "ksm_merging_pages", "ksm_zero_pages", "ksm_process_profit")
        assert {name: process[name] for name in names} == {name: real[name] for name in names}


def test_vmas(case: dict[str, Any]) -> None:
    predicted: dict[int, dict[int, int]] = {pid: {} for pid in case["pids"]}
    for vma in case["report"]["vmas"]:
        predicted[vma["pid"]][int(vma["start"], 16)] = vma.get("ksm_pages") or 0
    for pid, real in case["smaps"].items():
        assert predicted[pid] == {start: n for start, n in real.items() if start < 1 << 63}


def test_thps_split(case: dict[str, Any]) -> None:
    split = case["after"]["thp_split_page"] - case["before"]["thp_split_page"]
    assert case["report"]["savings"]["thps_split"] == split
    assert split > 0


def test_frames_freed(case: dict[str, Any]) -> None:
    """Nobody else maps these frames, so what is freed is what PSS falls by; smaps_rollup cuts
    it to 1 kB a process."""
    freed = case["before"]["pss"] - case["after"]["pss"]
    assert case["report"]["savings"]["frames_freed"] * 4 == pytest.approx(freed, abs=4)
    assert freed > 4000


@pytest.mark.parametrize("refused", [None, "sleep_millisecs"])
def test_the_settings_are_put_back_whatever_happens(
    refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the test fails, and if one of the files cannot be written."""
    before: dict[str, str] = {}
    put = host.host_ksmd.put

    def put_or_fail(name: str, number: int | str) -> None:
        if before and name == refused:
            raise OSError(22, "Invalid argument")
        put(name, number)

    def fails() -> None:
        before.update(files())
        monkeypatch.setattr(host.host_ksmd, "put", put_or_fail)
        for name, number in (("pages_to_scan", 77), ("max_page_sharing", 9), ("run", 1)):
            put(name, number)
        raise ZeroDivisionError

    with pytest.raises(OSError if refused else ZeroDivisionError) as caught, host.ksmd():
        fails()
    assert not refused or "sleep_millisecs: Invalid argument" in str(caught.value)
    assert files() == {**before, "run": "0"}


def files() -> dict[str, str]:
    """Every setting as its file shows it."""
    names = (*host.host_ksmd.TUNABLES, "run")
    return {n: text.strip() for n in names if (text := (host.host_ksmd.KSM / n).read_text())}
