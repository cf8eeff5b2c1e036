"""Writing a file so that it is there in full or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ksm_eval.errors import UsageError


def check_writable(path: Path) -> None:
    """Refuse what atomic_write() could not write, before hours of work. Raises UsageError."""
    path = path.resolve()
    if path.is_dir():
        raise UsageError(f"cannot write {path}: is a directory", "name a file in it")
    if not path.parent.is_dir():
        raise UsageError(
            f"cannot write {path}: no directory {path.parent}", "create it or choose another file"
        )
    if not os.access(path if _is_special(path) else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: permission denied", "choose another file")


@contextmanager
def atomic_write(path: Path, mode: int) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends without an exception.

    `mode` is subject to the umask. Devices and pipes are written to directly: renaming over
    /dev/null would replace it. Raises UsageError if `path` cannot be written.
    """
    path = path.resolve()  # through symbolic links: replace the file, not the link
    try:
        if _is_special(path):
            with path.open("wb") as special:
                yield special
            return
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(descriptor)  # else a crash can leave the new name with no data
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}", "choose another file"
        ) from error


def _is_special(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
