"""The saved vmcores and what the real ksmd counted on the same memory."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from ksm_eval.collect import collect
from ksm_eval.evaluate import open_target
from ksm_eval.snapshot import Snapshot
from ksm_eval.target import Selection, Target

VMCORES = Path(__file__).parent.parent / "fixtures" / "vmcores"
_ALL = sorted(path.name.removesuffix(".truth.json") for path in VMCORES.glob("*.truth.json"))
NAMES = [name for name in _ALL if not name.endswith("-warm")]
WARM = [name for name in _ALL if name.endswith("-warm")]  # dumped after ksmd's sixth pass
assert NAMES, "no vmcore with a truth file in fixtures/vmcores"

TINY = "x86_64-6.12-tiny"
FILTERED = VMCORES / "x86_64-6.12-tiny.makedumpfile-d31.kdump"


def vmcore(name: str) -> Path:
    return VMCORES / f"{name}.kdump"


@cache
def truth(name: str) -> dict[str, Any]:
    """fixtures/vmcores/README.md describes it."""
    loaded: dict[str, Any] = json.loads((VMCORES / f"{name}.truth.json").read_text())
    return loaded


def opted_in(name: str) -> list[int]:
    """The pids that asked for KSM, and so are what ksmd scanned."""
    return [process["pid"] for process in truth(name)["processes"] if process["opted_in"]]


@cache
def target(name: str) -> Target:
    return open_target(vmcore(name))


@cache
def snapshot(name: str) -> Snapshot:
    """Of the processes that ksmd scanned."""
    return collect(target(name), Selection(pids=tuple(opted_in(name))))
