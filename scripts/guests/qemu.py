"""A guest under QEMU (TCG): boot, talk on its console, dump its memory while it is stopped."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shlex
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

TIMEOUT = 300  # seconds; a run takes about 10


class GuestError(Exception):
    """The guest or QEMU did not do what was asked."""


def _cpio_entry(name: str, mode: int, data: bytes, inode: int, rdev: tuple[int, int]) -> bytes:
    raw = name.encode() + b"\0"
    fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(raw), 0]
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + raw
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


def initramfs(files: dict[str, bytes]) -> bytes:
    """A gzipped cpio archive of executable files, and the console."""
    archive = _cpio_entry("dev", 0o040755, b"", 1, (0, 0))
    archive += _cpio_entry("dev/console", 0o020600, b"", 2, (5, 1))
    for inode, (name, data) in enumerate(files.items(), 3):
        archive += _cpio_entry(name, 0o100755, data, inode, (0, 0))
    archive += _cpio_entry("TRAILER!!!", 0, b"", 0, (0, 0))
    return gzip.compress(archive, mtime=0)


@dataclass(frozen=True)
class Platform:
    """What QEMU is told of an architecture."""

    qemu: str
    options: tuple[str, ...]
    console: str


X86_64 = Platform("qemu-system-x86_64", ("-cpu", "max"), "ttyS0")
AARCH64 = Platform("qemu-system-aarch64", ("-machine", "virt", "-cpu", "cortex-a57"), "ttyAMA0")
# The Cortex-A57 has no 16 KiB pages. Emulating "max" without the cheap pointer
# authentication takes several times as long.
AARCH64_MAX = Platform(
    "qemu-system-aarch64", ("-machine", "virt", "-cpu", "max,pauth-impdef=on"), "ttyAMA0"
)


@dataclass
class Guest:
    kernel: Path
    files: dict[str, bytes]  # of the initramfs; "init" runs
    memory: tuple[int, ...]  # MiB of each NUMA node
    arguments: list[str] = field(default_factory=list)  # for the kernel and init
    platform: Platform = X86_64
    disk: Path | None = None  # a raw image, which stays as it is
    cpus: int = 1


class Console:
    """The guest's serial port; init's lines begin with '@'."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.seen = 0  # lines that wait_for() has passed
        self.changed = threading.Condition()
        self.ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            with self.changed:
                self.lines.append(raw.decode(errors="replace").rstrip("\r\n"))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait_for(self, *wanted: str, timeout: float = TIMEOUT) -> str:
        """The first of these lines that comes; GuestError for @error, an end or a timeout."""

        def found() -> str | None:
            while self.seen < len(self.lines):
                line = self.lines[self.seen]
                self.seen += 1
                if line in wanted or line.startswith("@error"):
                    return line
            return "" if self.ended else None

        with self.changed:
            line: str | None = None

            def settled() -> bool:
                nonlocal line
                line = found()
                return line is not None

            self.changed.wait_for(settled, timeout)
            if line not in wanted:
                tail = "\n".join(self.lines[-15:])
                raise GuestError(f"the guest did not say {' or '.join(wanted)}; it said:\n{tail}")
            assert line is not None
            return line

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()


class Qmp:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.socket.connect(os.fspath(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    raise GuestError("QEMU does not start") from None
                time.sleep(0.05)
        self.events: list[str] = []  # names of those that came
        self.file = self.socket.makefile("rw")
        self.file.readline()  # greeting
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        for line in self.file:
            reply = json.loads(line)
            if "error" in reply:
                raise GuestError(f"QEMU: {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]
            self.events.append(reply["event"])
        raise GuestError(f"QEMU ended during {command}")

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def _command(guest: Guest, initrd: Path, sockets: list[Path], state: Path | None) -> list[str]:
    arguments = [
        f"console={guest.platform.console}",
        "quiet",
        "panic=-1",
        "transparent_hugepage=madvise",
        "numa_balancing=disable",
        *guest.arguments,
    ]
    command = [guest.platform.qemu, "-accel", "tcg", *guest.platform.options]
    command += ["-smp", str(guest.cpus), "-nodefaults", "-no-reboot", "-display", "none"]
    # Else QEMU offers the guest's memory to the host's ksmd, which other tests use.
    command += ["-serial", "stdio", "-machine", "mem-merge=off", "-device", "vmcoreinfo"]
    for path in sockets:
        command += ["-qmp", f"unix:{path},server=on,wait=off"]
    command += ["-m", str(sum(guest.memory)), "-kernel", os.fspath(guest.kernel)]
    command += ["-initrd", os.fspath(initrd), "-append", " ".join(arguments)]
    if len(guest.memory) > 1:
        for node, size in enumerate(guest.memory):
            command += ["-object", f"memory-backend-ram,size={size}M,id=m{node}"]
            cpus = ",cpus=0" if node == 0 else ""
            command += ["-numa", f"node,nodeid={node},memdev=m{node}{cpus}"]
    if guest.disk is not None:
        command += ["-drive", f"file={guest.disk},if=virtio,format=raw,readonly=on"]
    if state is not None:
        command += ["-incoming", f"exec:cat {shlex.quote(os.fspath(state))}"]
    return command


_running: set[subprocess.Popen[bytes]] = set()


def kill_all() -> None:
    """For a signal handler: no QEMU outlives the program."""
    for process in list(_running):
        process.kill()


class Machine:
    """A running guest; `with Machine(guest) as machine`. QEMU is gone afterwards.

    `state`: go on from there instead of booting; of the same guest, written by save().
    """

    def __init__(self, guest: Guest, state: Path | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory()
        directory = Path(self._directory.name)
        self.free_qmp = directory / "qmp2"  # for others: a QMP socket serves one client
        initrd = directory / "initrd"
        initrd.write_bytes(initramfs(guest.files))
        self.process = subprocess.Popen(
            _command(guest, initrd, [directory / "qmp", self.free_qmp], state),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        _running.add(self.process)
        self.qmp: Qmp | None = None
        try:
            self.console = Console(self.process)
            self.qmp = Qmp(directory / "qmp")
            if state is not None:
                self._wait(lambda: self._ask("query-status")["status"] != "inmigrate")
                self.qmp("cont")
        except BaseException:
            self.close()
            raise

    def _ask(self, command: str) -> Any:
        assert self.qmp is not None
        return self.qmp(command)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not done():
            if time.monotonic() > deadline:
                raise GuestError("QEMU does not finish")
            time.sleep(0.05)

    def save(self, state: Path) -> None:
        """Stop the guest for good, and write all of its state."""
        assert self.qmp is not None
        self.qmp("stop")
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.qmp("migrate", uri=f"exec:cat > {shlex.quote(os.fspath(state))}")
        self._wait(lambda: self._ask("query-migrate").get("status") in ("completed", "failed"))
        if self._ask("query-migrate")["status"] != "completed":
            raise GuestError("QEMU cannot save the guest's state")

    def dump(self, elf: Path) -> None:
        """Stop the guest, write its memory as an ELF vmcore, let it go on."""
        assert self.qmp is not None
        self.qmp("stop")
        self.qmp("dump-guest-memory", paging=False, protocol=f"file:{elf}")
        self.qmp("cont")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        _running.discard(self.process)
        if self.qmp is not None:
            self.qmp.close()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self._directory.cleanup()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
