"""BTF, the kernel's own type information: bytes -> a lazy index. Knows no drgn.

Format: include/uapi/linux/btf.h and Documentation/bpf/btf.rst, kinds 1 to 19 (Linux 4.18
to 7.3). Only the position of every type is found up front (30 ms for 100,000 types); the
rest is decoded when asked for. The input may be hostile: every id and every string offset
is checked where it is used, and chains of types are bounded.
"""

from __future__ import annotations

import struct
from array import array
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ksm_eval.errors import TargetError

VOID: Final = 0
"""The type id of void; real types start at 1."""

MAX_DEPTH: Final = 64
"""Longest chain of typedefs, qualifiers, pointers, arrays; the kernel's own limit is 32."""


class BtfError(TargetError):
    """The BTF is truncated, damaged, or newer than this reader."""

    def __init__(
        self, message: str, hint: str = "give a vmlinux with DWARF by -s/--symbols"
    ) -> None:
        super().__init__(f"unusable BTF: {message}", hint)


class Kind(IntEnum):
    """BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Words behind the three of struct btf_type: a fixed number, and so many per vlen.
_FIXED: Final = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_PER_VLEN: Final = {
    Kind.STRUCT: 3,
    Kind.UNION: 3,
    Kind.ENUM: 2,
    Kind.FUNC_PROTO: 2,
    Kind.DATASEC: 3,
    Kind.ENUM64: 3,
}
_MODIFIERS: Final = (Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG)


class Member(NamedTuple):
    """Of a struct or union. `bit_size` is 0 unless it is a bit field."""

    name: str
    type: int
    bit_offset: int
    bit_size: int


class Param(NamedTuple):
    """Of a function. A last one with name "" and type VOID means "..."."""

    name: str
    type: int


class Enumerator(NamedTuple):
    name: str
    value: int


class SectionVar(NamedTuple):
    """A variable of a DATASEC: `type` is the id of its VAR."""

    type: int
    offset: int
    size: int


class IntEncoding(NamedTuple):
    """`bits` and `bit_offset` differ from (8 * size, 0) only for bit fields of old BTF."""

    signed: bool
    char: bool
    bool: bool
    bit_offset: int
    bits: int


class Btf:
    """Index of one BTF blob. Raises BtfError wherever the blob makes no sense."""

    def __init__(self, data: bytes) -> None:
        byteorder, types, self._strings = _sections(data)
        words = np.frombuffer(types, dtype=f"{byteorder}u4").astype(np.uint32)
        self.big_endian: Final = byteorder == ">"
        self._words: Final = words.data
        starts = _starts(self._words)
        self._starts: Final = memoryview(starts)
        """Word position of each type; entry 0 (void) is a placeholder."""
        heads = np.frombuffer(starts, dtype=np.uint32)[1:]
        self._kind: Final[NDArray[np.uint32]] = (words[heads + 1] >> np.uint32(24)) & np.uint32(31)
        names = words[heads]
        self._by_name: Final = np.argsort(names, kind="stable")
        self._sorted_names: Final = names[self._by_name]
        self._all_words: Final = words
        self._enumerators: tuple[NDArray[np.uint32], NDArray[np.uint32]] | None = None
        enums = heads[self._kind == Kind.ENUM]
        # kind_flag ("signed") of enums came with ENUM64 (6.0, pahole 1.24). A kernel has
        # negative enumerators, so a blob without any such flag is older: values are signed.
        self._enums_lack_sign: Final = not bool((words[enums + 1] >> np.uint32(31)).any())

    def __len__(self) -> int:
        """Number of type ids, void included."""
        return len(self._starts)

    def find(self, name: str, *kinds: Kind) -> list[int]:
        """Ids of the types of these kinds called `name`, ascending."""
        offsets = self._string_offsets(name)
        left = np.searchsorted(self._sorted_names, offsets, "left")
        right = np.searchsorted(self._sorted_names, offsets, "right")
        found: list[int] = []
        for row in np.flatnonzero(left < right):
            ids = (self._by_name[left[row] : right[row]] + 1).tolist()
            found += [id_ for id_ in ids if self.kind(id_) in kinds]
        return sorted(found)

    def find_enumerator(self, name: str) -> list[int]:
        """Ids of the enums (ENUM or ENUM64) with an enumerator `name`, ascending."""
        if self._enumerators is None:
            self._enumerators = self._index_enumerators()
        names, owners = self._enumerators
        offsets = self._string_offsets(name)
        left = np.searchsorted(names, offsets, "left").tolist()
        right = np.searchsorted(names, offsets, "right").tolist()
        return sorted(
            {id_ for a, b in zip(left, right, strict=True) for id_ in owners[a:b].tolist()}
        )

    def kind(self, type_id: int) -> Kind:
        if type_id == VOID:
            return Kind.VOID
        return Kind((self._words[self._start(type_id) + 1] >> 24) & 31)

    def name(self, type_id: int) -> str:
        """ "" if it has none."""
        return "" if type_id == VOID else self._string(self._words[self._start(type_id)])

    def size(self, type_id: int) -> int:
        """Bytes of an INT, FLOAT, STRUCT, UNION, ENUM, ENUM64 or DATASEC."""
        return self._words[self._start(type_id) + 2]

    def target(self, type_id: int) -> int:
        """What a PTR, modifier, FUNC, VAR or DECL_TAG is of, or a FUNC_PROTO returns."""
        return self._words[self._start(type_id) + 2]

    def flag(self, type_id: int) -> bool:
        """kind_flag. Of a FWD: it is a union. Of an ENUM or ENUM64: it is signed."""
        return bool(self._words[self._start(type_id) + 1] >> 31)

    def skip_modifiers(self, type_id: int) -> int:
        """The type behind typedefs, qualifiers and type tags."""
        for _ in range(MAX_DEPTH):
            if self.kind(type_id) not in _MODIFIERS:
                return type_id
            type_id = self.target(type_id)
        raise BtfError(f"more than {MAX_DEPTH} typedefs in a row")

    def int_encoding(self, type_id: int) -> IntEncoding:
        word = self._words[self._start(type_id) + 3]
        bits = word >> 24
        return IntEncoding(
            bool(bits & 1), bool(bits & 2), bool(bits & 4), (word >> 16) & 0xFF, word & 0xFF
        )

    def array(self, type_id: int) -> tuple[int, int]:
        """(type of an element, number of elements; 0 also for `x[]`)."""
        start = self._start(type_id)
        return self._words[start + 3], self._words[start + 5]

    def members(self, type_id: int) -> list[Member]:
        """Of a STRUCT or UNION, in order."""
        bit_fields = self.flag(type_id)
        members = []
        for name, type_, offset in self._rows(type_id, 3):
            bits = 0
            if bit_fields:
                offset, bits = offset & 0xFFFFFF, offset >> 24
            else:  # before Linux 4.20 the bit field was in the integer type
                base = self.skip_modifiers(type_)
                if self.kind(base) == Kind.INT:
                    encoding = self.int_encoding(base)
                    if encoding.bit_offset or encoding.bits != 8 * self.size(base) & 0xFF:
                        offset, bits = offset + encoding.bit_offset, encoding.bits
            members.append(Member(self._string(name), type_, offset, bits))
        return members

    def enumerators(self, type_id: int) -> list[Enumerator]:
        """Of an ENUM or ENUM64, in order."""
        signed = self.flag(type_id)
        if self.kind(type_id) == Kind.ENUM64:
            limit, rows = (
                1 << 64,
                [(name, low | high << 32) for name, low, high in self._rows(type_id, 3)],
            )
        else:
            signed = signed or self._enums_lack_sign
            limit, rows = 1 << 32, [(name, value) for name, value in self._rows(type_id, 2)]
        return [
            Enumerator(self._string(n), v - limit if signed and v >= limit // 2 else v)
            for n, v in rows
        ]

    def params(self, type_id: int) -> list[Param]:
        """Of a FUNC_PROTO, in order."""
        return [Param(self._string(name), type_) for name, type_ in self._rows(type_id, 2)]

    def section(self, type_id: int) -> list[SectionVar]:
        """Of a DATASEC, in order."""
        return [SectionVar(*row) for row in self._rows(type_id, 3)]

    def linkage(self, type_id: int) -> int:
        """Of a VAR: 0 static, 1 global, 2 extern. Of a FUNC likewise."""
        start = self._start(type_id)
        if self.kind(type_id) == Kind.FUNC:
            return self._words[start + 1] & 0xFFFF
        return self._words[start + 3]

    def component(self, type_id: int) -> int:
        """Of a DECL_TAG: the member or parameter it is about, or -1."""
        value = self._words[self._start(type_id) + 3]
        return value - (1 << 32) if value >> 31 else value

    def _start(self, type_id: int) -> int:
        if not 0 < type_id < len(self._starts):
            raise BtfError(f"type id {type_id} of {len(self._starts)}")
        return self._starts[type_id]

    def _rows(self, type_id: int, width: int) -> list[tuple[int, ...]]:
        start = self._start(type_id)
        end = start + 3 + width * (self._words[start + 1] & 0xFFFF)
        flat = self._words[start + 3 : end].tolist()
        return list(zip(*[iter(flat)] * width, strict=True))

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        if end < 0 or offset >= len(self._strings):
            raise BtfError(f"string offset {offset} of {len(self._strings)}")
        return self._strings[offset:end].decode("utf-8", "replace")

    def _string_offsets(self, name: str) -> NDArray[np.uint32]:
        """Wherever `name` is stored, be it as the tail of a longer string."""
        wanted = name.encode() + b"\0"
        offsets = array("I")
        at = self._strings.find(wanted) if name else -1
        while at >= 0:
            offsets.append(at)
            at = self._strings.find(wanted, at + 1)
        return np.frombuffer(offsets, dtype=np.uint32) if offsets else np.empty(0, np.uint32)

    def _index_enumerators(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        """All enumerators: (string offset, type id), by string offset."""
        starts = np.frombuffer(self._starts, dtype=np.uint32)
        names, owners = [], []
        for kind, width in ((Kind.ENUM, 2), (Kind.ENUM64, 3)):
            ids = np.flatnonzero(self._kind == kind) + 1
            count = (self._all_words[starts[ids] + 1] & 0xFFFF).astype(np.int64)
            first = np.cumsum(count) - count
            within = np.arange(count.sum()) - np.repeat(first, count)
            names.append(self._all_words[np.repeat(starts[ids] + 3, count) + within * width])
            owners.append(np.repeat(ids, count))
        name, owner = np.concatenate(names), np.concatenate(owners).astype(np.uint32)
        order = np.argsort(name, kind="stable")
        return name[order], owner[order]


def _sections(data: bytes) -> tuple[str, bytes, bytes]:
    """Byte order ("<" or ">"), the type section, the string section."""
    if len(data) < 24:
        raise BtfError(f"{len(data)} bytes are no header")
    byteorder = {b"\x9f\xeb": "<", b"\xeb\x9f": ">"}.get(bytes(data[:2]))
    if byteorder is None:
        raise BtfError("wrong magic number")
    version, _, header, type_off, type_len, str_off, str_len = struct.unpack_from(
        f"{byteorder}BBIIIII", data, 2
    )
    if version != 1:
        raise BtfError(f"version {version} is unknown")
    if header < 24 or type_off % 4 or type_len % 4:
        raise BtfError("damaged header")
    if header + max(type_off + type_len, str_off + str_len) > len(data):
        raise BtfError("truncated")
    types = data[header + type_off : header + type_off + type_len]
    strings = data[header + str_off : header + str_off + str_len]
    if not strings or strings[0] or strings[-1]:
        raise BtfError("damaged string section")
    return byteorder, types, strings


def _starts(words: memoryview) -> array[int]:
    """The word position of every type (0 for void), by walking the type section once."""
    fixed = [3 + _FIXED.get(Kind(k), 0) for k in range(len(Kind))]
    per_vlen = [_PER_VLEN.get(Kind(k), 0) for k in range(len(Kind))]
    starts, at, end = array("I", [0]), 0, len(words)
    try:
        while at < end:
            starts.append(at)
            info = words[at + 1]
            kind = info >> 24 & 31
            if kind == 0:
                raise IndexError
            at += fixed[kind] + per_vlen[kind] * (info & 0xFFFF)
    except IndexError:
        raise BtfError(f"unknown kind or truncated at type id {len(starts) - 1}") from None
    if at != end:
        raise BtfError("truncated in its last type")
    return starts
