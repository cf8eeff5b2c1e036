"""HTML as values that can only be built escaped and balanced.

Strings of a report come from the target and are not to be trusted. They become markup in one
place, shown(); whatever is a `str` here is text, only Html is markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from ksm_eval.report.blocks import fit
from ksm_eval.report.text import copyable, printable


@dataclass(frozen=True, slots=True)
class Html:
    """Markup, complete and escaped."""

    code: str


Child: TypeAlias = "Html | str | int | None"
"""None: left out."""

_VOID = frozenset({"meta", "wbr"})


def shown(text: str) -> str:
    """`text` for element contents and attributes, with controls and bidi marks to be seen."""
    return html.escape(printable(text))


def clip(text: str, width: int) -> str:
    """What is shown of `text`, in at most `width` cells; only for escaped()."""
    return fit(printable(text), width)


def escaped(clipped: str) -> Html:
    return Html(html.escape(clipped))


def element(name: str, *children: Child, **attributes: str | float | None) -> Html:
    """<name attributes>children</name>.

    `class_`, `data_v` … are written class, data-v …; an attribute that is None is left out.
    """
    found = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{found}>")
    return Html(f"<{name}{found}>{joined(children).code}</{name}>")


def joined(children: Iterable[Child]) -> Html:
    return Html("".join(map(_code, children)))


def verbatim(text: str) -> Html:
    """For what is to be copied."""
    return Html(html.escape(copyable(text)))


def number(value: float) -> str:
    """For coordinates: two decimals at most, so that equal reports give equal bytes."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


def _code(child: Child) -> str:
    if child is None:
        return ""
    return child.code if isinstance(child, Html) else shown(str(child))


def _value(value: str | float) -> str:
    return shown(value) if isinstance(value, str) else number(value)
