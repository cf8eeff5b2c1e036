"""Kernel pages that are missing from the dump cost only what needs them, and are said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import drgn
import pytest
from drgn import Object, Program
from drgn.helpers.linux.mm import for_each_vma, virt_to_phys
from drgn.helpers.linux.pid import find_task

import ksm_eval.evaluate
from ksm_eval.cli import run
from ksm_eval.collect import collect
from ksm_eval.errors import TargetError
from ksm_eval.target import Selection, Target
from ksm_eval.target.kernel import KernelTarget
from ksm_eval.target.program import open_core
from tests.fixtures import TINY, opted_in, snapshot, truth, vmcore

LONER = next(p["pid"] for p in truth(TINY)["processes"] if p["comm"] == "loner")
MASTER = next(p["pid"] for p in truth(TINY)["processes"] if p["comm"] == "srv-master")


def excluded(address: int, *_: object) -> bytes:
    """A reader of memory that fails as drgn does on a filtered kdump."""
    raise drgn.FaultError("Excluded page", address)


def missing_page(prog: Program, address: int) -> None:
    """As if the dump did not have the page at this virtual address."""
    physical = virt_to_phys(prog, address).value_()
    prog.add_memory_segment(address & ~4095, 4096, excluded, False)
    prog.add_memory_segment(physical & ~4095, 4096, excluded, True)


def mm(task: Object) -> int:
    return int(task.mm.value_())


def first_vma(task: Object) -> int:
    return int(next(iter(for_each_vma(task.mm))).value_())


def cred(task: Object) -> int:
    return int(task.real_cred.value_())


def broken(where: Callable[[Object], int]) -> Target:
    opened = open_core(vmcore(TINY))
    missing_page(opened.prog, where(find_task(opened.prog, LONER)))
    return KernelTarget(opened)


def test_unknown_uid_is_not_root() -> None:
    found = collect(broken(cred), Selection(pids=tuple(opted_in(TINY))))
    assert found.meta.lost == []
    assert found.processes.uid[found.processes.pid == LONER] == 0xFFFFFFFF
    assert len(found.mappings) == len(snapshot(TINY).mappings)


@pytest.mark.parametrize("where", [mm, first_vma])
def test_one_process_is_lost_not_all(where: Callable[[Object], int]) -> None:
    found = collect(broken(where), Selection(pids=tuple(opted_in(TINY))))
    lost = {int(text.split()[1]) for text in found.meta.lost}
    rest = set(found.processes.pid.tolist())
    assert LONER in lost
    assert not lost & rest
    assert lost | rest == set(snapshot(TINY).processes.pid.tolist())
    assert len(rest) >= 2


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(TargetError, match=f"none of the selected .* pid {LONER}"):
        collect(broken(first_vma), Selection(pids=(LONER,)))


def test_exit_code_and_first_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = broken(first_vma)
    monkeypatch.setattr(ksm_eval.evaluate, "open_target", lambda *_, **__: target)
    words = ["-q", "-c", str(vmcore(TINY)), "--pid", str(MASTER), "--pid", str(LONER)]
    assert run(words) == 4
    out, err = capsys.readouterr()
    assert f"not evaluated at all: pid {LONER} (loner): its VMAs cannot be read" in out
    assert out.index("INCOMPLETE") < out.index("KSM would")
    assert "1 of the selected processes could not be read" in err
    assert run([*words, "--max-unreadable", "100", "--format", "json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [row["pid"] for row in report["processes"]] == [MASTER]
    assert len(report["completeness"]["processes_lost"]) == 1


def test_unreadable_frames_never_merge_but_count() -> None:
    """A third of the frames gone: as many rmap_items, fewer pages shared, all of it said."""
    whole = snapshot(TINY)
    opened = open_core(vmcore(TINY))
    for pfn in whole.frames.pfn[::3].tolist():
        opened.prog.add_memory_segment(pfn << 12, 4096, excluded, True)
    found = collect(KernelTarget(opened), Selection(pids=tuple(opted_in(TINY))))
    gone = -(-len(whole.frames) // 3)
    assert found.meta.unreadable == {"filtered out of the dump": gone}
    before = ksm_eval.evaluate.evaluate_snapshot(whole)
    after = ksm_eval.evaluate.evaluate_snapshot(found)
    assert after.completeness.frames_unreadable == gone
    counters = after.system.counters
    assert counters["pages_sharing"] < before.system.counters["pages_sharing"]
    total = sum(
        counters[name]
        for name in ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
    )
    assert total == counters["ksm_rmap_items"]
    assert counters["pages_volatile"] >= after.completeness.mappings_unreadable


def test_file_that_is_no_file(tmp_path: Path) -> None:
    import os

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TargetError, match="is no regular file"):
        open_core(pipe)
