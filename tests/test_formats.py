"""The decision in every format, of hand-made reports, and that no string in it does harm."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from io import StringIO
from itertools import cycle
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ksm_eval.report.decision import GroupRow, Step
from ksm_eval.report.model import Report
from ksm_eval.report.to_csv import COLUMNS, to_csv
from ksm_eval.report.to_json import to_json
from ksm_eval.report.to_jsonl import to_jsonl
from ksm_eval.report.to_prometheus import MOST, to_prometheus
from ksm_eval.report.to_terminal import to_terminal
from tests.prometheus import Labels, parse
from tests.reports import decision, whole
from tests.test_report import HOSTILE, RUN, SCHEMA, document, process, report, words

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_MORE_HOSTILE = (
    *HOSTILE, "", '"', "'", '",\r\n"', '=HYPERLINK("http://x","y")', "+1", "-2+3", "@SUM(A1)",
    "\t=1", "\r=1", "\uff1d1", '"} 1\nksm_eval_net_bytes 9', "\\", "\\n", "a,b;c", "</script>",
)  # fmt: skip
COLUMN = {name: number for number, name in enumerate(COLUMNS)}


def hostile(value: Any, texts: Iterator[str]) -> Any:
    """`value` with every string in it, keys too, replaced by the next text."""
    if isinstance(value, str):
        return next(texts)
    if isinstance(value, Mapping):
        return {next(texts): hostile(item, texts) for item in value.values()}
    if isinstance(value, tuple):
        return tuple(hostile(item, texts) for item in value)
    if is_dataclass(value):
        changes = {f.name: hostile(getattr(value, f.name), texts) for f in fields(value)}
        return replace(value, **changes)  # type: ignore[type-var]
    return value


def check_lines(text: str, width: int = 80) -> None:
    """No line is longer than the terminal, but for commands."""
    _, steps, rest = text.partition("\nNext steps\n")
    # Up to the next section: an empty command is an empty line.
    commands = rest.partition("\n/sys/kernel/mm/ksm ")[0].split("\n") if steps else []
    for line in text.split("\n"):
        command = line in commands and line.startswith("    ")
        assert cell_len(line) <= width or command, line
    assert all(line.isprintable() for line in text.split("\n"))


def check_inert(made: Report) -> None:
    check_lines(to_terminal(made, RUN))
    check_lines(re.sub(r"\x1b\[[0-9;]*m", "", to_terminal(made, RUN, color=True)))
    text = to_json(made, RUN)
    assert text.isascii()
    assert all(line.isprintable() for line in text.splitlines())
    json.loads(text)
    for line in to_jsonl(made, RUN)[:-1].split("\n"):
        assert line.isascii()
        assert line.isprintable()
        assert next(iter(json.loads(line))) == "kind"
    rows = table(made)
    assert len(rows) == 1 + len(made.processes) + len(made.vmas)
    for row in rows:
        assert len(row) == len(COLUMNS)
        for cell in row:
            assert cell.isprintable()
            assert not cell.startswith(_FORMULAS) or re.fullmatch(r"-\d+", cell)
    for name, family in parse(to_prometheus(made)).items():
        assert family.type == "gauge"
        assert name.startswith("ksm_eval_")
        assert all(value.isprintable() for labels in family.samples for _, value in labels)


def table(made: Report) -> list[list[str]]:
    text = to_csv(made)
    text.encode("utf-8")
    assert text.count("\n") == text.count("\r\n") == len(text.split("\r\n")) - 1
    return list(csv.reader(StringIO(text, newline=""), strict=True))


@pytest.mark.parametrize("name", _MORE_HOSTILE)
def test_hostile_strings_do_nothing(name: str) -> None:
    check_inert(hostile(whole(), cycle([name])))


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=30))
def test_no_string_does_anything(texts: list[str]) -> None:
    check_inert(hostile(whole(), cycle([*texts, *_MORE_HOSTILE[: len(texts) % 7]])))


def test_the_decision_in_the_terminal() -> None:
    text = to_terminal(whole())
    check_lines(text)
    for width in (40, 60):
        check_lines(to_terminal(whole(), width=width), width)
    titles = (
        "Yes: KSM would free at most", "Next steps", "/sys/kernel/mm/ksm once settled",
        "Where, by cgroup", "What kind", "Why not", "Sharing across users", "Cost", "What if",
    )  # fmt: skip
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    lines = text.splitlines()
    # As it is to be typed: neither wrapped, nor cut, nor with backslashes doubled.
    command = (
        "printf '[Service]\\nMemoryKSM=yes\\n' | sudo tee "
        "/etc/systemd/system/app.service.d/ksm.conf"
    )
    assert f"    {command}" in lines
    said = words(text)
    assert "18.6 % of the RSS of these processes, 4.0 % of the host's RAM." in said
    assert "3 of 13 processes give 90.8 % of it" in said
    assert "4 of 230 VMAs give 90.0 % of it" in said
    assert "4 more; --format json has all." in said  # 12 VMAs worth madvise
    assert "Not eligible, by reason" not in text
    assert "KSM would free 11457 page frames" not in said
    assert any(line.startswith("100 web") and "7f0000000000-7f0001000000" in line for line in lines)
    assert "max_page_sharing=64 2600 41800 11250 40.4 MiB -828.0 KiB" in map(words, lines)
    assert "9e3779b97f4a7c15 zero 1457 1457 12" in map(words, lines)


def test_a_command_is_never_wrapped() -> None:
    long = "sudo " + "x" * 500 + " \x1b[31m\n rm"
    text = to_terminal(report(decision=decision(next_steps=(Step("t", (long,), "w"),))))
    shown = f"    sudo {'x' * 500} \\x1b[31m\\x0a rm"
    assert shown in text.splitlines()


def test_the_decision_in_json() -> None:
    made = document(whole())["decision"]
    assert made["madvise"][0]["start"] == "0x7f0000000000"
    assert made["kinds"]["concentration"][0] == [1, 1456]
    assert made["cost"]["passes_to"] == {"50": 2, "90": 2, "99": 3}
    assert made["pairs"][0] == {"first": 0, "second": 0, "frames": 5000}
    assert made["groups"][1]["ksm_process_profit"] is None


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("verdict", "worth"), "perhaps"),
        (("madvise", 0, "start"), 4096),
        (("groups", 0, "surprise"), 1),
        (("kinds", "concentration", 0), [1, 2, 3]),
        (("surprise",), 1),
    ],
)
def test_the_schema_refuses_a_wrong_decision(path: tuple[str | int, ...], wrong: object) -> None:
    made = document(whole())
    place: Any = made["decision"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(made)


def test_json_lines_are_the_rows_of_json() -> None:
    made = document(whole())
    validator = jsonschema.Draft202012Validator(SCHEMA).evolve(schema={"$ref": "#/$defs/line"})
    rows: dict[str, list[Any]] = {}
    for line in to_jsonl(whole(), RUN).splitlines():
        row = json.loads(line)
        validator.validate(row)
        assert not validator.is_valid({**row, "surprise": 1})
        rows.setdefault(row.pop("kind"), []).append(row)
    assert list(rows) == ["report", "process", "vma", "pass", "group", "madvise", "pair"]
    assert rows["process"] == made.pop("processes")
    assert rows["vma"] == made.pop("vmas")
    assert rows["pass"] == made.pop("timeline")
    for kind, name in (("group", "groups"), ("madvise", "madvise"), ("pair", "pairs")):
        assert rows[kind] == made["decision"].pop(name)
    assert rows["report"] == [made]


def test_csv_has_processes_and_their_vmas() -> None:
    first, *rows = table(report(processes=(process(100, "=cmd|' /C calc'!A0", -5),)))
    assert tuple(first) == COLUMNS
    owner, heap, shared = ({name: row[at] for name, at in COLUMN.items()} for row in rows)
    assert owner["kind"] == "process"
    assert owner["comm"] == heap["comm"] == "'=cmd|' /C calc'!A0"
    assert owner["ksm_process_profit"] == "-5"  # a number stays one
    assert (owner["start"], owner["ksm_pages"]) == ("", "")
    assert heap["kind"] == "vma"
    assert (heap["pid"], heap["uid"], heap["cgroup"]) == ("100", "1000", "/web.slice")
    assert (heap["start"], heap["name"], heap["ksm_pages"]) == ("0x7f0000000000", "[heap]", "73")
    assert (shared["ksm_pages"], shared["ineligible"], shared["pss_before"]) == ("", "shared", "")
    known = set(SCHEMA["$defs"]["process"]["properties"]) | set(
        SCHEMA["$defs"]["vma"]["properties"]
    )
    assert set(COLUMNS) == known | {"kind"}


def labelled(**labels: str) -> Labels:
    common = {
        "target": "/var/crash/vmcore",
        "selection": "--comm web* --children",
        "question": "merge_any",
    }
    return frozenset({**common, **labels}.items())


def test_prometheus_values() -> None:
    found = parse(to_prometheus(whole()))
    assert found["ksm_eval_pages_sharing"].samples == {labelled(): 42037}
    assert found["ksm_eval_net_bytes"].samples == {labelled(): 43179584}
    assert found["ksm_eval_time_seconds"].samples == {labelled(): 1.7e9}
    assert found["ksm_eval_calm_net_bytes"].samples == {labelled(): 38850112}
    assert found["ksm_eval_worth"].samples == {labelled(worth="yes"): 1}
    within = found["ksm_eval_frames_freed_within"].samples
    assert within[labelled(by="uid")] == 9800
    groups = found["ksm_eval_group_net_bytes"].samples
    assert groups[labelled(by="cgroup", name="")] == (1 << 20) - 394880
    # Not a counter that this kernel lacks, as 0.
    assert labelled(by="cgroup", name="") not in found["ksm_eval_group_ksm_process_profit"].samples
    assert all(family.help for family in found.values())


def test_prometheus_is_bounded() -> None:
    many = tuple(process(pid, "w", pid) for pid in range(1, 2000))
    group = decision().groups[0]
    groups = tuple(replace(group, name=f"/{number}") for number in range(1000))
    found = parse(to_prometheus(report(processes=many, decision=decision(groups=groups))))
    profits = found["ksm_eval_process_ksm_process_profit"].samples
    assert len(profits) == MOST
    assert min(profits.values()) == 2000 - MOST  # the best of them
    assert len(found["ksm_eval_group_net_bytes"].samples) == MOST


def test_prometheus_has_no_sample_twice() -> None:
    """A byte 0x9b and the character U+009B are shown alike."""
    rows = (decision().groups[0], GroupRow("\x9b", 1, 1, 1, 1, 1, 1, 1, 7),
            GroupRow("\udc9b", 1, 1, 1, 1, 1, 1, 1, 8))  # fmt: skip
    found = parse(to_prometheus(report(decision=decision(groups=rows))))
    net = found["ksm_eval_group_net_bytes"].samples
    assert net[labelled(by="cgroup", name="\\x9b")] == 7


@pytest.mark.parametrize(
    "text",
    [
        "a 1",
        "# TYPE a gauge\na 1\n# TYPE b gauge\nb 1\na 2\n",
        "# TYPE a gauge\na 1\na 2\n",
        "# TYPE a gauge\na 1 1700000000000\n",
        '# TYPE a gauge\na{b="c"d"} 1\n',
        '# TYPE a gauge\na{b="\\x"} 1\n',
        "# TYPE a gauge\na one\n",
        "a 1\n",
    ],
)
def test_the_reader_of_prometheus_is_strict(text: str) -> None:
    with pytest.raises((ValueError, KeyError, IndexError)):
        parse(text)
