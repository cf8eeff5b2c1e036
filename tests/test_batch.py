"""`ksm-eval batch`: many vmcores, broken ones among them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from ksm_eval import batch, cli
from ksm_eval.batch import Core, Evaluation, evaluate_all, find_cores, worst
from ksm_eval.errors import UsageError
from ksm_eval.report.batch_text import batch_text
from ksm_eval.report.outcome import Outcome
from ksm_eval.report.to_junit import to_junit
from tests.fixtures import FILTERED, TINY, opted_in, vmcore
from tests.test_report import HOSTILE

WORDS = [word for pid in opted_in(TINY) for word in ("--pid", str(pid))]


@pytest.fixture
def crash(tmp_path: Path) -> Iterator[Path]:
    """As kdump leaves them in /var/crash: good, filtered, empty, no vmcores at all."""
    folder = tmp_path / "crash"
    for host, source in (("a", vmcore(TINY)), ("b", FILTERED)):
        (folder / host).mkdir(parents=True)
        shutil.copy(source, folder / host / "vmcore")
        (folder / host / "vmcore-dmesg.txt").write_text("[    0.000000] Linux version")
    (folder / "c").mkdir()
    (folder / "c" / "vmcore-incomplete").touch()
    (folder / "c" / "program").symlink_to(sys.executable)  # an ELF, but no core
    yield folder
    assert not list(folder.rglob(".ksm-eval-*"))


def outcome(code: int, name: str = "vmcore", message: str = "") -> Outcome:
    return Outcome(name, f"/{name}", code, message, 1.5)


def test_vmcores_are_found_once_and_by_name(crash: Path) -> None:
    found = find_cores([crash, crash / "a" / "vmcore"])
    assert [core.name for core in found] == ["a/vmcore", "b/vmcore", "c/vmcore-incomplete"]
    named = find_cores([crash / "a" / "vmcore", crash / "b" / "vmcore"])
    assert [core.name for core in named] == ["vmcore", "vmcore-2"]
    (crash / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no vmcore in"):
        find_cores([crash / "empty"])
    with pytest.raises(UsageError, match=r"there is no .*nothing"):
        find_cores([crash / "nothing"])


def test_one_call(crash: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, junit = tmp_path / "new" / "out", tmp_path / "junit.xml"
    out.mkdir(parents=True)
    (out / "b_vmcore.json").write_text("of an earlier batch")
    words = ["batch", str(crash), *WORDS, "--out", str(out), "--junit", str(junit)]
    assert cli.run(words) == 3
    text = capsys.readouterr().out
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert [line.split()[-1] for line in text.splitlines()[1:4]] == ["ok", "3", "3"]
    assert "b/vmcore: " in text
    assert "3 vmcores, 1 ok" in text
    # The one report is that of ksm-eval -c; no file that would pass for the others'.
    assert [path.name for path in out.iterdir()] == ["a_vmcore.json"]
    written = json.loads((out / "a_vmcore.json").read_text())
    assert cli.run(["-c", str(crash / "a/vmcore"), *WORDS, "--format", "json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["savings"] == written["savings"]
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "0", "2")
    assert [len(case.findall("error")) for case in suite.iter("testcase")] == [0, 1, 1]
    error = next(suite.iter("error"))
    assert error.get("type") == "exit code 3"
    assert "has no user pages" in error.get("message", "")


def test_gates_and_settings_are_passed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junit = tmp_path / "junit.xml"
    words = ["batch", str(vmcore(TINY)), *WORDS, "--junit", str(junit)]
    assert cli.run([*words, "--fail-under", "1T", "--no-smart-scan"]) == 1
    assert "gate failed" in capsys.readouterr().out
    failure = next(ElementTree.parse(junit).getroot().iter("failure"))
    assert "--fail-under wants 1.0 TiB" in failure.get("message", "")
    assert cli.run([*words, "--fail-under", "1"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nowhere", "--all"],
        [str(vmcore(TINY))],
        [str(vmcore(TINY)), "--all", "--fail-under", "x"],
        [str(vmcore(TINY)), "--all", "--samples", "3"],
        [str(vmcore(TINY)), "--all", "--junit", "/nowhere/x.xml"],
        [str(vmcore(TINY)), "--all", "--out", "/dev/null/x"],
    ],
)
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is read."""
    assert cli.run(["batch", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ksm-eval: error: ")


def test_a_crash_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    evaluation = Evaluation(["--all"], None, heard.append)
    monkeypatch.setattr(batch, "_PROGRAM", f"import os; os.kill(os.getpid(), {signal.SIGSEGV:d})")
    found = evaluation(Core(Path("x"), "x"))
    assert (found.code, found.message) == (5, "crashed: SIGSEGV")
    monkeypatch.setattr(batch, "_PROGRAM", "import sys; print('a log', file=sys.stderr); exit(77)")
    found = evaluation(Core(Path("x"), "x"))
    assert (found.code, found.message, heard) == (5, "ended with 77", ["x: a log"])
    monkeypatch.setattr(batch, "_PROGRAM", "exit(130)")
    with pytest.raises(KeyboardInterrupt):
        evaluation(Core(Path("x"), "x"))


def test_outcomes_come_in_order() -> None:
    cores = [Core(Path(name), name) for name in "abc"]
    heard: list[tuple[str, int, int]] = []
    found = evaluate_all(
        cores,
        lambda core: outcome(0, core.name),
        done=lambda one, number, of: heard.append((one.name, number, of)),
    )
    assert [one.name for one in found] == ["a", "b", "c"]
    assert heard == [("a", 1, 3), ("b", 2, 3), ("c", 3, 3)]


@pytest.mark.parametrize(
    ("codes", "expected"),
    [([], 0), ([0, 1], 1), ([1, 4, 0], 4), ([4, 3], 3), ([3, 2], 2), ([2, 5], 5)],
)
def test_worst(codes: list[int], expected: int) -> None:
    assert worst(map(outcome, codes)) == expected


def test_hostile_names_and_messages() -> None:
    """Valid XML, and nothing a terminal obeys."""
    hostile = [*HOSTILE, '<a href="&">]]>', "\0\x1f\ufffe\ud800"]
    outcomes = [outcome(code, name, name) for name in hostile for code in (1, 3)]
    suite = ElementTree.fromstring(to_junit(outcomes))
    assert len(list(suite.iter("testcase"))) == len(outcomes)
    assert next(suite.iter("failure")).text == "\\x1b[2J\\x1b]0;owned\\x07"
    assert [case.get("name") for case in suite.iter("testcase")][-4] == '<a href="&">]]>'
    for line in batch_text(outcomes).splitlines():
        assert line.isprintable()
        assert cell_len(line) <= 80


def test_what_lies_in_the_current_directory_is_no_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.curdir)])
    evaluation = Evaluation(["-q", *WORDS, "--format=json"], None, print)
    assert evaluation(Core(vmcore(TINY), "tiny")).code == 0
