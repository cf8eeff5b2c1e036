"""The man page: up to date, complete, clean."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GROFF = shutil.which("groff")


def page() -> str:
    made: str = runpy.run_path(str(ROOT / "scripts" / "manpage.py"))["page"]()
    return made


def test_it_is_up_to_date() -> None:
    assert (ROOT / "docs" / "ksm-eval.1").read_text() == page(), "run scripts/man"


def test_sections() -> None:
    headings = [line.split(" ", 1)[1] for line in page().splitlines() if line.startswith(".SH")]
    assert headings == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", '"EXIT STATUS"', "EXAMPLES"),
        *("OVERHEAD", '"SEE ALSO"'),
    ]


@pytest.mark.skipif(GROFF is None, reason="groff is not installed")
def test_groff_has_no_complaint() -> None:
    assert GROFF is not None
    done = subprocess.run(
        [GROFF, "-man", "-ww", "-Tascii", "-P-c"], input=page(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--fail-under" in done.stdout
