"""ksm-eval in a guest: both ways alike, nothing disturbed, races, rights, pid namespaces."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.slow
VIAS = ("kcore", "proc")


@pytest.fixture(scope="module")
def inside(live: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = live["inside"]
    assert found["codes"] == [0] * len(found["codes"])
    return found


# ---- the same snapshot ----


def test_both_ways_give_the_same_snapshot(inside: dict[str, Any]) -> None:
    """Every row of every table; what /proc cannot tell is listed in in_guest/compare.py."""
    compared = inside["compare"]
    assert compared["differences"] == []
    assert compared["rows"]["mappings"] > 5000
    seen = compared["seen"]
    for kind in ("HUGE", "PROT_NONE", "ZERO", "SWAPCACHE", "shared", "compounds", "swapped"):
        assert seen[kind] > 0, kind
    assert {"", "shared mapping", "VM_DROPPABLE", "VM_DONTEXPAND"} <= set(seen["reasons"])
    # The exceptions are real: kcore sees what /proc has no file for.
    for kind, count in compared["hidden"].items():
        assert count > 0, kind


# ---- nothing is disturbed ----


@pytest.mark.parametrize("after", ["kcore", "proc", "setpriv", "qemu", "parts"])
def test_nothing_is_disturbed(inside: dict[str, Any], after: str) -> None:
    """Of each process: RSS, swap, huge pages, faults. Of the system: anonymous pages, also huge
    ones, pages swapped in, THPs split. The evaluation has ended when that is read; huge pages of
    its own memory that it gave back in parts are in thp_split_pmd."""
    before = inside["usage"]["first"]
    own = "0 thp_split_pmd"
    assert inside["usage"][after] | {own: ""} == before | {own: ""}

    def total(name: str) -> int:
        return sum(int(value) for key, value in before.items() if key.endswith(f" {name}"))

    processes = {key.split()[0] for key in before} - {"0"}
    assert processes == {str(pid) for pid in inside["truth"]["pids"].values()}
    for name in ("VmRSS", "VmSwap", "Swap", "AnonHugePages", "minflt", "nr_anon_pages", "pswpin"):
        assert total(name) > 0, name
    for name in ("nr_anon_transparent_hugepages", "thp_split_page", "thp_split_pmd"):
        assert f"0 {name}" in before


# ---- races ----


@pytest.mark.parametrize("via", VIAS)
def test_what_comes_and_goes(inside: dict[str, Any], via: str) -> None:
    """Forks, threads, VMAs: no page is another's, and what was lost is counted."""
    found = inside["races"][via]
    for one in [*found["all"], found["named"]]:
        assert "error" not in one, one
        assert one["wrong"] == 0, one["examples"]
        assert one["right"] > 0
        # On a slow machine the list of a process that maps and unmaps all the time may change in
        # every one of the tries: then it is named.
        assert all(line.endswith(" (vmas): its VMAs cannot be read") for line in one["lost"])
    named = found["named"]
    assert named["processes"] + len(named["lost"]) == 2
    assert named["comms"] == ["threads", "vmas"][: named["processes"]]
    everything = found["all"]
    assert all("storm" in one["comms"] for one in everything)
    assert any(one["gone"] or one["unreadable"] or one["reasons"] for one in everything)


@pytest.mark.parametrize("via", VIAS)
def test_a_recycled_pid(inside: dict[str, Any], via: str) -> None:
    """Another process, with the same pid, addresses and size, takes the place of one."""
    found = {key: one for key, one in inside["recycled"].items() if key.startswith(via)}
    assert len(found) == 4
    for key, one in found.items():
        assert one["same"], key
        assert "error" not in one, one
        assert one["wrong"] == 0, one["examples"]
        assert one["right"] == 16, key  # the first of the two processes
    before = found[f"{via}, walking 1, by pid"]
    name = f"pid {before['pid']} (kept)"
    assert before["lost"] == [f"{name}: it ended, or started another program, while it was read"]
    before = found[f"{via}, walking 1, by name"]
    assert (before["lost"], len(before["gone"])) == ([], 1)
    assert f"{before['pid']} (kept)" in before["gone"][0]
    for step in ("walking 2", "reading 1"):
        one = found[f"{via}, {step}, by pid"]
        assert one["reasons"]["went away while it was read"] > 16, step
        assert one["share"] > 0.01, step


# ---- rights ----

REFUSED = {
    "user": ("/proc/kpageflags cannot be read", "uid 65534 without CAP_SYS_ADMIN, CAP_SYS_PTRACE"),
    "user kcore": ("/proc/kcore cannot be read", "without CAP_SYS_RAWIO and CAP_DAC_READ_SEARCH"),
    "user proc": ("/proc/kpageflags cannot be read", "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"),
    "user proc no dac": ("/proc/kpageflags cannot be read", "without CAP_DAC_READ_SEARCH"),
    "no ptrace": ("none of the selected processes can be read", "CAP_SYS_PTRACE"),
    "no admin": ("page frame numbers are hidden", "as root without CAP_SYS_ADMIN"),
    "no rawio": ("/proc/kcore cannot be read", "as root without CAP_SYS_RAWIO"),
    "user namespace": ("page frame numbers are hidden", "runs in a user namespace"),
    "user namespace kcore": ("/proc/kcore cannot be read", "runs in a user namespace"),
    "docker": ("page frame numbers are hidden", "without CAP_SYS_ADMIN and CAP_SYS_PTRACE"),
}
ENOUGH = {  # and how the memory was read
    "docker least": "procfs",
    "user kcore least": "kernel",
    "user proc least": "procfs",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing(inside: dict[str, Any], case: str) -> None:
    """One line that says it, and one with the command that works; nothing else."""
    one = inside["rights"][case]
    assert (one["code"], one["silent"]) == (3, True), one
    message, hint = one["error"].splitlines()
    assert message.startswith("ksm-eval: error: ")
    for part in REFUSED[case]:
        assert part in message
    assert hint.startswith("ksm-eval: hint: ")
    assert "sudo ksm-eval …" in hint
    if case.startswith("docker"):
        assert "--pid=host --cap-add SYS_ADMIN --cap-add SYS_PTRACE" in hint
    if case in ("no admin", "no rawio"):
        assert f"use --via {'kcore' if case == 'no admin' else 'proc'}" in hint


@pytest.mark.parametrize("case", ENOUGH)
def test_what_is_enough(inside: dict[str, Any], case: str) -> None:
    one = inside["rights"][case]
    assert (one["code"], one["error"], one["kind"]) == (0, "", ENOUGH[case]), one
    assert one["processes"] == [[inside["rights"]["pid"], "kept"]]
    assert (one["lost"], one["unreadable"]) == ([], 0)
    assert one["mappings"] > 500


def test_lockdown(inside: dict[str, Any]) -> None:
    found = inside["lockdown"]
    assert "[confidentiality]" in found["level"]
    kcore, auto = found["kcore"], found["auto"]
    assert (kcore["code"], kcore["silent"]) == (3, True)
    message, hint = kcore["error"].splitlines()
    assert "locked down (confidentiality), which closes /proc/kcore" in message
    assert hint == "ksm-eval: hint: use --via proc"
    assert (auto["code"], auto["error"], auto["kind"]) == (0, "", "procfs")
    (why,) = (note for note in auto["notes"] if "was read through /proc" in note)
    assert "locked down (confidentiality)" in why


# ---- pid namespaces ----


@pytest.mark.parametrize("via", VIAS)
def test_pids_in_a_namespace(inside: dict[str, Any], via: str) -> None:
    """Inside, by the numbers of the namespace, which has nothing else; outside, by the others."""
    found = inside["namespaces"]
    pid = found["pid"]
    assert pid < 10 < found["outer"]
    alone = found[f"{via} pid"]
    assert (alone["code"], alone["error"]) == (0, "")
    assert alone["processes"] == [[pid, "kept"]]
    # What is called python is ksm-eval itself.
    assert found[f"{via} all"]["processes"] == [[1, "keeper"], [pid, "kept"]]
    assert "ksm-eval's own process is left out" in found[f"{via} all"]["notes"]
    beyond = found[f"{via} beyond"]
    assert (beyond["code"], beyond["silent"]) == (2, True)
    assert f"pid {found['outside']} does not exist" in beyond["error"]
    outside = found[f"{via} from outside"]
    assert outside["code"] == 0
    assert sorted(outside["processes"]) == [
        [n, "kept"] for n in sorted((found["outside"], found["outer"]))
    ]


def test_as_docker_confines(inside: dict[str, Any]) -> None:
    """A pid namespace, /proc/kcore masked, Docker's capabilities and the two that are needed."""
    one, pid = inside["namespaces"]["docker"], inside["namespaces"]["pid"]
    assert (one["code"], one["kind"], one["processes"]) == (0, "procfs", [[pid, "kept"]])
