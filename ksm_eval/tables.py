"""Tables indexed by frame number: quick, but as large as the highest number."""

from __future__ import annotations

_FREE = 64 << 20  # bytes that nobody minds
_A_ROW = 16


def table_fits(size: int, rows: int) -> bool:
    """May a table of `size` bytes be made for so many frames or mappings? A stray PFN, or a few
    processes on a host with much memory, must not size one."""
    return size <= _A_ROW * rows + _FREE
