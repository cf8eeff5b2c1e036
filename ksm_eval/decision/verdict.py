"""Does KSM pay here? The first thing to read."""

from __future__ import annotations

import numpy as np

from ksm_eval.decision.fate import fate_of
from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import Prediction
from ksm_eval.report.decision import Verdict
from ksm_eval.report.model import Completeness, Savings, Stillness
from ksm_eval.report.words import counted, duration, percent, size
from ksm_eval.snapshot import Snapshot, has_merged, unreadable_share

LITTLE = 0.01
"""Of the candidate pages (PSS: what is shared since fork counts once): less is hardly worth a
thread that scans all of it, again and again."""


def verdict(
    snapshot: Snapshot,
    prediction: Prediction,
    saved: Savings,
    *,
    complete: Completeness | None = None,
    calm: Stillness | None = None,
) -> Verdict:
    """`saved`: as in the report. With several samples (`calm`) `worth` is judged by the pages
    that stood still, which are sure; the figures are those of all, as elsewhere."""
    rss = _rss_bytes(snapshot)
    ram = snapshot.meta.total_ram_pages * snapshot.meta.page_size
    sure = saved.net_bytes if calm is None else min(calm.net_bytes, saved.net_bytes)
    freed = saved.frames_freed if calm is None else min(calm.frames_freed, saved.frames_freed)
    worth = _worth(freed, sure, saved.pss_before)
    general_profit = prediction.counters.general_profit
    return Verdict(
        worth=worth,
        sentence=_sentence(saved, calm, worth),
        frames_freed=saved.frames_freed,
        net_bytes=saved.net_bytes,
        share_of_rss=saved.net_bytes / rss if rss else None,
        share_of_ram=saved.net_bytes / ram if ram else None,
        general_profit=general_profit,
        profit_explained=""
        if general_profit is None
        else _explained(snapshot, prediction, saved, general_profit),
        caveats=tuple(_caveats(snapshot, prediction, complete, calm)),
        rss_bytes=rss,
    )


def _rss_bytes(snapshot: Snapshot) -> int | None:
    """Of the selected processes; None if it is not known of one of them."""
    pages = getattr(snapshot.processes, "rss_pages", None)
    if pages is None:
        return None
    of_selected = np.asarray(pages, np.int64)[snapshot.processes.selected]
    if not len(of_selected) or (of_selected < 0).any():
        return None
    return int(of_selected.sum()) * snapshot.meta.page_size or None


def _worth(freed: int, net: int, memory: int) -> str:
    if freed <= 0:
        return "nothing"
    if net <= 0:
        return "no"
    return "little" if net < LITTLE * memory else "yes"


def _sentence(saved: Savings, calm: Stillness | None, worth: str) -> str:
    more = " more" if saved.frames_merged_now else ""
    most = " at most" if calm is None else ""
    answer = "Beyond what is merged already: " if more else _ANSWER[worth]
    if saved.frames_freed <= 0:
        text = f"KSM would free nothing{more}: no page has an equal that it could share"
        if more:
            text += f" but {counted(saved.frames_merged_now, 'KSM page')} there"
        return f"{answer}{text}."
    text = (
        f"KSM would free{most} {counted(saved.frames_freed, 'page frame')}{more} "
        f"({size(saved.bytes_freed)}) and take {size(saved.bytes_freed - saved.net_bytes)} for "
        "its own records: "
    )
    if saved.net_bytes > 0:
        share = saved.net_bytes / saved.pss_before if saved.pss_before else 0.0
        of = f", {percent(share)} of the memory that it scans" if share else ""
        text += f"{size(saved.net_bytes)} gained{of}"
    else:
        text += f"{size(-saved.net_bytes)} lost"
    if calm is not None and calm.net_bytes < saved.net_bytes:
        text += f"; {size(calm.net_bytes)} by the pages that stood still over the samples"
    return f"{answer}{text}."


_ANSWER = {
    "yes": "KSM pays here. ",
    "little": "KSM hardly pays here. ",
    "no": "KSM does not pay here. ",
    "nothing": "There is nothing to merge. ",
}


def _explained(snapshot: Snapshot, prediction: Prediction, saved: Savings, profit: int) -> str:
    """Why general_profit is not what is gained."""
    difference = profit - saved.net_bytes
    if abs(difference) <= max(LITTLE * abs(saved.net_bytes), snapshot.meta.page_size):
        return ""
    forked, outside = _not_freed(snapshot, prediction, saved)
    reasons = []
    if forked:
        reasons.append(
            f"{counted(forked, 'merged mapping')} beyond the first of a frame shared since fork: "
            "no frame is freed for them"
        )
    if outside:
        reasons.append(
            f"{counted(outside, 'frame')} that somebody outside of the selection maps, too, will "
            "not be freed"
        )
    if saved.frames_merged_now:
        reasons.append("what is merged already is in it")
    by_split = saved.frames_freed_by.get("thp_zero", 0)
    if by_split:
        reasons.append(
            f"{counted(by_split, 'zero page')} that the split of THPs frees it does not count"
        )
    more = "more" if difference > 0 else "less"
    text = (
        f"general_profit will say {size(profit)}, {size(abs(difference))} {more} than is gained: "
        "it counts every mapping as a page saved"
    )
    return f"{text} ({'; '.join(reasons)})" if reasons else text


def _not_freed(snapshot: Snapshot, prediction: Prediction, saved: Savings) -> tuple[int, int]:
    """Of the mappings that general_profit counts: those beyond the first of their frame, and
    frames that others map besides. Where ksmd has run, some of what it counts is of before: then
    only mappings that leave their frame are told."""
    fate = fate_of(snapshot, prediction)
    whole = ~fate.one_by_one & (fate.kind == Kind.MERGED)
    whole &= fate.target != np.arange(len(snapshot.frames))
    moved = np.where(whole, fate.counts, 0)
    frame = snapshot.mappings.frame[fate.told]
    merged = (fate.told_kind == Kind.MERGED) | (fate.told_kind == Kind.ZERO_PAGE)
    np.add.at(moved, frame[merged & (fate.told_target != frame)], 1)
    outside = int(((moved > 0) & (fate.outside > 0)).sum())
    if has_merged(snapshot):
        return int(np.maximum(moved - 1, 0).sum()), outside
    counters, by = prediction.counters, saved.frames_freed_by
    counted_pages = counters.pages_sharing + (counters.ksm_zero_pages or 0)
    return max(counted_pages - by["merged"] - by["zero"] - outside, 0), outside


def _caveats(
    snapshot: Snapshot,
    prediction: Prediction,
    complete: Completeness | None,
    calm: Stillness | None,
) -> list[str]:
    meta = snapshot.meta
    found = []
    if calm is None:
        found.append("one sample: pages that change are taken for calm, so this is an upper bound")
    elif calm.seconds is not None and calm.seconds < calm.scan_seconds:
        found.append(
            f"the samples are {duration(calm.seconds)} apart, less than the "
            f"{duration(calm.scan_seconds)} of a full scan: too much looks calm"
        )
    unread = unreadable_share(snapshot) if complete is None else complete.share_unreadable
    if unread > 0:
        found.append(f"{percent(unread)} of the pages could not be read and count as unmergeable")
    lost = meta.lost if complete is None else complete.processes_lost
    if lost:
        found.append(f"nothing could be read of {counted(len(lost), 'process', 'processes')}")
    if has_merged(snapshot):
        found.append("ksmd has run: this is what is yet to come, not what it has merged already")
    if meta.kind == "procfs":
        found.append("through /proc pinned pages cannot be told: they are taken for mergeable")
    if meta.question == "merge_any" and not meta.rules.general_profit:
        found.append(
            "this kernel has no PR_SET_MEMORY_MERGE: the program must call madvise() for it all"
        )
    if not prediction.settled:
        found.append("the counters had not settled when the replay was stopped")
    return found
