"""mm->rss_stat as kernels have it, in memory made by hand; as vmcores have it: test_collect.py."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from drgn import Architecture, Object, Platform, Program, Type, TypeMember, sizeof

from ksm_eval.target.mm_counters import _counters, mm_counters, rss_pages

MM, PER_CPU = 0x1000, 0x9000


def program(memory: dict[int, bytes]) -> Program:
    prog = Program(Platform(Architecture.X86_64))
    for start, data in memory.items():

        def read(_a: int, count: int, offset: int, _p: bool, data: bytes = data) -> bytes:
            return data[offset : offset + count]

        prog.add_memory_segment(start, len(data), read)
    return prog


def structure(prog: Program, name: str, *members: tuple[str, Type]) -> Type:
    placed, offset = [], 0
    for member, kind in members:
        placed.append(TypeMember(kind, member, bit_offset=8 * offset))
        offset += sizeof(kind)
    return prog.struct_type(name, offset, placed)


def mm(prog: Program, rss_stat: Type) -> Object:
    return Object(prog, structure(prog, "mm_struct", ("rss_stat", rss_stat)), address=MM)


def percpu(counts: Sequence[int], places: Sequence[int], cpus: dict[int, bytes]) -> list[int]:
    """What is read of percpu_counter[4] with these counts and places, and per-CPU memory by the
    offset of the CPU."""
    data = struct.pack("<qQqQqQqQ", *(n for pair in zip(counts, places, strict=True) for n in pair))
    prog = program({MM: data, **{(PER_CPU + at) % (1 << 64): raw for at, raw in cpus.items()}})
    s64 = prog.int_type("long", 8, True)
    pointer = prog.pointer_type(prog.int_type("int", 4, True), 8)
    counter = structure(prog, "percpu_counter", ("count", s64), ("counters", pointer))
    return _counters(prog, mm(prog, prog.array_type(counter, 4)), list(cpus))


def test_each_cpus_part_is_added() -> None:
    """Parts below 0 too: pages that were mapped on one CPU and unmapped on another."""
    together = [PER_CPU + 4 * kind for kind in range(4)]
    parts = {0x100: struct.pack("<4i", 1, -30, 3, 4), 0x200: struct.pack("<4i", 5, -6, 7, 31)}
    assert percpu([64, 128, 0, 0], together, parts) == [70, 92, 10, 35]
    # The offset of a CPU may be below 0, as an address 2 ** 64 more.
    assert percpu([1, 2, 3, 4], together, {(1 << 64) - 0x100: parts[0x100]}) == [2, -28, 6, 8]


def test_before_they_were_allocated_together() -> None:
    apart = [PER_CPU + 16 * kind for kind in range(4)]
    raw = struct.pack("<i12xi12xi12xi", 1, -2, 3, 4)
    assert percpu([10, 20, 30, 40], apart, {0: raw}) == [11, 18, 33, 44]


def test_without_smp() -> None:
    prog = program({MM: struct.pack("<4q", 5, -1, 7, 8)})
    counter = structure(prog, "percpu_counter", ("count", prog.int_type("long", 8, True)))
    found = mm_counters(prog)(mm(prog, prog.array_type(counter, 4)))
    assert found == [5, 0, 7, 8]
    assert rss_pages(found) == 13  # without what is swapped


def test_before_6_2() -> None:
    """A thread that has unmapped more than it mapped leaves the counter below 0 for a while."""
    prog = program({MM: struct.pack("<4q", -3, 11, 7, 8)})
    atomic = structure(prog, "atomic64_t", ("counter", prog.int_type("long", 8, True)))
    stat = structure(prog, "mm_rss_stat", ("count", prog.array_type(atomic, 4)))
    assert mm_counters(prog)(mm(prog, stat)) == [0, 11, 7, 8]


@pytest.mark.parametrize("torn", [1 << 40, (1 << 63) - 1])
def test_what_cannot_be(torn: int) -> None:
    assert rss_pages([0, torn, 0, 1]) is None


def test_unknown_and_unreadable() -> None:
    """A kernel that counts otherwise, and a page that is not in the dump."""
    prog = program({})
    other = structure(prog, "new_counters", ("sum", prog.int_type("long", 8, True)))
    assert mm_counters(prog)(mm(prog, other)) is None
    atomic = structure(prog, "atomic64_t", ("counter", prog.int_type("long", 8, True)))
    stat = structure(prog, "mm_rss_stat", ("count", prog.array_type(atomic, 4)))
    assert mm_counters(prog)(mm(prog, stat)) is None
    assert rss_pages(None) is None
