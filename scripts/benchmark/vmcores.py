"""The same memory in other files: a small ELF vmcore out of a fixture, kdumps of a large one."""

from __future__ import annotations

import ctypes
import ctypes.util
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import drgn

sys.path.append(str(Path(__file__).resolve().parent.parent / "fixtures"))

from vmcore_elf import ElfVmcore, Segment
from vmcore_kdump import Codec, write_kdump

PAGE = 4096
EM_X86_64 = 62
LOW = 1 << 20


class NoCodec(Exception):
    """Nothing here compresses that way."""


def _note(name: bytes, description: bytes) -> bytes:
    head = struct.pack("<III", len(name), len(description), 0)
    return b"".join((head, name, bytes(-len(name) % 4), description, bytes(-len(description) % 4)))


def small_elf(kdump: Path, elf: Path, end: int = 1 << 27) -> None:
    """All of a small vmcore's memory below `end`."""
    prog = drgn.Program()
    prog.set_core_dump(kdump)
    segments: list[Segment] = []
    for address in range(0, end, PAGE):
        try:
            page = prog.read(address, PAGE, True)
        except drgn.FaultError:
            continue
        last = segments[-1] if segments else None
        # drgn takes a file whose only physical address is 0 for one that has none.
        if last is None or last.address + len(last.data) != address or address == LOW:
            segments.append(last := Segment(address, bytearray()))
        assert isinstance(last.data, bytearray)
        last.data.extend(page)
    notes = _note(b"VMCOREINFO\0", prog["VMCOREINFO"].string_())
    ElfVmcore(EM_X86_64, notes, segments).write(elf)


def _zlib() -> Codec:
    return Codec(0x1, lambda page: zlib.compress(page, 1))  # as makedumpfile -c


def _zstd() -> Codec:
    name = ctypes.util.find_library("zstd")
    if name is None:
        raise NoCodec("libzstd is not installed")
    library = ctypes.CDLL(name)
    library.ZSTD_compressBound.restype = library.ZSTD_compress.restype = ctypes.c_size_t
    library.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
    library.ZSTD_compress.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int),
    ]
    out = ctypes.create_string_buffer(library.ZSTD_compressBound(PAGE))

    def compress(page: bytes) -> bytes:
        size = library.ZSTD_compress(out, len(out), page, len(page), 1)
        return ctypes.string_at(out, size)

    return Codec(0x20, compress)


CODECS: dict[str, Callable[[], Codec]] = {"zlib": _zlib, "zstd": _zstd}


def to_kdump(elf: Path, kdump: Path, codec: str) -> None:
    """Raises NoCodec."""
    chosen = CODECS[codec]()
    partial = kdump.with_suffix(".partial")
    write_kdump(ElfVmcore.mapped(elf), partial, chosen, share=False)
    partial.rename(kdump)
