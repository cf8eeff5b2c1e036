"""docs/ci.md: every command of its example runs, on a fixture in the place of the artefacts."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from ksm_eval import cli
from tests.fixtures import TINY, vmcore

TEXT = (Path(__file__).parent.parent / "docs" / "ci.md").read_text()
EXAMPLE = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
assert EXAMPLE
COMMANDS = [
    shlex.split(line)[1:]
    for line in EXAMPLE[1].splitlines()
    if line.strip().startswith("ksm-eval ")
]
SELECT = ["-c", "vmcore", "--comm", "srv-*", "-q", "--format", "json", "-o"]


def test_the_example_has_all_three_commands() -> None:
    assert [words[0] for words in COMMANDS] == ["-c", "compare", "batch"]


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(vmcore(TINY), "vmcore")
    assert cli.run([*SELECT, "main.json"]) == 0
    for words in COMMANDS:
        assert cli.run(words) == 0, (words, capsys.readouterr().err)
    for line in EXAMPLE[1].split("path: |")[1].split():  # type: ignore[index]
        assert Path(line).exists(), line


def test_its_gates_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same commands where the gain is less: half of the processes are gone."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(vmcore(TINY), "vmcore")
    assert cli.run([*SELECT, "main.json"]) == 0
    assert cli.run(["-c", "vmcore", "--comm", "srv-master", *SELECT[4:], "ksm.json"]) == 0
    assert cli.run(COMMANDS[1]) == 1
