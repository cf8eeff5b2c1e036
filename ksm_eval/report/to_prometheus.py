"""Report for Prometheus: the text format that node_exporter's textfile collector reads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ksm_eval.report.decision import Decision
from ksm_eval.report.metrics import COUNTERS, GROUP, HELP, PROCESS
from ksm_eval.report.model import Report
from ksm_eval.report.ranking import by_gain
from ksm_eval.report.text import printable

PREFIX = "ksm_eval_"
MOST = 50
"""Processes, and groups: each is a series of its own in the database, for ever."""

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


def to_prometheus(report: Report) -> str:
    """Gauges named ksm_eval_*. Every sample tells the target, the selection and the question,
    so that files of several runs can lie side by side. None has a timestamp, which the collector
    refuses: ksm_eval_time_seconds is when the memory was read.
    """
    target = report.target
    common = {
        "target": target.path or target.kind,
        "selection": " ".join(report.selection),
        "question": report.question,
    }
    families = _Families(common)
    info = {"kind": target.kind, "release": target.release, "arch": target.arch}
    families.add("info", 1, info)
    families.add("time_seconds", target.time)
    families.add("page_size_bytes", target.page_size)
    families.add("unreadable_ratio", report.completeness.share_unreadable)
    families.add("processes_lost", len(report.completeness.processes_lost))
    for name, value in sorted(report.system.counters.items()):
        families.add(name, value)
    for name in ("frames_freed", "bytes_freed", "net_bytes", "metadata_bytes", "thps_split"):
        families.add(name, getattr(report.savings, name))
    families.add("frames_merged_now", report.savings.frames_merged_now)
    if report.calm is not None:
        for name in ("frames_freed", "bytes_freed", "net_bytes"):
            families.add(f"calm_{name}", getattr(report.calm, name))
    for process in by_gain(report.processes)[:MOST]:
        labels = {"pid": str(process.pid), "comm": process.comm, "cgroup": process.cgroup}
        for name in PROCESS:
            families.add(f"process_{name}", getattr(process, name), labels)
    if report.decision is not None:
        _decision(families, report.decision)
    return families.text()


def _decision(families: _Families, decision: Decision) -> None:
    verdict, cost = decision.verdict, decision.cost
    families.add("worth", 1, {"worth": verdict.worth})
    families.add("net_rss_ratio", verdict.share_of_rss)
    families.add("net_ram_ratio", verdict.share_of_ram)
    for group in decision.groups[:MOST]:
        labels = {"by": decision.group_by, "name": group.name}
        for name in GROUP:
            families.add(f"group_{name}", getattr(group, name), labels)
    for name, pages in sorted(decision.page_classes.items()):
        families.add("candidate_pages", pages, {"class": name})
    for reason in decision.why_not:
        families.add("ineligible_bytes", reason.bytes, {"reason": reason.reason})
    for split in decision.security.splits:
        families.add("frames_freed_within", split.within, {"by": split.by})
        families.add("frames_freed_across", split.across, {"by": split.by})
    if cost.rows:
        families.add("full_scan_seconds", cost.rows[0].seconds)
        families.add("full_scan_cpu_seconds", cost.rows[0].cpu_seconds)
    for share, seconds in sorted(cost.seconds_to.items()):
        families.add("saving_reached_seconds", seconds, {"percent": share})


@dataclass
class _Families:
    """Metrics by name; the format wants all samples of one together."""

    common: Mapping[str, str]
    samples: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> labels -> value

    def add(self, name: str, value: float | None, labels: Mapping[str, str] | None = None) -> None:
        """Of equal labels the first stays: the collector refuses a file that has them twice."""
        if value is None or not _NAME.fullmatch(name):
            return
        told = ",".join(
            f'{label}="{_escaped(text)}"'
            for label, text in {**self.common, **(labels or {})}.items()
        )
        self.samples.setdefault(name, {}).setdefault(told, _number(value))

    def text(self) -> str:
        lines = []
        for name, samples in self.samples.items():
            full = PREFIX + name
            meaning = HELP.get(name) or COUNTERS.format(name)
            lines += [f"# HELP {full} {meaning}", f"# TYPE {full} gauge"]
            lines += [f"{full}{{{labels}}} {value}" for labels, value in samples.items()]
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """A label's value: without control characters, then as the format has it."""
    return printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return repr(value) if math.isfinite(value) else "NaN"
