"""Opening vmcores: every container, every source of symbols, every bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import drgn
import numpy as np
import pytest
from drgn import Program
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms
from drgn.helpers.linux.pid import find_task, for_each_task
from numpy.typing import NDArray

from ksm_eval.errors import KsmEvalError, TargetError, UsageError
from ksm_eval.evaluate import open_live
from ksm_eval.snapshot import U64
from ksm_eval.target import symbols
from ksm_eval.target.btf import BtfError
from ksm_eval.target.containers import identify
from ksm_eval.target.kernel import KernelTarget
from ksm_eval.target.program import OpenedProgram, open_core, read_btf
from tests import containers

VMCORES = Path(__file__).parent.parent / "fixtures" / "vmcores"
TINY = VMCORES / "x86_64-6.12-tiny.kdump"
TINY_6_1 = VMCORES / "x86_64-6.1-tiny.kdump"
FILTERED = VMCORES / "x86_64-6.12-tiny.makedumpfile-d31.kdump"
DWARF = os.environ.get("KSM_EVAL_TEST_DWARF", "")


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


class Writer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, data: bytes, name: str = "vmcore") -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


def tasks(prog: Program) -> list[tuple[int, bytes]]:
    return [(task.pid.value_(), task.comm.string_()) for task in for_each_task(prog)]


@cache
def reference() -> OpenedProgram:
    return open_core(TINY)


def refused(path: Path, **options: object) -> KsmEvalError:
    """The error of opening; it is one line and has a hint or needs none."""
    with pytest.raises(KsmEvalError) as caught:
        open_core(path, **options)  # type: ignore[arg-type]
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "name", sorted(path.name.removesuffix(".truth.json") for path in VMCORES.glob("*.truth.json"))
)
def test_fixture(name: str) -> None:
    """Opened by what is in the file alone, the guest's own list of processes is found."""
    opened = open_core(VMCORES / f"{name}.kdump")
    assert opened.kind == "vmcore"
    assert opened.debug_info == "BTF + kallsyms"
    assert opened.container == "kdump-compressed vmcore"
    assert opened.notes == []
    truth = json.loads((VMCORES / f"{name}.truth.json").read_text())
    assert truth["processes"]
    for process in truth["processes"]:
        task = find_task(opened.prog, process["pid"])
        assert task.tgid.value_() == process["pid"]


def same_kernel(opened: OpenedProgram) -> None:
    """The same tasks, types and pages as in the fixture it was made of."""
    assert tasks(opened.prog) == tasks(reference().prog)
    assert read_btf(opened.prog) == read_btf(reference().prog)
    for pfn in range(4096, 4096 + 1024, 7):
        mine = opened.prog.read(pfn * 4096, 4096, True)
        assert mine == reference().prog.read(pfn * 4096, 4096, True)
        assert opened.excluded(pfn * 4096, 4096) == ""


@pytest.mark.parametrize("form", ["kdump", "elf"])
@pytest.mark.parametrize("flat", [False, True])
def test_containers(form: str, flat: bool, write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = write.folder / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    data = TINY.read_bytes() if form == "kdump" else containers.elf(containers.memory(TINY))
    opened = open_core(write(containers.flattened(data) if flat else data))
    name = {"kdump": "kdump-compressed vmcore", "elf": "ELF vmcore"}[form]
    assert opened.container == name + ", flattened" * flat
    assert opened.debug_info == "BTF + kallsyms"
    same_kernel(opened)
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("flat", [False, True])
def test_qemu_kdump(flat: bool, write: Writer) -> None:
    """QEMU leaves the release empty, for which libkdumpfile finds no architecture."""
    data = containers.qemu_kdump(TINY.read_bytes())
    path = write(containers.flattened(data) if flat else data)
    with pytest.raises(Exception, match="ARCH_NAME"):
        Program().set_core_dump(path)
    same_kernel(open_core(path))
    same_kernel(open_core(path, architecture="x86_64"))


def test_architecture(write: Writer) -> None:
    unknown = write(containers.qemu_kdump(TINY.read_bytes(), b"Unknown"))
    error = refused(unknown)
    assert "does not say which architecture" in error.message
    assert "--architecture" in error.hint
    same_kernel(open_core(unknown, architecture="X86_64"))
    error = refused(TINY, architecture="pdp11")
    assert (error.exit_code, error.message) == (2, "no architecture 'pdp11'")
    assert "aarch64" in error.hint
    assert "is of x86_64, not of aarch64" in refused(TINY, architecture="aarch64").message


@pytest.mark.parametrize("compression", ["zlib", "lzo", "snappy", "zstd", "none"])
def test_compressions(compression: str, write: Writer) -> None:
    """One page replaced by a run of bytes that is compressed so."""
    flags, data = containers.rle_pages(0xA5)[compression]
    changed = containers.replace_page(TINY.read_bytes(), 0x1234, flags, data)
    opened = open_core(write(changed))
    assert opened.prog.read(0x1234 << 12, 4096, True) == b"\xa5" * 4096
    assert tasks(opened.prog) == tasks(reference().prog)


def stripped_vmcoreinfo(core: Path) -> bytes:
    """As before Linux 6.0: without the places of the kallsyms tables."""
    lines = containers.memory(core).vmcoreinfo.split(b"\n")
    kept = [line for line in lines if b"kallsyms" not in line]
    assert len(lines) - len(kept) == 6
    return b"\n".join(kept)


def system_map(core: Path, folder: Path, *without: str) -> Path:
    """Made from the kernel's own symbols; KASLR taken back."""
    prog = Program()
    prog.set_core_dump(core)
    offset = int(symbols.vmcoreinfo(prog)["KERNELOFFSET"], 16)
    path = folder / "System.map"
    with path.open("w") as file:
        for symbol in load_vmlinux_kallsyms(prog)(prog, None, None, False):
            address = symbol.address - offset if symbol.address >> 47 else symbol.address
            if symbol.name not in without:
                file.write(f"{address:016x} D {symbol.name}\n")
    return path


def test_system_map(tmp_path: Path) -> None:
    path = system_map(TINY, tmp_path)
    info = stripped_vmcoreinfo(TINY)
    opened = open_core(TINY, symbols=[path], vmcoreinfo=info)
    assert opened.debug_info == f"BTF + System.map ({path})"
    same_kernel(opened)
    for name in ("init_task", "init_pid_ns", "ksm_scan", "ksm_mm_head", "zero_pfn"):
        assert opened.prog[name].address_ == reference().prog[name].address_


def test_system_map_that_is_not_needed(tmp_path: Path) -> None:
    path = system_map(TINY, tmp_path)
    opened = open_core(TINY, symbols=[path])
    assert opened.debug_info == "BTF + kallsyms"
    assert opened.notes == [f"{path} was not needed: the target has its own symbols"]


def test_system_map_of_another_kernel(tmp_path: Path) -> None:
    path = system_map(TINY_6_1, tmp_path)
    error = refused(TINY, symbols=[path], vmcoreinfo=stripped_vmcoreinfo(TINY))
    assert f"{path} is of another kernel" in error.message
    assert error.exit_code == 3


def test_kallsyms_without_vmcoreinfo() -> None:
    """6.1 has the tables in the old order, so they can be found in the kernel image."""
    opened = open_core(TINY_6_1, vmcoreinfo=stripped_vmcoreinfo(TINY_6_1))
    assert opened.debug_info == "BTF + kallsyms found by scanning"
    assert tasks(opened.prog) == tasks(open_core(TINY_6_1).prog)


def test_no_symbols() -> None:
    error = refused(TINY, vmcoreinfo=stripped_vmcoreinfo(TINY))
    assert error.message.startswith("no usable kernel symbols in the target")
    assert (error.exit_code, "-s/--symbols" in error.hint) == (3, True)


def test_no_btf(tmp_path: Path) -> None:
    path = system_map(TINY, tmp_path, "__start_BTF", "__stop_BTF")
    error = refused(TINY, symbols=[path], vmcoreinfo=stripped_vmcoreinfo(TINY))
    assert error.message == "the target's kernel has no BTF, and there is no DWARF"
    assert (error.exit_code, "-s/--symbols" in error.hint) == (3, True)


def test_damaged_btf(write: Writer) -> None:
    data = containers.elf(containers.memory(TINY))
    start = data.find(read_btf(reference().prog)[:2000])
    assert start > 0
    path = write(data[:start] + bytes(100) + data[start + 100 :])
    with pytest.raises(BtfError, match="wrong magic number"):
        open_core(path)


def test_no_vmcoreinfo(write: Writer) -> None:
    memory = containers.memory(TINY)
    elf = write(containers.elf(memory, note=b"SOMETHING"))
    kdump = bytearray(TINY.read_bytes())
    kdump[4096 + 32 : 4096 + 64] = bytes(32)  # offset and size of vmcoreinfo, and of the notes
    for path in (elf, write(bytes(kdump), "kdump")):
        error = refused(path)
        assert f"{path} has no VMCOREINFO" in error.message
        assert (error.exit_code, "--vmcoreinfo" in error.hint) == (3, True)
        info = write(memory.vmcoreinfo, "info")
        same_kernel(open_core(path, vmcoreinfo=info))


def test_vmcoreinfo_that_is_none(write: Writer) -> None:
    error = refused(TINY, vmcoreinfo=write(b"hello\n", "info"))
    assert "is no VMCOREINFO" in error.message
    error = refused(TINY, vmcoreinfo=write.folder / "missing")
    assert "cannot read" in error.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"#!/bin/sh\n", "is neither a vmlinux (ELF) nor a System.map"),
        (b"", "is neither a vmlinux (ELF) nor a System.map"),
        (containers.vmlinux(b"\x12" * 20), "is of another kernel: its build ID is 1212"),
        (containers.vmlinux(b"\x12" * 20, kind=1), "is not a vmlinux"),
        (containers.vmlinux(b"\x12" * 20, kind=4), "is not a vmlinux"),
        (containers.vmlinux(b"\x12" * 20)[:-1], "is truncated or damaged"),
        (b"\x7fELF", "is truncated or damaged"),
    ],
)
def test_wrong_vmlinux(data: bytes, message: str, write: Writer) -> None:
    path = write(data, "vmlinux")
    error = refused(TINY, symbols=[path])
    assert isinstance(error, TargetError)
    assert error.message.startswith(f"{path} {message}")
    assert error.exit_code == 3


def test_vmlinux_without_dwarf(write: Writer) -> None:
    build_id = bytes.fromhex(symbols.vmcoreinfo(reference().prog)["BUILD-ID"])
    path = write(containers.vmlinux(build_id), "vmlinux")
    error = refused(TINY, symbols=[path])
    assert error.message == f"{path} has no debugging information (DWARF)"


def test_missing_or_two_symbol_files(write: Writer) -> None:
    path = write(containers.vmlinux(b"\x12" * 20), "vmlinux")
    assert "cannot read" in refused(TINY, symbols=[write.folder / "missing"]).message
    with pytest.raises(UsageError, match="two vmlinux files"):
        open_core(TINY, symbols=[path, path])


@pytest.mark.skipif(not DWARF, reason="KSM_EVAL_TEST_DWARF=VMLINUX:VMCORE is not set")
def test_dwarf() -> None:
    vmlinux, core = DWARF.split(":")
    opened = open_core(Path(core), symbols=[Path(vmlinux)])
    assert opened.debug_info == f"DWARF ({vmlinux})"
    by_btf = open_core(Path(core))
    assert tasks(opened.prog) == tasks(by_btf.prog)
    for name in ("init_task", "init_pid_ns", "ksm_scan", "ksm_run", "zero_pfn", "max_pfn"):
        assert opened.prog[name].address_ == by_btf.prog[name].address_
        assert opened.prog[name].type_.size == by_btf.prog[name].type_.size


def test_filtered_kdump() -> None:
    error = refused(FILTERED)
    assert error.message == f"{FILTERED} has no user pages: it was made by makedumpfile -d 31"
    assert (error.exit_code, "-d 17" in error.hint) == (3, True)


def anonymous_frames(prog: Program) -> tuple[U64, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """All anonymous frames of the system, and which of them head a compound page."""
    count = prog["max_pfn"].value_()
    raw = prog.read(prog["vmemmap"].value_(), 64 * count)
    words = np.frombuffer(raw, "<u8").reshape(count, 8)
    tail = words[:, 1] & 1 == 1  # page.compound_head
    pfns = np.flatnonzero((words[:, 3] & 1 == 1) & ~tail)  # page.mapping: PAGE_MAPPING_ANON
    head = words[pfns, 0] >> prog["PG_head"].value_() & 1 == 1
    return pfns.astype(np.uint64), head


def none(pfns: U64) -> NDArray[np.bool_]:
    return np.zeros(len(pfns), np.bool_)


def test_holes_in_an_elf_vmcore(write: Writer) -> None:
    """Anonymous pages in a hole are refused, unless others prove that they were kept."""
    pfns, compound = anonymous_frames(reference().prog)
    small = pfns[~compound]
    hole = int(small[len(small) // 2]) & ~255
    data = containers.elf(containers.memory(TINY), holes=[(hole << 12, hole + 256 << 12)])
    opened = open_core(write(data))
    missing = int(((small >= hole) & (small < hole + 256)).sum())
    assert missing > 0
    assert opened.excluded(hole << 12, 4096) == "not in this filtered ELF vmcore"
    assert opened.excluded((hole - 1) << 12, 4096) == ""
    assert opened.excluded((hole - 1) << 12, 8192) != ""
    few = small[(small > hole - 100) & (small < hole + 400)]
    with pytest.raises(TargetError, match=r"are not in .*vmcore, and an ELF vmcore does not tell"):
        opened.check_user_pages(few, none(few), none(few), 4096)
    elsewhere = np.concatenate([few, np.arange(hole + 1000, hole + 1512, dtype=np.uint64)])
    with pytest.raises(TargetError, match=r"an ELF vmcore does not tell"):
        # Pages of the swap cache go with the page cache (-d 2, 4), so they prove nothing.
        opened.check_user_pages(elsewhere, none(elsewhere), ~none(elsewhere), 4096)
    opened.check_user_pages(elsewhere, none(elsewhere), none(elsewhere), 4096)
    assert opened.excluded(hole << 12, 4096) == ""


@pytest.mark.skipif(shutil.which("makedumpfile") is None, reason="makedumpfile is not installed")
@pytest.mark.parametrize("level", [1, 17, 8, 31])
def test_elf_by_makedumpfile(level: int, write: Writer) -> None:
    """-d 8 and 31 drop anonymous pages and must be refused; -d 1 and 17 only zero pages."""
    elf, out = write(containers.elf(containers.memory(TINY)), "elf"), write.folder / "out"
    subprocess.run(
        ["makedumpfile", "-E", "-d", str(level), elf, out], check=True, stdout=subprocess.DEVNULL
    )
    opened = open_core(out)
    assert identify(out).holes
    pfns, compound = anonymous_frames(reference().prog)
    read = np.array(
        [opened.prog.read(pfn << 12, 4096, True) != bytes(4096) for pfn in pfns.tolist()]
    )
    truth = np.array(
        [reference().prog.read(p << 12, 4096, True) != bytes(4096) for p in pfns.tolist()]
    )
    if level & 8:
        assert int((read != truth).sum()) > 100  # would be counted as zero pages
        with pytest.raises(TargetError, match="anonymous pages are not in"):
            opened.check_user_pages(pfns, compound, none(pfns), 4096)
    else:
        assert (read == truth).all()
        opened.check_user_pages(pfns, compound, none(pfns), 4096)
        assert not opened.holes


@pytest.mark.skipif(shutil.which("makedumpfile") is None, reason="makedumpfile is not installed")
@pytest.mark.parametrize("option", ["-c", "-l", ""])
def test_kdump_by_makedumpfile(option: str, write: Writer) -> None:
    elf, out = write(containers.elf(containers.memory(TINY)), "elf"), write.folder / "out"
    options = [option] if option else []
    subprocess.run(
        ["makedumpfile", *options, "-d", "17", elf, out], check=True, stdout=subprocess.DEVNULL
    )
    assert identify(out).dump_level == 17
    opened = open_core(out)
    assert tasks(opened.prog) == tasks(reference().prog)
    for pfn in anonymous_frames(reference().prog)[0].tolist():
        page = reference().prog.read(pfn << 12, 4096, True)
        assert opened.prog.read(pfn << 12, 4096, True) == page
    free = [pfn for pfn in range(4096, 8192) if not readable(opened.prog, pfn)]
    assert free  # excluded pages are errors here, not zeros


def readable(prog: Program, pfn: int) -> bool:
    try:
        prog.read(pfn << 12, 4096, True)
    except drgn.FaultError:
        return False
    return True


def test_kcore_that_lacks_something_falls_back_to_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fail when the first page table is read is found when the target is opened."""
    target = KernelTarget(open_core(TINY))
    target.probe()
    broken = KernelTarget(open_core(TINY))

    def none(*_: object) -> None:
        return None

    monkeypatch.setattr("ksm_eval.target.kernel.first_value", none)
    monkeypatch.setattr(broken, "_arch", broken._arch._replace(image_to_physical=none))
    with pytest.raises(TargetError, match="zero page cannot be found"):
        broken.probe()
    monkeypatch.setattr("ksm_eval.target.live.open_kernel", lambda **_: open_core(TINY))
    monkeypatch.setattr("ksm_eval.target.kernel.KernelTarget", lambda _: broken)
    notes: list[str] = []
    through_proc = SimpleNamespace(info=SimpleNamespace(notes=notes))
    monkeypatch.setattr("ksm_eval.target.procfs.open_proc", lambda: through_proc)
    assert open_live() is through_proc
    assert notes == [
        "the running kernel was read through /proc: the kernel's zero page cannot be found"
    ]
    with pytest.raises(TargetError):
        open_live("kcore")
