"""A worker process of jobs.py: opens the vmcore on its own, and hashes the frames it is given."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection

from ksm_eval.errors import KsmEvalError
from ksm_eval.footprint import max_rss_bytes
from ksm_eval.sweep import Sweep, sweep
from ksm_eval.target import TargetInfo
from ksm_eval.target.core_file import CoreFile


@dataclass(frozen=True)
class Task:
    """What all frames have in common. Never on a command line: the seed is a key."""

    core: CoreFile
    info: TargetInfo
    seed: int
    checksums: bool


@dataclass(frozen=True)
class Part:
    """Of the frames that were asked for last."""

    swept: Sweep
    bytes_read: int
    max_rss_bytes: int


@dataclass(frozen=True)
class Failed:
    """Why there are no more parts."""

    message: str
    hint: str = ""


def work(connection: Connection) -> None:
    """A Task, then ascending PFNs, a Part for each. Until there are no more: EOFError, or another
    OSError if the parent ended while one was under way."""
    task: Task = connection.recv()
    try:
        from ksm_eval.target.core_memory import CoreMemory

        memory = CoreMemory(task.core, task.info)
    except KsmEvalError as error:
        connection.send(Failed(error.message, error.hint))
        return
    read = 0
    while True:
        pfns = connection.recv()
        swept = sweep(memory, pfns, task.seed, checksums=task.checksums)
        connection.send(Part(swept, memory.meter.bytes_read - read, max_rss_bytes()))
        read = memory.meter.bytes_read


def main() -> int:
    """The socket to the parent is standard input. Nothing is said but through it: what went wrong
    is the parent's to tell, and its output is not ours."""
    connection = Connection(0)
    try:
        work(connection)
    except (EOFError, ConnectionError):  # nobody asks any more
        return 0
    except MemoryError:
        connection.send(Failed("out of memory", "use fewer --jobs"))
    except Exception as error:
        connection.send(Failed(f"a worker process failed: {type(error).__name__}: {error}"))
        raise
    return 1
