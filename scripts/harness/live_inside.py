"""ksm-eval in a guest, beside what it looks at; and what reading changes there: nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import guest_run
from disk import make as make_disk
from disk import python
from kernels import Image
from live_runs import ASKED, FW_CFG, ksm_eval, with_module
from qemu import X86_64, Machine
from script import ANONYMOUS, DROPPABLE, FILE, SHARED, Script
from workloads import STATIC

MODULE = ("PYTHONPATH=/ksm", "PYTHONDONTWRITEBYTECODE=1", "OPENBLAS_NUM_THREADS=1", python(), "-m")
PARTS = ("compare", "recycled", "rights", "namespaces", "races")
# The user of README's example, and all that it needs.
NOT_ROOT = ("--reuid=65534", "--regid=65534", "--clear-groups")
NEEDED = "+sys_admin,+sys_ptrace,+dac_read_search"


SLOW = 1200  # seconds: numpy and drgn on two emulated CPUs of a busy host


def _special(script: Script) -> None:
    """What /proc tells in other ways than page tables do; and pinned pages, of a process that
    does not opt in: /proc cannot tell them."""
    process = script.start(30)
    for region, kind in enumerate((ANONYMOUS, SHARED, FILE, DROPPABLE, ANONYMOUS)):
        script.map(process, region, 60, kind)
    for region in (0, 1, 2, 4):
        script.each(process, region, 0, 30, 1)
    script.touch(process, 2, 30, 20)
    script.touch(process, 4, 30, 20)
    script.protect(process, 0, 0, 20, 0)
    script.lock(process, 4, 0, 60)
    script.map_thp(process, 5, 1)
    script.touch(process, 5, 0, 1)  # the huge zero page
    script.map(process, 6, 20)
    script.touch(process, 6, 0, 20)  # zero pages only: there is no anon_vma
    script.opt_in(process)
    script.fork(process, 31)
    script.each(31, 0, 40, 10, 100)
    pinned = script.start(32)
    script.map(pinned, 0, 40)
    script.each(pinned, 0, 0, 40, 1)
    script.pin(pinned, 0, 0, 10)


def script_text(parts: Sequence[str]) -> str:
    """`usage` around each evaluation, which has ended by then: its memory counts, too."""
    workload, before, after = Script(), Script(), Script()
    before.insmod(FW_CFG)
    before.insmod("virtio_blk")
    before.disk()
    before.write("/proc/sys/kernel/kptr_restrict", 2)
    _special(before)
    before.usage("first")
    for via in ("kcore", "proc"):
        before.run(*MODULE, "ksm_eval", "-q", "--via", via, "--format", "json", *ASKED[:3])
        before.usage(via)
    setpriv = ("/usr/bin/setpriv", *NOT_ROOT, f"--inh-caps={NEEDED}", f"--ambient-caps={NEEDED}")
    before.run(*MODULE[:-2], *setpriv, *MODULE[-2:], "ksm_eval", "-q", "--comm", "init")
    before.usage("setpriv")
    after.usage("qemu")
    after.run(*MODULE, "in_guest", *parts)
    after.usage("parts")
    (chosen,) = (candidate for candidate in STATIC if candidate.name == "swap")
    chosen.write(workload)
    end = Script()
    end.write("/disk/sys/kernel/security/lockdown", "confidentiality")
    end.run(*MODULE, "in_guest", "lockdown")
    return workload.text().replace("ready\n", f"{before.text()}ready\n{after.text()}") + end.text()


def inside(found: Image, work: Path, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """By /proc/kcore and by /proc; from outside; the guest's ksmd; and the parts."""
    seen: dict[str, Any] = {}
    with TemporaryDirectory(dir=work / "harness") as directory:
        disk = Path(directory) / "disk.ext4"
        make_disk(disk)
        guest = replace(
            guest_run.guest_of(with_module(found, "virtio_blk"), work, numa=False),
            # Python in the guest: with the AVX that QEMU 7.2 emulates, numpy's argsort() is wrong.
            platform=replace(X86_64, options=("-cpu", "Nehalem,+rdrand")),
            memory=(640,),
            disk=disk,
            cpus=2,  # so that what is read changes at the same time
        )
        with Machine(guest) as machine:
            console = machine.console
            console.wait_for("@idle")
            guest_run.send_script(machine, script_text(parts))
            console.wait_for("@ready", timeout=SLOW)
            seen["qemu"] = ksm_eval("--qemu", str(machine.free_qmp), *ASKED[:3])
            console.send(b"\n")
            console.wait_for("@done", timeout=SLOW)
            lines = list(console.lines)
    ends = [number for number, line in enumerate(lines) if line.startswith("@ran ")]
    for via, end in zip(("kcore", "proc"), ends, strict=False):
        start = max((n for n, line in enumerate(lines[:end]) if line == "{"), default=end)
        seen[via] = {
            "code": int(lines[end].split()[1]),
            "report": json.loads("\n".join(lines[start:end])) if start < end else None,
            "error": "\n".join(lines[max(0, end - 5) : end]),
        }
    seen["codes"] = [int(lines[end].split()[1]) for end in ends]
    for line in lines:
        if line.startswith("@seen "):
            _, name, text = line.split(" ", 2)
            seen[name] = json.loads(text)
    return {**seen, "usage": usage(lines), "truth": asdict(guest_run.parse(lines))}


def usage(lines: list[str]) -> dict[str, dict[str, str]]:
    """Tag -> "PID NAME" -> value, pid 0 for the system; of stat the faults only."""
    found: dict[str, dict[str, str]] = {}
    for line in lines:
        if not line.startswith("@usage "):
            continue
        _, tag, pid, name, *words = line.split()
        values = found.setdefault(tag, {})
        if name == "stat":
            fields = line.rpartition(")")[2].split()
            values[f"{pid} minflt"], values[f"{pid} majflt"] = fields[7], fields[9]
        else:
            values[f"{pid} {name.rstrip(':')}"] = words[0]
    return found
