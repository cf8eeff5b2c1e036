"""Settings, notes, and the run itself."""

from __future__ import annotations

from ksm_eval.report.blocks import human_seconds
from ksm_eval.report.html.markup import Child, Html, element, verbatim
from ksm_eval.report.html.section import Section, items, section
from ksm_eval.report.html.tables import Column, plain, table, text
from ksm_eval.report.html.verdict import moment
from ksm_eval.report.html.words import name, size
from ksm_eval.report.model import Report, Run

_NOTES = 200


def settings(report: Report) -> Section | None:
    if not report.settings:
        return None
    columns = [Column("setting"), Column("value", True), Column("from")]
    body = [
        [
            plain(element("code", key)),
            plain(str(int(setting.value)), int(setting.value)),
            text(setting.source),
        ]
        for key, setting in report.settings.items()
    ]
    return section("settings", "Settings used", table("Settings", columns, body))


def notes(report: Report) -> Section | None:
    return section("notes", "Notes", items(report.notes, most=_NOTES))


def about_run(run: Run) -> Section | None:
    facts: list[tuple[str, Child]] = [
        ("Tool", f"ksm-eval {run.version}" + (f", drgn {run.drgn}" if run.drgn else "")),
        ("Ended", moment(run.time)),
        ("Took", f"{human_seconds(run.duration)}, {human_seconds(run.cpu_seconds)} of CPU"),
        ("Read of the target", size(run.bytes_read)),
        ("Most memory", size(run.max_rss_bytes)),
    ]
    if run.snapshot is not None:
        facts.append(("Snapshot", name(run.snapshot)))
    command: Html = element("code", verbatim(" ".join(run.command)))
    return section(
        "run",
        "This run",
        element(
            "dl",
            *(element("div", element("dt", term), element("dd", said)) for term, said in facts),
            class_="about",
        ),
        element("pre", command, tabindex=0),
    )
