"""Boot a workload and bring home its vmcore(s) and what the real ksmd counted."""

from __future__ import annotations

import hashlib
import re
import struct
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from kernels import Image
from qemu import Guest, GuestError, Machine

HERE = Path(__file__).resolve().parent
EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
PT_LOAD, PT_NOTE = 1, 4
NODES = (160, 96)  # MiB
CHUNK = 1024  # of a script; init.c has it too

Values = dict[str, int]


@dataclass
class Pass:
    """What the kernel said after one full scan (or before the first)."""

    ksm: Values = field(default_factory=dict)  # files of /sys/kernel/mm/ksm that are numbers
    vmstat: Values = field(default_factory=dict)
    processes: dict[int, Values] = field(default_factory=dict)  # by process number: ksm_stat


@dataclass
class Truth:
    release: str
    pids: dict[int, int]  # process number -> pid
    before: Pass
    passes: list[Pass]
    running: list[int]  # processes at the last dump of a changing workload


class Skipped(Exception):
    """The kernel has not what the workload is about."""


@cache
def compile_init(work: Path) -> bytes:
    out = work / "harness/init"
    command = ["musl-gcc", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror"]
    sources = [HERE / "init.c", HERE.parent / "guests/common.c"]
    subprocess.run([*command, f"-I{HERE.parent / 'guests'}", "-o", out, *sources], check=True)
    return out.read_bytes()


def guest_of(image: Image, work: Path, *, numa: bool) -> Guest:
    # The same addresses in every run: two runs of one script are compared with each other.
    # A busy host makes the kernel's check of the timer fail.
    arguments = ["nokaslr", "norandmaps", "no_timer_check"]
    memory = NODES if numa else (image.kernel.memory,)
    return Guest(image.path, {"init": compile_init(work), **image.modules}, memory, arguments)


_preparing = threading.Lock()


def booted(guest: Guest, image: Image, work: Path) -> tuple[Path, list[str]]:
    """The state of this guest when it has booted and waits for a script, and what it said."""
    key = hashlib.sha256(repr((guest, image.path.stat().st_mtime)).encode()).hexdigest()[:16]
    state = work / "harness" / f"{image.kernel.name}-{key}.state"
    said = state.with_suffix(".console")
    if not said.exists():
        for attempt in (1, 2):
            try:
                with Machine(guest) as machine:
                    machine.console.wait_for("@idle")
                    machine.save(state)
                    said.write_text("\n".join(machine.console.lines))
                break
            except GuestError:
                if attempt == 2:
                    raise
    return state, said.read_text().splitlines()


def send_script(machine: Machine, script: str) -> None:
    data = script.encode() + b"\0"
    for start in range(0, len(data), CHUNK):
        machine.console.send(data[start : start + CHUNK])
        if start + CHUNK < len(data):
            machine.console.wait_for("@more")


def run(
    image: Image,
    script: str,
    work: Path,
    elf: Path,
    *,
    numa: bool = False,
    dumping: bool = False,
    dumped: Callable[[int, Path, Truth], None],
) -> Truth:
    """Run a script. At each stop the memory is dumped to `elf` and `dumped` called with the
    number of the dump, from 0, and what the guest said so far.

    A static script stops at `ready`. `dumping`: a changing one stops at every `step`, and ksmd
    never runs; else it makes a pass at every `step`. Each run goes on from the same state of a
    booted guest, so two runs of a script see the same memory.
    """
    with _preparing:
        guest = guest_of(image, work, numa=numa)
        state, boot = booted(guest, image, work)
    dumps = 0
    with Machine(guest, state) as machine:
        console = machine.console
        send_script(machine, ("dumping\n" if dumping else "") + script)
        while console.wait_for("@ready", "@step", "@done") != "@done":
            machine.dump(elf)
            try:
                said = boot + console.lines
                add_vmcoreinfo(elf, said)
                dumped(dumps, elf, parse(said))
            finally:
                elf.unlink(missing_ok=True)
            dumps += 1
            console.send(b"\n")
        return parse(boot + console.lines)


def parse(console: list[str]) -> Truth:
    skip = [line for line in console if line.startswith("@skip ")]
    if skip:
        raise Skipped(skip[0].removeprefix("@skip "))
    truth = Truth("", {}, Pass(), [], [])
    by_pid: dict[int, int] = {}

    def of_pass(number: str) -> Pass:
        if number == "0":
            return truth.before
        while len(truth.passes) < int(number):
            truth.passes.append(Pass())
        return truth.passes[int(number) - 1]

    for line in console:
        words = line.split()
        if line.startswith("@version "):
            truth.release = words[3]
        elif line.startswith("@pid "):
            truth.pids[int(words[1])] = int(words[2])
            by_pid[int(words[2])] = int(words[1])
        elif line.startswith("@running"):
            truth.running = [int(word) for word in words[1:]]
        elif line.startswith(("@ksm ", "@vmstat ")) and re.fullmatch(r"-?\d+", words[3]):
            values = of_pass(words[1])
            (values.ksm if words[0] == "@ksm" else values.vmstat)[words[2]] = int(words[3])
        elif line.startswith("@ksm_stat ") and re.fullmatch(r"-?\d+", words[4]):
            process = of_pass(words[1]).processes.setdefault(by_pid[int(words[2])], {})
            process[words[3].rstrip(":")] = int(words[4])
    return truth


def add_vmcoreinfo(elf: Path, console: list[str]) -> None:
    """Put the kernel's VMCOREINFO note into QEMU's dump, which has none unless the guest's
    qemu_fw_cfg module said where it is.

    /sys/kernel/vmcoreinfo has its physical address and size.
    """
    told = [line.split() for line in console if line.startswith("@vmcoreinfo ")]
    if not told:
        raise GuestError("the guest has no /sys/kernel/vmcoreinfo")
    address, size = int(told[0][1], 16), int(told[0][2], 16)
    with elf.open("r+b") as file:
        header = EHDR.unpack(file.read(EHDR.size))
        phoff, phnum = header[5], header[10]
        file.seek(phoff)
        segments = [PHDR.unpack(file.read(PHDR.size)) for _ in range(phnum)]
        note = _note(file.read, file.seek, segments, address, size)
        for index, (kind, flags, offset, vaddr, paddr, filesz, _, align) in enumerate(segments):
            if kind == PT_NOTE:
                file.seek(offset)
                notes = file.read(filesz)
                if b"VMCOREINFO\0" in notes:
                    return
                end = file.seek(0, 2)
                file.write(notes + note)
                total = len(notes) + len(note)
                file.seek(phoff + index * PHDR.size)
                file.write(PHDR.pack(kind, flags, end, vaddr, paddr, total, total, align))
                return
    raise GuestError("QEMU's dump has no notes")


def _note(
    read: Callable[[int], bytes],
    seek: Callable[[int], int],
    segments: list[tuple[int, ...]],
    address: int,
    size: int,
) -> bytes:
    for kind, _, offset, _, paddr, filesz, *_ in segments:
        if kind == PT_LOAD and paddr <= address and address + size <= paddr + filesz:
            seek(offset + address - paddr)
            data = read(size)
            names, used, _ = struct.unpack_from("<III", data)
            return data[: 12 + -(-names // 4) * 4 + -(-used // 4) * 4]
    raise GuestError("VMCOREINFO is not in the dump")
