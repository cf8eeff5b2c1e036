"""What is read first: whose memory, how complete, the verdict, what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

from ksm_eval.report.blocks import counted, human_bytes, percent
from ksm_eval.report.decision import Step, Verdict
from ksm_eval.report.html.markup import Child, Html, element, joined, verbatim
from ksm_eval.report.html.section import Section, items, paragraph, section
from ksm_eval.report.html.words import name, share, size
from ksm_eval.report.model import Completeness, Report
from ksm_eval.report.names import QUESTIONS

_WORTH = {
    "yes": "Worth it",
    "little": "Little to gain",
    "no": "Costs more than it gains",
    "nothing": "Nothing to merge",
}


def heading(report: Report) -> Html:
    target = report.target
    about = [
        f"{target.kind} {target.path}" if target.path else target.kind,
        f"Linux {target.release} {target.arch}, pages of {target.page_size} bytes",
        f"read {moment(target.time)}",
        f"types from {report.debug_info}" if report.debug_info else "",
        f"selected: {' '.join(report.selection)}" if report.selection else "",
        QUESTIONS.get(report.question, report.question),
    ]
    facts = [element("li", name(fact)) for fact in about if fact]
    return element(
        "header",
        element("p", "ksm-eval", class_="brand"),
        element("h1", title(report)),
        element("ul", *facts, class_="facts"),
    )


def title(report: Report) -> str:
    processes = counted(len(report.processes), "process", "processes")
    return f"What KSM would merge in {processes}"


def moment(seconds: float) -> str:
    when = datetime.fromtimestamp(seconds, timezone.utc)
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")


def completeness(complete: Completeness) -> Html:
    if not (complete.frames_unreadable or complete.entries_lost or complete.processes_lost):
        return paragraph(
            f"Complete: all {complete.mappings} candidate pages "
            f"({complete.frames} frames) were read.",
            style="complete",
        )
    reasons = sorted(complete.reasons.items(), key=lambda item: (-item[1], item[0]))
    return element(
        "div",
        paragraph(
            element("strong", "Incomplete: "),
            f"{percent(complete.share_unreadable)} could not be read: "
            f"{complete.frames_unreadable} of {complete.frames} frames, with "
            f"{complete.mappings_unreadable} of {complete.mappings} candidate pages, and "
            f"{complete.entries_lost} page-table entries. Pages that could not be read are "
            "counted as pages that never merge.",
        ),
        items(joined(("Not evaluated at all: ", name(lost))) for lost in complete.processes_lost),
        items(joined((f"{pages} pages: ", name(reason))) for reason, pages in reasons),
        class_="warning",
    )


def verdict(report: Report) -> Section | None:
    decision = report.decision
    if decision is None:
        return section("verdict", "Memory really gained", _figures_alone(report), _range(report))
    found = decision.verdict
    worth = found.worth if found.worth in _WORTH else "other"
    return section(
        "verdict",
        "Verdict",
        element("p", _WORTH.get(found.worth, found.worth), class_=f"worth {worth}"),
        paragraph(found.sentence, style="lead"),
        _figures(report, found),
        _range(report),
        paragraph(found.profit_explained) if found.profit_explained else None,
        items(found.caveats),
    )


def _range(report: Report) -> Html | None:
    """What samples leave open, and what is merged already."""
    said, calm, saved = [], report.calm, report.savings
    if calm is not None:
        over = "" if calm.seconds is None else f" in {calm.seconds:.1f} s"
        said.append(
            f"Over {calm.samples} samples{over}: {calm.frames_freed} to {saved.frames_freed} "
            f"frames, {human_bytes(calm.net_bytes)} to {human_bytes(saved.net_bytes)} net; the "
            "first is of the pages that stood still, the second if all stay as they are from "
            "here on."
        )
    if saved.frames_merged_now:
        frames = counted(saved.frames_merged_now, "frame is", "frames are")
        said.append(f"{frames} KSM pages already.")
    return paragraph(" ".join(said)) if said else None


def _figures(report: Report, found: Verdict) -> Html:
    return _tiles(
        _net(found.net_bytes),
        _freed(found.frames_freed, found.frames_freed * report.target.page_size),
        _share("of the RSS of these processes", found.share_of_rss),
        _share("of the RAM of this host", found.share_of_ram),
        _profit(found.general_profit),
    )  # fmt: skip


def _figures_alone(report: Report) -> Html:
    saved = report.savings
    return _tiles(
        _net(saved.net_bytes),
        _freed(saved.frames_freed, saved.bytes_freed),
        _profit(report.system.counters.get("general_profit")),
    )


def _net(count: int) -> tuple[str, Child]:
    what = "lost" if count < 0 else "gained"
    return (f"net memory {what}, ksmd's own records taken off", size(count))


def _freed(frames: int, count: int) -> tuple[str, Child]:
    return ("page frames freed", joined((frames, " ", element("small", size(count)))))


def _share(what: str, part: float | None) -> tuple[str, Child] | None:
    return None if part is None else (what, share(part))


def _profit(count: int | None) -> tuple[str, Child] | None:
    return None if count is None else ("general_profit, as the kernel will show it", size(count))


def _tiles(*tiles: tuple[str, Child] | None) -> Html:
    """Big numbers, each with what it is."""
    return element(
        "dl",
        *(element("div", element("dt", tile[0]), element("dd", tile[1])) for tile in tiles if tile),
        class_="tiles",
    )


def next_steps(steps: Sequence[Step]) -> Section | None:
    entries = [
        element(
            "li",
            element("h3", step.title),
            _commands(step.commands),
            paragraph(step.why) if step.why else None,
        )
        for step in steps
    ]
    return section(
        "next", "What to type next", element("ol", *entries, class_="steps") if entries else None
    )


def _commands(commands: Sequence[str]) -> Html | None:
    if not commands:
        return None
    code = joined(
        part for command in commands for part in (element("code", verbatim(command)), Html("\n"))
    )
    return element("pre", code, tabindex=0)
