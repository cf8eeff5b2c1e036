"""Real programs on the kernel that the tests run on, against its own ksmd."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("gunicorn", "gunicorn --preload", "PostgreSQL", "Redis")
TRIES = 3
SCRIPT = Path(__file__).parent.parent / "scripts/harness/programs.py"


def rows_of(program: str, kind: str, out: Path, runs: int = 1) -> list[dict[str, Any]]:
    """What scripts/harness/programs.py wrote."""
    command = [sys.executable, str(SCRIPT), "--program", program, "--kind", kind]
    command += ["--runs", str(runs), "--json", str(out), "--wait", "60"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert out.exists(), done.stderr
    rows: list[dict[str, Any]] = json.loads(out.read_text())["programs"]
    if rows[0]["skipped"]:
        pytest.skip(rows[0]["skipped"])
    return rows


@pytest.mark.parametrize("program", PROGRAMS)
def test_stopped(program: str, tmp_path: Path) -> None:
    """Every counter after every pass, the system's and each process's; and once settled."""
    (row,) = rows_of(program, "frozen", tmp_path / "rows.json")
    assert row["differences"] == []
    assert row["settled_differences"] == []
    assert (row["equal"], row["points"]) == (16, 16)
    assert row["values"] >= 12 * 16 + 4 * 16 * row["processes"]
    assert row["real"][-1] > 1000
    assert row["processes"] >= {"Redis": 1, "PostgreSQL": 14}.get(program, 5)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["gunicorn", "PostgreSQL"])  # all: docs/accuracy.md
def test_running(program: str, tmp_path: Path) -> None:
    """Under a light load. Where requests fall into a scan of ksmd's, that pass merges less
    (docs/accuracy.md): then once more."""
    seen = []
    for number in range(TRIES):
        (row,) = rows_of(program, "running", tmp_path / f"{number}.json")
        pairs = list(zip(row["predicted"], row["real"], strict=True))
        assert len(pairs) == 3
        assert pairs[0] == (0, 0)
        if all(abs(mine - real) <= 0.03 * real for mine, real in pairs):
            return
        seen.append(pairs)
    pytest.fail(f"predicted and real pages_sharing: {seen}")
