"""kallsyms where VMCOREINFO says (Linux 6.0), for targets of which single bytes are dear to read.

drgn's own loader reads the names byte by byte: of an ELF vmcore by a system call each, which takes
longer than all else there is to open. Here each table is read at once, and a drgn Symbol is made
only of what is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from drgn import Program, Symbol

from ksm_eval.snapshot import I64, U64

_MOST_SYMBOLS = 1 << 22
_LARGEST = 1 << 30


class Tables:
    """A drgn symbol finder. Raises LookupError if a table is not named, ValueError if it is none.

    `make` turns (name, address, size, letter of nm(1)) into a Symbol.
    """

    def __init__(
        self,
        prog: Program,
        at: Mapping[str, int],
        make: Callable[[str, int, int, str], Symbol],
    ) -> None:
        self._make = make
        (count,) = np.frombuffer(prog.read(at["kallsyms_num_syms"], 4), "<u4").tolist()
        if not 0 < count < _MOST_SYMBOLS:
            raise ValueError("no number of symbols")
        index = np.frombuffer(prog.read(at["kallsyms_token_index"], 512), "<u2").tolist()
        text = prog.read(at["kallsyms_token_table"], index[-1] + 64)
        tokens = [text[start : text.index(b"\0", start)] for start in index]
        # They lie behind each other in this order, 6.0 to 7.3.
        size = at["kallsyms_token_table"] - at["kallsyms_names"]
        names = prog.read(at["kallsyms_names"], size) if 0 < size < 64 * count else b""
        self._names, self._letters = _decode(names, count, tokens)
        self._row = dict(zip(self._names, range(count), strict=True))  # the last that is called so
        self._others: dict[bytes, list[int]] = {}
        if len(self._row) < count:
            for row, name in enumerate(self._names):
                if self._row[name] != row:
                    self._others.setdefault(name, []).append(row)
        offsets = np.frombuffer(prog.read(at["kallsyms_offsets"], 4 * count), "<i4")
        (base,) = np.frombuffer(prog.read(at["kallsyms_relative_base"], 8), "<u8")
        self._address = _addresses(offsets, base)
        self._ascending = np.unique(self._address).tolist()

    def _symbol(self, row: int) -> Symbol:
        address = int(self._address[row])
        following = bisect_right(self._ascending, address)
        end = self._ascending[following] if following < len(self._ascending) else address
        name, letter = self._names[row].decode("utf-8", "replace"), chr(self._letters[row])
        # From the last per-cpu offset to the first address is no symbol's size.
        size = end - address if end - address < _LARGEST else 0
        return self._make(name, address, size, letter)

    def __call__(
        self, prog: Program, name: str | None, address: int | None, one: bool
    ) -> Sequence[Symbol]:
        del prog
        if name is not None:
            key = name.encode("utf-8", "surrogateescape")
            rows = [*self._others.get(key, []), self._row[key]] if key in self._row else []
        elif address is not None:
            at = bisect_right(self._ascending, address) - 1
            start = self._ascending[at] if at >= 0 else -1
            rows = np.flatnonzero(self._address == np.uint64(max(start, 0))).tolist()
        else:
            rows = list(range(len(self._names)))
        symbols = [self._symbol(row) for row in (rows[:1] if one else rows)]
        if address is None:
            return symbols
        return [s for s in symbols if s.address <= address < s.address + max(s.size, 1)]


def _decode(names: bytes, count: int, tokens: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """The names, and the letter of nm(1) that stands before each."""
    found, letters, at = [], bytearray(), 0
    for _ in range(count):
        if at + 2 > len(names):
            raise ValueError("names end early")
        length = names[at]
        at += 1
        if length > 0x7F:  # 6.1+, commit 73bbb94466fd
            length = length & 0x7F | names[at] << 7
            at += 1
        name = b"".join([tokens[byte] for byte in names[at : at + length]])
        if not name:
            raise ValueError("a symbol without a name")
        letters.append(name[0])
        found.append(name[1:])
        at += length
    return found, bytes(letters)


def _addresses(offsets: I64, base: np.uint64) -> U64:
    """kallsyms_sym_address(); KALLSYMS_ABSOLUTE_PERCPU (until 6.14): what is not negative is
    absolute."""
    wide = offsets.astype(np.int64)
    if (wide < 0).mean() > 0.5:
        relative = base - np.uint64(1) - wide.view(np.uint64)
        return np.where(wide < 0, relative, wide.view(np.uint64))
    return base + (wide.view(np.uint64) & np.uint64(0xFFFFFFFF))
