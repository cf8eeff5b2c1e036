"""The kernel's own structs in the target's memory, read as bytes: there may be many of them."""

from __future__ import annotations

from dataclasses import dataclass

from drgn import Program

from ksm_eval.target.frames import Read


class Contradiction(Exception):
    """The records cannot be what the kernel left there; the message says why."""


class Memory:
    """Reads of a few bytes at any address, a page of the target at a time."""

    def __init__(self, read: Read, page_size: int) -> None:
        self._read, self._size = read, page_size
        self._pages: dict[int, bytes] = {}

    def read(self, address: int, size: int) -> bytes:
        start = address & -self._size
        page = self._pages.get(start)
        if page is None:
            if len(self._pages) > 4096:
                self._pages.clear()
            try:
                page = self._read(start, self._size)
            except LookupError as error:
                raise Contradiction("a record is not in the target") from error
            self._pages[start] = page
        at = address - start
        data = page[at : at + size]
        return data if len(data) == size else data + self.read(start + self._size, size - len(data))

    def word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")


@dataclass(frozen=True)
class Record:
    """Size of a struct, and its members' offsets."""

    size: int
    at: dict[str, int]


def record(prog: Program, kinds: tuple[str, ...], *members: str) -> Record:
    for kind in kinds:
        try:
            type_ = prog.type(kind)
        except LookupError:
            continue
        at = {}
        for name in members:
            try:
                at[name] = int(type_.member(name).bit_offset) // 8
            except LookupError:
                continue
        if type_.size is not None:
            return Record(type_.size, at)
    raise LookupError(kinds[0])
