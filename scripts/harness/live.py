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
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "guests"))

import guest_run
from kernels import Image, KernelError, find, image
from qemu import GuestError, Machine
from script import Script
from workloads import STATIC

FW_CFG = "qemu_fw_cfg"  # by which the guest tells QEMU where its VMCOREINFO is
# The workload's processes are the guest's only ones with user memory; PID 1 does not opt in.
ASKED = ("--comm", "init", "--mergeable-only", "--passes", "3")


def with_fw_cfg(found: Image) -> Image:
    """With the module that Debian's kernels need for it; the small ones have it built in."""
    root = found.path.parent.parent
    for path in root.glob(f"**/{found.release}/**/{FW_CFG}.ko*") if found.release else ():
        data = path.read_bytes()
        module = lzma.decompress(data) if path.suffix == ".xz" else data
        return replace(found, modules={**found.modules, f"{FW_CFG}.ko": module})
    return found


def script_of(workload: str) -> str:
    (chosen,) = (candidate for candidate in STATIC if candidate.name == workload)
    script = Script()
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


def statuses(machine: Machine) -> list[str]:
    """Names of the events since the last time."""
    assert machine.qmp is not None
    machine.qmp("query-status")
    events, machine.qmp.events = machine.qmp.events, []
    return events


def observe(found: Image, workload: str, work: Path) -> dict[str, Any]:
    """All that the test compares."""
    found = with_fw_cfg(found)
    guest = guest_run.guest_of(found, work, numa=False)
    state, boot = guest_run.booted(guest, found, work)
    elf = work / "harness" / f"live-{found.kernel.name}.elf"
    with Machine(guest, state) as machine:
        address = str(machine.free_qmp)
        guest_run.send_script(machine, script_of(workload))
        machine.console.wait_for("@ready")
        statuses(machine)
        outside = ksm_eval("--qemu", address, *ASKED)
        events = statuses(machine)
        try:
            machine.dump(elf)
            guest_run.add_vmcoreinfo(elf, boot + machine.console.lines)
            dumped = ksm_eval("-c", str(elf), *ASKED)
        finally:
            elf.unlink(missing_ok=True)
        machine.console.send(b"\n")
        machine.console.wait_for("@done")
        lines = boot + machine.console.lines
        warm = ksm_eval("--qemu", address, *ASKED)
    gone = ksm_eval("--qemu", address, *ASKED)
    return {
        "outside": outside,
        "events": events,
        "dump": dumped,
        "warm": warm,
        "gone": gone,
        "truth": asdict(guest_run.parse(lines)),
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
        found = image(find([options.kernel])[0], options.work.resolve())
        seen = observe(found, options.workload, options.work.resolve())
    except (KernelError, GuestError) as error:
        sys.exit(f"error: {error}")
    options.json.write_text(json.dumps(seen, indent=1) + "\n")


if __name__ == "__main__":
    main()
