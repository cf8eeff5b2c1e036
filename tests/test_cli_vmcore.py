"""Ways to open a vmcore, and vmcores that cannot be, through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksm_eval.cli import run
from tests import containers
from tests.fixtures import TINY, WARM, opted_in, truth, vmcore
from tests.test_open import stripped_vmcoreinfo, system_map
from tests.test_open import system_map as symbols_of

CORE = vmcore(TINY)
SHARING = truth(TINY)["passes"][-1]["ksm"]["pages_sharing"]
PIDS = [word for pid in opted_in(TINY) for word in ("--pid", str(pid))]


def ran(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    code = run(["-q", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The JSON report of the processes that ksmd scanned; its figures are ksmd's."""
    code, out, err = ran(capsys, *words, *PIDS, "--format", "json")
    assert (code, err) == (0, [])
    report: dict[str, Any] = json.loads(out)
    assert report["system"]["pages_sharing"] == SHARING
    return report


def refusal(capsys: pytest.CaptureFixture[str], message: str, *words: object) -> None:
    """Exit code 3, nothing on stdout, one line of error and one of what to do."""
    code, out, err = ran(capsys, *words, "--all")
    assert (code, out) == (3, "")
    assert re.search(f"^ksm-eval: error: .*{message}", err[0])
    assert len(err) == 2
    assert err[1].startswith("ksm-eval: hint: ")


def test_elf_and_flattened(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kdump = CORE.read_bytes()
    elf = containers.elf(containers.memory(CORE))
    for name, data in {
        "elf": elf,
        "flattened-elf": containers.flattened(elf),
        "flattened-kdump": containers.flattened(kdump),
        "qemu-kdump": containers.qemu_kdump(kdump),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert answer(capsys, "-c", path)["debug_info"] == "BTF + kallsyms"
        path.unlink()


def test_symbols_and_vmcoreinfo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """System.map where VMCOREINFO does not lead to kallsyms; VMCOREINFO from a file."""
    info = tmp_path / "vmcoreinfo"
    info.write_bytes(stripped_vmcoreinfo(CORE))
    path = system_map(CORE, tmp_path)
    report = answer(capsys, "-c", CORE, "-s", path, "--vmcoreinfo", info)
    assert report["debug_info"] == f"BTF + System.map ({path})"
    bare = tmp_path / "bare"
    bare.write_bytes(containers.elf(containers.memory(CORE), note=b"SOMETHING"))
    info.write_bytes(containers.memory(CORE).vmcoreinfo)
    answer(capsys, "-c", bare, "--vmcoreinfo", info)
    answer(capsys, "-c", CORE, "--architecture", "x86_64")


def test_mergeable_only_is_what_ksmd_scanned(capsys: pytest.CaptureFixture[str]) -> None:
    """All processes, but only what they offered: the outsider opted out, others never asked."""
    code, out, _ = ran(capsys, "-c", CORE, "--all", "--mergeable-only", "--format", "json")
    system = json.loads(out)["system"]
    real = truth(TINY)["passes"][-1]["ksm"]
    compared = {key: real[key] for key in real if key in system and key != "full_scans"}
    compared = {key: value for key, value in compared.items() if "scanned" not in key}
    compared = {key: value for key, value in compared.items() if "skipped" not in key}
    assert code == 0
    assert len(compared) >= 8
    assert {key: system[key] for key in compared} == compared


@pytest.mark.parametrize("from_snapshot", [False, True])
def test_timeline(capsys: pytest.CaptureFixture[str], tmp_path: Path, from_snapshot: bool) -> None:
    """Every counter after every pass, also from a saved snapshot."""
    real = truth(TINY)["passes"]
    words = ["-c", str(CORE), *PIDS]
    if from_snapshot:
        saved = str(tmp_path / "saved.npz")
        assert ran(capsys, *words, "--save", saved)[0] == 0
        words = ["--snapshot", saved]
    code, out, _ = ran(capsys, *words, "--passes", len(real), "--format", "json")
    assert code == 0
    timeline = json.loads(out)["timeline"]
    assert [row["pass"] for row in timeline] == [row["pass"] for row in real]
    for row, expected in zip(timeline, real, strict=True):
        compared = {key: value for key, value in expected["ksm"].items() if key in row}
        assert len(compared) >= 11
        assert {key: row[key] for key in compared} == compared
        assert row["exact"] is True
    code, out, _ = ran(capsys, *words, "--passes", 3)
    assert "   3    224    2492" in out


def test_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """ksmd's records add up to its counters, and their replay to those of the next scans."""
    name = "x86_64-6.12-tiny-warm"
    shown, real = truth(name)["settings_at_dump"], truth(name)["passes"]
    saved = tmp_path / "saved.npz"
    words = ["--verify", "--passes", len(real), "--format", "json"]
    code, out, _ = ran(capsys, "-c", vmcore(name), *words)
    assert code == 0
    rows = {row["counter"]: row for row in json.loads(out)["verify"]}
    compared = [key for key in rows if key in shown]
    assert len(compared) >= 10
    for key in compared:
        assert rows[key]["records"] == shown[key], key
        assert rows[key]["after"] == [entry["ksm"][key] for entry in real], key
        assert rows[key]["difference"] in (0, None)
    assert ran(capsys, "-c", vmcore(name), "--all", "--mergeable-only", "--save", saved)[0] == 0
    code, again, _ = ran(capsys, "--snapshot", saved, *words)
    assert (code, json.loads(again)["verify"]) == (0, list(rows.values()))
    code, out, _ = ran(capsys, "-c", vmcore(name), "--verify")
    assert "Verified: ksmd's own records" in out


@pytest.mark.parametrize("name", WARM)
def test_where_ksmd_has_run(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """The next full scans and the settled state of all that it scans."""
    real = truth(name)["passes"]
    words = ["-c", vmcore(name), "--all", "--mergeable-only", "--format", "json"]
    code, out, _ = ran(capsys, *words, "--passes", len(real))
    assert code == 0
    report = json.loads(out)
    for row, expected in zip(report["timeline"], real, strict=True):
        compared = {key: value for key, value in expected["ksm"].items() if key in row}
        assert len(compared) >= 7
        assert {key: row[key] for key in compared} == compared
    last, settled = real[-1]["ksm"], report["system"]
    for key in ("pages_shared", "pages_sharing", "stable_node_chains", "stable_node_dups"):
        assert settled[key] == last[key], key
    unmerged = ("pages_unshared", "pages_volatile")
    assert sum(settled[key] for key in unmerged) == sum(last[key] for key in unmerged)
    if "general_profit" in last:
        assert settled["general_profit"] == last["general_profit"]
    code, out, err = ran(capsys, *words, "--max-page-sharing", "77")
    assert (code, out) == (2, "")
    assert "cannot be changed while there are KSM pages" in err[0]
    code, out, _ = ran(capsys, "-c", vmcore(name), *words)
    assert code == 0
    samples = json.loads(out)  # there is no telling what single scans of them would do
    assert samples["timeline"] == []
    assert any("ksmd has run here" in note for note in samples["notes"])
    calm = samples["calm"]
    assert (calm["calm"], calm["changed"], calm["new"]) == (calm["mappings"], 0, 0)
    assert {key: calm["counters"][key] for key in settled if key in calm["counters"]} == {
        key: value for key, value in settled.items() if key in calm["counters"]
    }
    assert (calm["seconds"], calm["cow_breaks_per_second"]) == (None, None)


def test_verify_needs_all_that_ksmd_scans(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = tmp_path / "saved.npz"
    assert ran(capsys, "-c", vmcore(WARM[0]), "--all", "--save", saved)[0] == 0
    code, out, err = ran(capsys, "--snapshot", saved, "--verify")
    assert (code, out) == (3, "")
    assert "not of all that ksmd scans" in err[0]


def test_verify_needs_a_ksmd_that_ran(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, "-c", CORE, "--verify")
    assert (code, out) == (3, "")
    assert "there is nothing to verify" in err[0]
    code, out, err = ran(capsys, "-c", CORE, "--verify", "--pid", "23")
    assert (code, out) == (2, "")
    assert "--pid cannot be used with --verify" in err[0]


def test_what_is_there_and_what_would_be_added(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a ksmd that has run, with a process more than it scans: both stand side by side."""
    name = "x86_64-6.12-tiny-warm"
    never = next(p["pid"] for p in truth(name)["processes"] if p["comm"] == "never")
    code, out, _ = ran(capsys, "-c", vmcore(name), "--pid", never, "--format", "json")
    report = json.loads(out)
    assert code == 0
    assert [row["pid"] for row in report["processes"]] == [never]
    now = truth(name)["settings_at_dump"]
    assert report["observed"]["pages_sharing"] == now["pages_sharing"]
    settled = truth(name)["passes"][-1]["ksm"]
    assert report["system"]["pages_sharing"] > settled["pages_sharing"]
    assert report["savings"]["frames_merged_now"] > 0
    code, out, _ = ran(capsys, "-c", vmcore(name), "--pid", never)
    assert re.search(r"predicted +target now +added", out)


def test_samples(capsys: pytest.CaptureFixture[str]) -> None:
    """Three samples of a memory that stood still are its first three full scans."""
    words = [word for _ in range(3) for word in ("-c", CORE)]
    report = answer(capsys, *words)
    real = truth(TINY)["passes"][:3]
    for row, expected in zip(report["timeline"], real, strict=True):
        compared = {key: value for key, value in expected["ksm"].items() if key in row}
        assert len(compared) >= 11
        assert {key: row[key] for key in compared} == compared
    calm = report["calm"]
    assert calm["samples"] == 3
    assert calm["calm"] == calm["mappings"] == report["completeness"]["mappings"]
    assert calm["changed"] == calm["new"] == 0
    assert sum(row["calm_pages"] for row in report["processes"]) == calm["calm"]
    code, out, _ = ran(capsys, *words, *PIDS)
    assert (code, "Over 3 samples" in out) == (0, True)


def test_samples_of_two_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    other = vmcore("x86_64-6.1-tiny")
    code, out, err = ran(capsys, "-c", CORE, "-c", other, "--all")
    assert (code, out) == (2, "")
    assert "are not of the same boot" in err[0]
    for option in (["--passes", "3"], ["--save", "x"]):
        code, out, err = ran(capsys, "-c", CORE, "-c", CORE, "--all", *option)
        assert (code, out) == (2, "")
        assert f"{option[0]} cannot be used with several vmcores" in err[0]


def test_no_vmcoreinfo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bare"
    path.write_bytes(containers.elf(containers.memory(CORE), note=b"SOMETHING"))
    refusal(capsys, "has no VMCOREINFO", "-c", path)


@pytest.mark.parametrize("keep", [100, 5000, 1_000_000])
def test_truncated(capsys: pytest.CaptureFixture[str], tmp_path: Path, keep: int) -> None:
    path = tmp_path / "cut"
    path.write_bytes(CORE.read_bytes()[:keep])
    refusal(capsys, "truncated|is not a vmcore|incomplete", "-c", path)


def test_no_symbols_and_no_btf(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    info = tmp_path / "vmcoreinfo"
    info.write_bytes(stripped_vmcoreinfo(CORE))
    refusal(capsys, "no usable kernel symbols", "-c", CORE, "--vmcoreinfo", info)
    path = symbols_of(CORE, tmp_path, "__start_BTF", "__stop_BTF")
    refusal(capsys, "has no BTF", "-c", CORE, "-s", path, "--vmcoreinfo", info)
    path = symbols_of(CORE, tmp_path, "init_pid_ns")
    refusal(capsys, "symbols or types cannot be used", "-c", CORE, "-s", path, "--vmcoreinfo", info)


def test_wrong_vmlinux(capsys: pytest.CaptureFixture[str]) -> None:
    """A real ELF file of something else."""
    import sys

    refusal(capsys, "vmlinux|build ID|kernel", "-c", CORE, "-s", Path(sys.executable).resolve())


def test_filtered_elf(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without anonymous pages, as makedumpfile -E -d 8 leaves them out: holes of 256 pages in
    a row or more, which read as zeros."""
    from ksm_eval.collect import collect
    from ksm_eval.target import Selection
    from tests.fixtures import target

    pfns = collect(target(TINY), Selection(all=True)).frames.pfn.astype(np.int64)
    runs = np.split(pfns, np.flatnonzero(np.diff(pfns) != 1) + 1)
    holes = [(int(r[0]) << 12, int(r[-1] + 1) << 12) for r in runs if len(r) >= 256]
    assert holes
    path = tmp_path / "filtered"
    path.write_bytes(containers.elf(containers.memory(CORE), holes=holes))
    refusal(capsys, "are not in .*, and an ELF vmcore does not tell", "-c", path)
