"""A running guest read from outside, against its real ksmd; and what goes wrong with QMP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ksm_eval.cli import run
from ksm_eval.errors import UsageError
from ksm_eval.target import Selection, pid_ns
from ksm_eval.target.program import open_core
from ksm_eval.target.tasks import select_processes
from tests.fixtures import TINY, opted_in, vmcore

SETTLED = (
    *("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile"),
    *("stable_node_chains", "stable_node_dups", "ksm_zero_pages", "general_profit"),
)


@pytest.fixture(scope="module")
def seen(live: dict[str, Any]) -> dict[str, Any]:
    return live


def _settled(report: dict[str, Any]) -> dict[str, int]:
    return {name: report["system"][name] for name in SETTLED}


def _by_pid(report: dict[str, Any]) -> dict[int, tuple[int, int, int, int]]:
    return {
        row["pid"]: (
            *(row["ksm_rmap_items"], row["ksm_merging_pages"]),
            *(row["ksm_zero_pages"], row["ksm_process_profit"]),
        )
        for row in report["processes"]
    }


@pytest.mark.slow
def test_every_counter_is_that_of_the_guests_ksmd(seen: dict[str, Any]) -> None:
    assert seen["outside"]["code"] == 0, seen["outside"]["error"]
    report, last = seen["outside"]["report"], seen["truth"]["passes"][-1]
    assert _settled(report) == {name: last["ksm"][name] for name in SETTLED}
    assert report["system"]["pages_sharing"] > 1000
    mine = _by_pid(report)
    for number, pid in seen["truth"]["pids"].items():
        real = last["processes"][number]
        assert mine[pid][:2] == (real["ksm_rmap_items"], real["ksm_merging_pages"])
        assert mine[pid][2:] == (real["ksm_zero_pages"], real["ksm_process_profit"])
    for predicted, real in zip(report["timeline"], seen["truth"]["passes"], strict=False):
        assert predicted["pages_sharing"] == real["ksm"]["pages_sharing"]
    assert len(report["timeline"]) == 3


@pytest.mark.slow
def test_the_running_guest_and_its_dump_are_alike(seen: dict[str, Any]) -> None:
    live, dump = seen["outside"]["report"], seen["dump"]["report"]
    assert (live["target"]["kind"], dump["target"]["kind"]) == ("qemu", "vmcore")
    assert live["debug_info"].startswith("BTF")
    for part in ("system", "savings", "settings", "completeness", "timeline", "entries"):
        assert live[part] == dump[part], part
    assert _by_pid(live) == _by_pid(dump)
    assert live["completeness"]["mappings_unreadable"] == 0


@pytest.mark.slow
def test_settled_stays_settled(seen: dict[str, Any]) -> None:
    """The same guest after ksmd's passes, with ksmd's own records read while it runs."""
    assert _settled(seen["warm"]["report"]) == _settled(seen["outside"]["report"])
    assert seen["warm"]["report"]["savings"]["frames_merged_now"] > 0


@pytest.mark.slow
def test_the_guest_is_stopped_for_vmcoreinfo_only(seen: dict[str, Any]) -> None:
    assert seen["events"] == ["STOP", "DUMP_COMPLETED", "RESUME"]  # see open_qemu()
    assert seen["events_with_vmcoreinfo"] == []
    assert _settled(seen["with_vmcoreinfo"]["report"]) == _settled(seen["outside"]["report"])


@pytest.mark.slow
@pytest.mark.parametrize("via", ["kcore", "proc", "qemu"])
def test_in_the_guest(seen: dict[str, Any], via: str) -> None:
    """By /proc/kcore with kptr_restrict=2, by /proc, and from outside: all as ksmd counts."""
    one, last = seen["inside"][via], seen["inside"]["truth"]["passes"][-1]
    assert one["code"] == 0, one["error"]
    assert one["report"]["target"]["kind"] == {"kcore": "kernel", "proc": "procfs"}.get(via, via)
    assert _settled(one["report"]) == {name: last["ksm"][name] for name in SETTLED}
    assert one["report"]["completeness"] == seen["inside"]["qemu"]["report"]["completeness"]


@pytest.mark.slow
def test_pages_in_a_batch_are_not_pinned(seen: dict[str, Any]) -> None:
    """/proc/PID/mem leaves references in per-CPU batches, which ksmd empties (6.1)."""
    report, last = seen["peeked"]["report"], seen["peeked"]["truth"]["passes"][-1]
    names = [name for name in SETTLED if name in last["ksm"]]
    assert {name: report["system"][name] for name in names} == {n: last["ksm"][n] for n in names}


@pytest.mark.slow
def test_processes_that_come_and_go(seen: dict[str, Any]) -> None:
    """Hundreds of forks and exits a second: each run has an answer, and names who left."""
    assert len(seen["storm"]) >= 5
    for one in seen["storm"]:
        assert one["code"] in (0, 4), one["error"]
        assert one["report"]["completeness"]["processes_lost"] == []
        assert len(one["report"]["processes"]) >= 10
    notes = [note for one in seen["storm"] for note in one["report"]["notes"]]
    assert any("ended while they were read and are left out" in note for note in notes)


@pytest.mark.slow
def test_qemu_ends_while_it_is_read(seen: dict[str, Any]) -> None:
    """At each stage: while walking page tables, while reading frames."""
    assert len(seen["killed"]) == 2
    for error in seen["killed"]:
        assert error.startswith("QEMU at "), error
        assert "ended, or closed the connection, while it was read" in error


@pytest.mark.slow
def test_no_vmcoreinfo(seen: dict[str, Any]) -> None:
    assert seen["silent"]["code"] == 3
    assert "has no VMCOREINFO" in seen["silent"]["error"]
    assert "--vmcoreinfo" in seen["silent"]["error"]


# ---- what is wrong before there is any guest ----


def _fails(capsys: pytest.CaptureFixture[str], address: str) -> str:
    assert run(["-q", "--qemu", address, "--all"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 2
    assert err.startswith("ksm-eval: error: ")
    return err


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        yield listening


def test_no_socket(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = _fails(capsys, str(tmp_path / "none"))
    assert "cannot connect" in error
    assert "No such file" in error
    assert "-qmp unix:" in error


def test_qemu_has_ended(capsys: pytest.CaptureFixture[str], listener: socket.socket) -> None:
    path = listener.getsockname()
    listener.close()
    assert "Connection refused" in _fails(capsys, path)


def test_address_with_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        assert "refused" in _fails(capsys, f"127.0.0.1:{taken.getsockname()[1]}")


def test_another_client_has_the_socket(
    capsys: pytest.CaptureFixture[str],
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU lets a second client connect, and says nothing to it."""
    monkeypatch.setattr("ksm_eval.target.live._QMP_TIMEOUT", 0.2)
    listener.listen()
    error = _fails(capsys, listener.getsockname())
    assert "does not answer" in error
    assert "one client at a time" in error


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_no_qmp_socket(
    capsys: pytest.CaptureFixture[str], listener: socket.socket, greeting: bytes
) -> None:
    def greet() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(greeting)

    listener.listen()
    thread = threading.Thread(target=greet)
    thread.start()
    try:
        assert "is no QMP socket" in _fails(capsys, listener.getsockname())
    finally:
        thread.join()


def test_pids_of_a_namespace() -> None:
    """The saved kernel has the initial namespace only: from another nothing is to be seen."""
    prog = open_core(vmcore(TINY)).prog
    pids = tuple(opted_in(TINY))
    initial = prog["init_pid_ns"].ns.inum.value_()
    assert initial == pid_ns.INITIAL
    found = select_processes(prog, Selection(pids=pids), [], namespace=initial)
    assert {process.pid for process in found} <= set(pids)
    assert len(found) > 5  # some share an mm
    with pytest.raises(UsageError, match=f"pid {pids[0]} does not exist"):
        select_processes(prog, Selection(pids=pids), [], namespace=initial - 1)
    with pytest.raises(UsageError, match="no process is called"):
        select_processes(prog, Selection(comms=("*",)), [], namespace=initial - 1)


def test_its_own_process_is_left_out() -> None:
    prog = open_core(vmcore(TINY)).prog
    pids, notes = tuple(opted_in(TINY)), list[str]()
    found = select_processes(prog, Selection(all=True), notes, own=pids[0])
    assert pids[0] not in [process.pid for process in found]
    assert notes == ["ksm-eval's own process is left out"]
    named = Selection(pids=pids[:1])
    assert len(select_processes(prog, named, [], own=pids[0])) == 1


def test_no_kcore(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ksm_eval.target.live.KCORE", Path("/proc/there/is/none"))
    assert run(["-q", "--via", "kcore", "--all"]) == 3
    error = capsys.readouterr().err
    assert "this kernel has no /proc/kcore" in error
    assert "use --via proc" in error


def test_masked_kcore(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Container runtimes put /dev/null there."""
    monkeypatch.setattr("ksm_eval.target.live.KCORE", Path("/dev/null"))
    assert run(["-q", "--via", "kcore", "--all"]) == 3
    assert "/proc/kcore is masked" in capsys.readouterr().err
