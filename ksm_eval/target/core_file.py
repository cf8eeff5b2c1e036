"""What another process needs to read the same vmcore."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ksm_eval.target.containers import Holes, Segments


@dataclass(frozen=True)
class CoreFile:
    """As it was opened once. It can be sent to another process, and opened again there."""

    path: Path
    identity: tuple[int, ...]
    vmcoreinfo: bytes | None = None  # if the file's own does not do
    architecture: str | None = None  # drgn's name, if the file does not tell it
    segments: Segments | None = None  # where it can be read without drgn
    holes: Holes = field(default_factory=Holes)  # that do not read as what was there

    @classmethod
    def of(cls, path: Path, vmcoreinfo: bytes | None, architecture: str | None) -> CoreFile | None:
        """None if it has no name that is another process's, too: a pipe, or a deleted file."""
        real = path.resolve()  # of /proc/self/fd/N the file
        try:
            identity = cls.identify(path)
            if cls.identify(real) != identity or real.parts[:2] in (("/", "proc"), ("/", "dev")):
                return None
        except OSError:
            return None
        return cls(real, identity, vmcoreinfo, architecture)

    @staticmethod
    def identify(path: Path) -> tuple[int, ...]:
        """What another file in its place would not have. Raises OSError."""
        found = path.stat()
        return found.st_dev, found.st_ino, found.st_size
