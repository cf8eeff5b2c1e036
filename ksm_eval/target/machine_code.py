"""The one question that only machine code answers: does a function clear a flag after a call?"""

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


def flag_cleared_aarch64(text: bytes, address: int, callee: int, flag: int) -> bool | None:
    """Is the BL of `callee` followed by AND Wd, Wn, #~flag? None if there is no call."""
    words = struct.unpack(f"<{len(text) // 4}I", text[: len(text) & ~3])
    # Logical immediate of all ones but one bit: N 0, imms 30, immr as far as the zero is.
    rotate = 32 - flag.bit_length()
    clear = 0x12000000 | rotate << 16 | 30 << 10
    for index, word in enumerate(words):
        offset = (word & 0x3FFFFFF) << 2
        if offset >> 27:
            offset -= 1 << 28
        if word >> 26 == 0b100101 and address + 4 * index + offset == callee:
            return any(near & 0xFFFFFC00 == clear for near in words[index + 1 : index + 9])
    return None
