#!/usr/bin/env python3
"""A running guest evaluated from outside and from a dump, then its real ksmd: as JSON.

    scripts/harness/live.py --work DIR --json PATH [--kernel NAME] [--inside PART …]

The workload stands still. tests/test_live_guest.py and test_live_inside.py assert on what is
written. --inside: only what runs in the guest itself, and of that only these parts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "guests"))

import guest_run
from disk import DiskError
from kernels import Image, KernelError, find, image
from live_inside import PARTS, inside
from live_runs import ASKED, FW_CFG, ksm_eval, with_module
from qemu import GuestError, Machine
from script import Script
from workloads import STATIC

from ksm_eval.errors import TargetError

STORMS = 6


def script_of(workload: str) -> str:
    script = Script()
    (chosen,) = (candidate for candidate in STATIC if candidate.name == workload)
    script.insmod(FW_CFG)
    chosen.write(script)
    return script.text()


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
    """From outside. `batching`: a kernel whose batches a read fills."""
    return {
        "peeked": peeked(batching, work),
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
    parser.add_argument("--inside", nargs="*", metavar="PART")
    options = parser.parse_args()
    (options.work / "harness").mkdir(parents=True, exist_ok=True)
    try:
        work = options.work.resolve()
        found = with_module(image(find([options.kernel])[0], work), FW_CFG)
        seen = {"inside": inside(found, work, options.inside or PARTS)}
        if options.inside is None:
            batching = with_module(image(find(["6.1"])[0], work), FW_CFG)
            seen |= observe(found, batching, options.workload, work)
    except (KernelError, GuestError, DiskError) as error:
        sys.exit(f"error: {error}")
    options.json.write_text(json.dumps(seen, indent=1) + "\n")


if __name__ == "__main__":
    main()
