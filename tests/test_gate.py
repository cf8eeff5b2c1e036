"""Gates: the rule with numbers, and exit codes through the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ksm_eval import cli
from ksm_eval.errors import GateError, IncompleteError, UsageError
from ksm_eval.gate import AtLeast, check_gates, too_little, too_volatile, volatile_share
from ksm_eval.report.model import Report, Stillness
from tests.fixtures import TINY, opted_in, vmcore
from tests.test_report import report

MIB = 1 << 20
CORE = str(vmcore(TINY))
PIDS = [word for pid in opted_in(TINY) for word in ("--pid", str(pid))]


def gaining(net: int, *, pss: int = 1000 * MIB, calm: Stillness | None = None) -> Report:
    made = report()
    savings = replace(made.savings, net_bytes=net, pss_before=pss)
    return replace(made, savings=savings, calm=calm)


def stillness(calm: int, changed: int, new: int = 0, unread: int = 0, net: int = 0) -> Stillness:
    return Stillness(
        samples=2,
        seconds=20.0,
        scan_seconds=10.0,
        mappings=calm + changed + new + unread,
        calm=calm,
        new=new,
        unread=unread,
        changed=changed,
        fork_shared=0,
        counters={},
        frames_freed=0,
        bytes_freed=0,
        net_bytes=net,
        cow_breaks_per_second=None,
    )


@pytest.mark.parametrize(
    ("net", "limit", "passes"),
    [
        (512 * MIB, AtLeast(bytes=512 * MIB), True),  # exactly the limit
        (512 * MIB - 1, AtLeast(bytes=512 * MIB), False),
        (0, AtLeast(bytes=0), True),
        (-1, AtLeast(bytes=0), False),
        (50 * MIB, AtLeast(share=0.05), True),
        (50 * MIB - 1, AtLeast(share=0.05), False),
        (-1, AtLeast(share=0.0), False),
    ],
)
def test_too_little(net: int, limit: AtLeast, passes: bool) -> None:
    assert (too_little(gaining(net), limit) == "") is passes


def test_nothing_selected_has_no_share_to_divide_by() -> None:
    assert too_little(gaining(-4096, pss=0), AtLeast(share=0.1)).startswith("4.0 KiB (4096 bytes)")


def test_message_tells_figure_and_limit() -> None:
    assert too_little(gaining(100 * MIB), AtLeast(bytes=512 * MIB)) == (
        "100.0 MiB (104857600 bytes) gained, --fail-under wants 512.0 MiB"
    )
    assert too_little(gaining(-2 * MIB), AtLeast(share=0.125)) == (
        "2.0 MiB (2097152 bytes) lost, -0.2 % of the candidate pages' PSS (the RSS is not known), "
        "--fail-under wants 12.5 %"
    )


def test_with_samples_only_what_stood_still_counts() -> None:
    """All pages would give 600 MiB, the calm ones 100."""
    found = gaining(600 * MIB, calm=stillness(9, 1, net=100 * MIB))
    assert too_little(found, AtLeast(bytes=512 * MIB))
    assert not too_little(found, AtLeast(bytes=100 * MIB))


def test_volatile() -> None:
    """10 of 100 compared; 300 new and 7 unreadable ones hide none of them."""
    found = gaining(0, calm=stillness(90, 10, new=300, unread=7))
    assert volatile_share(found) == 0.1
    assert not too_volatile(found, 0.1)
    assert too_volatile(found, 0.09) == (
        "10.0 % of the candidate pages changed between samples, --fail-over-volatile allows 9 %"
    )


def test_volatile_of_nothing() -> None:
    assert volatile_share(gaining(0, calm=stillness(0, 0))) == 0
    with pytest.raises(IncompleteError):
        volatile_share(gaining(0, calm=stillness(0, 0, new=5)))
    with pytest.raises(UsageError):
        volatile_share(gaining(0))


def test_both_gates_in_one_line() -> None:
    found = gaining(0, calm=stillness(0, 4))
    with pytest.raises(GateError, match=r"^0 B gained.*; 100\.0 % of the candidate"):
        check_gates(found, AtLeast(bytes=1), 0.5)
    check_gates(found, None, None)


def ran(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.run(["-c", CORE, *PIDS, "-q", "--format", "json", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_line_writes_the_report_then_judges_it(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ran(capsys)
    document: dict[str, Any] = json.loads(out)
    net = document["savings"]["net_bytes"]
    rss = document["decision"]["verdict"]["rss_bytes"]
    assert 0 < net < rss
    assert ran(capsys, "--fail-under", str(net))[0] == 0
    code, out, err = ran(capsys, "--fail-under", str(net + 1))
    assert code == 1
    assert json.loads(out)["savings"]["net_bytes"] == net
    assert err.startswith("ksm-eval: gate failed: ")
    assert len(err.splitlines()) == 1
    share = 100 * net / rss
    assert ran(capsys, "--fail-under", f"{share - 0.01:.4f}%")[0] == 0
    code, _, err = ran(capsys, "--fail-under", f"{share + 0.01:.4f} %")
    assert code == 1
    assert "of the RSS, --fail-under wants" in err


def test_two_samples_of_one_memory_are_calm(capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(capsys, "-c", CORE, "--fail-over-volatile", "0")[0] == 0


def test_incomplete_comes_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an answer that is too incomplete no gate passes or fails: exit 4, not 0 or 1."""

    def incomplete(*_: object) -> None:
        raise IncompleteError("50 % of the pages could not be read")

    monkeypatch.setattr(cli, "_check_complete", incomplete)
    for limit in ("0", "1T"):
        code, _, err = ran(capsys, "--fail-under", limit)
        assert code == 4
        assert "gate failed" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["--fail-under", "much"],
        ["--fail-under", "101%"],
        ["--fail-under", "nan%"],
        ["--fail-under", "-5M"],
        ["--fail-over-volatile", "101"],
        ["--fail-over-volatile", "5"],  # one sample
    ],
)
def test_limits_that_make_no_sense(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, err = ran(capsys, *words)
    assert (code, out) == (2, "")
    assert words[0] in err


def test_verify_has_no_gate(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["-c", CORE, "--verify", "--fail-under", "1"]) == 2
    assert "--fail-under cannot be used with --verify" in capsys.readouterr().err
