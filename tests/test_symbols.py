"""Symbol sources, held against each other and against what the kernel wrote in VMCOREINFO."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import drgn
import pytest
from drgn import Program, Symbol
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

from ksm_eval.target import symbols
from ksm_eval.target.kallsyms_scan import find_tables, scan_kallsyms
from ksm_eval.target.kallsyms_tables import Tables
from ksm_eval.target.program import open_core
from ksm_eval.target.symbols import SymbolsError
from tests import containers

VMCORES = Path(__file__).parent.parent / "fixtures" / "vmcores"
NAMES = ["x86_64-6.12-tiny", "x86_64-6.1-tiny", "x86_64-6.12-debian-cloud"]


@cache
def program(name: str) -> Program:
    prog = Program()
    prog.set_core_dump(VMCORES / f"{name}.kdump")
    return prog


@cache
def kernel_symbols(name: str) -> list[Symbol]:
    """By drgn's own loader, from the tables that VMCOREINFO names."""
    prog = program(name)
    found: list[Symbol] = load_vmlinux_kallsyms(prog)(prog, None, None, False)
    return found


def kernel_offset(prog: Program) -> int:
    return int(symbols.vmcoreinfo(prog)["KERNELOFFSET"], 16)


def write_map(path: Path, found: Iterable[Symbol], offset: int) -> Path:
    """A System.map of these symbols, as if the kernel had not been moved by `offset`."""
    lines = [
        f"{s.address - offset if s.address >> 47 else s.address:016x} "
        f"{'T' if s.binding == drgn.SymbolBinding.GLOBAL else 't'} {s.name}\n"
        for s in sorted(found, key=lambda s: s.address)
    ]
    path.write_text("".join(lines))
    return path


def one(found: symbols.SymbolFinder, name: str) -> Symbol:
    (symbol,) = found(drgn.Program(), name, None, False)
    return symbol


@pytest.mark.parametrize("name", NAMES)
def test_kallsyms_agrees_with_vmcoreinfo(name: str) -> None:
    prog = program(name)
    finder, source = symbols.kallsyms(prog)
    assert source == "kallsyms"
    recorded = symbols.vmcoreinfo_symbols(prog)
    for symbol in ("_stext", "init_uts_ns", "prb"):
        assert one(finder, symbol).address == recorded[symbol]
    assert symbols.mismatch(prog, finder) == ""


@pytest.mark.parametrize("name", [*NAMES, "aarch64-6.12-64k"])
def test_tables_read_as_a_whole_are_those_that_drgn_reads(name: str) -> None:
    """What drgn leaves open is not compared: the size of all symbols but one at an address and of
    large ones, what letters such as w and t mean for binding and kind."""
    prog = program(name)
    finder = symbols._tables(prog)
    theirs = load_vmlinux_kallsyms(prog)

    def rows(found: Iterable[Symbol]) -> list[tuple[str, int]]:
        return sorted((s.name, s.address) for s in found)

    def sizes(found: Iterable[Symbol]) -> dict[int, int]:
        ordered = sorted(found, key=lambda s: s.size)
        return {s.address: s.size for s in ordered}

    expected = rows(kernel_symbols(name))
    ours = finder(prog, None, None, False)
    assert rows(ours) == expected
    assert len(expected) > 20_000
    theirs_sizes, our_sizes = sizes(kernel_symbols(name)), sizes(ours)
    known = [address for address, size in theirs_sizes.items() if size]
    assert len(known) > 0.99 * len(theirs_sizes)
    assert [our_sizes[address] for address in known] == [theirs_sizes[a] for a in known]
    names = [row[0] for row in expected]
    several = [a for a, b in itertools.pairwise(names) if a == b]
    assert several
    for wanted in (*names[::997], several[0], "no such symbol"):
        found = finder(prog, wanted, None, False)
        assert rows(found) == rows(theirs(prog, wanted, None, False))
        assert len(finder(prog, wanted, None, True)) == min(len(found), 1)
    stext = one(finder, "_stext").address
    for address in (stext, stext + 1, stext + 0x12345, one(finder, "ksm_scan").address + 8):
        found = finder(prog, None, address, False)
        assert found
        assert set(rows(theirs(prog, None, address, False))) <= set(rows(found))
    assert finder(prog, None, stext - (1 << 32), False) == []


def test_an_elf_vmcore_is_not_read_byte_by_byte(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(_: Program) -> symbols.SymbolFinder:
        raise AssertionError

    monkeypatch.setattr(symbols, "load_vmlinux_kallsyms", never)
    path = tmp_path / "elf"
    path.write_bytes(containers.elf(containers.memory(VMCORES / "x86_64-6.12-tiny.kdump")))
    assert open_core(path).debug_info == "BTF + kallsyms"


def test_damaged_tables_are_left_to_the_others() -> None:
    prog = program("x86_64-6.12-tiny")
    at = symbols.vmcoreinfo_symbols(prog)

    def make(name: str, address: int, size: int, letter: str) -> Symbol:
        return Symbol(name, address, size, *symbols._binding_and_kind(letter))

    Tables(prog, at, make)
    for table in ("kallsyms_num_syms", "kallsyms_token_table", "kallsyms_names"):
        with pytest.raises((LookupError, ValueError)):
            Tables(prog, at | {table: at["_stext"]}, make)
        with pytest.raises(LookupError):
            Tables(prog, {name: at[name] for name in at if name != table}, make)


def test_vmcoreinfo_symbols_that_are_pointers_are_not_compared() -> None:
    """VMCOREINFO_SYMBOL_ARRAY(mem_section) records where the pointer points."""
    prog = program("x86_64-6.12-tiny")
    finder, _ = symbols.kallsyms(prog)
    assert one(finder, "mem_section").address != symbols.vmcoreinfo_symbols(prog)["mem_section"]


def test_mismatch_names_the_symbol() -> None:
    prog = program("x86_64-6.12-tiny")
    found = kernel_symbols("x86_64-6.12-tiny")

    def moved(name: str, by: int) -> symbols.SymbolFinder:
        changed = [
            Symbol(s.name, s.address + by * (s.name == name), s.size, s.binding, s.kind)
            for s in found
        ]
        finder: symbols.SymbolFinder = drgn.SymbolIndex(changed)
        return finder

    assert symbols.mismatch(prog, moved("_stext", 0)) == ""
    assert symbols.mismatch(prog, moved("_stext", 16)) == "_stext"
    assert symbols.mismatch(prog, moved("init_uts_ns", -8)) == "init_uts_ns"
    nothing: symbols.SymbolFinder = drgn.SymbolIndex([])
    assert symbols.mismatch(prog, nothing) == "_stext"


@pytest.mark.parametrize("name", NAMES)
def test_no_symbol_for_small_addresses(name: str) -> None:
    """Per-cpu symbols are offsets: NULL must not be called by the first of them."""
    prog = Program()
    prog.set_core_dump(VMCORES / f"{name}.kdump")
    finder, _ = symbols.kallsyms(prog)
    symbols.install(prog, finder)
    stext = prog.symbol("_stext").address
    assert stext in {s.address for s in prog.symbols(stext)}
    for address in (0, 8, 4096, (1 << 47) - 1):
        assert prog.symbols(address) == []
    assert prog.symbol("ksm_run").size >= 8


@pytest.mark.parametrize("name", NAMES)
def test_system_map_equals_kallsyms(name: str, tmp_path: Path) -> None:
    """With the KASLR offset added, per-cpu symbols left alone."""
    prog = program(name)
    offset = kernel_offset(prog)
    assert offset > 0, "the fixture was made with KASLR"
    path = write_map(tmp_path / "System.map", kernel_symbols(name), offset)
    assert symbols.is_system_map(path.read_bytes()[:256])
    finder = symbols.system_map(prog, path)
    from_map = finder(prog, None, None, False)
    assert len(from_map) == len(kernel_symbols(name)) > 20_000
    assert {(s.name, s.address) for s in from_map} == {
        (s.name, s.address) for s in kernel_symbols(name)
    }
    for variable in ("init_pid_ns", "ksm_run", "ksm_scan", "ksm_mm_head", "zero_pfn"):
        theirs = one(drgn.SymbolIndex(kernel_symbols(name)), variable)
        assert one(finder, variable).size == theirs.size


def test_system_map_of_another_kernel(tmp_path: Path) -> None:
    """Without KASLR both kernels have _stext at the same place; init_uts_ns tells."""
    prog, other = program("x86_64-6.12-tiny"), "x86_64-6.1-tiny"
    path = write_map(tmp_path / "System.map", kernel_symbols(other), kernel_offset(program(other)))
    with pytest.raises(SymbolsError, match=r"of another kernel: .* for init_uts_ns") as error:
        symbols.system_map(prog, path)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n",
            "only the placeholder that Debian installs",
        ),
        ("ffffffff81000000 T _stext\nffffffff8100000", "line 2: not a line of a System.map"),
        ("ffffffff81000000 T unknown_symbol\n", "of another kernel"),
    ],
)
def test_damaged_system_map(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text(text)
    assert symbols.is_system_map(text.encode())
    with pytest.raises(SymbolsError, match=message):
        symbols.system_map(program("x86_64-6.12-tiny"), path)


@pytest.mark.parametrize(
    "text", ["", "\n", "root:x:0:0::/root:/bin/sh\n", "#!/bin/sh\n", "81 T x\n"]
)
def test_what_is_no_system_map(text: str) -> None:
    assert not symbols.is_system_map(text.encode())


def test_scan_finds_what_vmcoreinfo_names() -> None:
    """6.1 has its tables in the order of older kernels, and VMCOREINFO to check the find."""
    name = "x86_64-6.1-tiny"
    found = scan_kallsyms(program(name), symbols.vmcoreinfo_symbols(program(name))["_stext"])
    assert sorted((entry.name, entry.address) for entry in found) == sorted(
        (symbol.name, symbol.address) for symbol in kernel_symbols(name)
    )
    kinds = {entry.name: entry.kind for entry in found}
    assert (kinds["_stext"], kinds["ksm_run"], kinds["init_pid_ns"]) == ("T", "b", "D")


def test_scan_finds_nothing_in_noise() -> None:
    digits = b"".join(b"%d\0" % digit for digit in range(10))
    for image in (b"", digits, digits * 500, bytes(100) + digits + bytes(10_000)):
        with pytest.raises(LookupError, match="no kallsyms tables"):
            find_tables(image, 0xFFFFFFFF81000000, "<")
