"""An ext4 image with Python, ksm_eval and what it needs, at the paths they have here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from kernels import ROOT

IN_GUEST = Path(__file__).resolve().parent / "in_guest"
LEFT_OUT = ("__pycache__", "test", "tests", "idlelib", "ensurepip", "site-packages", "lib2to3")
SPARE = 16 << 20  # bytes, for the file system's own use


class DiskError(Exception):
    """The image cannot be made."""


def python() -> Path:
    """The interpreter itself, not the link that a virtual environment has."""
    return Path(sys.executable).resolve()


def _packages() -> Iterator[metadata.Distribution]:
    """What ksm-eval needs to run, by the metadata of the installed packages."""
    todo, seen = ["ksm-eval"], set[str]()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name == "ksm-eval":
                raise DiskError("ksm-eval is not installed where this runs") from None
            continue  # of another platform
        if name != "ksm-eval":
            yield found
        for requirement in found.requires or ():
            if "extra ==" not in requirement:
                todo.append(re.match(r"[\w.-]+", requirement)[0])  # type: ignore[index]


def _libraries(files: list[Path]) -> Iterator[Path]:
    """Shared libraries that these load, and the dynamic loader."""
    done = subprocess.run(["ldd", *files], capture_output=True, text=True)
    for path in sorted(set(re.findall(r"(/\S+) \(0x", done.stdout))):
        yield Path(path)


def _fill(root: Path) -> None:
    def add(path: Path) -> None:
        target = root / path.relative_to("/")
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            target.chmod(path.stat().st_mode)

    ignore = shutil.ignore_patterns(*LEFT_OUT, "*.a", "config-*")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(sys.base_prefix) / "lib" / version
    shutil.copytree(library, root / library.relative_to("/"), ignore=ignore, symlinks=True)
    shutil.copytree(ROOT / "ksm_eval", root / "ksm/ksm_eval", ignore=ignore)
    shutil.copytree(IN_GUEST, root / "ksm/in_guest", ignore=ignore)
    binaries = [python()]
    add(python())
    tool = shutil.which("setpriv")
    if tool is None:
        raise DiskError("setpriv is missing (Debian: util-linux)")
    binaries.append(Path(tool))
    add(Path(tool))
    for package in _packages():
        for file in package.files or ():
            path = Path(str(package.locate_file(file)))
            if ".." in file.parts or "tests" in file.parts or not path.is_file():
                continue
            target = root / "ksm" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            if ".so" in path.name:
                binaries.append(path)
    binaries += library.glob("lib-dynload/*.so")
    for path in _libraries(binaries):
        if path.is_file() and "site-packages" not in path.parts:
            add(path)
    for name in ("dev", "proc", "sys", "tmp"):
        (root / name).mkdir()


def make(image: Path) -> None:
    """Write the image. ksm_eval, in_guest and their packages are in /ksm. Raises DiskError."""
    if not shutil.which("mke2fs", path="/usr/sbin:/sbin:/usr/bin"):
        raise DiskError("mke2fs is missing (Debian: e2fsprogs)")
    with tempfile.TemporaryDirectory(dir=image.parent) as directory:
        root = Path(directory)
        _fill(root)
        used = sum(-(-path.stat().st_size // 4096) + 1 for path in root.rglob("*")) * 4096
        size = used + used // 8 + SPARE
        image.unlink(missing_ok=True)
        command = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", directory]
        path = "/usr/sbin:/sbin:/usr/bin:/bin"
        done = subprocess.run(
            [*command, str(image), f"{size // 1024}k"],
            capture_output=True,
            text=True,
            env={"PATH": path},
        )
        if done.returncode:
            raise DiskError(f"mke2fs: {done.stderr.strip()}")
