"""Terminal and JSON output of hand-made reports."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

import ksm_eval.report
from ksm_eval.report.blocks import human_bytes
from ksm_eval.report.model import (
    Completeness,
    Ineligible,
    Pass,
    Phase,
    ProcessRow,
    Report,
    Run,
    Savings,
    Setting,
    Stillness,
    System,
    TargetFacts,
    VmaRow,
)
from ksm_eval.report.text import encodable, printable
from ksm_eval.report.to_json import to_json
from ksm_eval.report.to_terminal import to_terminal

SCHEMA = json.loads((Path(ksm_eval.report.__path__[0]) / "schema.json").read_text())

RUN = Run(
    version="0.1.0",
    drgn="0.3.0",
    command=("ksm-eval", "--format", "json"),
    time=1.7e9,
    duration=1.25,
    cpu_seconds=0.75,
    bytes_read=130 * 1024**2,
    max_rss_bytes=95 * 1024**2,
    snapshot=None,
)

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07",  # clears the screen, sets the title
    "[bold red]x[/]",  # rich markup
    "[/]",  # markup that raises if parsed
    "a\nksm-eval: all is well\r",  # another line
    "\u202egnp.exe",  # right to left
    "\x9b31m",  # C1 control sequence introducer
    "\udcff\udc9b",  # bytes that are no UTF-8
    ":skull:",  # emoji code
    "\u5e83" * 40,  # two columns each
    "back\\slash",
)


def report(**changes: Any) -> Report:
    """base612 of the measurements, in small: a kernel with smart scan."""
    made = Report(
        target=TargetFacts(
            kind="vmcore",
            path="/var/crash/vmcore",
            release="6.12.117",
            arch="x86_64",
            page_size=4096,
            time=1.7e9,
            total_ram_pages=262144,
            sizeof={"rmap_item": 64, "stable_node": 64, "mm_slot": 48},
        ),
        debug_info="BTF + kallsyms",
        question="merge_any",
        selection=("--comm", "web*", "--children"),
        completeness=Completeness(
            mappings=56170,
            mappings_unreadable=0,
            frames=17900,
            frames_unreadable=0,
            entries_lost=0,
            share_unreadable=0.0,
            processes_lost=(),
            reasons={},
        ),
        settings={
            "max_page_sharing": Setting(8, "option"),
            "use_zero_pages": Setting(False, "target"),
        },
        system=System(
            counters={
                "pages_shared": 2397,
                "pages_sharing": 42037,
                "pages_unshared": 4195,
                "pages_volatile": 7541,
                "ksm_zero_pages": 0,
                "ksm_rmap_items": 56170,
                "stable_node_chains": 2,
                "stable_node_dups": 59,
                "general_profit": 168588672,
            },
            phase="scan",
            phases={"scan": Phase(4195, 7541), "skip": Phase(0, 11736)},
        ),
        observed={"pages_shared": 0, "pages_sharing": 0, "full_scans": 0},
        savings=Savings(
            frames_freed=11457,
            bytes_freed=46927872,
            frames_freed_by={"merged": 10000, "zero": 0, "thp_zero": 1457},
            frames_merged_now=0,
            metadata_bytes=3748288,
            metadata_bytes_now=0,
            net_bytes=43179584,
            thps=20,
            thps_split=16,
            pss_before=73318400,
            pss_after=26390528,
        ),
        processes=(process(100, "web-parent", 1), process(101, "web", 9)),
        vmas=(
            VmaRow(100, 0x7F00_0000_0000, 0x7F00_0100_0000, "[heap]", 90, 73, None),
            VmaRow(100, 0x7FFF_FFFF_F000, 0xFFFF_FFFF_FFFF_F000, "/dev/shm/x", 0, None, "shared"),
        ),
        ineligible=(Ineligible("VM_SHARED", 1, 1 << 20),),
        entries={"candidate": 56170, "swap": 31, "poison": 0},
        notes=("ksmd has not run on this target.",),
    )
    return replace(made, **changes)


def process(pid: int, comm: str, profit: int | None, **changes: Any) -> ProcessRow:
    made = ProcessRow(
        pid=pid,
        comm=comm,
        cgroup="/web.slice",
        uid=1000,
        mappings=11234,
        ksm_rmap_items=11234,
        ksm_merging_pages=8888,
        ksm_zero_pages=0,
        ksm_process_profit=profit,
        pss_before=14_784_922,
        pss_after=4_613_734,
    )
    return replace(made, **changes)


def without_smart_scan() -> Report:
    """6.1: no general_profit, ksm_zero_pages, process profit, or phases."""
    counters = dict(report().system.counters)
    del counters["general_profit"], counters["ksm_zero_pages"]
    old = process(7, "old", None, ksm_zero_pages=None)
    return report(system=System(counters=counters), processes=(old,))


def sampled() -> Report:
    """Three samples in 12 seconds: a tenth of the pages changed."""
    counters = {**report().system.counters, "pages_shared": 2000, "pages_sharing": 38000}
    return report(
        timeline=(
            Pass(1, {**counters, "pages_shared": 0, "pages_sharing": 0}, True),
            Pass(2, counters, True),
            Pass(3, counters, False, cow_breaks=25),
        ),
        calm=Stillness(
            samples=3,
            seconds=12.0,
            scan_seconds=5.5,
            mappings=56170,
            calm=50553,
            new=600,
            unread=17,
            changed=5000,
            fork_shared=38270,
            counters=counters,
            frames_freed=10400,
            bytes_freed=42598400,
            net_bytes=38850112,
            cow_breaks_per_second=4.25,
        ),
        processes=(
            process(100, "web-parent", 9, calm_pages=11234, new_pages=0),
            process(101, "web", 8, calm_pages=11133, new_pages=100),
            process(102, "idle", 7, mappings=0, calm_pages=0, new_pages=0),
            process(103, "worker", 6, calm_pages=0, new_pages=11234),
        ),
    )


def document(made: Report) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(to_json(made, RUN))
    jsonschema.Draft202012Validator(SCHEMA).validate(parsed)
    return parsed


def words(text: str) -> str:
    return " ".join(text.split())


def check_terminal(text: str, width: int = 80) -> None:
    for line in text.split("\n"):
        assert cell_len(line) <= width, line
        assert line.isprintable(), line


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"] == {"const": 1}


def test_json_values() -> None:
    made = document(report())
    assert list(made) == [
        "schema_version", "run", "target", "debug_info", "question", "selection", "completeness",
        "settings", "system", "observed", "savings", "processes", "vmas", "ineligible", "entries",
        "notes", "timeline", "calm", "verify", "decision",
    ]  # fmt: skip
    assert made["system"]["pages_sharing"] == 42037
    assert made["system"]["phase"] == "scan"
    assert made["system"]["phases"]["skip"] == {"pages_unshared": 0, "pages_volatile": 11736}
    assert made["settings"]["max_page_sharing"] == {"value": 8, "source": "option"}
    assert made["settings"]["use_zero_pages"]["value"] is False
    assert made["savings"]["frames_freed"] == 11457
    assert made["processes"][1]["pid"] == 101
    assert made["processes"][1]["ksm_process_profit"] == 9
    assert made["vmas"] == [
        {
            "pid": 100,
            "start": "0x7f0000000000",
            "end": "0x7f0001000000",
            "name": "[heap]",
            "mappings": 90,
            "ksm_pages": 73,
        },
        {
            "pid": 100,
            "start": "0x7ffffffff000",
            "end": "0xfffffffffffff000",
            "name": "/dev/shm/x",
            "mappings": 0,
            "ineligible": "shared",
        },
    ]
    assert made["run"]["command"] == ["ksm-eval", "--format", "json"]


def test_json_leaves_out_what_the_kernel_lacks() -> None:
    made = document(without_smart_scan())
    assert "general_profit" not in made["system"]
    assert "ksm_zero_pages" not in made["system"]
    assert made["system"]["phase"] is None
    assert made["system"]["phases"] is None
    assert "ksm_process_profit" not in made["processes"][0]
    assert "ksm_zero_pages" not in made["processes"][0]


def test_json_differs_in_run_only_and_not_by_the_order_of_mappings() -> None:
    one = report(observed={"a": 1, "b": 2}, entries={"candidate": 1, "swap": 2})
    two = report(observed={"b": 2, "a": 1}, entries={"swap": 2, "candidate": 1})
    assert to_json(one, RUN) == to_json(two, RUN)
    later = json.loads(to_json(two, replace(RUN, time=1.8e9, snapshot="x.npz", drgn=None)))
    first = json.loads(to_json(one, RUN))
    assert later != first
    del later["run"], first["run"]
    assert json.dumps(later) == json.dumps(first)


@pytest.mark.parametrize(
    "broken",
    [
        {"schema_version": 2},
        {"debug_info": None},
        {"surprise": 1},
        {"vmas": [{"pid": 1, "start": "0x1000", "end": "0x2000", "name": ""}]},
        {"vmas": [{"pid": 1, "start": 4096, "end": "0x2000", "name": "", "ksm_pages": 0}]},
        {"system": {}},
    ],
)
def test_the_schema_refuses(broken: dict[str, Any]) -> None:
    made = document(report()) | broken
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(made)


def test_json_is_ascii_and_says_bytes_that_are_no_utf8() -> None:
    text = to_json(report(processes=tuple(process(1, comm, 0) for comm in HOSTILE)), RUN)
    assert text.isascii()
    assert "\x1b" not in text
    comms = [row["comm"] for row in json.loads(text)["processes"]]
    assert comms[0] == HOSTILE[0]
    assert comms[6] == "\\xff\\x9b"


def test_terminal_figures() -> None:
    text = to_terminal(report())
    check_terminal(text)
    lines = [words(line) for line in text.splitlines()]
    assert lines[0] == "2 processes of 6.12.117 x86_64, vmcore /var/crash/vmcore"
    assert "Complete: all 56170 candidate pages (17900 frames) were read." in lines
    assert "pages_sharing 42037 164.2 MiB" in lines
    assert "pages_unshared (scan) 4195 16.4 MiB" in lines
    assert "pages_unshared (skip) 0 0 B" in lines
    assert "pages_volatile (skip) 11736 45.8 MiB" in lines
    assert "stable_node_dups 59" in lines
    assert "general_profit 168588672 160.8 MiB" in lines
    assert "freed 11457 44.8 MiB" in lines
    assert "zero subpages of split THPs 1457 5.7 MiB" in lines
    assert "ksmd's own data (rmap_items, stable nodes) -3.6 MiB" in lines
    assert "net 41.2 MiB" in lines
    assert "16 of 20 THPs would be split for it." in lines
    assert "101 web 8888 0 9 B 14.1 MiB 4.4 MiB" in lines
    assert "VM_SHARED 1 1.0 MiB" in lines
    assert "swap 31" in lines
    assert "max_page_sharing 8 option" in lines
    assert "use_zero_pages 0 target" in lines
    assert "- ksmd has not run on this target." in lines
    assert "poison" not in text
    assert "target now" not in text  # ksmd never ran
    assert (
        "KSM would free 11457 page frames (44.8 MiB) and cost 3.6 MiB of its own: "
        "41.2 MiB gained. (general_profit will say 160.8 MiB:"
    ) in words(text)


def test_best_process_first_and_how_many_are_not_shown() -> None:
    many = tuple(process(pid, "w", 1000 + pid) for pid in range(1, 31))
    text = to_terminal(report(processes=many))
    pids = [int(line.split()[0]) for line in text.splitlines() if " w " in line]
    assert pids == list(range(30, 10, -1))
    assert "10 more; --format json has all." in text


def test_incomplete_comes_before_all_figures() -> None:
    incomplete = Completeness(
        mappings=1000,
        mappings_unreadable=3,
        frames=900,
        frames_unreadable=2,
        entries_lost=512,
        share_unreadable=515 / 1512,
        processes_lost=("pid 7 (\x1b[31mevil): its VMAs cannot be read",),
        reasons={"filtered by makedumpfile": 2, "page table not in the dump": 512},
    )
    text = to_terminal(report(completeness=incomplete))
    check_terminal(text)
    assert (
        "INCOMPLETE: 34.1 % could not be read: 2 of 900 frames, with 3 of 1000 candidate pages, "
        "and 512 page-table entries."
    ) in words(text)
    assert "512 pages: page table not in the dump 2 pages: filtered by makedumpfile" in words(text)
    assert text.index("INCOMPLETE") < text.index("KSM would")
    assert "Complete" not in text


@pytest.mark.parametrize(
    ("share", "said"), [(1e-9, "less than 0.1 %"), (0.99999, "more than 99.9 %"), (1.0, "100.0 %")]
)
def test_a_share_is_never_rounded_to_none_or_all(share: float, said: str) -> None:
    complete = replace(report().completeness, frames_unreadable=1, share_unreadable=share)
    assert f"INCOMPLETE: {said} could" in to_terminal(report(completeness=complete))


def test_verdicts_other_than_a_gain() -> None:
    savings = report().savings
    lost = replace(savings, frames_freed=10, bytes_freed=40960, net_bytes=40960 - 3748288)
    assert "not worth it, 3.5 MiB lost." in words(to_terminal(report(savings=lost)))
    none = replace(savings, frames_freed=0, bytes_freed=0, net_bytes=-3748288)
    assert "KSM would free nothing here, and cost 3.6 MiB" in words(
        to_terminal(report(savings=none))
    )
    empty = replace(report().completeness, mappings=0, frames=0)
    assert "None of these processes has a page" in words(to_terminal(report(completeness=empty)))


def test_an_older_kernel() -> None:
    text = to_terminal(without_smart_scan())
    check_terminal(text)
    lines = [words(line) for line in text.splitlines()]
    assert "pages_unshared 4195 16.4 MiB" in lines
    assert "7 old 8888 - - 14.1 MiB 4.4 MiB" in lines
    assert "general_profit" not in text
    assert "Smart scan" not in text


def test_real_counters_beside_the_prediction() -> None:
    """In the phase they are of; the other phase's rows have none."""
    real = {"pages_shared": 2397, "pages_sharing": 1, "pages_unshared": 0, "pages_volatile": 11736}
    text = to_terminal(report(), actual=real, actual_label="ksmd, pass 8")
    check_terminal(text)
    lines = [words(line) for line in text.splitlines()]
    assert "file predicted ksmd, pass 8" in lines
    assert "pages_shared 2397 9.4 MiB 2397 =" in lines
    assert "pages_sharing 42037 164.2 MiB 1 differs" in lines
    assert "pages_unshared (scan) 4195 16.4 MiB -" in lines
    assert "pages_unshared (skip) 0 0 B 0 =" in lines
    assert "stable_node_dups 59 -" in lines
    wrong = to_terminal(report(), actual=real | {"pages_volatile": 5})
    assert "pages_volatile (scan) 7541 29.5 MiB 5 differs" in map(words, wrong.splitlines())


def test_counters_of_a_target_where_ksmd_ran() -> None:
    text = to_terminal(report(observed={"pages_shared": 12, "full_scans": 4}))
    lines = [words(line) for line in text.splitlines()]
    assert "file predicted target now added" in lines
    assert "pages_shared 2397 9.4 MiB 12 +2385" in lines


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_talk_to_the_terminal(name: str, color: bool) -> None:
    made = report(
        target=replace(report().target, path=name, release=name, arch=name),
        debug_info=name,
        selection=("--comm", name),
        processes=(process(1, name, 0),),
        ineligible=(Ineligible(name, 1, 4096),),
        entries={name: 3},
        settings={name: Setting(1, name)},
        completeness=replace(report().completeness, entries_lost=1, reasons={name: 1}),
        notes=(name,),
    )
    text = to_terminal(made, color=color, actual={}, actual_label=name)
    if color:  # only what sets colours and weight
        assert "\x1b[1m" in text
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    check_terminal(text)
    assert "ksm-eval: all is well" not in text.splitlines()
    shown = printable(name)
    if cell_len(shown) <= 15:
        assert sum(shown in line for line in text.splitlines()) >= 8


def test_no_escape_sequence_without_colour() -> None:
    assert "\x1b" not in to_terminal(report())


@pytest.mark.parametrize("width", [40, 60, 80])
def test_large_numbers_fit(width: int) -> None:
    huge = 1 << 40
    counters = dict.fromkeys(report().system.counters, huge) | {"general_profit": -(huge * 4096)}
    made = report(
        system=System(counters, "scan", {"scan": Phase(huge, huge), "skip": Phase(0, huge)}),
        processes=(process(4194304, "m" * 15, -huge, ksm_merging_pages=huge, ksm_zero_pages=huge),),
        observed=counters,
        notes=("word " * 60, "x" * 200),
    )
    text = to_terminal(made, width=width, actual=counters)
    check_terminal(text, width)
    if width == 80:  # nothing cut
        lines = [words(line) for line in text.splitlines()]
        assert f"pages_sharing {huge} 4.0 PiB {huge} {huge} =" in lines
        assert any(line.startswith(f"4194304 {'m' * 15} {huge}") for line in lines)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (4096, "4.0 KiB"),
        (-576, "-576 B"),
        (43179584, "41.2 MiB"),
        (1023 << 20, "1.0 GiB"),
        (-(5 << 30), "-5.0 GiB"),
        (3 << 40, "3.0 TiB"),
        (1 << 50, "1.0 PiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@given(st.integers(-(10**15), 10**15))
def test_sizes_are_short(count: int) -> None:
    assert len(human_bytes(abs(count))) <= 9


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("worker", "worker"),
        ("a b", "a b"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\n\t\0", "\\x0a\\x09\\x00"),
        ("\\x1b", "\\\\x1b"),
        ("\u202e", "\\u202e"),
        ("\U000e0001", "\\U000e0001"),
        ("\udcff", "\\xff"),
        ("\ud800", "\\ud800"),
        ("h\u00e9", "h\u00e9"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text(text: str) -> None:
    assert printable(text).isprintable()
    encodable(text).encode("utf-8")


def test_samples_in_the_terminal() -> None:
    text = to_terminal(sampled())
    check_terminal(text)
    check_terminal(to_terminal(sampled(), width=40), 40)
    said = words(text)
    assert (
        "KSM would free 10400 to 11457 page frames (40.6 MiB to 44.8 MiB) and cost 3.6 MiB of its "
        "own: 37.1 MiB to 41.2 MiB gained. The first is of the pages that stood still over 3 "
        "samples in 12.0 s, the second if all pages stay as they are from here on."
    ) in said
    assert "not read in every sample 17" in said
    assert "Over 3 samples in 12.0 s" in said
    assert "calm: equal in every sample 50553 90.0 %" in said
    assert "changed 5000 8.9 %" in said
    assert "cost the programs 4.2 COW faults a second" in said
    assert "pages_sharing 38000 42037" in said
    assert "frames freed 10400 11457" in said
    lines = text.splitlines()
    first = next(number for number, line in enumerate(lines) if "web-parent" in line)
    shares = [line.rpartition("MiB")[2].strip() for line in lines[first : first + 4]]
    assert shares == ["100 %", "99 %", "-", "new"]  # 99 %: one of 11134 that are not new changed
    calm = sampled().calm
    assert calm is not None
    still = replace(calm, frames_freed=11457)
    assert "All of these stood still over 3 samples in 12.0 s." in words(
        to_terminal(replace(sampled(), calm=still))
    )


def test_samples_in_json() -> None:
    made = document(sampled())
    assert made["calm"]["cow_breaks_per_second"] == 4.25
    assert [row["cow_breaks"] for row in made["timeline"]] == [0, 0, 25]
    assert [row["calm_pages"] for row in made["processes"]] == [11234, 11133, 0, 0]
    assert made["calm"]["counters"]["pages_sharing"] == 38000
    assert [row["new_pages"] for row in made["processes"]] == [0, 100, 0, 11234]
    assert (made["calm"]["unread"], made["calm"]["scan_seconds"]) == (17, 5.5)


def test_what_the_run_cost() -> None:
    """Said where a host was read, not where a file was."""
    live = report(target=replace(report().target, kind="procfs"))
    said = words(to_terminal(live, RUN))
    assert (
        "0.8 s of CPU in 1.2 s, 130.0 MiB read of the target, at most 95.0 MiB of memory." in said
    )
    assert "of CPU" not in to_terminal(report(), RUN)
    run = document(live)["run"]
    assert (run["cpu_seconds"], run["bytes_read"]) == (0.75, 136314880)
    assert run["max_rss_bytes"] == 99614720
