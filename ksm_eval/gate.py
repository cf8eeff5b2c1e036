"""Gates: figures of a report that a CI job wants on one side of a limit. Pure: no option parsing.

A gate is only judged on a complete answer: command lines check completeness (exit 4) first.
"""

from __future__ import annotations

from dataclasses import dataclass

from ksm_eval.errors import GateError, IncompleteError, UsageError
from ksm_eval.report.model import Report
from ksm_eval.report.words import percent, size


@dataclass(frozen=True)
class AtLeast:
    """--fail-under: in bytes, or a share (0 to 1) of the memory in question."""

    bytes: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Gained:
    """What --fail-under looks at."""

    net_bytes: int  # with several samples what is sure: at most the gain of calm pages
    memory: int  # bytes that a share is of
    of: str  # what that memory is


def gained(report: Report) -> Gained:
    """The RSS of the selected processes is what a person compares with; where it is not known (of
    kernels or snapshots that do not tell it) the PSS of the candidate pages, which is less."""
    net = report.savings.net_bytes
    if report.calm is not None:
        net = min(net, report.calm.net_bytes)
    rss = None if report.decision is None else report.decision.verdict.rss_bytes
    if rss:
        return Gained(net, rss, "the RSS")
    return Gained(net, report.savings.pss_before, "the candidate pages' PSS (the RSS is not known)")


def too_little(report: Report, limit: AtLeast) -> str:
    """Why --fail-under fails, "" if it passes. What is exactly the limit passes."""
    found = gained(report)
    if limit.bytes is not None:
        if found.net_bytes >= limit.bytes:
            return ""
        return f"{_net(found)}, --fail-under wants {size(round(limit.bytes))}"
    assert limit.share is not None
    if found.net_bytes >= limit.share * found.memory:
        return ""
    share = found.net_bytes / found.memory if found.memory else 0.0
    return (
        f"{_net(found)}, {percent(share)} of {found.of}, --fail-under wants {100 * limit.share:g} %"
    )


def _net(found: Gained) -> str:
    verb = "gained" if found.net_bytes >= 0 else "lost"
    exact = f" ({abs(found.net_bytes)} bytes)" if abs(found.net_bytes) >= 1000 else ""
    return f"{size(abs(found.net_bytes))}{exact} {verb}"


def volatile_share(report: Report) -> float:
    """Of the candidate pages that could be compared over all samples, those that changed, 0 to 1.

    What was new or unreadable is in neither number: it must not make the rest look calm.
    Raises UsageError without samples, IncompleteError if there are pages, but none to compare.
    """
    calm = report.calm
    if calm is None:
        raise UsageError(
            "--fail-over-volatile needs several samples", "add --samples K, or further -c"
        )
    compared = calm.calm + calm.changed
    if calm.mappings and not compared:
        raise IncompleteError(
            "no page was there, and readable, in every sample: how many change is not known",
            "take the samples closer together",
        )
    return calm.changed / compared if compared else 0.0


def too_volatile(report: Report, limit: float) -> str:
    """Why --fail-over-volatile (a share) fails, "" if it passes."""
    share = volatile_share(report)
    if share <= limit:
        return ""
    return (
        f"{percent(share)} of the candidate pages changed between samples, "
        f"--fail-over-volatile allows {100 * limit:g} %"
    )


def check_gates(report: Report, at_least: AtLeast | None, volatile: float | None) -> None:
    """Raises GateError that tells every gate which fails."""
    # Volatile first: it may refuse to judge, which comes before any gate's failure.
    changed = "" if volatile is None else too_volatile(report, volatile)
    little = "" if at_least is None else too_little(report, at_least)
    failed = [line for line in (little, changed) if line]
    if failed:
        raise GateError("; ".join(failed))
