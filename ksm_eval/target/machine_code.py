"""What only machine code tells: does a function clear a flag after a call, does it store to a
member before one?"""

from __future__ import annotations

import re
import struct


def flag_cleared_x86(text: bytes, address: int, callee: int, flag: int) -> bool | None:
    """Is the CALL of `callee` followed by an AND of ~flag (83 /4 ib)? None if there is no call."""
    clear = re.escape(bytes((~flag & 0xFF,)))
    mask = re.compile(rb"\x83[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7].{0,5}" + clear, re.DOTALL)
    for call in re.finditer(rb"\xe8(?=(.{4}))", text, re.DOTALL):
        after = call.end() + 4
        if address + after + struct.unpack("<i", call[1])[0] == callee:
            return mask.search(text, after, after + 32) is not None
    return None


def stored_before_call_x86(text: bytes, address: int, callee: int, offset: int) -> bool | None:
    """Is there a 64-bit MOV to `offset`(register) shortly before the CALL of `callee`? None if
    there is no call."""
    displacement = re.escape(struct.pack("<i", offset))
    store = re.compile(
        rb"[\x48-\x4f](?:\x89[\x80-\xbf]|\xc7[\x80-\x87])\x24?" + displacement, re.DOTALL
    )
    for call in re.finditer(rb"\xe8(?=(.{4}))", text, re.DOTALL):
        after = call.end() + 4
        if address + after + struct.unpack("<i", call[1])[0] == callee:
            return store.search(text, max(0, call.start() - 64), call.start()) is not None
    return None


def flag_cleared_aarch64(text: bytes, address: int, callee: int, flag: int) -> bool | None:
    """Is the BL of `callee` followed by AND Wd, Wn, #~flag? None if there is no call."""
    words = _words(text)
    # Logical immediate of all ones but one bit: N 0, imms 30, immr as far as the zero is.
    rotate = 32 - flag.bit_length()
    clear = 0x12000000 | rotate << 16 | 30 << 10
    index = _branch_and_link(words, address, callee)
    if index is None:
        return None
    return any(near & 0xFFFFFC00 == clear for near in words[index + 1 : index + 9])


def stored_before_call_aarch64(text: bytes, address: int, callee: int, offset: int) -> bool | None:
    """Is there STR Xt, [Xn, #offset] shortly before the BL of `callee`? None if there is no
    call."""
    words = _words(text)
    index = _branch_and_link(words, address, callee)
    if index is None:
        return None
    store = 0xF9000000 | offset // 8 << 10
    return any(near & 0xFFFFFC00 == store for near in words[max(0, index - 16) : index])


def _words(text: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(text) // 4}I", text[: len(text) & ~3])


def _branch_and_link(words: tuple[int, ...], address: int, callee: int) -> int | None:
    """Where the first BL of `callee` is."""
    for index, word in enumerate(words):
        offset = (word & 0x3FFFFFF) << 2
        if offset >> 27:
            offset -= 1 << 28
        if word >> 26 == 0b100101 and address + 4 * index + offset == callee:
            return index
    return None
