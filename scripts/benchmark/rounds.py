"""A case: methods that do the same work, in turn, each run a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHILD = str(Path(__file__).resolve().parent / "child.py")
Run = dict[str, Any]


class Wrong(Exception):
    """Two methods do not agree, or one did not work."""


@dataclass(frozen=True)
class Method:
    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    name: str
    about: str
    methods: tuple[Method, ...]
    yardstick: str = ""  # a method's name
    frames: int = 0  # what memory is divided by; 0: not told
    size: int = 0  # bytes that are read; 0: none
    most: int = 1000  # rounds, where it takes long
    prediction_is_simple: bool = False  # nothing but equal contents decides, so C's is the same
    before: Callable[[], None] = lambda: None  # each round


@dataclass
class Measured:
    """A method's runs, or why there are none."""

    runs: list[Run] = field(default_factory=list)
    failed: str = ""


def python(name: str, *arguments: object) -> tuple[str, ...]:
    """The command of one of child.py's measurements."""
    return (sys.executable, CHILD, name, *map(str, arguments))


def run(command: tuple[str, ...]) -> Run:
    """What the process says in its last line."""
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip() or f"it ended with {done.returncode}"
        raise Wrong(f"{' '.join(command[:4])}: {said}")
    found: Run = json.loads(lines[-1])
    return found


def measure(case: Case, rounds: int, say: Callable[[str], None]) -> dict[str, Measured]:
    """Raises Wrong unless all results are equal, where both have one."""
    measured = {method.name: Measured() for method in case.methods}
    known: dict[str, tuple[object, str]] = {}  # result -> value, who said so
    for number in range(min(rounds, case.most)):
        case.before()
        for method in case.methods:
            into = measured[method.name]
            if into.failed:
                continue
            say(f"{case.name}: round {number + 1}, {method.name}")
            found = run(method.command)
            if "failed" in found:
                into.failed = found["failed"]
                continue
            _check(case, method.name, found, known)
            into.runs.append(found)
    return measured


def _check(case: Case, method: str, found: Run, known: dict[str, tuple[object, str]]) -> None:
    said = dict(found.get("results", {}))
    for name, value in found.get("expected", {}).items():
        if said[name] != value:
            raise Wrong(f"{case.name}: {method} says {name} is {said[name]}, not {value}")
    if case.prediction_is_simple:
        for name, value in found.get("predicted", {}).items():
            if said[name] != value:
                raise Wrong(f"{case.name}: {method} predicts {name} {value}, not {said[name]}")
    for name, value in said.items():
        before, who = known.setdefault(name, (value, method))
        if before != value:
            raise Wrong(f"{case.name}: {method} says {name} is {value}, {who} {before}")
