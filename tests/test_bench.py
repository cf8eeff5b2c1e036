"""scripts/bench: the C program and ksm-eval must agree; no test looks at a time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "scripts/benchmark/bench.py"


def _missing() -> str:
    if not shutil.which("gcc"):
        return "gcc is not installed"
    if not any(Path("/usr/include").glob("**/xxhash.h")):
        return "libxxhash-dev is not installed"
    return ""


pytestmark = pytest.mark.skipif(bool(_missing()), reason=_missing())


def _bench(*arguments: str, program: Path = BENCH) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("bench")
    files = ("--json", str(directory / "b.json"), "--markdown", str(directory / "b.md"))
    done = _bench("--quick", "--rounds", "1", "--work", str(directory), *files)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((directory / "b.json").read_text())
    found["markdown"] = (directory / "b.md").read_text()
    found["picture"] = (directory / "b.svg").read_text()
    return found


def _runs(results: dict[str, Any], case: str, method: str) -> list[dict[str, Any]]:
    (found,) = [c for c in results["cases"] if c["name"] == case]
    (of,) = [m for m in found["methods"] if m["name"] == method]
    assert not of["failed"]
    runs: list[dict[str, Any]] = of["runs"]
    return runs


@pytest.mark.parametrize(
    ("case", "yardstick"),
    [("job", "C"), ("job-unique", "C"), ("read", "C"), ("fragmented-50", "C"),
     ("fragmented-10", "C"), ("proc", "C through /proc")],
)  # fmt: skip
def test_c_and_python_agree(results: dict[str, Any], case: str, yardstick: str) -> None:
    if case == "proc" and case in results["facts"].get("skipped", {}):
        pytest.skip(results["facts"]["skipped"][case])
    ours, theirs = _runs(results, case, "ksm-eval"), _runs(results, case, yardstick)
    assert len(ours) == len(theirs) == 1
    for run in (*ours, *theirs):
        assert run["results"] == ours[0]["results"]
    assert ours[0]["results"]["frames"] > 100


def test_the_job_is_what_the_fixture_has(results: dict[str, Any]) -> None:
    """THPs, PROT_NONE pages and files are in it, so the counters are more than those of pages."""
    found = _runs(results, "job", "C")[0]["results"]
    assert set(found) == {
        *("mappings", "frames", "contents", "pages_shared", "pages_sharing", "checksum")
    }
    assert found["mappings"] > found["frames"] > found["contents"] > found["pages_shared"] > 0


@pytest.mark.parametrize("codec", ["zlib", "zstd"])
def test_kdump_is_the_same_memory(results: dict[str, Any], codec: str) -> None:
    if f"kdump-{codec}" in results["facts"].get("skipped", {}):
        pytest.skip(f"no {codec}")
    expected = _runs(results, "job", "C")[0]["results"]
    assert _runs(results, f"kdump-{codec}", "ksm-eval")[0]["results"] == expected


def test_synthetic_memories(results: dict[str, Any]) -> None:
    for kind in ("settled", "duplicates", "exact", "whole"):
        for run in _runs(results, f"{kind}-1", "ksm-eval"):
            assert run["results"] == run["expected"]
            assert run["results"]["pages_shared"] > 0


def test_document(results: dict[str, Any]) -> None:
    for case in results["cases"]:
        if case["name"] == "job" or case["name"].startswith("kdump"):
            assert case["about"] in results["markdown"]
    assert "## Goals" in results["markdown"]
    assert "](b.svg)" in results["markdown"]
    assert results["picture"].startswith("<svg")
    assert str(ROOT) not in results["markdown"] + json.dumps(results)


def test_a_wrong_result_is_an_error(tmp_path: Path) -> None:
    """A C program that leaves a frame out must not become a yardstick."""
    copy = tmp_path / "scripts"
    shutil.copytree(ROOT / "scripts", copy)
    for name in ("ksm_eval", "fixtures"):
        (tmp_path / name).symlink_to(ROOT / name)
    source = copy / "benchmark/reference.c"
    text = source.read_text()
    assert text.count("group(pfn, hash, mapped, count, &results);") == 1
    source.write_text(text.replace("mapped, count, &results", "mapped, count - 1, &results"))
    done = _bench(
        *("--quick", "--only", "job", "--rounds", "1", "--work", str(tmp_path)),
        program=copy / "benchmark/bench.py",
    )
    assert done.returncode == 1
    assert "error: job: C says " in done.stderr


def test_unknown_name() -> None:
    done = _bench("--only", "nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("error: nothing is called nothing; there are: job ")
