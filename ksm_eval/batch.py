"""Many vmcores, each evaluated by a process of its own: a broken one costs only itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ksm_eval.errors import UsageError
from ksm_eval.report.outcome import Outcome

EXIT_CRASH: Final = 5  # as for any other bug
WORST_FIRST: Final = (5, 2, 3, 4, 1, 0)
"""5 and 2 are wrong for all vmcores alike, 3 has no answer, 4 half of one, 1 one not wished for."""

_MAGIC: Final = (b"KDUMP   ", b"DISKDUMP", b"makedumpfile\0")
_NAMES: Final = ("vmcore", "vmcore-incomplete")  # of kdump: there even if the dump failed
_SUFFIXES: Final = (".kdump", ".vmcore")

_PROGRAM: Final = (
    "import sys; count = int(sys.argv[1]); sys.path[:] = sys.argv[2 : 2 + count]; "
    "from ksm_eval.cli import run; sys.exit(run(sys.argv[2 + count :]))"
)
_PACKAGES: Final = str(Path(__file__).parent.parent)
_TOLD: Final = ("ksm-eval: error: ", "ksm-eval: gate failed: ")


@dataclass(frozen=True)
class Core:
    """A vmcore to be evaluated."""

    path: Path
    name: str  # below the directory it was found in; unique in the batch


def find_cores(paths: Sequence[Path]) -> list[Core]:
    """Files as given; of directories all vmcores in and below them, by name. None twice.

    In a directory a vmcore is what begins like one or is called like one, so that dumps that are
    empty or damaged are told of and a dmesg beside them is not. Raises UsageError for a path that
    does not exist, and for a directory without vmcores.
    """
    found: list[tuple[Path, str]] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_inside(path))
            if not inside:
                raise UsageError(f"there is no vmcore in {path}", "name files, or another folder")
            found += [(core, str(core.relative_to(path))) for core in inside]
        elif path.exists():
            found.append((path, path.name))
        else:
            raise UsageError(f"there is no {path}", "name vmcores, or folders of them")
    cores: dict[Path, Core] = {}
    names: set[str] = set()
    for path, wanted in found:
        if path.resolve() not in cores:
            name = _unused(wanted, names)
            names.add(_file_name(name))
            cores[path.resolve()] = Core(path, name)
    return list(cores.values())


def _inside(directory: Path) -> Iterator[Path]:
    for folder, _, files in os.walk(directory):
        for name in files:
            path = Path(folder, name)
            if path.is_file() and (
                name in _NAMES or path.suffix in _SUFFIXES or _begins_like_a_core(path)
            ):
                yield path


def _begins_like_a_core(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(18)
    except OSError:
        return False
    elf_core = head[:4] == b"\x7fELF" and head[16:18] in (b"\4\0", b"\0\4")
    return elf_core or head.startswith(_MAGIC)


def _unused(wanted: str, names: set[str]) -> str:
    name, number = wanted, 1
    while _file_name(name) in names:
        number += 1
        name = f"{wanted}-{number}"
    return name


def _file_name(name: str) -> str:
    return f"{name.replace(os.sep, '_')}.json"


@dataclass
class Evaluation:
    """Evaluates one vmcore after the other, or several at once: calls share nothing."""

    arguments: Sequence[str]  # of ksm-eval: selection, settings, gates
    out: Path | None  # a directory for one JSON report each
    tell: Callable[[str], None]  # hears what they log

    def __call__(self, core: Core) -> Outcome:
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=".ksm-eval-", dir=self.out) as folder:
            report = Path(folder, "report.json")
            code, errors = _run(["-c", str(core.path), *self.arguments, "-o", str(report)])
            figures = _figures(report)
            if self.out is not None:
                kept = self.out / _file_name(core.name)
                if figures:
                    report.replace(kept)
                else:  # that of an earlier batch would pass for this one's
                    with suppress(OSError):
                        kept.unlink()
        message = ""
        for line in errors:
            told = next((line[len(start) :] for start in _TOLD if line.startswith(start)), None)
            if told is not None:
                message = told
            elif not line.startswith("ksm-eval: hint: "):
                self.tell(f"{core.name}: {line}")
        if code < 0:
            message, code = f"crashed: {_signal_name(-code)}", EXIT_CRASH
        elif code not in WORST_FIRST:
            message, code = message or f"ended with {code}", EXIT_CRASH
        seconds = time.monotonic() - started
        return Outcome(
            core.name, str(core.path), code, message if code else "", round(seconds, 3), **figures
        )


def _run(arguments: Sequence[str]) -> tuple[int, list[str]]:
    """Exit code (negative: the signal) and lines of standard error of a ksm-eval of its own."""
    path = [*sys.path, _PACKAGES]
    done = subprocess.run(
        # -I: what lies in the current directory is no module of ours.
        [sys.executable, "-I", "-c", _PROGRAM, str(len(path)), *path, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode == 130:  # SIGINT came to all of us, and was meant for the batch
        raise KeyboardInterrupt
    return done.returncode, done.stderr.decode("utf-8", "replace").splitlines()


def _figures(report: Path) -> Mapping[str, Any]:
    """Of our own program, which writes a report in full or not at all."""
    try:
        document = json.loads(report.read_bytes())
    except OSError:
        return {}
    verdict = (document["decision"] or {}).get("verdict", {})
    return {
        "net_bytes": document["savings"]["net_bytes"],
        "frames_freed": document["savings"]["frames_freed"],
        "share_of_rss": verdict.get("share_of_rss"),
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


Runner = Callable[[Callable[[Core], Outcome], Iterable[Core]], Iterable[Outcome]]
"""map(), or that of a concurrent.futures.ThreadPoolExecutor: outcomes in the order of the cores."""


def evaluate_all(
    cores: Sequence[Core],
    evaluation: Callable[[Core], Outcome],
    *,
    runner: Runner = map,
    done: Callable[[Outcome, int, int], None] | None = None,
) -> list[Outcome]:
    """`done` hears of each outcome, how many there are by then, and of how many."""
    outcomes: list[Outcome] = []
    for outcome in runner(evaluation, cores):
        outcomes.append(outcome)
        if done is not None:
            done(outcome, len(outcomes), len(cores))
    return outcomes


def worst(outcomes: Iterable[Outcome]) -> int:
    """The exit code of a batch."""
    return min((outcome.code for outcome in outcomes), key=WORST_FIRST.index, default=0)
