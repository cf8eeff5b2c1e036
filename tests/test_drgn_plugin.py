"""A drgn session: evaluate() of its Program, and the command %ksm-eval."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drgn import Program
from drgn.commands import CommandError, run_command

import ksm_eval.drgn_plugin
from ksm_eval import cli
from ksm_eval.errors import TargetError, UsageError
from ksm_eval.evaluate import evaluate, open_target
from ksm_eval.report.to_html import to_fragment
from ksm_eval.report.to_json import to_json
from ksm_eval.target import Selection
from ksm_eval.target.program import open_core
from ksm_eval.target.session import target_of
from tests import containers
from tests.fixtures import FILTERED, TINY, opted_in, truth, vmcore
from tests.test_report import RUN
from tests.test_report import report as hand_made

PIDS = tuple(opted_in(TINY))
WORDS = " ".join(f"--pid {pid}" for pid in PIDS)


def session(path: Path) -> Program:
    """As a user's: the memory, no debug info."""
    prog = Program()
    prog.set_core_dump(path)
    return prog


def by_command_line(capsys: pytest.CaptureFixture[str], core: Path) -> dict[str, Any]:
    words = ["-c", str(core), "-q", "--format", "json", *WORDS.split()]
    assert cli.run(words) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return settled(document)


def as_document(report: Any) -> dict[str, Any]:
    return settled(json.loads(to_json(report, RUN)))


def settled(document: dict[str, Any]) -> dict[str, Any]:
    """Without what each reading has of its own: its time and its key of hashes."""
    del document["run"], document["target"]["time"]
    for content in document["decision"]["kinds"]["top"]:
        del content["hash"]
    return document


def test_a_program_without_debug_info(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line's report, and a Program that is as it was."""
    core = vmcore(TINY)
    prog = session(core)
    enabled = [prog.enabled_type_finders(), prog.enabled_symbol_finders()]
    report = evaluate(prog, Selection(pids=PIDS))
    assert as_document(report) == by_command_line(capsys, core)
    assert (
        report.system.counters["pages_sharing"] == truth(TINY)["passes"][-1]["ksm"]["pages_sharing"]
    )
    assert [prog.enabled_type_finders(), prog.enabled_symbol_finders()] == enabled
    with pytest.raises(LookupError):
        prog.type("struct page")


def test_as_one_types_it() -> None:
    words = "import ksm_eval, drgn\nassert callable(ksm_eval.evaluate)\n"
    words += "prog = drgn.Program()\nprog.set_core_dump({core!r})\n"
    words += "print(ksm_eval.evaluate(prog, ksm_eval.Selection(all=True)).savings.frames_freed)"
    code = words.format(core=str(vmcore(TINY)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    expected = evaluate(open_target(vmcore(TINY)), Selection(all=True))
    assert int(done.stdout) == expected.savings.frames_freed


def test_a_notebook_shows_html() -> None:
    made = hand_made()
    assert made._repr_html_() == to_fragment(made)


def test_a_program_with_types_is_used_as_it_is() -> None:
    prog = open_core(vmcore(TINY)).prog
    report = evaluate(prog, Selection(pids=PIDS))
    expected = evaluate(open_target(vmcore(TINY)), Selection(pids=PIDS))
    assert report.debug_info == "the drgn session's own"
    assert as_document(replace(report, debug_info="")) == as_document(
        replace(expected, debug_info="")
    )


def test_an_elf_core(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = tmp_path / "elf"
    core.write_bytes(containers.elf(containers.memory(vmcore(TINY))))
    report = evaluate(session(core), Selection(pids=PIDS))
    assert as_document(report) == by_command_line(capsys, core)


def test_sessions_that_cannot_answer() -> None:
    with pytest.raises(UsageError, match="not of a Linux kernel"):
        target_of(Program())
    with pytest.raises(TargetError, match="has no user pages"):
        target_of(session(FILTERED))


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    core = vmcore(TINY)
    expected = by_command_line(capsys, core)
    prog = session(core)
    report = run_command(prog, f"ksm-eval {WORDS}")
    out = capsys.readouterr().out
    assert as_document(report) == expected
    assert "pages_sharing" in out
    run_command(prog, f"ksm-eval {WORDS} --json")
    document = json.loads(capsys.readouterr().out)
    assert document["run"]["bytes_read"] > 0
    assert settled(document) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no process selected"),
        ("--pid 999999", "999999"),
        ("--all --passes -1", "less than 0"),
    ],
)
def test_command_that_cannot_be(words: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run_command(session(vmcore(TINY)), f"ksm-eval {words}")


def test_drgn_without_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 0.1: the module can be imported, and has no command."""
    for name in ("drgn.commands", "drgn.commands.linux"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "ksm_eval.drgn_plugin")
    assert not hasattr(importlib.import_module("ksm_eval.drgn_plugin"), "ksm_eval_command")


def test_entry_point() -> None:
    root = Path(__file__).parent.parent
    group = (root / "pyproject.toml").read_text().split('[project.entry-points."drgn.plugins"]')[1]
    assert group.split()[:3] == ["ksm_eval", "=", f'"{ksm_eval.drgn_plugin.__name__}"']
