"""The command line: what it refuses, its exit codes, where its output goes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.cells import cell_len

import ksm_eval
from ksm_eval import cli
from tests.fixtures import FILTERED, TINY, opted_in, truth, vmcore
from tests.test_formats import check_lines

CORE = str(vmcore(TINY))
SCHEMA = json.loads((Path(ksm_eval.__path__[0]) / "report" / "schema.json").read_text())


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = cli.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(
    capsys: pytest.CaptureFixture[str], code: int, message: str, *arguments: object
) -> list[str]:
    """One line of what is wrong, then the hint, and nothing on standard output; the hint."""
    found, out, err = ran(capsys, *arguments)
    first, *hint = err.splitlines()
    assert re.search(f"^ksm-eval: error: .*{message}", first)
    assert hint[0].startswith("ksm-eval: hint: ")
    assert found == code
    assert out == ""
    return hint


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "tiny.snapshot"
    pids = [part for pid in opted_in(TINY) for part in ("--pid", str(pid))]
    assert cli.run(["-c", CORE, *pids, "--save", str(path), "-q", "-o", "/dev/null"]) == 0
    return path


def test_nothing_selected_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-c", CORE]):
        hint = fails(capsys, 2, "no process selected", *arguments)
        assert [line.split()[0] for line in hint[1:]] == ["sudo", "sudo", "ksm-eval", "ksm-eval"]
        assert "--pid" in hint[1]
        assert "--samples" in hint[2]
        assert "--comm" in hint[3]
        assert "--cgroup" in hint[4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--children", "-c", CORE], "--children of whom"),
        (["--comm", "", "-c", CORE], "--comm is empty"),
        (["--cgroup", "", "-c", CORE], "--cgroup is empty"),
        (["--pid", "0", "-c", CORE], "'--pid'"),
        (["--pid", "web", "-c", CORE], "'--pid'"),
        (["--pid"], "'--pid' requires an argument"),
        (["--max-page-sharing", "1", "--all", "-c", CORE], "'--max-page-sharing'"),
        (["--max-unreadable", "nan", "--all", "-c", CORE], "'--max-unreadable'"),
        (["--max-unreadable", "101", "--all", "-c", CORE], "'--max-unreadable'"),
        (["--max-unreadable", "-1%", "--all", "-c", CORE], "'--max-unreadable'"),
        (["--format", "xml", "--all", "-c", CORE], "'--format'"),
        (["--log-level", "loud", "--all", "-c", CORE], "'--log-level'"),
        (["--max-memory", "much", "--all", "-c", CORE], "'--max-memory'"),
        (["-q", "--progress", "--all", "-c", CORE], "--progress cannot be used with --quiet"),
        (["--unknown"], "No such option"),
        ([CORE], "unexpected extra argument"),
        (["-s", "x", "--via", "proc", "--all"], "--symbols cannot be used with --via proc"),
        (["--qemu", "x", "-c", "x", "--all"], "--qemu cannot be used with a vmcore"),
        (["--qemu", "x", "--via", "proc", "--all"], "--via cannot be used with --qemu"),
        (["--qemu", "x", "--architecture", "x", "--all"], "--architecture cannot be used with"),
        (["--vmcoreinfo", "x", "--all"], "--vmcoreinfo cannot be used with the running kernel"),
        (["--architecture", "x", "--all"], "--architecture cannot be used with the running"),
        (["--via", "proc", "--all", "-c", CORE], "--via cannot be used with a vmcore"),
        (["--all", "-c", CORE, "-o", "/no/such/x"], "cannot write /no/such/x: no directory"),
        (["--all", "-c", CORE, "--save", "/"], "cannot write /: is a directory"),
        (["--all", "-c", CORE, "--save", CORE], "--save would overwrite the input"),
        (["--all", "-c", CORE, "-o", CORE], "--output would overwrite the input"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    fails(capsys, 2, message, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", CORE],
        ["--via", "auto"],
        ["-s", "vmlinux"],
        ["--vmcoreinfo", "x"],
        ["--architecture", "x86_64"],
        ["--pid", "1"],
        ["--children"],
        ["--comm", "x"],
        ["--cgroup", "/x"],
        ["--all"],
        ["--mergeable-only"],
        ["--save", "x"],
    ],
)
def test_a_snapshot_is_a_selection_already(
    capsys: pytest.CaptureFixture[str], saved: Path, arguments: list[str]
) -> None:
    fails(capsys, 2, "cannot be used with --snapshot", "--snapshot", saved, *arguments)


def test_save_and_output_are_two_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    both = tmp_path / "both"
    (tmp_path / "link").symlink_to(both)
    fails(
        capsys, 2, "--output would overwrite --save",
        "-c", CORE, "--all", "--save", both, "-o", tmp_path / "link",
    )  # fmt: skip
    assert not both.exists()


def test_targets_that_cannot_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    none = tmp_path / "a\nb\x1b[31m"
    code, out, err = ran(capsys, "-c", none, "--all")
    assert (code, out) == (3, "")
    assert "a\\x0ab\\x1b[31m" in err.splitlines()[0]
    fails(capsys, 3, r"cannot read snapshot .*a\\x0ab\\x1b\[31m", "--snapshot", none)
    fails(capsys, 3, "is not a snapshot", "--snapshot", CORE)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("-h", "--help"):
        code, out, err = ran(capsys, option)
        assert (code, err) == (0, "")
        assert all(cell_len(line) <= 80 for line in out.splitlines())
        for name in ("--pid", "--max-unreadable", "Exit codes:", "--no-smart-scan"):
            assert name in out
    assert ran(capsys, "--version") == (0, f"ksm-eval {ksm_eval.__version__}\n", "")


def test_help_and_errors_import_nothing_heavy() -> None:
    program = (
        "import sys; from ksm_eval.cli import run;"
        "codes = [run(['--help']), run(['--version']), run(['--pid', 'x'])];"
        "print(codes, {'drgn', 'numpy', 'rich', 'xxhash'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[0, 0, 2] set()"


def test_python_m(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ksm_eval", "--children"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == ran(capsys, "--children")[2]


def without_run(text: str) -> str:
    parsed = json.loads(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(parsed)
    del parsed["run"]
    return json.dumps(parsed)


def test_a_snapshot_gives_the_same_bytes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """But for `run`, which is the first 20 lines or so: everything behind it is compared raw."""
    path, first = tmp_path / "snapshot", tmp_path / "first.json"
    what_if = ("--max-page-sharing", 3, "--use-zero-pages", "--no-smart-scan", "--format", "json")
    code, out, err = ran(
        capsys, "-c", CORE, "--comm", "srv-*", "--save", path, "-o", first, *what_if
    )
    assert (code, out, err) == (0, "", "")
    code, second, err = ran(capsys, "--snapshot", path, *what_if)
    assert (code, err) == (0, "")
    assert without_run(first.read_text()) == without_run(second)
    behind = '\n  "target": {'
    assert first.read_text().split(behind)[1] == second.split(behind)[1]
    assert json.loads(second)["run"]["snapshot"] == str(path)
    assert json.loads(second)["run"]["drgn"] is None
    assert json.loads(first.read_text())["run"]["drgn"]
    assert json.loads(second)["selection"] == ["--comm", "srv-*"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("option", "name", "value"),
    [
        (["--max-page-sharing", "5"], "max_page_sharing", 5),
        (["--use-zero-pages"], "use_zero_pages", True),
        (["--no-use-zero-pages"], "use_zero_pages", False),
        (["--merge-across-nodes"], "merge_across_nodes", True),
        (["--no-merge-across-nodes"], "merge_across_nodes", False),
        (["--smart-scan"], "smart_scan", True),
        (["--no-smart-scan"], "smart_scan", False),
    ],
)
def test_settings_from_options(
    capsys: pytest.CaptureFixture[str], saved: Path, option: list[str], name: str, value: object
) -> None:
    code, out, _ = ran(capsys, "--snapshot", saved, "--format", "json", *option)
    assert code == 0
    made = json.loads(out)
    assert made["settings"][name] == {"value": value, "source": "option"}
    assert sum(setting["source"] == "option" for setting in made["settings"].values()) == 1


def test_what_if_changes_the_prediction(capsys: pytest.CaptureFixture[str], saved: Path) -> None:
    def system(*options: object) -> dict[str, Any]:
        _, out, _ = ran(capsys, "--snapshot", saved, "--format", "json", *options)
        found: dict[str, Any] = json.loads(out)["system"]
        return found

    usual = system()
    assert usual["phase"] == "scan"
    assert system("--no-smart-scan")["phases"] is None
    assert system("--use-zero-pages")["ksm_zero_pages"] > usual["ksm_zero_pages"]
    assert system("--max-page-sharing", 2)["pages_shared"] > usual["pages_shared"]


def test_the_table_is_for_eighty_columns_and_plain_in_a_file(
    capsys: pytest.CaptureFixture[str], saved: Path, tmp_path: Path
) -> None:
    code, out, err = ran(capsys, "--snapshot", saved)
    assert (code, err) == (0, "")
    assert "/sys/kernel/mm/ksm once settled" in out
    check_lines(out)
    file = tmp_path / "table"
    assert ran(capsys, "--snapshot", saved, "-o", file) == (0, "", "")
    assert file.read_text() == out
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    assert ran(capsys, "--snapshot", saved, "-o", "-")[1] == out


def on_a_terminal(*arguments: object, **environment: str) -> str:
    """What the program writes to a terminal, both outputs."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ksm_eval", *map(str, arguments)],
        stdin=follower, stdout=follower, stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"} | environment,
    ) as process:  # fmt: skip
        os.close(follower)
        written = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if not piece:
                break
            written += piece
    os.close(leader)
    assert process.returncode == 0
    return written.decode()


def test_colour_on_a_terminal_only_and_not_with_no_color(saved: Path) -> None:
    words = ("--snapshot", saved, "--no-progress")
    assert "\x1b[1m" in on_a_terminal(*words)
    assert "\x1b" not in on_a_terminal(*words, NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(*words, TERM="dumb")


def test_progress_on_a_terminal_only_and_not_if_quiet() -> None:
    arguments = ("-c", CORE, "--comm", "srv-*", "-o", "/dev/null")
    shown = on_a_terminal(*arguments)
    assert "opening" in shown
    # It ends where it began: the line is erased, the cursor is there again.
    assert shown.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))
    for no_bar in (["-q"], ["--no-progress"]):
        assert on_a_terminal(*arguments, *no_bar) == ""
    assert on_a_terminal(*arguments, TERM="dumb") == ""


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("-c", CORE, "--comm", "srv-*", "--format", "json")
    code, plain, err = ran(capsys, *arguments)
    assert (code, err) == (0, "")
    code, out, err = ran(capsys, *arguments, "--progress")
    assert code == 0
    assert err == "ksm-eval: opening\n"
    assert list(json.loads(out)) == list(json.loads(plain))
    words = on_a_terminal("-c", CORE, "--all", "-o", "/dev/null", "--progress", TERM="dumb")
    assert words == "ksm-eval: opening\r\n"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_in_another_locale(saved: Path, locale: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ksm_eval", "--snapshot", str(saved)],
        env={"LC_ALL": locale, "PYTHONIOENCODING": "ascii" if locale == "C" else "utf-8"},
        capture_output=True,
    )
    assert done.returncode == 0
    assert b"srv-worker" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--snapshot"]])
def test_a_reader_that_leaves(saved: Path, arguments: list[str]) -> None:
    if arguments == ["--snapshot"]:
        arguments = ["--snapshot", str(saved), "--format", "json"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ksm_eval", *arguments], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == b""


def test_a_full_disk(saved: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ksm_eval", "--snapshot", str(saved)],
            stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        "ksm-eval: error: cannot write the report: No space left on device\n"
        "ksm-eval: hint: use -o\n"
    )


def test_a_closed_output(saved: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "ksm_eval", "--snapshot", str(saved)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("ksm-eval: error: standard output is closed\n")


def test_a_closed_standard_error(saved: Path) -> None:
    """Neither a report nor an error ends up where the other belongs."""
    for arguments, code in (
        (["--snapshot", str(saved), "--format", "json"], 0),
        (["--pid", "1"], 2),
    ):
        words = [*arguments, "--save", "/nonexistent/x"] if code else arguments
        done = subprocess.run(
            ["sh", "-c", '"$@" 2>&-', "sh", sys.executable, "-m", "ksm_eval", *words],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert done.returncode == code
        if code:
            assert done.stdout == ""
        else:
            assert json.loads(done.stdout)["schema_version"] == 1


def test_interrupt(saved: Path) -> None:
    program = (
        "import signal, sys, ksm_eval.evaluate as e; from ksm_eval.cli import run\n"
        # A shell's background job ignores SIGINT, and so would what it starts.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def waits(*_, **__): print('here', flush=True); signal.pause()\n"
        "e.evaluate_snapshot = waits; sys.exit(run(sys.argv[1:]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "--snapshot", str(saved)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert (out, err) == (b"", b"")


def test_incomplete_prints_the_report_and_exits_4(
    capsys: pytest.CaptureFixture[str], saved: Path, tmp_path: Path
) -> None:
    """A real snapshot, half of its frames made unreadable."""
    from dataclasses import replace

    import numpy as np

    from ksm_eval.save import load, save
    from ksm_eval.snapshot import FrameFlag

    whole = load(saved)
    flags = whole.frames.flags.copy()
    flags[::2] |= np.uint8(FrameFlag.UNREADABLE)
    lost = int((flags & FrameFlag.UNREADABLE != 0)[whole.mappings.frame].sum())
    share = 100 * lost / len(whole.mappings)
    path = tmp_path / "half"
    save(replace(whole, frames=replace(whole.frames, flags=flags)), path)
    code, out, err = ran(capsys, "--snapshot", path)
    assert code == 4
    assert "INCOMPLETE" in out
    assert f"ksm-eval: error: {share:.3g} % of the pages could not be read" in err
    code, out, err = ran(capsys, "--snapshot", path, "--max-unreadable", "99%", "--format", "json")
    assert (code, err) == (0, "")
    assert json.loads(out)["completeness"]["mappings_unreadable"] == lost
    assert json.loads(out)["completeness"]["share_unreadable"] == pytest.approx(share / 100)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RuntimeError("x\n\x1b"), 5, r"internal error: RuntimeError: x\\x0a\\x1b$"),
        (MemoryError(), 3, "out of memory$"),
    ],
)
def test_bugs_have_an_exit_code_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    saved: Path,
    error: Exception,
    code: int,
    message: str,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("ksm_eval.evaluate.evaluate_snapshot", broken)
    fails(capsys, code, message, "--snapshot", saved)


def test_the_traceback_is_for_log_level_debug(saved: Path) -> None:
    program = (
        "import sys, ksm_eval.evaluate as e; from ksm_eval.cli import run; "
        "e.evaluate_snapshot = None; sys.exit(run(sys.argv[1:]))"
    )
    for level, shown in (("debug", True), ("warning", False)):
        done = subprocess.run(
            [sys.executable, "-c", program, "--snapshot", str(saved), "--log-level", level],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 5
        assert ("Traceback" in done.stderr) is shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--pid", "23", "--children"],
        ["--pid", "23", "--pid", "28"],
        ["--comm", "srv-*", "--comm", "lon?r"],
        ["--cgroup", "/web/workers"],
        ["--cgroup", "/web", "--pid", "36"],
        ["--all"],
        ["--all", "--mergeable-only", "--architecture", "x86_64", "--log-level", "none"],
    ],
)
def test_selections(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """The expected pids come from the guest's own /proc."""
    rows = {row["pid"]: row for row in truth(TINY)["processes"] if "shares_mm_with" not in row}
    family = {23}
    for _ in rows:
        family |= {pid for pid, row in rows.items() if row["ppid"] in family}
    web = {pid for pid, row in rows.items() if (row["cgroup"] + "/").startswith("/web/")}
    workers = {pid for pid in web if rows[pid]["cgroup"] == "/web/workers"}
    srv = {pid for pid, row in rows.items() if row["comm"].startswith("srv-")}
    expected = {
        "--pid 23 --children": family,
        "--pid 23 --pid 28": {23, 28},
        "--comm srv-* --comm lon?r": srv | {36},
        "--cgroup /web/workers": workers,
        "--cgroup /web --pid 36": web | {36},
    }.get(" ".join(arguments), set(rows) | {1})
    assert expected
    code, out, err = ran(capsys, "-c", CORE, *arguments, "--format", "json")
    assert (code, err) == (0, "")
    made = json.loads(out)
    jsonschema.Draft202012Validator(SCHEMA).validate(made)
    assert {row["pid"] for row in made["processes"]} == expected
    only = "--mergeable-only" in arguments
    assert made["question"] == ("mergeable_only" if only else "merge_any")
    assert ("VM_MERGEABLE not set" in {row["reason"] for row in made["ineligible"]}) is only


@pytest.mark.parametrize(
    ("code", "message", "arguments"),
    [
        (2, "pid 99999 does not exist", ["-c", CORE, "--pid", "99999"]),
        (2, "no process is called 'nope'", ["-c", CORE, "--comm", "nope"]),
        (2, "no process is in cgroup '/nope'", ["-c", CORE, "--cgroup", "/nope"]),
        (2, r"pid 2 \(kthreadd\) has no memory", ["-c", CORE, "--pid", "2"]),
        (2, "architecture 'z80'", ["-c", CORE, "--all", "--architecture", "z80"]),
        (3, "cannot read /no/such", ["-c", CORE, "--all", "-s", "/no/such"]),
        (3, "neither a vmlinux", ["-c", CORE, "--all", "-s", __file__]),
        (3, "is no VMCOREINFO", ["-c", CORE, "--all", "--vmcoreinfo", __file__]),
        (3, "is not a vmcore", ["-c", __file__, "--all"]),
        (3, "no user pages: .*makedumpfile", ["-c", str(FILTERED), "--all"]),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], code: int, message: str, arguments: list[str]
) -> None:
    found, out, err = ran(capsys, *arguments)
    lines = err.splitlines()
    assert (found, out) == (code, "")
    assert re.search(f"^ksm-eval: error: .*{message}", lines[0])
    assert all(line.startswith("ksm-eval: hint: ") for line in lines[1:])
    assert len(lines) <= 2


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("jsonl", '{"kind": "report", "schema_version": 1, "run": '),
        ("csv", "kind,pid,comm,"),
        ("prometheus", "# HELP ksm_eval_info "),
        ("html", "<!doctype html>"),
    ],
)
def test_every_format_to_a_file_and_to_standard_output(
    capsys: pytest.CaptureFixture[str], saved: Path, tmp_path: Path, form: str, start: str
) -> None:
    code, out, err = ran(capsys, "--snapshot", saved, "--format", form)
    assert (code, err) == (0, "")
    assert out.lower().startswith(start.lower())
    file = tmp_path / form
    assert ran(capsys, "--snapshot", saved, "--format", form, "-o", file) == (0, "", "")
    written = file.read_bytes().decode()
    if form in ("csv", "prometheus"):  # the others tell the command
        assert written == out
