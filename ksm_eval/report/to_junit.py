"""Outcomes as JUnit XML: a test case each; a failed gate is a failure, exit codes from 2 errors."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from ksm_eval.report.outcome import Outcome
from ksm_eval.report.text import printable


def to_junit(outcomes: Sequence[Outcome]) -> str:
    """ASCII. What XML cannot hold at all (most control characters) is escaped as for a terminal."""
    failures = sum(outcome.code == 1 for outcome in outcomes)
    errors = sum(outcome.code > 1 for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    counts = f'tests="{len(outcomes)}" failures="{failures}" errors="{errors}" time="{seconds:.3f}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<testsuites name="ksm-eval" {counts}>',
        f'  <testsuite name="ksm-eval" {counts}>',
        *map(_case, outcomes),
        "  </testsuite>",
        "</testsuites>",
    ]
    text = "\n".join(lines) + "\n"
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _case(outcome: Outcome) -> str:
    start = (
        f'    <testcase classname="ksm-eval" name={_attribute(outcome.name)} '
        f'file={_attribute(outcome.path)} time="{outcome.seconds:.3f}">'
    )
    inside = []
    if outcome.code:
        kind = "failure" if outcome.code == 1 else "error"
        message, body = _attribute(outcome.message), escape(printable(outcome.message))
        inside.append(
            f'      <{kind} type="exit code {outcome.code}" message={message}>{body}</{kind}>'
        )
    if outcome.net_bytes is not None:
        inside.append(
            f"      <system-out>net_bytes {outcome.net_bytes}, "
            f"frames_freed {outcome.frames_freed}</system-out>"
        )
    return "\n".join([start, *inside, "    </testcase>"])


def _attribute(text: str) -> str:
    return quoteattr(printable(text))
