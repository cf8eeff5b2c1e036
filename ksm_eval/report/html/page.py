"""The whole: sections in reading order, as a page of its own or as part of a notebook."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from ksm_eval.report.html import about, cost, counters, pages, sharing, verdict, where
from ksm_eval.report.html.markup import Html, element, joined
from ksm_eval.report.html.section import Section
from ksm_eval.report.model import Report, Run

ISLAND_BYTES = 8 << 20
_LARGE = ("vmas", "processes", "timeline")
"""What the embedded JSON does without if it would be larger, one after the other."""


def sections(report: Report, run: Run | None, rows: int) -> Iterator[Section]:
    """Those that have something to show. `rows`: the most of a table."""
    decision = report.decision
    for found in (
        verdict.verdict(report),
        verdict.next_steps(decision.next_steps) if decision else None,
        pages.pages(report),
        where.where(report, rows),
        sharing.pairs(report, rows),
        pages.kinds(report, rows),
        sharing.why_not(report, rows),
        sharing.security(report),
        cost.cost(report, rows),
        cost.what_if(report, rows),
        counters.counters(report, rows),
        counters.timeline(report, rows),
        about.settings(report),
        about.notes(report),
        about.about_run(run) if run else None,
    ):
        if found is not None:
            yield found


def body(report: Report, run: Run | None, rows: int, *, anchors: bool) -> Html:
    """`anchors`: with ids and a list of contents, which one document can have but once."""
    found = list(sections(report, run, rows))
    links = [element("li", element("a", s.title, href=f"#{s.anchor}")) for s in found]
    return joined(
        (
            verdict.heading(report),
            verdict.completeness(report.completeness),
            *map(_section, found[:1], [anchors]),
            element("nav", element("ul", *links), aria_label="Contents") if anchors else None,
            *(_section(s, anchors) for s in found[1:]),
        )
    )


def _section(found: Section, anchors: bool) -> Html:
    return element(
        "section",
        element("h2", found.title),
        *found.body,
        id=found.anchor if anchors else None,
    )


def island(document: Mapping[str, Any]) -> tuple[Html, tuple[str, ...]]:
    """The JSON report for programs, and the fields that it had to leave out."""
    kept, left_out = dict(document), []
    text = _json(kept)
    for name in _LARGE:
        if len(text) <= ISLAND_BYTES:
            break
        del kept[name]
        left_out.append(name)
        text = _json(kept)
    code = f'<script type="application/json" id="ksm-eval">{text}</script>'
    return Html(code), tuple(left_out)


def _json(document: Mapping[str, Any]) -> str:
    """ASCII in which nothing can end the script element, or begin a comment in it.

    <, > and & are only ever inside of strings, where they can be escaped.
    """
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def policy() -> str:
    """Nothing may be loaded; only our own style and script may be used."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_digest(style())}'",
            f"script-src '{_digest(script())}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def style() -> str:
    return _resource("style.css")


@cache
def script() -> str:
    return _resource("script.js")


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")
