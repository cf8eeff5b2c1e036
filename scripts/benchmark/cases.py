"""What is measured, by name. Each function makes what its cases need, and clears it away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import big_guest
import vmcores
from plan import DENSITIES
from rounds import Case, Method, python, run

ROOT = Path(__file__).resolve().parent.parent.parent
FIXTURE = ROOT / "fixtures/vmcores/x86_64-6.12-tiny.kdump"
PAGE = 4096

OURS = "ksm-eval"
DRGN, C, NAIVE = "ksm-eval, prog.read", "C", "access_process_vm"
TWO = "ksm-eval, 2 jobs"
PREAD, MEMCPY, TWIN = "pread", "memcpy", "C through /proc"


class Skipped(Exception):
    """A case cannot be measured here; why."""


@dataclass
class Setting:
    """Where and how large."""

    work: Path
    programs: dict[str, Path]
    quick: bool
    say: Callable[[str], None]
    facts: dict[str, Any]  # about what is measured, for the JSON


def _read_through(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 22)
        while file.readinto(buffer):
            pass


def _elf(setting: Setting) -> Path:
    elf = setting.work / ("small.elf" if setting.quick else "big.elf")
    if not elf.exists():
        if setting.quick:
            vmcores.small_elf(FIXTURE, elf)
        else:
            setting.say("making the guest's vmcore (once)")
            try:
                big_guest.make(setting.work.parent, elf)
            except big_guest.NoGuest as error:
                raise Skipped(str(error)) from None
    return elf


@contextmanager
def vmcore_cases(setting: Setting, names: list[str]) -> Iterator[Iterator[Case]]:
    """ELF vmcore: job, read, fragmented-N."""
    elf = _elf(setting)
    out = setting.work / "plan"
    out.mkdir(exist_ok=True)
    facts = run(python("plan", elf, out))
    setting.facts["vmcore"] = facts
    facts["place"] = "the page cache"
    yield _vmcore_cases(setting, names, elf, partial(_read_through, elf))


def _vmcore_cases(
    setting: Setting, names: list[str], core: Path, before: Callable[[], None]
) -> Iterator[Case]:
    facts, out = setting.facts["vmcore"], setting.work / "plan"
    mappings, frames = facts["mappings"], facts["frames"]
    program = {name: str(path) for name, path in setting.programs.items()}
    seed = str(_seed())
    if "job" in names:
        yield Case(
            "job",
            "End to end: from the VMAs to the counters",
            (
                Method(OURS, python("job", core)),
                Method(DRGN, python("job", core, "drgn")),
                Method(C, (program["reference"], str(core), str(out / "plan"))),
                Method(NAIVE, python("naive", core, out / "sample.json", mappings)),
            ),
            yardstick=C,
            frames=frames,
            size=frames * PAGE,
            prediction_is_simple=not setting.quick,
            before=before,
        )
    if "job-unique" in names:
        yield from _unique_case(setting, core, program["reference"])
    for name, file, about in (
        ("read", "frames", "Read and hash every frame once"),
        *(
            (f"fragmented-{p}", f"frames-{p}", f"Read and hash a random {p} % of the frames")
            for p in DENSITIES
        ),
    ):
        if name not in names:
            continue
        path = str(out / file)
        methods = [
            Method(OURS, python("frames", core, path)),
            Method(DRGN, python("frames", core, path, "drgn")),
            Method(C, (program["frames"], "hash", str(core), path, seed)),
        ]
        if name == "read":
            methods.append(Method(PREAD, (program["frames"], "read", str(core), path)))
            methods.append(Method(MEMCPY, (program["frames"], "copy", str(core), path)))
        size = (out / file).stat().st_size // 8 * PAGE
        yield Case(name, about, tuple(methods), yardstick=C, size=size, before=before)


def _unique_case(setting: Setting, core: Path, reference: str) -> Iterator[Case]:
    path, out = setting.work / "unique.elf", setting.work / "plan"
    if not path.exists():
        setting.say("writing a vmcore of mostly unique pages (once)")
        run(python("unique", core, path))
    facts = setting.facts["vmcore"]
    yield Case(
        "job-unique",
        "End to end where most pages are unique",
        (
            Method(OURS, python("job", path)),
            Method(C, (reference, str(path), str(out / "plan"))),
        ),
        yardstick=C,
        frames=facts["frames"],
        size=facts["frames"] * PAGE,
        prediction_is_simple=not setting.quick,
        before=partial(_read_through, path),
    )


def _seed() -> int:
    from job import SEED

    return SEED


@contextmanager
def kdump_cases(setting: Setting, names: list[str]) -> Iterator[Iterator[Case]]:
    """kdump-zlib, kdump-zstd."""
    elf = _elf(setting)

    def cases() -> Iterator[Case]:
        for codec in vmcores.CODECS:
            name = f"kdump-{codec}"
            if name not in names:
                continue
            path = elf.with_suffix(f".{codec}.kdump")
            if not path.exists():
                setting.say(f"writing {path.name} (once)")
                try:
                    vmcores.to_kdump(elf, path, codec)
                except vmcores.NoCodec as error:
                    setting.facts.setdefault("skipped", {})[name] = str(error)
                    continue
            yield Case(
                name,
                f"End to end on a kdump compressed with {codec}, "
                f"{path.stat().st_size / elf.stat().st_size:.0%} of the ELF file's size",
                (
                    Method(OURS, python("job", path)),
                    Method(TWO, python("job", path, "", 2)),
                ),
                most=3,
                before=partial(_read_through, path),
            )

    yield cases()


@contextmanager
def proc_cases(setting: Setting, names: list[str]) -> Iterator[Iterator[Case]]:
    """proc: a live process."""
    del names
    if os.geteuid() != 0:
        raise Skipped("not root")
    mib = 16 if setting.quick else 2048
    live = subprocess.Popen(
        [setting.programs["live"], str(mib)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert live.stdout is not None
        live.stdout.readline()
        plan = run(python("proc_plan", live.pid, setting.work))
        if "failed" in plan:
            raise Skipped(plan["failed"])
        file = str(setting.work / "proc-plan")
        yield iter([
            Case(
                "proc",
                f"Through /proc: a process of {mib} MiB, not in THPs",
                (
                    Method(OURS, python("proc", live.pid)),
                    Method(TWIN, (str(setting.programs["proc_twin"]), file)),
                ),
                yardstick=TWIN,
                frames=mib << 8,
                size=mib << 20,
                prediction_is_simple=True,
            )
        ])  # fmt: skip
    finally:
        live.kill()
        live.wait()


MILLION = 1_000_000
SIZES = (1, 4, 16, 100)  # million frames


@contextmanager
def synthetic_cases(setting: Setting, names: list[str]) -> Iterator[Iterator[Case]]:
    """settled, duplicates, exact, whole: each at several sizes."""
    unit = 20_000 if setting.quick else MILLION
    sizes = SIZES[:1] if setting.quick else SIZES

    def cases() -> Iterator[Case]:
        for kind, about, command in (
            ("settled", "The settled state, most frames unique", ("settled", "unique")),
            ("duplicates", "The settled state, half of them equal", ("settled", "duplicates")),
            ("exact", "Three scans as --passes tells them, most frames unique", ("exact", "3")),
            ("whole", "VMAs to counters, contents and page tables made up", ("whole",)),
        ):
            if kind not in names:
                continue
            for size in sizes:
                if kind == "exact" and size > 16:
                    continue  # objects, not arrays: hundreds of bytes a frame
                frames = size * unit
                yield Case(
                    f"{kind}-{size}",
                    f"{about}: {frames:,} frames",
                    (Method(OURS, python(command[0], frames, *command[1:])),),
                    frames=frames,
                    most={1: 5, 4: 3, 16: 1, 100: 1}[size],
                )

    yield cases()


GROUPS = {
    vmcore_cases: (
        "job",
        "job-unique",
        "read",
        *(f"fragmented-{percent}" for percent in DENSITIES),
    ),
    kdump_cases: ("kdump-zlib", "kdump-zstd"),
    proc_cases: ("proc",),
    synthetic_cases: ("settled", "duplicates", "exact", "whole"),
}
NAMES = [name for names in GROUPS.values() for name in names]
