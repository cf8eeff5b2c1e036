"""The C programs, compiled for this processor."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAMS = {
    "reference": ("reference.c", "vmcore.c", "common.c"),
    "frames": ("frames.c", "vmcore.c", "common.c"),
    "proc_twin": ("proc_twin.c", "common.c"),
    "live": ("live.c", "common.c"),
}
FLAGS = ("-O3", "-march=native", "-Wall", "-Wextra", "-Werror")


class NoCompiler(Exception):
    """The C programs cannot be built here."""


def build(directory: Path) -> dict[str, Path]:
    """Raises NoCompiler."""
    if not shutil.which("gcc"):
        raise NoCompiler("gcc is not installed")
    check = subprocess.run(
        ["gcc", "-E", "-x", "c", "-"], input="#include <xxhash.h>\n", text=True, capture_output=True
    )
    if check.returncode:
        raise NoCompiler("xxhash.h is missing (Debian: libxxhash-dev)")
    directory.mkdir(parents=True, exist_ok=True)
    built = {}
    for name, sources in PROGRAMS.items():
        built[name] = directory / name
        files = [str(path) for path in (built[name], *(HERE / source for source in sources))]
        command = ["gcc", *FLAGS, "-o", *files]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise NoCompiler(f"{name} does not compile:\n{done.stderr}")
    return built


def compiler() -> str:
    """Name and version."""
    done = subprocess.run(["gcc", "--version"], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[0]
