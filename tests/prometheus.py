"""A strict reader of the Prometheus text format, written from its specification alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_VALUE = re.compile(r"[+-]?(\d+(\.\d*)?([eE][+-]?\d+)?|Inf)|NaN")
_TYPES = ("counter", "gauge", "histogram", "summary", "untyped")

Labels = frozenset[tuple[str, str]]


@dataclass
class Family:
    help: str | None = None
    type: str | None = None
    samples: dict[Labels, float] = field(default_factory=dict)


def parse(text: str) -> dict[str, Family]:
    """Raises ValueError for what a collector refuses, and for a sample with a timestamp."""
    if not text.endswith("\n"):
        raise ValueError("the last line must end with a line feed")
    families: dict[str, Family] = {}
    current = ""
    for line in text[:-1].split("\n"):
        comment = line.startswith("# ")
        if comment:
            _, keyword, name, rest = line.split(" ", 3)
        else:
            name, labels, value = _sample(line)
        if not _NAME.fullmatch(name):
            raise ValueError(f"no name: {name!r}")
        if name != current and name in families:
            raise ValueError(f"{name} is not in one group")
        current, family = name, families.setdefault(name, Family())
        if not comment:
            if family.type is None or labels in family.samples:
                raise ValueError(f"no TYPE before, or twice: {line!r}")
            family.samples[labels] = value
        elif keyword == "HELP" and family.help is None and not family.samples:
            family.help = _unescaped(rest, "")
        elif keyword == "TYPE" and family.type is None and not family.samples and rest in _TYPES:
            family.type = rest
        else:
            raise ValueError(f"misplaced: {line!r}")
    return families


def _sample(line: str) -> tuple[str, Labels, float]:
    found = _NAME.match(line)
    if found is None:
        raise ValueError(f"no sample: {line!r}")
    name, at = found[0], found.end()
    labels: list[tuple[str, str]] = []
    if line[at] == "{":
        at += 1
        while line[at] != "}":
            label = _LABEL.match(line, at)
            if label is None or line[label.end() : label.end() + 2] != '="':
                raise ValueError(f"no label at {at}: {line!r}")
            at = end = label.end() + 2
            while line[end] != '"':
                end += 2 if line[end] == "\\" else 1
            labels.append((label[0], _unescaped(line[at:end], '"')))
            at = end + 1
            if line[at] == ",":
                at += 1
            elif line[at] != "}":
                raise ValueError(f"no end of labels at {at}: {line!r}")
        at += 1
    if line[at] != " " or not _VALUE.fullmatch(line, at + 1):
        raise ValueError(f"no value: {line!r}")
    if len({label for label, _ in labels}) != len(labels):
        raise ValueError(f"a label twice: {line!r}")
    return name, frozenset(labels), float(line[at + 1 :])


def _unescaped(text: str, quote: str) -> str:
    text.encode("utf-8")
    pieces, rest = [], iter(text)
    for char in rest:
        if char == "\\":
            char = {"\\": "\\", "n": "\n", quote: quote}[next(rest)]
        pieces.append(char)
    return "".join(pieces)
