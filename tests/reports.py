"""Hand-made reports with all that a report can have, with plausible numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ksm_eval.report.decision import (
    Choice,
    Content,
    Cost,
    Decision,
    GroupRow,
    Kinds,
    Madvise,
    Pair,
    Reason,
    ScanRow,
    Security,
    Split,
    Step,
    Verdict,
    WhatIf,
)
from ksm_eval.report.model import Pass, Report, Stillness, VerifyRow, VmaRow
from tests.test_report import process, report

MIB = 1 << 20
WORKERS = 12


def decision(**changes: Any) -> Decision:
    made = Decision(
        verdict=Verdict(
            worth="yes",
            sentence="Yes: KSM would free at most 11457 page frames (44.8 MiB) and take 3.6 MiB "
            "for its own records: 41.2 MiB gained, 18.6 % of the resident memory of these "
            "processes.",
            frames_freed=11457,
            net_bytes=43179584,
            share_of_rss=0.186,
            share_of_ram=0.0402,
            general_profit=168588672,
            profit_explained="general_profit will say 160.8 MiB: it counts every mapping as saved, "
            "also those that share a frame since fork.",
            caveats=(
                "One moment: pages that change soon after do not stay merged, so this is the most.",
                "Pages outside the selection may merge with these, too.",
            ),
        ),
        group_by="cgroup",
        groups=(
            GroupRow("/web.slice/app.service", 12, 50000, 40000, 150 * MIB, 64 * MIB, 20 * MIB,
                     3200000, 44 * MIB - 3200000),
            GroupRow("", 1, 6170, 2037, None, 6 * MIB, 5 * MIB, 394880, MIB - 394880),
        ),
        choices=(
            Choice("processes", ("100 (web)", "101 (web)", "102 (web)"), 3, 13, 10400, 0.908),
            Choice("vmas", ("100 (web) 0x7f0000000000-0x7f0001000000 [heap]",), 4, 230, 10311, 0.9),
        ),
        madvise=tuple(
            Madvise(100 + n, "web", 0x7F00_0000_0000 + n * 0x100_0000,
                    0x7F00_0100_0000 + n * 0x100_0000, "[heap]" if n % 2 else "", 9000 - 600 * n,
                    (12 - n) * 3 * MIB // 2, 1 - 0.8 ** (n + 1))
            for n in range(WORKERS)
        ),
        kinds=Kinds(
            zero_frames=1457,
            inside_process=2200,
            between_processes=7802,
            copies=2,
            fork_shared=38270,
            contents=2397,
            top=(
                Content("9e3779b97f4a7c15", "zero", 1457, 1457, 12),
                Content("bf58476d1ce4e5b9", "constant byte", 400, 380, 12),
                Content("94d049bb133111eb", "other", 24, 13, 12),
            ),
            concentration=((1, 1456), (2, 1835), (5, 2100), (10, 2400), (50, 3600), (100, 4700),
                           (500, 7800), (1000, 9600), (2000, 11200), (2397, 11457)),
            thps_split=16,
            pages_per_split=91.1,
            blocked={"pinned": 12, "cap": 31},
        ),
        why_not=(
            Reason("VM_SHARED", 44, 812 * MIB, "shared mappings never merge: use private ones"),
            Reason("hugetlb", 2, 64 * MIB, "leave it: hugetlb pages are not swapped or merged"),
        ),
        security=Security(
            splits=(Split("uid", 2, 9800, 1657), Split("cgroup", 3, 9100, 2357),
                    Split("user_ns", 1, 11457, 0)),
            sentence="Who can write to a page and time it learns whether another process has an "
            "equal one.",
            sources=("https://docs.kernel.org/admin-guide/mm/ksm.html",),
        ),
        cost=Cost(
            pages=56170,
            seconds_a_page=2e-6,
            measured=False,
            source="1 to 5 us on 6.18",
            rows=tuple(
                ScanRow(n, sleep, 56171 / n * (sleep / 1000 + n * 2e-6),
                        100 * n * 2e-6 / (sleep / 1000 + n * 2e-6), 0.112, note)
                for n, sleep, note in (
                    (100, 20, "target, default"), (1000, 20, ""), (4000, 20, ""),
                    (10000, 20, ""), (4000, 200, ""), (30000, 20, ""),
                )
            ),
            advisor="The scan-time advisor would settle at 500 pages, its smallest value.",
            passes_to={"50": 2, "90": 2, "99": 3},
            seconds_to={"50": 22.6, "90": 22.6, "99": 33.9},
        ),
        what_if=(
            WhatIf("max_page_sharing=256", "max_page_sharing", True, 2397, 42037, 11457,
                   43179584, 0),
            WhatIf("max_page_sharing=64", "max_page_sharing", False, 2600, 41800, 11250,
                   42331712, -847872),
            WhatIf("use_zero_pages=1", "use_zero_pages", False, 2396, 40581, 11458, 43183680, 4096),
            WhatIf("without 100 (web)", "process", False, 2300, 38000, 10300, 38800000, -4379584),
        ),
        pairs=tuple(sorted(
            (Pair(a, b, (5000 if a == b else 3000) // (1 + a + 2 * (b - a)))
             for a in range(WORKERS) for b in range(a, WORKERS)),
            key=lambda pair: -pair.frames,
        )),
        page_classes={
            "merged": 42000, "zero_page": 0, "thp_zero": 1457, "duplicate": 43,
            "fork_shared": 6100, "unique": 6500, "copied": 2, "unreadable": 68,
        },
        next_steps=(
            Step("Let systemd opt app.service in", (
                "sudo mkdir -p /etc/systemd/system/app.service.d",
                "printf '[Service]\\nMemoryKSM=yes\\n' | sudo tee "
                "/etc/systemd/system/app.service.d/ksm.conf",
                "sudo systemctl daemon-reload",
                "sudo systemctl restart app.service"),
                "PR_SET_MEMORY_MERGE at its start (systemd 254, Linux 6.7)"),
            Step("Switch ksmd on", (
                "echo 4000 | sudo tee /sys/kernel/mm/ksm/pages_to_scan",
                "echo 1 | sudo tee /sys/kernel/mm/ksm/run"),
                "a full scan in 0.4 s instead of 11 s"),
            Step("Look whether it came true",
                 ("grep . /sys/kernel/mm/ksm/{full_scans,pages_sharing,general_profit}",),
                 "99 % should be there after 3 full scans"),
        ),
    )  # fmt: skip
    return replace(made, **changes)


def whole(**changes: Any) -> Report:
    """All parts at once, which no run has."""
    counters = report().system.counters
    low = {**counters, "pages_shared": 2000, "pages_sharing": 38000}
    made = report(
        decision=decision(),
        observed={"pages_shared": 12, "pages_sharing": 40, "full_scans": 4},
        processes=tuple(
            process(100 + n, "php-fpm" if n % 3 else "web-parent", (20 - n) * MIB,
                    pss_after=4_613_734 + 500_000 * n, calm_pages=11000 - 7 * n, new_pages=n)
            for n in range(WORKERS + 1)
        ),
        vmas=(
            *report().vmas,
            *(VmaRow(100 + n, 0x5600_0000_0000, 0x5600_0040_0000 + n * 4096,
                     "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0", 900, 800 - n, None, 700)
              for n in range(30)),
        ),
        timeline=tuple(
            Pass(n, {**counters, "pages_shared": min(n - 1, 1) * 2397 - (n == 2) * 300,
                     "pages_sharing": min(n - 1, 1) * 42037 - (n == 2) * 4000,
                     "pages_unshared": 4195 + (n == 1) * 100,
                     "pages_volatile": 56170 if n == 1 else 7541 + (n == 2) * 4300,
                     "pages_scanned": 56170 * n}, n != 3, cow_breaks=25 * (n > 2))
            for n in range(1, 7)
        ),
        calm=Stillness(
            samples=6, seconds=60.0, scan_seconds=11.3, mappings=56170, calm=50553, new=600,
            unread=17, changed=5000, fork_shared=38270, counters=low, frames_freed=10400,
            bytes_freed=42598400, net_bytes=38850112, cow_breaks_per_second=4.25,
        ),
        verify=(VerifyRow("pages_shared", 12, 12, 0, (2397, 2397)),
                VerifyRow("stable_node_dups", None, 3, None, (59, None))),
        completeness=replace(
            report().completeness, mappings_unreadable=68, frames_unreadable=60, entries_lost=3,
            share_unreadable=71 / 56173, processes_lost=("7 (gone): ended meanwhile",),
            reasons={"swapped": 60, "page table not in the dump": 3},
        ),
        notes=("ksmd has run on this target.", "Names of mappings are cut at 4096 bytes."),
    )  # fmt: skip
    return replace(made, **changes)
