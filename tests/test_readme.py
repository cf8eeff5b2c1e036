"""README's way from `free -h` to a decision: every command of it, as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
(WALK,) = re.findall(r"^## From `free -h` to a decision\n(.*?)^## ", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [line.strip() for line in WALK.splitlines() if line.startswith("       scripts/")]
SAYS = [  # what the text promises of each
    "KSM pays here",
    "Where, by comm",
    "What if",
    "--target-scan-time 60",
    "within one uid only",
    "",
    "",
    "All counters are equal.",
]


def test_all_are_there() -> None:
    assert len(COMMANDS) == len(SAYS)


@pytest.mark.parametrize(("command", "said"), list(zip(COMMANDS, SAYS, strict=False)))
def test_walk(command: str, said: str, tmp_path: Path) -> None:
    words = shlex.split(command)
    written = None
    if "-o" in words:
        at = words.index("-o") + 1
        words[at] = written = str(tmp_path / words[at])
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
    if written:
        assert Path(written).stat().st_size > 10_000
