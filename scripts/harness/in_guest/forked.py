"""Runs of ksm-eval in a fork: numpy and drgn are there already, and what a run gives up or
mounts is its own."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from ksm_eval import cli, evaluate
from ksm_eval.target import Target


def _nothing() -> None: ...


def forked(run: Callable[[], int]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `run` in a fork."""
    files = [os.memfd_create(name) for name in ("out", "err")]
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, file in enumerate(files, 1):
                os.dup2(file, number)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            code = run()
            sys.stdout.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    texts = []
    for file in files:
        size = os.fstat(file).st_size
        texts.append(os.pread(file, size, 0).decode())
        os.close(file)
    return os.waitstatus_to_exitcode(status), texts[0], texts[1]


def evaluated(
    *arguments: str, prepare: Callable[[], None] = _nothing, target: Target | None = None
) -> dict[str, Any]:
    """What matters of `ksm-eval ARGUMENTS` after `prepare`; with a target that is open already,
    which saves seconds."""

    def run() -> int:
        prepare()
        if target is not None:
            evaluate.open_live = lambda *_, **__: target
        return cli.run(["-q", "--format", "json", *arguments])

    start = time.monotonic()
    found = summary(*forked(run))
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def summary(code: int, out: str, error: str) -> dict[str, Any]:
    seen: dict[str, Any] = {"code": code, "error": error, "silent": not out}
    if out:
        report = json.loads(out)
        seen |= {
            "kind": report["target"]["kind"],
            "notes": report["notes"],
            "lost": report["completeness"]["processes_lost"],
            "unreadable": report["completeness"]["mappings_unreadable"],
            "processes": [(row["pid"], row["comm"]) for row in report["processes"]],
            "mappings": report["completeness"]["mappings"],
        }
    return seen
