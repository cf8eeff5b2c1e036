"""Strings a process chose for itself (comm, mapping and cgroup names) are not to be trusted."""

from __future__ import annotations

_SURROGATES = range(0xD800, 0xE000)


def printable(text: str) -> str:
    r"""`text` on one line without anything a terminal obeys.

    Control and format characters (escapes, line breaks, direction overrides) become
    \xNN, \uNNNN or \UNNNNNNNN; a backslash becomes two, so that the result is unambiguous.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape(c) if not c.isprintable() or c == "\\" else c for c in text)


def copyable(text: str) -> str:
    r"""A command on one line, to be copied: as printable(), but backslashes are its own."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def encodable(text: str) -> str:
    r"""`text` without surrogates (bytes that were no UTF-8), which become \xNN."""
    if not any(ord(c) in _SURROGATES for c in text):
        return text
    return "".join(_escape(c) if ord(c) in _SURROGATES else c for c in text)


def _escape(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
