"""What several test files need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Hypothesis, the same in every test run: a red run is the change's fault, and not timed. With
# KSM_EVAL_EXAMPLES set (a long search), examples are drawn at random.
settings.register_profile(
    "steady", deadline=None, derandomize="KSM_EVAL_EXAMPLES" not in os.environ
)
settings.load_profile("steady")

ROOT = Path(__file__).parent.parent
MISSING = [t for t in ("qemu-system-x86_64", "musl-gcc", "apt-get") if not shutil.which(t)]


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What scripts/harness/live.py saw; KSM_EVAL_WORK may name a folder that has the kernels."""
    if MISSING:
        pytest.skip(f"not installed: {' '.join(MISSING)}")
    directory = tmp_path_factory.mktemp("live")
    work = os.environ.get("KSM_EVAL_WORK", str(directory))
    out = directory / "live.json"
    command = [sys.executable, str(ROOT / "scripts/harness/live.py"), "--work", work]
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True)
    if done.stderr.startswith(("error: apt-get", "error: the archive")):
        pytest.skip(f"no kernel: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found
