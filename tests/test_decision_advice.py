"""Verdict, reasons and next steps: words, and where they come from."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksm_eval.assemble import _savings
from ksm_eval.decision import why_not
from ksm_eval.decision.cost import by_advisor, cost
from ksm_eval.decision.next_steps import next_steps
from ksm_eval.decision.units import Unit, unit_of
from ksm_eval.decision.verdict import verdict
from ksm_eval.decision.what_if import what_if
from ksm_eval.decision.why_not import reasons
from ksm_eval.replay.converged import predict
from ksm_eval.replay.rules import Settings
from ksm_eval.report.decision import Cost, Madvise, Step, Verdict
from ksm_eval.report.model import Stillness
from ksm_eval.report.words import duration
from ksm_eval.snapshot import Entry, FrameFlag, MappingFlag, Snapshot
from ksm_eval.target import vma_rules
from tests import fixtures
from tests.snapshots import KERNEL_6_1, KERNEL_6_12, Builder
from tests.test_decision_cost import large

AT = Settings()


def judged(snapshot: Snapshot, **more: Any) -> Verdict:
    prediction = predict(snapshot, AT)
    return verdict(snapshot, prediction, _savings(snapshot, prediction), **more)


def built(*processes: list[str], outside: int = 0) -> Snapshot:
    builder = Builder()
    for contents in processes:
        builder.process(*[builder.frame(name, outside=outside) for name in contents])
    return builder.build()


def with_processes(snapshot: Snapshot, **columns: Any) -> Snapshot:
    return replace(snapshot, processes=replace(snapshot.processes, **columns))


# ---- verdict ----


def test_worth() -> None:
    same = ["a"] * 100
    assert judged(built(same, same)).worth == "yes"
    assert judged(built(["a", "b"])).worth == "nothing"
    # One frame of 4096 bytes for the records of 101 pages (64 bytes each).
    assert judged(built([*[f"own{i}" for i in range(99)], "a", "a"])).worth == "no"
    # 34 frames less 2035 records are 9,000 bytes, of 8 million.
    assert judged(built([f"own{i}" for i in range(2000)] + ["a"] * 35)).worth == "little"


def test_figures() -> None:
    """100 and 100 equal pages: 199 of 200 frames, less 200 items, one node and two mm_slots."""
    snapshot = built(["a"] * 100, ["a"] * 100)
    snapshot = replace(snapshot, meta=replace(snapshot.meta, total_ram_pages=1000))
    found = judged(snapshot)
    assert found.frames_freed == 199
    assert found.net_bytes == 199 * 4096 - 200 * 64 - 64 - 2 * 48
    assert found.share_of_ram == pytest.approx(found.net_bytes / 4_096_000)
    assert found.share_of_rss is None
    assert found.general_profit == 199 * 4096 - 200 * 64
    assert found.profit_explained == ""
    assert found.sentence.startswith("KSM pays here. KSM would free at most 199 page frames")


def test_share_of_rss() -> None:
    snapshot = with_processes(built(["a"] * 10, ["a"] * 10), rss_pages=np.array([30, 10]))
    found = judged(snapshot)
    assert found.share_of_rss == pytest.approx(found.net_bytes / (40 * 4096))
    share = 100 * found.net_bytes / (20 * 4096)
    assert f"{share:.1f} % of the memory that it scans" in found.sentence


def test_fork_shared_mappings_explain_the_profit() -> None:
    """Four processes map one frame since fork, a fifth has its equal: profit counts 4 pages, one
    frame is freed."""
    builder = Builder()
    shared = [builder.frame(f"p{i}") for i in range(100)]
    for _ in range(4):
        builder.process(*shared)
    builder.process(*[builder.frame(f"p{i}") for i in range(100)])
    found = judged(builder.build())
    assert found.frames_freed == 100
    assert found.general_profit == 400 * 4096 - 500 * 64
    assert "300 merged mappings beyond the first of a frame shared since fork" in (
        found.profit_explained
    )


def test_frames_of_others_explain_the_profit() -> None:
    found = judged(built(["a"] * 50, ["a"] * 50, outside=1))
    assert found.frames_freed == 0
    assert "outside of the selection maps" in found.profit_explained


def test_caveats() -> None:
    assert judged(built(["a"])).caveats[0].startswith("one sample")
    builder = Builder()
    builder.process(builder.frame("a", FrameFlag.UNREADABLE), builder.frame("a", FrameFlag.KSM))
    snapshot = builder.build()
    meta = replace(snapshot.meta, lost=["pid 7 (x): gone"], kind="procfs", rules=KERNEL_6_1)
    text = " ".join(judged(replace(snapshot, meta=meta)).caveats)
    for words in ("50.0 %", "nothing could be read of 1 process", "ksmd has run", "pinned",
                  "no PR_SET_MEMORY_MERGE"):  # fmt: skip
        assert words in text


def test_with_samples_the_calm_pages_decide() -> None:
    calm = Stillness(
        samples=3, seconds=4.0, scan_seconds=20.0, mappings=200, calm=2, new=0, unread=0,
        changed=198, fork_shared=0, counters={}, frames_freed=1, bytes_freed=4096,
        net_bytes=-10_000, cow_breaks_per_second=None,
    )  # fmt: skip
    found = judged(built(["a"] * 100, ["a"] * 100), calm=calm)
    assert found.worth == "no"
    assert "stood still" in found.sentence
    assert any("less than the 20 s of a full scan" in caveat for caveat in found.caveats)


# ---- why not ----


def test_every_reason_has_advice() -> None:
    emitted = {reason for _, reason in vma_rules._EXCLUDED} | {"DAX", vma_rules.NOT_MERGEABLE}
    assert emitted == {
        vma_rules.ineligible(bits, dax=dax, mergeable_only=only)
        for bits in (1 << n for n in range(64))
        for dax in (True, False)
        for only in (True, False)
    } - {""}
    assert set(why_not._ENTRIES) == set(Entry) - {Entry.CANDIDATE}
    emitted |= set(why_not._ENTRIES.values())
    snapshot = built(["a"])
    old = replace(snapshot, meta=replace(snapshot.meta, rules=KERNEL_6_1))
    emitted |= set(why_not._pages(old))
    assert emitted == set(why_not.ADVICE)
    assert all(len(text) > 20 for text in why_not.ADVICE.values())


def test_reasons_of_pages() -> None:
    builder = Builder()
    builder.process(
        builder.frame("a", FrameFlag.PINNED),
        builder.frame("b"),
        *builder.thp(["c"] * 4, pinned=True),
    )
    builder.process(builder.frame("d", FrameFlag.UNREADABLE))
    snapshot = builder.build()
    snapshot.vmas.entries[0, Entry.SWAP] = 7
    snapshot.vmas.entries[1, Entry.SWAP] = 2
    snapshot.vmas.entries[1, Entry.FILE] = 1
    found = {reason.reason: (reason.vmas, reason.bytes // 4096) for reason in reasons(snapshot)}
    assert found == {
        "swapped out": (2, 9),
        "pinned THP": (1, 4),
        "pinned": (1, 1),
        "could not be read": (1, 1),
        "page of a file": (1, 1),
    }
    sizes = [reason.bytes for reason in reasons(snapshot)]
    assert sizes == sorted(sizes, reverse=True)


def test_reasons_of_vmas_are_those_of_the_report() -> None:
    snapshot = fixtures.snapshot(fixtures.TINY)
    found = {reason.reason: reason for reason in reasons(snapshot)}
    size: dict[str, int] = {}
    for reason, start, end in zip(
        snapshot.vmas.reason, snapshot.vmas.start.tolist(), snapshot.vmas.end.tolist(), strict=True
    ):
        if reason:
            size[reason] = size.get(reason, 0) + end - start
    assert size
    assert {name: found[name].bytes for name in size} == size


def test_prot_none_only_where_it_blocks() -> None:
    for rules, names in ((KERNEL_6_1, ["PROT_NONE"]), (KERNEL_6_12, [])):
        builder = Builder(rules=rules, rank={"a": 0})
        builder.process(builder.frame("a"), flags=MappingFlag.PROT_NONE)
        assert [reason.reason for reason in reasons(builder.build())] == names


# ---- units ----


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/nginx.service", Unit("nginx.service", False)),
        ("/system.slice/php@8.2.service/worker", Unit("php@8.2.service", False)),
        ("/system.slice/docker-0123abcd.scope", Unit("docker-0123abcd.scope", False)),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x\\x2dy.service",
            Unit("app-x\\x2dy.service", True),
        ),
        ("/user.slice/user-0.slice/session-3.scope", Unit("session-3.scope", False)),
        ("/", None),
        ("", None),
        ("/kubepods/burstable/pod1", None),
        ("/system.slice/a;reboot.service", None),
        ("/system.slice/$(reboot).service", None),
        ("/system.slice/-rf.service", None),
        ("/system.slice/....service", None),
        ("/system.slice/a\nb.service", None),
        # Units of a container's systemd are not the host's.
        ("/docker/abc/system.slice/dbus.service", None),
        ("/lxc.payload.c1/system.slice/sshd.service", None),
        ("/../../system.slice/foo.service", None),
        ("/system.slice/../system.slice/foo.service", None),
        ("system.slice/foo.service", None),
        (
            "/kubepods.slice/kubepods-pod1.slice/cri-1.scope/system.slice/a.service",
            Unit("cri-1.scope", False),
        ),
        (
            "/machine.slice/systemd-nspawn@c1.service/payload/system.slice/nginx.service",
            Unit("systemd-nspawn@c1.service", False),
        ),
        (
            "/system.slice/docker-0123.scope/system.slice/sshd.service",
            Unit("docker-0123.scope", False),
        ),
        (
            "/user.slice/user-1.slice/user@1.service/user.slice/libpod-1.scope/system.slice/"
            "user@2.service/app.slice/b.service",
            Unit("libpod-1.scope", True),
        ),
        (
            "/user.slice/user-1.slice/user@1.service/x/app.slice/b.service",
            Unit("user@1.service", False),
        ),
    ],
)
def test_unit_of_a_cgroup(cgroup: str, unit: Unit | None) -> None:
    assert unit_of(cgroup) == unit


def test_units_that_are_not_to_be_restarted() -> None:
    for name in ("dbus", "systemd-journald", "systemd-nspawn@c1", "user@1000", "getty@tty1", "gdm"):
        assert Unit(f"{name}.service", False).is_vital
    for name in ("nginx", "mydbus", "dbusx", "postgresql@16-main"):
        assert not Unit(f"{name}.service", False).is_vital


def test_templates() -> None:
    assert Unit("php@8.2.service", False).template == "php@.service"
    assert Unit("nginx.service", False).template == "nginx.service"


# ---- next steps ----


def steps(snapshot: Snapshot, madvise: tuple[Madvise, ...] = (), **more: Any) -> dict[str, Step]:
    prediction = predict(snapshot, AT)
    price = cost(snapshot, AT, prediction, **more)
    table = what_if(snapshot, AT, prediction)
    found = next_steps(
        snapshot, AT, price, madvise, judged(snapshot), what_if=table, why_not=reasons(snapshot)
    )
    return {step.title: step for step in found}


def paying(cgroup: str = "", comm: str = "test", rules: Any = KERNEL_6_12) -> Snapshot:
    builder = Builder(rules=rules)
    for _ in range(2):
        builder.process(*[builder.frame("a") for _ in range(300)])
    return with_processes(builder.build(), cgroup=[cgroup] * 2, comm=[comm] * 2)


def test_drop_in() -> None:
    found = steps(paying("/system.slice/nginx.service"))
    step = found["Let systemd opt nginx.service in"]
    assert step.commands == (
        "sudo mkdir -p /etc/systemd/system/nginx.service.d",
        "printf '[Service]\\nMemoryKSM=yes\\n' | "
        "sudo tee /etc/systemd/system/nginx.service.d/ksm.conf",
        "sudo systemctl daemon-reload",
    )
    assert "at its next restart" in step.why
    assert not any("prctl" in title for title in found)


def test_drop_in_writes_what_systemd_reads(tmp_path: Any) -> None:
    """The line itself, in a shell, without sudo and under another root."""
    step = steps(paying("/system.slice/a\\x2db@1.service"))["Let systemd opt a\\x2db@1.service in"]
    for command in step.commands[:2]:
        here = command.replace("sudo ", "").replace("/etc/", f"{tmp_path}/")
        subprocess.run(["sh", "-c", here], check=True, stdout=subprocess.DEVNULL)
    written = tmp_path / "systemd/system/a\\x2db@.service.d/ksm.conf"
    assert written.read_text() == "[Service]\nMemoryKSM=yes\n"


def test_who_has_opted_in_already_is_left_alone() -> None:
    snapshot = paying("/system.slice/nginx.service")
    left = ["Switch ksmd on", "Look whether it came true"]
    assert list(steps(with_processes(snapshot, merge_any=np.ones(2, np.bool_)))) == left
    assert list(steps(offering(snapshot, 0, 1))) == left


def offering(snapshot: Snapshot, *vmas: int) -> Snapshot:
    """As if madvise(MADV_MERGEABLE) had been called for these."""
    flags = snapshot.vmas.flags.copy()
    flags[list(vmas)] |= np.uint64(0x80000000)
    return replace(snapshot, vmas=replace(snapshot.vmas, flags=flags))


def test_one_range_is_not_all_memory() -> None:
    """Registered by a single madvise(): the rest is still to be offered."""
    builder = Builder()
    for _ in range(2):
        builder.process(*[builder.frame("a") for _ in range(300)])
        builder.vma(*[builder.frame("b") for _ in range(9)])
    snapshot = with_processes(
        builder.build(),
        cgroup=["/system.slice/nginx.service"] * 2,
        registered=np.ones(2, np.bool_),
        merge_any=np.zeros(2, np.bool_),
    )
    assert "Let systemd opt nginx.service in" in steps(offering(snapshot, 1, 3))
    assert "Let systemd opt nginx.service in" not in steps(offering(snapshot, 0, 1, 2, 3))
    # Guest memory is all that QEMU ever offers.
    guests = with_processes(snapshot, comm=["qemu-system-x86"] * 2)
    assert next(iter(steps(offering(guests, 1, 3)))) == "Switch ksmd on"


def with_gains(gains: dict[str, int], comm: str = "test") -> dict[str, Step]:
    """Processes by cgroup, which gain so many bytes each."""
    builder = Builder(rules=KERNEL_6_12)
    for _ in gains:
        builder.process(*[builder.frame("a") for _ in range(300)])
    snapshot = with_processes(builder.build(), cgroup=list(gains), comm=[comm] * len(gains))
    prediction = predict(snapshot, AT)
    found = next_steps(
        snapshot, AT, cost(snapshot, AT, prediction), (), judged(snapshot),
        gains=np.array(list(gains.values()), float),
    )  # fmt: skip
    return {step.title: step for step in found}


def test_services_that_gain_most_come_first() -> None:
    found = with_gains(
        {f"/system.slice/{name}.service": gain for name, gain in (
            ("small", 10), ("c", 200), ("loses", -50), ("a", 400), ("d", 150), ("b", 300),
        )}
    )  # fmt: skip
    assert list(found)[:4] == [
        "Let systemd opt a.service in",
        "Let systemd opt b.service in",
        "Let systemd opt c.service in",
        "The same for the other services",  # 900 of 1060 are less than 90 %
    ]
    assert found["The same for the other services"].why == "d.service"
    assert "cat /proc/103/ksm_stat" in found["Look whether it came true"].commands


def test_processes_of_no_service_count_together() -> None:
    found = with_gains({"/": 300, "/system.slice/a.service": 400, "/docker/x": 350})
    assert list(found)[:2] == [
        "Opt in by prctl what no service starts",
        "Let systemd opt a.service in",
    ]
    assert "pid 102, 100 gain most" in found["Opt in by prctl what no service starts"].why
    rare = with_gains({"/": 5, "/system.slice/a.service": 400})
    assert not any("prctl" in title for title in rare)


def test_no_restart_is_typed() -> None:
    for name in ("dbus", "nginx", "systemd-journald", "php@1"):
        found = steps(paying(f"/system.slice/{name}.service"))
        assert not any("restart" in line for step in found.values() for line in step.commands)
        why = found[f"Let systemd opt {name}.service in"].why
        assert ("do not restart" in why) == (name in ("dbus", "systemd-journald"))
        assert ("every instance of php@.service" in why) == (name == "php@1")


def test_where_ksmd_has_merged() -> None:
    builder = Builder()
    builder.process(builder.frame("a", FrameFlag.KSM), builder.frame("b"))
    snapshot = builder.build()
    assert judged(snapshot).sentence.startswith("Beyond what is merged already: KSM would free")
    assert "Otherwise leave KSM as it is" in steps(snapshot)


def test_user_units_scopes_and_no_unit() -> None:
    user = steps(paying("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service"))
    commands = user["Let systemd opt x.service in"].commands
    assert commands[0] == "sudo mkdir -p /etc/systemd/user/x.service.d"
    assert commands[-1] == "systemctl --user daemon-reload"
    for cgroup in ("/system.slice/docker-1.scope", "", "/system.slice/$(x).service"):
        found = steps(paying(cgroup))
        assert "Opt in by prctl what no service starts" in found
        assert not any("systemd" in title for title in found)


def test_the_prctl_line_works() -> None:
    """PR_GET_MEMORY_MERGE is 68: what it starts has it."""
    (line,) = steps(paying())["Opt in by prctl what no service starts"].commands
    asks = "import ctypes; print(ctypes.CDLL(None).prctl(68, 0, 0, 0, 0))"
    words = [*shlex.split(line)[:-2], "python3", "-c", asks]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "prctl failed" in done.stderr:
        pytest.skip("this kernel has no PR_SET_MEMORY_MERGE, or it is not permitted")
    assert done.stdout == "1\n", done


def test_madvise_before_the_prctl() -> None:
    row = Madvise(42, "$(reboot)", 0x7F0000000000, 0x7F0000200000, "\x1b[31m", 512, 2 << 20, 0.93)
    step = steps(paying(rules=KERNEL_6_1), (row,))["Offer the memory that pays"]
    assert step.commands == (
        "madvise(0x7f0000000000, 0x200000, MADV_MERGEABLE); // pid 42, 2.0 MiB",
    )
    assert "93 %" in step.why
    assert "6.4" in step.why


def test_qemu() -> None:
    found = steps(paying(comm="qemu-system-x86"))
    step = next(iter(found.values()))
    assert step.commands == ()
    assert "mem-merge=on" in step.why
    assert not any("prctl" in title for title in found)
    for comm in ("qemu-kvm", "kvm"):
        assert next(iter(steps(paying(comm=comm)))) == step.title
    for comm in ("kvm-nx-lpage-re", "kvmtool", "qemu-systemd", "qemu-ga"):
        assert step.title not in steps(paying(comm=comm))


def test_sysfs() -> None:
    on = steps(paying(), target_scan_time=0.1)["Switch ksmd on"].commands
    assert on[0] == "echo none | sudo tee /sys/kernel/mm/ksm/advisor_mode"  # or it is refused
    assert on[1].startswith("echo ")
    assert on[1].endswith("/pages_to_scan")
    assert on[-1] == "echo 1 | sudo tee /sys/kernel/mm/ksm/run"
    by_itself = steps(paying())["Switch ksmd on"].commands
    assert by_itself == ("echo 1 | sudo tee /sys/kernel/mm/ksm/run",)  # a scan takes 0.2 s
    old = steps(paying(rules=KERNEL_6_1), target_scan_time=0.1)["Switch ksmd on"].commands
    assert not any("advisor" in command for command in old)
    # 600 equal pages under a cap of 256 take three frames, under 1024 one: less than 1 % more.
    assert not any("max_page_sharing" in command for command in by_itself)


def test_a_target_time_that_is_met_already() -> None:
    step = steps(paying(), target_scan_time=60)["Switch ksmd on"]
    assert step.commands == ("echo 1 | sudo tee /sys/kernel/mm/ksm/run",)
    assert "as fast as was asked for or faster" in step.why
    far = steps(paying(), target_scan_time=0.001)["Switch ksmd on"]
    assert "cannot be reached" in far.why


def running(snapshot: Snapshot, run: int) -> Snapshot:
    return replace(snapshot, meta=replace(snapshot.meta, counters={"run": run}))


def test_ksmd_that_runs_is_not_switched_on() -> None:
    found = steps(running(paying(), 1))
    assert found["Leave ksmd as it is set: it runs"].commands == ()
    step = steps(running(paying(), 1), target_scan_time=0.1)["Set ksmd's pace"]
    assert not any(command.endswith("/run") for command in step.commands)
    for run in (0, 2):
        assert steps(running(paying(), run))["Switch ksmd on"].commands[-1].endswith("/run")


def priced(snapshot: Snapshot, pages: int, at: Settings = AT) -> tuple[Cost, dict[str, Step]]:
    """As if ksmd had so many pages to visit, half of which merge."""
    prediction = predict(snapshot, at)
    times = pages // len(snapshot.mappings)
    price = cost(large(snapshot, times), at, prediction, hz=250)
    return price, {
        step.title: step for step in next_steps(snapshot, at, price, (), judged(snapshot))
    }


def test_the_advisor_only_where_it_costs_no_more() -> None:
    """Small memory under long sleeps: it goes up to its 30,000 pages, for nothing."""
    at = Settings(smart_scan=False)
    little, found = priced(paying(), 600)
    assert little.advisor_row is not None
    assert little.advisor_row.cpu_percent > 2 * little.rows[0].cpu_percent
    assert not any("advisor" in line for line in found["Switch ksmd on"].commands)
    much, found = priced(paying(), 20_000_000, at)
    assert much.advisor_row is not None
    assert "echo scan-time | sudo tee /sys/kernel/mm/ksm/advisor_mode" in (
        found["Switch ksmd on"].commands
    )
    told = found["Look whether it came true"].why
    assert "at what the advisor sets" in told
    assert duration(much.advisor_seconds_to["99"]) in told
    dear = replace(much, advisor_row=replace(much.advisor_row, cpu_percent=99.0))
    assert by_advisor(dear) is None
    assert by_advisor(replace(much, advisor_row=None)) is None


def test_settings_that_gain() -> None:
    snapshot = paying()
    table = what_if(snapshot, AT, predict(snapshot, AT))
    better = [
        replace(row, difference=table[0].net_bytes) if row.name == "use_zero_pages=1" else row
        for row in table
    ]
    price = cost(snapshot, AT, predict(snapshot, AT))
    found = next_steps(snapshot, AT, price, (), judged(snapshot), what_if=better)
    commands = [command for step in found for command in step.commands]
    assert "echo 1 | sudo tee /sys/kernel/mm/ksm/use_zero_pages" in commands


def test_how_to_check() -> None:
    step = steps(paying())["Look whether it came true"]
    assert step.commands[0] == "grep . /sys/kernel/mm/ksm/*"
    assert "general_profit is to be" in step.why
    assert "cat /proc/100/ksm_stat" in step.commands
    assert "99 % should be there after 2 full scans" in step.why
    assert "sudo ksm-eval --verify" in step.commands
    proc = paying()
    proc = replace(proc, meta=replace(proc.meta, kind="procfs"))
    assert not any("--verify" in c for c in steps(proc)["Look whether it came true"].commands)
    old = steps(paying(rules=KERNEL_6_1))["Look whether it came true"]
    assert "general_profit" not in old.why
    assert not any("ksm_stat" in command for command in old.commands)


def test_where_it_does_not_pay() -> None:
    snapshot = built([f"own{i}" for i in range(50)])
    snapshot.vmas.entries[0, Entry.SWAP] = 500
    found = steps(snapshot)
    assert "Otherwise leave KSM off" in found
    assert "Not eligible: swapped out (2.0 MiB)" in found
    assert not any("Switch" in title for title in found)
    snapshot.vmas.entries[0, Entry.POISON] = 600
    assert not any("poisoned" in title for title in steps(snapshot))
    builder = Builder()
    builder.process(*[builder.frame(f"own{i}") for i in range(1000)])
    rare = builder.build()
    rare.vmas.entries[0, Entry.SWAP] = 9
    assert not any("Not eligible" in title for title in steps(rare))
    lost = replace(snapshot, meta=replace(snapshot.meta, unreadable={"filtered": 9}))
    assert any("makedumpfile -d 17" in c for step in steps(lost).values() for c in step.commands)


@given(st.text(), st.text())
def test_nothing_of_the_target_reaches_a_shell(cgroup: str, comm: str) -> None:
    """Whatever a process calls itself: commands split into words, none of which is its own."""
    hostile = paying(f"/system.slice/{cgroup}.service", f"qemu{comm}")
    for step in steps(hostile).values():
        for command in step.commands:
            if command.startswith("madvise"):
                continue
            assert command.isprintable()
            for part in command.split(" | "):
                words = shlex.split(part)
                assert words
                assert shlex.join(words) == part or words[0] in ("python3", "printf", "grep")
