#!/usr/bin/env python3
"""A running guest evaluated from outside and from a dump, then its real ksmd: as JSON.

    scripts/harness/live.py --work DIR --json PATH [--kernel NAME] [--workload NAME]

The workload stands still. tests/test_live_guest.py asserts on what is written.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "guests"))

import guest_run
from disk import DiskError, python
from disk import make as make_disk
from kernels import Image, KernelError, find, image
from qemu import X86_64, GuestError, Machine
from script import Script
from workloads import STATIC

from ksm_eval.errors import TargetError

FW_CFG = "qemu_fw_cfg"  # by which the guest tells QEMU where its VMCOREINFO is
# The workload's processes are the guest's only ones with user memory; PID 1 does not opt in.
STORMS = 6
ASKED = ("--comm", "init", "--mergeable-only", "--passes", "3")


def with_module(found: Image, name: str) -> Image:
    """With a module of Debian's kernels, which the small ones have built in."""
    root = found.path.parent.parent
    for path in root.glob(f"**/{found.release}/**/{name}.ko*") if found.release else ():
        data = path.read_bytes()
        module = lzma.decompress(data) if path.suffix == ".xz" else data
        return replace(found, modules={**found.modules, f"{name}.ko": module})
    return found


def script_of(workload: str) -> str:
    script = Script()
    (chosen,) = (candidate for candidate in STATIC if candidate.name == workload)
    script.insmod(FW_CFG)
    chosen.write(script)
    return script.text()


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


def events(machine: Machine) -> list[str]:
    """Names of QMP's events since the last time."""
    assert machine.qmp is not None
    machine.qmp("query-status")
    found, machine.qmp.events = machine.qmp.events, []
    return found


@contextmanager
def guest_at_rest(found: Image, script: str, work: Path) -> Iterator[tuple[Machine, list[str]]]:
    """A guest that has come to the script's `ready`, and what it said when it booted."""
    guest = guest_run.guest_of(found, work, numa=False)
    state, boot = guest_run.booted(guest, found, work)
    with Machine(guest, state) as machine:
        guest_run.send_script(machine, script)
        machine.console.wait_for("@ready")
        events(machine)
        yield machine, boot


def at_rest(found: Image, workload: str, work: Path) -> dict[str, Any]:
    """The workload stands still: from outside, its dump, and what the real ksmd makes of it."""
    elf = work / "harness" / f"live-{found.kernel.name}.elf"
    info = elf.with_suffix(".vmcoreinfo")
    with guest_at_rest(found, script_of(workload), work) as (machine, boot):
        address = str(machine.free_qmp)
        seen: dict[str, Any] = {"outside": ksm_eval("--qemu", address, *ASKED)}
        seen["events"] = events(machine)
        try:
            machine.dump(elf)
            guest_run.add_vmcoreinfo(elf, boot + machine.console.lines)
            seen["dump"] = ksm_eval("-c", str(elf), *ASKED)
            info.write_bytes(vmcoreinfo_of(elf))
        finally:
            elf.unlink(missing_ok=True)
        events(machine)
        seen["with_vmcoreinfo"] = ksm_eval("--qemu", address, "--vmcoreinfo", str(info), *ASKED)
        seen["events_with_vmcoreinfo"] = events(machine)
        machine.console.send(b"\n")
        machine.console.wait_for("@done")
        seen["truth"] = asdict(guest_run.parse(boot + machine.console.lines))
        seen["warm"] = ksm_eval("--qemu", address, *ASKED)
        return seen


def vmcoreinfo_of(elf: Path) -> bytes:
    from drgn import Program

    prog = Program()
    prog.set_core_dump(elf)
    text: bytes = prog["VMCOREINFO"].string_()
    return text


def peeked(found: Image, work: Path) -> dict[str, Any]:
    """Pages that another process has read wait in a per-CPU batch of the kernel's."""
    script = script_of("base").replace("ready\n", "ready\npeek 1 0 0 20\npeek 2 11 0 60\nwait\n")
    with guest_at_rest(found, script, work) as (machine, boot):
        machine.console.send(b"\n")
        machine.console.wait_for("@ready")
        seen = ksm_eval("--qemu", str(machine.free_qmp), *ASKED)
        machine.console.send(b"\n")
        machine.console.wait_for("@done")
        return {**seen, "truth": asdict(guest_run.parse(boot + machine.console.lines))}


def inside(found: Image, work: Path) -> dict[str, Any]:
    """ksm-eval in the guest, by /proc/kcore and by /proc; from outside; and the guest's ksmd."""
    disk = work / "harness" / "live.ext4"
    make_disk(disk)
    guest = replace(
        guest_run.guest_of(with_module(found, "virtio_blk"), work, numa=False),
        # Python in the guest: with the AVX that QEMU 7.2 emulates, numpy's argsort() is wrong.
        platform=replace(X86_64, options=("-cpu", "Nehalem,+rdrand")),
        memory=(640,),
        disk=disk,
    )
    run = Script()
    run.insmod("virtio_blk")
    run.disk()
    run.write("/proc/sys/kernel/kptr_restrict", 2)
    command = (*("PYTHONPATH=/ksm", "PYTHONDONTWRITEBYTECODE=1", python(), "-m", "ksm_eval"), "-q")
    for via in ("kcore", "proc"):
        run.run(*command, *("--via", via, "--format", "json"), *ASKED[:3])
    script = script_of("base").replace("ready\n", f"{run.text()}ready\n")
    seen: dict[str, Any] = {}
    try:
        with Machine(guest) as machine:
            console = machine.console
            console.wait_for("@idle")
            guest_run.send_script(machine, script)
            console.wait_for("@ready")
            seen["qemu"] = ksm_eval("--qemu", str(machine.free_qmp), *ASKED[:3])
            console.send(b"\n")
            console.wait_for("@done")
            lines = list(console.lines)
    finally:
        disk.unlink(missing_ok=True)
    ends = [number for number, line in enumerate(lines) if line.startswith("@ran ")]
    for via, end in zip(("kcore", "proc"), ends, strict=True):
        start = max((n for n, line in enumerate(lines[:end]) if line == "{"), default=end)
        seen[via] = {
            "code": int(lines[end].split()[1]),
            "report": json.loads("\n".join(lines[start:end])) if start < end else None,
            "error": "\n".join(lines[max(0, end - 5) : end]),
        }
    return {**seen, "truth": asdict(guest_run.parse(lines))}


def storm(found: Image, work: Path) -> list[dict[str, Any]]:
    """Evaluations of all processes while many come and go."""
    script = Script()
    script.insmod(FW_CFG)
    for process in range(8):
        script.start(process)
        script.map(process, 0, 100)
        script.each(process, 0, 0, 100, 1)
    script.start(20)
    script.storm(20)
    script.ready()
    with guest_at_rest(found, script.text(), work) as (machine, _):
        return [ksm_eval("--qemu", str(machine.free_qmp), "--all") for _ in range(STORMS)]


def killed(found: Image, work: Path, stage: str) -> str:
    """The error when QEMU ends in the middle of a stage."""
    from ksm_eval.collect import collect
    from ksm_eval.evaluate import open_guest
    from ksm_eval.target import Selection

    with guest_at_rest(found, script_of("base"), work) as (machine, _):

        def kill(now: str, done: int, total: int) -> None:
            if now.startswith(stage) and 0 < done < total:
                machine.process.kill()
                machine.process.wait()

        with closing(open_guest(str(machine.free_qmp))) as target:
            try:
                collect(target, Selection(all=True), progress=kill)
            except TargetError as error:
                return error.message
    return "no error"


def silent(found: Image, work: Path) -> dict[str, Any]:
    """A guest that has not told QEMU where its VMCOREINFO is."""
    script = Script()
    script.start(0)
    script.ready()
    with guest_at_rest(found, script.text(), work) as (machine, _):
        return ksm_eval("--qemu", str(machine.free_qmp), "--all")


def observe(found: Image, batching: Image, workload: str, work: Path) -> dict[str, Any]:
    """All that the test compares. `batching`: a kernel whose batches a read fills."""
    found = with_module(found, FW_CFG)
    return {
        "inside": inside(found, work),
        "peeked": peeked(with_module(batching, FW_CFG), work),
        **at_rest(found, workload, work),
        "storm": storm(found, work),
        "killed": [killed(found, work, stage) for stage in ("walking", "reading")],
        "silent": silent(found, work),
    }


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("--workload", default="base")
    options = parser.parse_args()
    (options.work / "harness").mkdir(parents=True, exist_ok=True)
    try:
        work = options.work.resolve()
        found, batching = (image(find([name])[0], work) for name in (options.kernel, "6.1"))
        seen = observe(found, batching, options.workload, work)
    except (KernelError, GuestError, DiskError) as error:
        sys.exit(f"error: {error}")
    options.json.write_text(json.dumps(seen, indent=1) + "\n")


if __name__ == "__main__":
    main()
