"""What becomes of the pages, and what it saves."""

from __future__ import annotations

from ksm_eval.report.decision import Kinds
from ksm_eval.report.html.bars import Part, stacked
from ksm_eval.report.html.curves import concentration
from ksm_eval.report.html.markup import Html, element
from ksm_eval.report.html.section import Section, pair, paragraph, section
from ksm_eval.report.html.tables import Column, amount, count, plain, table, text
from ksm_eval.report.model import Report, Savings
from ksm_eval.report.names import FREED_BY

_CLASSES = {
    "merged": ("merged", "c1", "a KSM page"),
    "zero_page": ("zero page", "c2", "mapped to the kernel's zero page (use_zero_pages)"),
    "thp_zero": ("zero, by a THP split", "c3", "freed when the THP around it is split"),
    "duplicate": ("duplicate that stays", "c4", "other frames have this content"),
    "fork_shared": ("shared since fork", "c5", "no other frame has it, other processes map it"),
    "unique": ("unique", "c6", "no other page is equal"),
    "copied": ("copied in vain", "c7", "a copy that ksmd made of it and that is not shared"),
    "unreadable": ("not readable", "c8", "counted as pages that never merge"),
}
"""In the order of the bar: what merges first."""
_BLOCKED = {
    "pinned": "pinned: more references than mappings explain",
    "cap": "max_page_sharing is reached",
    "outside": "merged, but a process that was not selected maps it",
    "prot_none": "PROT_NONE pages are in the way",
    "other": "other: THPs that hold both, mlocked pages …",
}


def pages(report: Report) -> Section | None:
    classes = report.decision.page_classes if report.decision else {}
    parts = [
        Part(label, style, classes[key], meaning)
        for key, (label, style, meaning) in _CLASSES.items()
        if key in classes
    ]
    parts += [Part(key, "c9", classes[key]) for key in sorted(set(classes) - set(_CLASSES))]
    return section(
        "pages",
        "What becomes of the pages",
        stacked("Candidate pages by what becomes of them", parts),
        _calm(report),
        _savings(report),
        _thps(report.savings),
    )


def _calm(report: Report) -> Html | None:
    calm = report.calm
    if calm is None:
        return None
    over = "" if calm.seconds is None else f" in {calm.seconds:.1f} s"
    parts = [
        Part("calm", "c1", calm.calm, "equal in every sample"),
        Part("changed", "c4", calm.changed),
        Part("new", "c5", calm.new, "not there in every sample"),
        Part("not read", "c8", calm.unread, "could not be read in every sample"),
    ]
    return stacked(f"Candidate pages over {calm.samples} samples{over}", parts)


def _savings(report: Report) -> Html:
    saved = report.savings
    rows = [
        [text(FREED_BY.get(kind, kind)), count(frames), amount(frames * report.target.page_size)]
        for kind, frames in sorted(saved.frames_freed_by.items())
    ]
    empty = plain("")
    rows += [
        [plain(element("strong", "freed")), count(saved.frames_freed), amount(saved.bytes_freed)],
        [
            text("ksmd's own records, beyond those there"),
            empty,
            amount(saved.net_bytes - saved.bytes_freed),
        ],
        [plain(element("strong", "net")), empty, amount(saved.net_bytes)],
        [text("PSS of the candidate pages, before"), empty, amount(saved.pss_before)],
        [text("PSS of the candidate pages, after"), empty, amount(saved.pss_after)],
    ]
    if saved.frames_merged_now:
        rows.append([text("KSM pages there already"), count(saved.frames_merged_now), empty])
    columns = [Column(""), Column("frames", True), Column("bytes", True)]
    return table("Memory really gained", columns, rows, sortable=False)


def _thps(saved: Savings) -> Html | None:
    if not saved.thps:
        return None
    return paragraph(f"{saved.thps_split} of {saved.thps} THPs would be split for it.")


def kinds(report: Report, rows: int) -> Section | None:
    if report.decision is None:
        return None
    found = report.decision.kinds
    return section(
        "kinds",
        "What kind of duplicates",
        pair(concentration(found.concentration), _by_kind(found)),
        _remarks(found),
        _top(found, rows),
    )


def _by_kind(found: Kinds) -> Html:
    rows = [
        [text(label), count(frames)]
        for label, frames in (
            ("frames of zero pages", found.zero_frames),
            ("frames that have an equal in the same process", found.inside_process),
            ("frames that only another process has an equal of", found.between_processes),
            ("copies that ksmd makes in vain, to be taken off", found.copies),
        )
        if frames or "copies" not in label
    ]
    rows += [
        [text(f"stay: {_BLOCKED.get(reason, reason)}"), count(frames)]
        for reason, frames in sorted(found.blocked.items(), key=lambda item: (-item[1], item[0]))
    ]
    columns = [Column("duplicates"), Column("frames", True)]
    return table("Frames that are too many", columns, rows, sortable=False)


def _remarks(found: Kinds) -> Html:
    said = (
        f"{found.contents} contents are there in several frames. {found.fork_shared} mappings "
        "share a frame since fork: that is no saving of KSM."
    )
    if found.pages_per_split is not None:
        said += (
            f" {found.thps_split} THPs would be split, for {found.pages_per_split:.1f} frames each."
        )
    return paragraph(said)


def _top(found: Kinds, limit: int) -> Html | None:
    if not found.top:
        return None
    columns = [
        Column("hash"),
        Column("kind"),
        Column("mappings", True),
        Column("frames", True),
        Column("processes", True),
    ]
    rows = [
        [
            plain(element("code", row.hash)),
            text(row.kind or "not looked at"),
            count(row.mappings),
            count(row.frames),
            count(row.processes),
        ]
        for row in found.top[:limit]
    ]
    return table("Contents that merge, by frames", columns, rows, total=len(found.top))
