"""Find kallsyms in the kernel image itself, for kernels whose VMCOREINFO does not name it.

VMCOREINFO has the kallsyms tables since Linux 6.0 (f09bddbd8661). Before, they lie in the
read-only data in the order of write_src() in scripts/kallsyms.c (4.6 to 6.3):

    offsets      i32 per symbol
    relative_base u64
    num_syms     u32
    names        per symbol: length (one byte, ULEB128 since 6.1), so many token numbers
    markers      u32 per 256 symbols: where in `names` they begin
    seqs_of_names                                     (6.2, and stable updates of 6.1)
    token_table  256 strings
    token_index  256 x u16: where each string begins

all aligned to 8. The strings of the ten digits give the place away: every digit is used in
some name, hence is a token of its own. The markers then prove the find.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import drgn
import numpy as np
from drgn import PlatformFlags, Program

_IMAGE_BYTES: Final = 64 << 20
"""How much of the kernel image is searched, from _stext."""
_CHUNK: Final = 2 << 20
_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_MAX_SYMBOLS: Final = 1 << 21


class SymbolEntry(NamedTuple):
    """A line of /proc/kallsyms: `kind` is the letter of nm(1)."""

    address: int
    kind: str
    name: str


def scan_kallsyms(prog: Program, stext: int) -> list[SymbolEntry]:
    """All kernel symbols, found without any. `stext` is VMCOREINFO's SYMBOL(_stext).

    LookupError if the tables are not found.
    """
    image = _read_image(prog, stext & ~(_CHUNK - 1))
    platform = prog.platform
    little = platform is None or PlatformFlags.IS_LITTLE_ENDIAN in platform.flags
    return find_tables(image, stext, "<" if little else ">")


def find_tables(image: bytes, stext: int, byteorder: str) -> list[SymbolEntry]:
    """The same from bytes, which begin at a multiple of 8."""
    digits = image.find(_DIGITS)
    while digits >= 0:
        tokens, start = _tokens(image, digits, byteorder)
        if tokens:
            words = np.frombuffer(image[: start & ~7], dtype=f"{byteorder}u8")
            # The base is the run-time address of _text, at or a little before _stext.
            near = (words <= stext) & (words + np.uint64(1 << 21) > stext)
            for place in np.flatnonzero(near).tolist()[::-1]:
                symbols = _decode(image, 8 * place, tokens, byteorder)
                if symbols:
                    return symbols
        digits = image.find(_DIGITS, digits + 1)
    raise LookupError("no kallsyms tables found in the kernel image")


def _read_image(prog: Program, start: int) -> bytes:
    chunks = []
    for address in range(start, start + _IMAGE_BYTES, _CHUNK):
        try:
            chunks.append(prog.read(address, _CHUNK))
        except drgn.FaultError:
            break
    return b"".join(chunks)


def _tokens(image: bytes, digits: int, byteorder: str) -> tuple[list[bytes], int]:
    """The 256 tokens and where their table starts; no tokens if `digits` is no such place."""
    end = digits
    for _ in range(ord("0"), 256):
        end = image.find(b"\0", end) + 1
        if end == 0 or end - digits > 1 << 16:
            return [], 0
    index_at = -(-end // 8) * 8
    index = np.frombuffer(image[index_at : index_at + 512], dtype=f"{byteorder}u2").astype(np.int64)
    if len(index) != 256 or index[0] != 0 or not (np.diff(index) > 0).all():
        return [], 0
    start = digits - int(index[ord("0")])
    if start < 0:
        return [], 0
    tokens = image[start:end].split(b"\0")[:256]
    lengths = [len(token) + 1 for token in tokens]
    return (tokens, start) if np.diff(index).tolist() == lengths[:-1] else ([], 0)


def _decode(image: bytes, base_at: int, tokens: list[bytes], byteorder: str) -> list[SymbolEntry]:
    """The symbols, if relative_base is at `base_at`; else none."""
    order = "little" if byteorder == "<" else "big"
    base = int.from_bytes(image[base_at : base_at + 8], order)  # type: ignore[arg-type]
    count = int.from_bytes(image[base_at + 8 : base_at + 12], order)  # type: ignore[arg-type]
    offsets_at = base_at - -(-4 * count // 8) * 8
    if not 256 < count < _MAX_SYMBOLS or offsets_at < 0:
        return []
    names, markers, at = [], [], base_at + 16
    for number in range(count):
        if number % 256 == 0:
            markers.append(at - base_at - 16)
        if at + 2 > len(image):
            return []
        length = image[at]
        at += 1
        if length > 0x7F:
            length = length & 0x7F | image[at] << 7
            at += 1
        if not length:
            return []
        names.append(b"".join([tokens[byte] for byte in image[at : at + length]]))
        at += length
    markers_at = -(-at // 8) * 8
    stored = np.frombuffer(
        image[markers_at : markers_at + 4 * len(markers)], dtype=f"{byteorder}u4"
    )
    if stored.tolist() != markers:
        return []
    offsets = np.frombuffer(image[offsets_at : offsets_at + 4 * count], dtype=f"{byteorder}i4")
    if (offsets < 0).mean() > 0.5:  # KALLSYMS_ABSOLUTE_PERCPU: what is not negative is absolute
        addresses = np.where(offsets < 0, base - 1 - offsets.astype(object), offsets)
    else:
        addresses = base + (offsets.astype(np.int64) & 0xFFFFFFFF).astype(object)
    return [
        SymbolEntry(int(address), chr(name[0]), name[1:].decode("utf-8", "replace"))
        for address, name in zip(addresses, names, strict=True)
    ]
