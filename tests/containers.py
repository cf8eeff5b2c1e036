"""Other containers of a fixture's memory: ELF, flattened, QEMU's kdump, damaged ones."""

from __future__ import annotations

import struct
import zlib
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
        # As QEMU's, the first segment ends below 1 MiB: without a physical address that is
        # not zero, drgn believes that the file has none.
        for first, last in [(1 << 20, 1 << 20), *holes]:
            if start <= first <= last <= end:
                segments.append((at, data[at - start : first - start], last - at))
                at = last
        segments.append((at, data[at - start :], end - at))
    notes = b""
    for name, desc in ((b"QEMU\0", bytes(440)), (note + b"\0", contents.vmcoreinfo)):
        notes += struct.pack("<III", len(name), len(desc), 0)
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


def rle_pages(byte: int) -> dict[str, tuple[int, bytes]]:
    """A page of one byte value in each compression: (flag of its descriptor, data).

    Written by hand from the formats' descriptions: one literal, the rest a run of it.
    """
    literal = bytes([byte])
    copies = [64] * 63 + [63]
    return {
        # Length as a varint; a literal of 1; copies of up to 64 from offset 1.
        "snappy": (
            0x4,
            b"\x80\x20\x00" + literal + b"".join(bytes([n - 1 << 2 | 2, 1, 0]) for n in copies),
        ),
        # One literal; a match of 4095 at distance 1 (2 + 31 + 15 * 255 + 237); the end.
        "lzo": (0x2, b"\x12" + literal + b"\x20" + bytes(15) + b"\xed\0\0" + b"\x11\0\0"),
        # Frame header with the size 4096 = 256 + 3840; one block, the last, of type RLE.
        "zstd": (
            0x20,
            b"\x28\xb5\x2f\xfd\x60"
            + struct.pack("<H", 3840)
            + struct.pack("<I", 4096 << 3 | 1 << 1 | 1)[:3]
            + literal,
        ),
        "zlib": (0x1, zlib.compress(literal * PAGE)),
        "none": (0, literal * PAGE),
    }


def replace_page(kdump: bytes, pfn: int, flags: int, data: bytes) -> bytes:
    """Let the page descriptor of a frame point to `data`, appended to the file."""
    block, sub_blocks, bitmap_blocks = struct.unpack_from("<iiI", kdump, 428)
    bitmap = (1 + sub_blocks) * block
    dumped = bitmap + bitmap_blocks * block // 2  # the second of two bitmaps
    bits = int.from_bytes(kdump[dumped : dumped + pfn // 8 + 1], "little")
    assert bits >> pfn & 1, "the frame is not in the dump"
    index = (bits & (1 << pfn) - 1).bit_count()
    at = bitmap + bitmap_blocks * block + 24 * index
    descriptor = struct.pack("<qIIQ", len(kdump), len(data), flags, 0)
    return kdump[:at] + descriptor + kdump[at + 24 :] + data


def vmlinux(build_id: bytes, *, kind: int = 2) -> bytes:
    """An ELF file with a build ID and nothing else."""
    note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    sections = 64 + len(note)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", kind, 62, 1, 0, 0, sections, 0, 64, 0, 0, 64, 2, 0
    )
    section = struct.pack("<IIQQQQIIQQ", 0, 7, 0, 0, 64, len(note), 0, 0, 4, 0)
    return header + note + bytes(64) + section
