"""What kind of file a vmcore is, whether it is whole, and what a filter left out of it.

Only headers are read here: drgn (libkdumpfile) reads the pages. ELF and kdump-compressed
files (diskdump_mod.h of makedumpfile), each of them plain or in makedumpfile's flattened
format, 64 bit.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from ksm_eval.errors import TargetError
from ksm_eval.snapshot import U64

EXCLUDES_USER_DATA: Final = 8
"""DL_EXCLUDE_USER_DATA, a bit of makedumpfile's dump level: no anonymous pages."""

NOT_IN_ELF: Final = "not in this filtered ELF vmcore"
"""Why memory in Holes cannot be read."""

_FLATTENED: Final = b"makedumpfile".ljust(16, b"\0")
_FLATTENED_HEADER: Final = 4096
_KDUMP_SIGNATURES: Final = (b"KDUMP   ", b"DISKDUMP")
_INCOMPLETE: Final = 0x8  # DUMP_DH_COMPRESSED_INCOMPLETE: the disk was full
_ET_CORE: Final = 4
_PT_LOAD: Final = 1
_PN_XNUM: Final = 0xFFFF
_ELF_MACHINES: Final = {62: "x86_64", 183: "aarch64", 21: "ppc64le", 22: "s390x"}
_PROGRAM_HEADER: Final = (  # Elf64_Phdr
    *(("type", "u4"), ("flags", "u4"), ("offset", "u8"), ("vaddr", "u8")),
    *(("paddr", "u8"), ("filesz", "u8"), ("memsz", "u8"), ("align", "u8")),
)
_DESCRIPTOR: Final = (  # struct page_desc of diskdump_mod.h
    *(("offset", "i8"), ("size", "u4"), ("flags", "u4"), ("page_flags", "u8")),
)
_RUN_THAT_IS_KEPT: Final = 512


class ContainerError(TargetError):
    """The file is no vmcore, is damaged, or is of a kind that cannot be read."""


@dataclass(frozen=True)
class Holes:
    """Physical ranges that an ELF vmcore describes but does not hold (p_memsz > p_filesz).

    makedumpfile -E leaves them where it excluded 256 or more pages in a row, and drgn reads
    them as zeros. Whether they were zeros the file does not tell: it has no dump level.
    """

    start: U64 = field(default_factory=lambda: np.empty(0, np.uint64))
    end: U64 = field(default_factory=lambda: np.empty(0, np.uint64))
    """Byte addresses, ascending, disjoint; `end` is exclusive."""

    def __bool__(self) -> bool:
        return len(self.start) > 0

    def touch(self, address: int, size: int) -> bool:
        """Whether a part of this physical memory lies in a hole."""
        if not len(self.start):
            return False
        after = int(np.searchsorted(self.end, np.uint64(address), "right"))
        return after < len(self.end) and int(self.start[after]) < address + size

    def contain(self, pfns: U64, page_size: int) -> NDArray[np.bool_]:
        """Which of the frames lie in a hole, wholly or in part. Shape of `pfns`."""
        if not self:
            return np.zeros(len(pfns), np.bool_)
        first = pfns * np.uint64(page_size)
        after = np.searchsorted(self.end, first, "right")  # the first hole that ends behind it
        inside = after < len(self.end)
        after[~inside] = 0
        return inside & (self.start[after] < first + np.uint64(page_size))

    def hold_only_zeros(self, anonymous_pfns: U64, page_size: int) -> bool:
        """Whether the holes cannot be user pages, so that reading zeros is right.

        `anonymous_pfns`: ascending frames of anonymous memory that are in no compound page.
        If 512 of them in a row are in the file, anonymous pages were not excluded: makedumpfile
        would have made a hole of any 256 in a row (512, as one border of its cyclic buffer
        may lie between). What is missing then was zero (-d 1), or was not anonymous at all.
        """
        present = anonymous_pfns[~self.contain(anonymous_pfns, page_size)]
        breaks = np.flatnonzero(np.diff(present) != 1) + 1
        runs = np.diff(np.concatenate(([0], breaks, [len(present)])))
        return bool((runs >= _RUN_THAT_IS_KEPT).any())


@dataclass(frozen=True)
class Segments:
    """What an ELF vmcore holds: physical address, place in the file and bytes of each PT_LOAD."""

    address: U64
    offset: U64
    size: U64


@dataclass(frozen=True)
class Container:
    """A vmcore file whose headers make sense."""

    kind: str  # "ELF" or "kdump"
    flattened: bool
    machine: str = ""  # as uname -m prints it, where the file tells it
    release: str = ""  # kdump: utsname's, where the writer filled it
    dump_level: int | None = None  # kdump: of makedumpfile; None if the file does not say
    holes: Holes = field(default_factory=Holes)
    segments: Segments | None = None  # ELF, unless flattened

    @property
    def description(self) -> str:
        name = {"ELF": "ELF vmcore", "kdump": "kdump-compressed vmcore"}[self.kind]
        return f"{name}, flattened" if self.flattened else name

    @property
    def excludes_user_pages(self) -> bool:
        """True only if the file says so; `holes` are another matter."""
        return self.dump_level is not None and bool(self.dump_level & EXCLUDES_USER_DATA)


def identify(path: Path) -> Container:
    """Read the headers. ContainerError if this is no usable vmcore; one clear line each."""
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ContainerError(f"{path} is no regular file", "save the vmcore to a file first")
        if path.is_dir():
            raise ContainerError(f"{path} is a directory, not a vmcore", "give the file in it")
        with path.open("rb") as file:
            return _identify(_File(file, path))
    except FileNotFoundError:
        raise ContainerError(f"{path} does not exist", "check the path") from None
    except PermissionError:
        raise ContainerError(
            f"no permission to read {path}", "vmcores are usually readable by root only"
        ) from None
    except OSError as error:
        raise ContainerError(f"cannot read {path}: {error.strerror}") from None


def reassemble(path: Path, out: BinaryIO) -> None:
    """Write a flattened file's contents to `out`, as `makedumpfile -R` would."""
    with path.open("rb") as file:
        for offset, size, position in _records(file, path):
            file.seek(position)
            out.seek(offset)
            while size > 0:
                chunk = file.read(min(size, 1 << 20))
                out.write(chunk)
                size -= len(chunk)
    out.flush()


class _File:
    """Random access to a file, or to what a flattened file contains."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self._file = file
        self.size = file.seek(0, 2)
        file.seek(0)
        self.flattened = file.read(len(_FLATTENED)) == _FLATTENED
        self._records: list[tuple[int, int, int]] = []
        if self.flattened:
            self._records = list(_records(file, path))
            self.size = max((offset + size for offset, size, _ in self._records), default=0)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes; ContainerError if the file ends before."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise truncated(self.path)
        if not self.flattened:
            self._file.seek(offset)
            return self._file.read(size)
        data = bytearray(size)
        for at, length, position in self._records:  # later ones overwrite earlier ones
            first, last = max(at, offset), min(at + length, offset + size)
            if first < last:
                self._file.seek(position + first - at)
                data[first - offset : last - offset] = self._file.read(last - first)
        return bytes(data)


def truncated(path: Path) -> ContainerError:
    return ContainerError(
        f"{path} is truncated", "copy it again, or look for a full disk where it was written"
    )


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[int, int, int]]:
    """(offset in the contents, size, position in the file) of a flattened file's pieces."""
    end = file.seek(0, 2)
    position = _FLATTENED_HEADER
    while True:
        file.seek(position)
        header = file.read(16)
        if len(header) < 16:
            raise truncated(path)
        offset, size = struct.unpack(">qq", header)
        if offset == -1 and size == -1:
            return
        position += 16
        if offset < 0 or size <= 0:
            raise ContainerError(f"{path} is damaged: a piece of {size} bytes at {offset}")
        if position + size > end:
            raise truncated(path)
        yield offset, size, position
        position += size


def _identify(file: _File) -> Container:
    if file.size == 0:
        raise ContainerError(f"{file.path} is empty", "the dump failed, or is not written yet")
    head = file.read(0, min(file.size, 64))
    if head.startswith(_KDUMP_SIGNATURES):
        return _identify_kdump(file)
    if head.startswith(b"\x7fELF"):
        return _identify_elf(file, head)
    raise ContainerError(
        f"{file.path} is not a vmcore", "ELF and kdump-compressed vmcores can be read"
    )


def _identify_elf(file: _File, head: bytes) -> Container:
    if len(head) < 64:
        raise truncated(file.path)
    if head[4] != 2:
        raise ContainerError(f"{file.path} is of a 32-bit machine, which is not supported")
    order = "<" if head[5] == 1 else ">"
    kind, machine, _, _, phoff, shoff, _, _, phentsize, phnum = struct.unpack_from(
        f"{order}HHIQQQIHHH", head, 16
    )
    if kind != _ET_CORE:
        raise ContainerError(
            f"{file.path} is an ELF file but not a vmcore",
            "a vmlinux belongs to -s/--symbols",
        )
    if phnum == _PN_XNUM:  # the number is in the first section header, sh_info
        (phnum,) = struct.unpack(f"{order}I", file.read(shoff + 44, 4))
    if phentsize != 56:
        raise ContainerError(f"{file.path} is damaged: program headers of {phentsize} bytes")
    dtype = np.dtype([(name, order + code) for name, code in _PROGRAM_HEADER])
    headers = np.frombuffer(file.read(phoff, 56 * phnum), dtype)
    room = np.uint64(file.size) - np.minimum(headers["offset"], np.uint64(file.size))
    if (headers["filesz"] > room).any():
        raise truncated(file.path)
    loads = headers[headers["type"] == _PT_LOAD]
    if not len(loads):
        raise ContainerError(f"{file.path} is an ELF core without memory")
    cut = np.sort(loads[loads["memsz"] > loads["filesz"]], order="paddr")
    start = (cut["paddr"] + cut["filesz"]).astype(np.uint64)
    end = (cut["paddr"] + cut["memsz"]).astype(np.uint64)
    held = (loads[name].astype(np.uint64) for name in ("paddr", "offset", "filesz"))
    return Container(
        "ELF",
        file.flattened,
        machine=_ELF_MACHINES.get(machine, ""),
        holes=Holes(start, end),
        segments=None if file.flattened else Segments(*held),
    )


def _identify_kdump(file: _File) -> Container:
    header = file.read(0, 448)
    version = struct.unpack_from("<I", header, 8)[0]
    order = "<" if version < 1 << 16 else ">"
    status, block, sub_blocks, bitmap_blocks, max_mapnr = struct.unpack_from(
        f"{order}IiiII", header, 424
    )
    if block < 512 or block & block - 1 or sub_blocks < 1:
        raise ContainerError(f"{file.path} is damaged: a block size of {block} bytes")
    if status & _INCOMPLETE:
        raise truncated(file.path)
    sub = file.read(block, 104)
    _, dump_level, split = struct.unpack_from(f"{order}Qii", sub)
    (wide_mapnr,) = struct.unpack_from(f"{order}Q", sub, 96)
    if split:
        raise ContainerError(
            f"{file.path} is one part of a split dump",
            "join the parts by: makedumpfile --reassemble PART1 PART2 ... vmcore",
        )
    bitmap = (1 + sub_blocks) * block
    _check_pages(file, order, bitmap, bitmap_blocks * block, wide_mapnr or max_mapnr)
    utsname = header[12:402]
    return Container(
        "kdump",
        file.flattened,
        machine=_text(utsname[260:325]),
        release=_text(utsname[130:195]),
        dump_level=dump_level,
    )


def _check_pages(file: _File, order: str, bitmap: int, size: int, max_mapnr: int) -> None:
    """That the data of all dumped pages is there, from the bitmap and the last descriptors."""
    # Two bitmaps, "exists" and "is dumped", each padded to blocks; or the second alone.
    half = size // 2 if max_mapnr <= size * 4 else 0
    bits = np.frombuffer(file.read(bitmap + half, size - half), dtype=np.uint8)
    pages = int(np.unpackbits(bits).sum(dtype=np.int64)) if size else 0
    descriptors = bitmap + size
    last = pages
    while last > 0:
        first = max(0, last - 65536)
        raw = file.read(descriptors + first * 24, (last - first) * 24)
        table = np.frombuffer(raw, np.dtype([(name, order + code) for name, code in _DESCRIPTOR]))
        room = file.size - np.clip(table["offset"], -1, file.size)
        if (table["size"] > room).any() or (table["offset"] < 0).any():
            raise truncated(file.path)
        # Data is in PFN order, but all zero pages share one block at its beginning.
        if len(np.unique(table["offset"])) > 1:
            return
        last = first


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")
