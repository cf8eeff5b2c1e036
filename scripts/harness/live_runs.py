"""What all runs on a live guest need."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kernels import Image

FW_CFG = "qemu_fw_cfg"  # by which the guest tells QEMU where its VMCOREINFO is
# The workload's processes are the guest's only ones with user memory; PID 1 does not opt in.
ASKED = ("--comm", "init", "--mergeable-only", "--passes", "3")


def with_module(found: Image, name: str) -> Image:
    """With a module of Debian's kernels, which the small ones have built in."""
    root = found.path.parent.parent
    for path in root.glob(f"**/{found.release}/**/{name}.ko*") if found.release else ():
        data = path.read_bytes()
        module = lzma.decompress(data) if path.suffix == ".xz" else data
        return replace(found, modules={**found.modules, f"{name}.ko": module})
    return found


def ksm_eval(*arguments: str) -> dict[str, Any]:
    """Exit code, JSON report, standard error and seconds of a run."""
    start = time.monotonic()
    command: Sequence[str] = (sys.executable, "-m", "ksm_eval", "-q", *arguments)
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    return {
        "code": done.returncode,
        "report": json.loads(done.stdout) if done.stdout else None,
        "error": done.stderr,
        "seconds": round(time.monotonic() - start, 2),
    }
