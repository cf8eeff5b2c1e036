"""`ksm-eval compare`: what differs, the gate, and files that are no reports."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ksm_eval import cli
from ksm_eval.compare import compare, fell, is_worse, reading
from ksm_eval.report.compare_text import compare_json, compare_text
from ksm_eval.report.comparison import Change
from ksm_eval.report.model import Setting
from ksm_eval.report.to_json import to_json
from tests.test_report import HOSTILE, RUN, process, report


def document(net: int = 43179584, **changes: Any) -> dict[str, Any]:
    made = report(**changes)
    made = replace(made, savings=replace(made.savings, net_bytes=net))
    parsed: dict[str, Any] = json.loads(to_json(made, RUN))
    return parsed


def ran(
    capsys: pytest.CaptureFixture[str], folder: Path, old: object, new: object, *words: str
) -> tuple[int, str, str]:
    """Exit code, output, errors of a comparison of two documents (bytes: as they are)."""
    paths = []
    for name, content in (("old.json", old), ("new.json", new)):
        path = folder / name
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        path.write_bytes(data)
        paths.append(str(path))
    code = cli.run(["compare", *paths, *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_equal_reports_have_nothing_to_tell() -> None:
    same = reading("a", document())
    found = compare(same, same)
    assert (found.differ, found.counters, found.groups, found.fell) == ((), (), (), 0.0)
    text = compare_text(found)
    assert "The gain is the same: 41.2 MiB." in text
    assert "Not the same question" not in text


def test_what_differs_is_said_before_any_figure() -> None:
    other = {"max_page_sharing": Setting(256, "target"), "use_zero_pages": Setting(True, "target")}
    new = document(settings=other, selection=("--all",))
    found = compare(reading("a", document()), reading("b", new))
    assert found.differ == (
        ("selection", "--comm web* --children", "--all"),
        ("max_page_sharing", "8", "256"),
        ("use_zero_pages", "no", "yes"),
    )
    text = compare_text(found)
    assert text.index("max_page_sharing") < text.index("Memory gained")


def test_groups_appear_go_and_change() -> None:
    old = document(
        processes=(
            process(1, "web", 1, pss_before=100, pss_after=60),
            process(2, "web", 1, pss_before=100, pss_after=60),
            process(3, "cron", 1, pss_before=50, pss_after=40),
        )
    )
    new = document(
        processes=(
            process(1, "web", 1, pss_before=100, pss_after=10),
            process(4, "db", 1, pss_before=900, pss_after=400),
        )
    )
    rows = [row for row in compare(reading("a", old), reading("b", new)).groups if row.by == "comm"]
    assert [(row.name, row.what, row.processes, row.gain) for row in rows] == [
        ("db", "appeared", Change("processes", None, 1), Change("gain", None, 500)),
        # The gain of two processes was 80, that of one is 90: changed by as much as cron's.
        ("cron", "went", Change("processes", 1, None), Change("gain", 10, None)),
        ("web", "changed", Change("processes", 2, 1), Change("gain", 80, 90)),
    ]


@pytest.mark.parametrize(
    ("old", "new", "share", "worse_than_10_percent"),
    [
        (100, 90, 0.1, False),  # exactly the limit
        (100, 89, 0.11, True),
        (100, 200, 0.0, False),
        (100, -100, 2.0, True),
        (0, 0, 0.0, False),
        (0, -1, None, True),
        (-100, -105, 0.05, False),
        (-100, -200, 1.0, True),
    ],
)
def test_fell(old: int, new: int, share: float | None, worse_than_10_percent: bool) -> None:
    assert fell(old, new) == (None if share is None else pytest.approx(share))
    found = compare(reading("a", document(old)), reading("b", document(new)))
    assert is_worse(found, 0.1) is worse_than_10_percent


def test_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    old, new = document(1000), document(900)
    assert ran(capsys, tmp_path, old, new)[0] == 0
    assert ran(capsys, tmp_path, old, new, "--fail-if-worse", "10%")[0] == 0
    code, out, err = ran(capsys, tmp_path, old, new, "--fail-if-worse", "9.9")
    assert code == 1
    assert "The gain fell by 10.0 %, from 1.0 KiB to 900 B." in out
    assert err == (
        "ksm-eval: gate failed: net_bytes fell by 10 %, from 1000 to 900, "
        "--fail-if-worse allows 9.9 %\n"
    )
    assert ran(capsys, tmp_path, new, old, "--fail-if-worse", "0")[0] == 0
    assert ran(capsys, tmp_path, old, new, "--fail-if-worse", "x")[0] == 2
    assert ran(capsys, tmp_path, old, new, "-o", str(tmp_path / "old.json"))[0] == 2
    assert cli.run(["compare", str(tmp_path / "old.json")]) == 2
    assert cli.run(["compare", str(tmp_path / "old.json"), str(tmp_path / "none.json")]) == 3
    assert "see ksm-eval compare --help" in capsys.readouterr().err


def test_a_gate_on_what_hardly_compares_is_no_silent_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    new = document(selection=("--all",))
    new["completeness"]["share_unreadable"] = 0.25
    assert ran(capsys, tmp_path, document(), new)[2] == ""
    code, _, err = ran(capsys, tmp_path, document(), new, "--fail-if-worse", "5")
    assert code == 0
    assert err.splitlines()[0] == (
        "ksm-eval: warning: the reports hardly compare, they differ in selection"
    )
    assert err.splitlines()[1].endswith("new.json: 25 % of the pages could not be read")


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = ran(capsys, tmp_path, document(1000), document(900), "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert found["savings"][0] == {"name": "net_bytes", "old": 1000, "new": 900}
    assert found["fell"] == pytest.approx(0.1)


def test_incomplete_reports_are_told() -> None:
    broken = document()
    broken["completeness"]["share_unreadable"] = 0.25
    found = compare(reading("a", document()), reading("b", broken))
    assert "b: 25 % of the pages could not be read" in compare_text(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON: it is nested too deeply"),
        (b"9" * 10_000, "is no JSON"),
        (b'{"a": NaN}', "is no JSON: NaN is not JSON"),
        ([], "the document is no object"),
        ({}, "its schema_version is none"),
        ({"schema_version": 99}, "its schema_version is 99, this program knows 1"),
        ({"schema_version": True}, "its schema_version"),
        ({"schema_version": 1}, "it has no target"),
    ],
)
def test_files_that_are_no_reports(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: object, message: str
) -> None:
    code, out, err = ran(capsys, tmp_path, document(), content)
    assert (code, out) == (3, "")
    first, *hint = err.splitlines()
    assert message in first
    assert len(hint) == 1


def test_hostile_names_reach_no_terminal() -> None:
    for name in HOSTILE:
        new = document(selection=(name,), processes=(process(1, name, 1, cgroup=name),))
        found = compare(reading("a", document()), reading(name, new))
        text = compare_text(found)
        assert all(line.isprintable() and cell_len(line) <= 80 for line in text.splitlines())
        compare_json(found).encode("ascii")


WILD = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    *(st.just([]), st.just({}), st.just([{}]), st.just({"value": []}), st.just(10**400)),
)


def _places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    steps: list[Any] = []
    if isinstance(value, dict):
        steps = list(value.items())
    elif isinstance(value, list):
        steps = list(enumerate(value))
    return [path, *(place for key, part in steps for place in _places(part, (*path, key)))]


PLACES = _places(document())


@given(st.lists(st.tuples(st.sampled_from(PLACES), WILD), min_size=1, max_size=3), st.booleans())
def test_any_mutation_is_compared_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    mutations: list[tuple[tuple[Any, ...], Any]],
    drop: bool,
) -> None:
    """Exit code 0 or 3, never an internal error (5)."""
    mutated: Any = copy.deepcopy(document())
    for path, value in mutations:
        if not path:
            mutated = value
            continue
        try:
            parent = mutated
            for key in path[:-1]:
                parent = parent[key]
            if drop:
                del parent[path[-1]]
            else:
                parent[path[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier mutation took it away
    folder = tmp_path_factory.getbasetemp()
    (folder / "good.json").write_text(json.dumps(document()))
    try:
        (folder / "mutated.json").write_text(json.dumps(mutated))
    except ValueError:  # an integer longer than Python writes
        return
    for form in ("table", "json"):
        pair = [str(folder / "mutated.json"), str(folder / "good.json")]
        assert cli.run(["compare", *pair, "--format", form, "-o", "/dev/null"]) in (0, 3)
