"""Other containers of a fixture's memory: ELF, flattened, QEMU's kdump, damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import drgn

PAGE = 4096


class Memory(NamedTuple):
    """Physical memory by ranges of pages, and the VMCOREINFO text."""

    ranges: list[tuple[int, bytes]]  # (physical address, contents), ascending
    vmcoreinfo: bytes


@cache
def memory(kdump: Path, end: int = 1 << 27) -> Memory:
    """All of a small vmcore's physical memory below `end`, read through drgn."""
    prog = drgn.Program()
    prog.set_core_dump(kdump)
    ranges: list[tuple[int, bytearray]] = []
    for address in range(0, end, PAGE):
        try:
            page = prog.read(address, PAGE, True)
        except drgn.FaultError:
            continue
        if ranges and ranges[-1][0] + len(ranges[-1][1]) == address:
            ranges[-1][1].extend(page)
        else:
            ranges.append((address, bytearray(page)))
    vmcoreinfo: bytes = prog["VMCOREINFO"].string_()
    return Memory([(start, bytes(data)) for start, data in ranges], vmcoreinfo)


def elf(
    contents: Memory, *, note: bytes = b"VMCOREINFO", holes: Sequence[tuple[int, int]] = ()
) -> bytes:
    """An ELF vmcore as QEMU writes it (program headers at 64, virtual = physical addresses).

    `holes`: (start, end) of physical memory to leave out as makedumpfile -E does, by a
    segment that ends earlier in the file than in memory.
    """
    segments = []  # (address, data, size in memory)
    for start, data in contents.ranges:
        end = start + len(data)
        at = start
        for first, last in holes:
            if start <= first < last <= end:
                segments.append((at, data[at - start : first - start], last - at))
                at = last
        segments.append((at, data[at - start :], end - at))
    desc = contents.vmcoreinfo
    name = note + b"\0"
    notes = struct.pack("<III", len(name), len(desc), 0)
    notes += name + b"\0" * (-len(name) % 4) + desc + b"\0" * (-len(desc) % 4)
    offset = 64 + 56 * (1 + len(segments))
    headers = struct.pack("<IIQQQQQQ", 4, 0, offset, 0, 0, len(notes), len(notes), 0)
    offset += len(notes)
    for address, data, size in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, offset, address, address, len(data), size, 0)
        offset += len(data)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1 + len(segments), 0, 0, 0
    )
    return header + headers + notes + b"".join(data for _, data, _ in segments)


def flattened(contents: bytes, piece: int = 100_000) -> bytes:
    """makedumpfile's flattened format. Pieces come out of order and the first is rewritten."""
    pieces = [(at, contents[at : at + piece]) for at in range(0, len(contents), piece)]
    pieces = [(0, b"\xff" * min(4096, len(contents))), *reversed(pieces)]
    header = b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1)
    parts = [header.ljust(4096, b"\0")]
    for at, data in pieces:
        parts += [struct.pack(">qq", at, len(data)), data]
    return b"".join([*parts, struct.pack(">qq", -1, -1)])


def qemu_kdump(kdump: bytes, machine: bytes = b"x86_64") -> bytes:
    """The header as QEMU fills it: of utsname, the machine only."""
    utsname = b"\0" * 260 + machine.ljust(65, b"\0") + b"\0" * 65
    return kdump[:12] + utsname + kdump[12 + len(utsname) :]


def set_dump_level(kdump: bytes, level: int) -> bytes:
    (block,) = struct.unpack_from("<I", kdump, 428)
    return kdump[: block + 8] + struct.pack("<i", level) + kdump[block + 12 :]
