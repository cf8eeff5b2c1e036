"""Time and CPU of ksmd, its advisor, and how many scans the saving takes."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st

from ksm_eval.decision import settling as settling_module
from ksm_eval.decision.advisor import AdvisorSettings, State, settle, simulate, step
from ksm_eval.decision.cost import ASSUMED_HZ, cost, seconds_a_page, worth_writing
from ksm_eval.decision.settling import settling
from ksm_eval.replay.converged import predict
from ksm_eval.replay.ksmd import Ksmd
from ksm_eval.replay.passes import visited
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.scan_time import full_scan_seconds, sleep_seconds
from ksm_eval.snapshot import Mappings, Snapshot
from ksm_eval.target.advisor import read_advisor, sysfs_advisor
from ksm_eval.target.ksmd_cpu import ksmd_cpu_seconds, proc_ksmd_cpu_seconds
from tests import fixtures
from tests.savings import simple_savings as savings
from tests.snapshots import KERNEL_6_1, Builder, snapshots


def test_a_sleep_ends_at_a_tick() -> None:
    """20 ms at 250 Hz: msecs_to_jiffies() gives 5, the timer 6 ticks from where ksmd woke, if
    its batch took less than one. tests/test_host_ksmd.py measures it."""
    assert sleep_seconds(20, 0.0, None) == 0.02
    assert sleep_seconds(20, 0.0002, 250) + 0.0002 == pytest.approx(0.024)
    assert sleep_seconds(20, 0.0, 1000) == pytest.approx(0.021)
    assert sleep_seconds(21, 0.0, 100) == pytest.approx(0.04)  # 3 ticks and one
    assert sleep_seconds(20, 1.0, 250) == pytest.approx(0.022)  # half a tick on average
    assert sleep_seconds(0, 0.0, 250) == 0.0


@given(st.integers(0, 10**8), st.integers(1, 10**5), st.integers(0, 10**4), st.integers(0, 2000))
def test_more_pages_to_scan_never_take_longer(pages: int, n: int, more: int, sleep: int) -> None:
    def seconds(pages_to_scan: int) -> float:
        at = Settings(pages_to_scan=pages_to_scan, sleep_millisecs=sleep)
        return full_scan_seconds(pages, at, hz=250)

    assert seconds(n + more) <= seconds(n) * (1 + 1e-12)


AT = Settings()


def pair_and_plain(plain: int = 7) -> Snapshot:
    """Two processes; a and b twice each, and pages of their own."""
    builder = Builder()
    builder.process(*[builder.frame(name) for name in ("a", "b")])
    own = [builder.frame(f"own{i}") for i in range(plain)]
    builder.process(*own, *[builder.frame(name) for name in ("a", "b")])
    return builder.build()


def large(snapshot: Snapshot, times: int) -> Snapshot:
    """As if it were so many times as large, to cost() alone, which counts mappings."""
    mappings = snapshot.mappings
    return replace(
        snapshot,
        vmas=replace(snapshot.vmas, offset=snapshot.vmas.offset * times),
        mappings=Mappings(
            frame=mappings.frame.repeat(times),
            page=mappings.page.repeat(times),
            flags=mappings.flags.repeat(times),
        ),
    )


def test_rows() -> None:
    snapshot = pair_and_plain()
    at = Settings()
    found = cost(snapshot, at, predict(snapshot, at), hz=250)
    assert found.pages == 11
    assert [row.pages_to_scan for row in found.rows] == [100, 500, 1000, 4000, 10_000]
    first = found.rows[0]
    assert first.note == "target, default"
    assert first.seconds == pytest.approx(0.024)  # one batch, within a tick
    assert first.cpu_seconds == pytest.approx(22e-6)
    assert first.cpu_percent == pytest.approx(100 * 22e-6 / 0.024)
    assert not found.measured
    assert "assumed" in found.source
    assert "CONFIG_HZ" not in found.source
    assert f"CONFIG_HZ={ASSUMED_HZ}" in cost(snapshot, at, predict(snapshot, at)).source


def test_default_is_hopeless_where_a_scan_takes_more_than_an_hour() -> None:
    """22 M pages in batches of 100: 220,000 times 24 ms are 88 minutes; 4000: 5500 times
    20 + 2 ms (a batch of 8 ms is longer than a tick), and 44 s of CPU."""
    snapshot, at = pair_and_plain(), Settings()
    many = large(snapshot, 2_000_000)
    found = cost(many, at, predict(snapshot, at), hz=250)
    assert found.pages == 22_000_000
    hopeless = [row.pages_to_scan for row in found.rows if row.hopeless]
    assert hopeless == [100]
    assert found.rows[0].note == "target, default, hopeless: a full scan takes 88 min"
    row = next(row for row in found.rows if row.pages_to_scan == 4000)
    assert row.seconds == pytest.approx(math.ceil(22_000_001 / 4000) * 0.022 + 44)
    advised = worth_writing(found)
    assert advised is not None
    assert advised.pages_to_scan == 4000


@pytest.mark.parametrize("target", [60.0, 200.0, 1000.0])
def test_pages_to_scan_for_a_target_time_are_the_fewest(target: float) -> None:
    snapshot, at = pair_and_plain(), Settings()
    many = large(snapshot, 1_000_000)
    row = cost(many, at, predict(snapshot, at), target_scan_time=target, hz=250).rows[-1]
    assert row.note == f"--target-scan-time {target:g}"
    assert row.seconds <= target

    def seconds(pages_to_scan: int) -> float:
        one = replace(at, pages_to_scan=pages_to_scan)
        return full_scan_seconds(11_000_000, one, hz=250)

    assert seconds(row.pages_to_scan) <= target < seconds(row.pages_to_scan - 1)


def test_a_target_time_that_cannot_be_reached() -> None:
    snapshot, at = pair_and_plain(), Settings()
    many = large(snapshot, 1_000_000)  # 22 s of CPU
    row = cost(many, at, predict(snapshot, at), target_scan_time=10, hz=250).rows[-1]
    assert "cannot be reached: the CPU time alone is 22 s" in row.note
    slow = Settings(sleep_millisecs=60_000)
    found = cost(snapshot, slow, predict(snapshot, slow), target_scan_time=10, hz=250)
    assert (found.rows[-1].pages_to_scan, found.rows[-1].sleep_millisecs) == (1, 20)
    assert worth_writing(found) == found.rows[-1]
    assert found.rows[-1].kind == "asked"
    found = cost(snapshot, AT, predict(snapshot, AT), target_scan_time=0.02, hz=250)
    assert "followed by a sleep" in found.rows[-1].note
    assert found.rows[-1].kind == "unreachable"
    assert worth_writing(found) is None
    found = cost(snapshot, AT, predict(snapshot, AT), target_scan_time=0.03, hz=250)
    assert found.rows[-1].kind == "asked"
    assert worth_writing(found) is None  # met already


def test_seconds_a_page() -> None:
    assert seconds_a_page(75.13, 28_173_336) == pytest.approx(2.667e-6, rel=1e-3)
    assert seconds_a_page(None, 10**6) is None
    assert seconds_a_page(1.0, None) is None  # before 6.6
    assert seconds_a_page(0.02, 10**6) is None  # two ticks of /proc/PID/stat
    assert seconds_a_page(1.0, 5000) is None
    snapshot, at = pair_and_plain(), Settings()
    found = cost(snapshot, at, predict(snapshot, at), measured=3e-6)
    assert found.measured
    assert found.rows[0].cpu_seconds == pytest.approx(33e-6)


# ---- the advisor ----


def by_hand(pages: int, change: int, before: int, seen: tuple[int, int], s: AdvisorSettings) -> int:
    """scan_time_advisor() of Linux 6.12, statement by statement; pages and change in, pages out."""
    scan_time, cpu_percent = seen
    scan_time = scan_time if scan_time else 1
    cpu_percent = cpu_percent if cpu_percent else 1
    last_scan_time = before if before else scan_time
    factor = s.target_scan_time * 100 // scan_time
    factor = factor if factor else 1
    new = scan_time * 100 // last_scan_time
    new = new if new else 1
    new = ((100 - 30) * change + 30 * new) // 100
    out = pages * 100 // factor
    out = out * new // 100
    per_page_cost = pages // cpu_percent
    per_page_cost = per_page_cost if per_page_cost else 1
    out = min(out, per_page_cost * s.max_cpu)
    out = max(out, per_page_cost * 10)
    return min(out, s.max_pages_to_scan)


@given(
    st.integers(1, 30_000),
    st.integers(0, 10_000),
    st.integers(0, 100_000),
    st.tuples(st.integers(0, 100_000), st.integers(0, 10_000)),
    st.builds(
        AdvisorSettings,
        target_scan_time=st.integers(1, 10_000),
        max_cpu=st.integers(1, 100),
        max_pages_to_scan=st.integers(1, 100_000),
    ),
)
def test_a_step_of_the_advisor(
    pages: int, change: int, before: int, seen: tuple[int, int], advisor: AdvisorSettings
) -> None:
    found = step(State(pages, change, before), *seen, advisor)
    assert found.pages == by_hand(pages, change, before, seen, advisor)


def test_steps_that_a_kernel_traced() -> None:
    """Linux 6.18, target 3 s, 76 s of CPU since boot; trace event ksm_advisor."""
    seen = [(2, 3801, 70), (15, 1, 861), (1, 3, 2870), (1, 3, 9560), (1, 3, 30_000)]
    advisor, state = AdvisorSettings(target_scan_time=3), State(500)
    for scan_time, cpu, pages in seen:
        state = step(state, scan_time, cpu, advisor)
        assert state.pages == pages
    assert state.limit == "max_pages"


def endless(pages: int, merged: int, smart: bool) -> list[int]:
    return [pages if plain else merged for plain in islice(visited(smart), 400)]


def test_where_the_advisor_settles() -> None:
    """20 M pages, 2 us each: the EWMA of a change of 100 % stops at 97 (integers), so pages stand
    where target * 100 / scan_time is 97, a scan in 205 or 206 whole seconds, within one step."""
    found = settle(
        endless(20_000_000, 0, False), Settings(), AdvisorSettings(), seconds_a_page=2e-6, hz=250
    )
    assert found.low <= found.high <= 1.02 * found.low
    assert 205 <= found.shortest <= found.longest < 208
    assert found.limits == {""}
    assert found.cpu_percent == pytest.approx(100 * 40 / found.shortest, rel=0.02)
    batches = (found.longest - 40) / sleep_seconds(20, found.low * 2e-6, 250)
    assert found.low == pytest.approx(20_000_000 / batches, rel=0.01)


def test_the_advisor_clamps() -> None:
    small = settle(endless(20_000, 0, False), Settings(), AdvisorSettings(), seconds_a_page=2e-6,
                   hz=250)  # fmt: skip
    assert small.low == small.high == 30_000
    assert small.limits == {"max_pages"}
    huge = settle(endless(10**9, 0, False), Settings(), AdvisorSettings(), seconds_a_page=2e-6,
                  hz=250)  # fmt: skip
    assert huge.cpu_percent <= 71
    assert "max_cpu" in huge.limits or "max_pages" in huge.limits


def test_first_scan_is_charged_with_all_cpu_time_since_boot() -> None:
    advisor = AdvisorSettings(target_scan_time=3)
    at = Settings(sleep_millisecs=60)
    scans = simulate([16_288] * 3, at, advisor, seconds_a_page=3e-6, hz=250, cpu_before=76)
    assert [scan.pages_to_scan for scan in scans[:2]] == [500, 70]


def test_smart_scan_makes_the_advisor_swing() -> None:
    """Every 9th scan visits all old pages, the others hardly any."""
    found = settle(
        endless(20_000_000, 1_000_000, True), Settings(), AdvisorSettings(), seconds_a_page=2e-6,
        hz=250,
    )  # fmt: skip
    assert found.low < found.high


def test_the_sentence_on_the_advisor() -> None:
    snapshot, at = pair_and_plain(), Settings(smart_scan=False)
    found = cost(large(snapshot, 2_000_000), at, predict(snapshot, at), hz=250)
    assert "would settle at" in found.advisor
    assert "CPU" in found.advisor
    assert found.advisor_row is not None
    assert found.advisor_row.kind == "advisor"
    assert found.advisor_seconds_to["99"] > found.advisor_row.seconds
    old = Builder(rules=KERNEL_6_1)
    old.process(old.frame("a"))
    none = old.build()
    assert cost(none, at, predict(none, at)).advisor == ""


def test_the_advisor_counts_the_sleeps_as_the_table_does() -> None:
    """11 pages are one batch, with 1000 s of sleep behind it, which the kernel's clock leaves
    out."""
    snapshot, at = pair_and_plain(), Settings(smart_scan=False, sleep_millisecs=1_000_000)
    found = cost(snapshot, at, predict(snapshot, at), hz=250)
    assert found.advisor_row is not None
    assert found.advisor_row.seconds == pytest.approx(found.rows[0].seconds)
    assert found.advisor_row.cpu_percent == pytest.approx(found.rows[0].cpu_percent)
    assert "a full scan in 17 min" in found.advisor
    (scan,) = simulate([11], at, AdvisorSettings(), seconds_a_page=2e-6, hz=250)
    assert scan.seconds == pytest.approx(22e-6)


# ---- how many scans ----


def test_two_scans_for_a_pair() -> None:
    """The first notes checksums; in the second a and b of the second process, its last pages,
    find those of the first."""
    snapshot, at = pair_and_plain(plain=6), Settings()
    found = cost(snapshot, at, predict(snapshot, at), hz=250)
    assert found.passes_to == {"50": 2, "90": 2, "99": 2}
    assert found.settling == "replayed"
    seconds = found.rows[0].seconds
    assert found.seconds_to["50"] == pytest.approx(1.5 * seconds)
    assert found.seconds_to["99"] == pytest.approx(1.99 * seconds)


def test_large_memory_is_told_by_where_the_scan_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first frames of a and b go when the scan is at their equals, the last two of ten."""
    monkeypatch.setattr(settling_module, "SMALL", -1)
    snapshot, at = pair_and_plain(plain=6), Settings()
    found = settling(snapshot, at, predict(snapshot, at))
    assert found.passes == {"50": 2, "90": 2, "99": 2}
    assert found.how.startswith("at most")
    assert 1 < found.scans["50"] <= found.scans["99"] <= 2


def test_nothing_to_wait_for() -> None:
    builder = Builder()
    builder.process(builder.frame("a"), builder.frame("b"))
    snapshot = builder.build()
    found = cost(snapshot, Settings(), predict(snapshot, Settings()))
    assert found.passes_to == {}
    assert found.seconds_to == {}


@given(snapshots(warm=False))
@runs(max_examples=400)
def test_scans_against_the_reference(snapshot: Snapshot) -> None:
    """That many full scans of the visit-by-visit replay free that share, one less does not."""
    at = Settings()
    prediction = predict(snapshot, at)
    final = prediction.savings.frames_freed
    found = settling(snapshot, at, prediction)
    assert bool(found.passes) == (final > 0)
    ksmd, freed = Ksmd(snapshot, at), [0]
    for _ in range(max(found.passes.values(), default=0)):
        ksmd.full_scan()
        freed.append(savings(snapshot, ksmd.outcome(), 0, 0).frames_freed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settling_module, "SMALL", -1)
        bounds = settling(snapshot, at, prediction).passes
    for share, number in found.passes.items():
        assert number <= bounds[share]
        if number < prediction.passes:
            assert freed[number] >= final * int(share) / 100
        assert all(before < final * int(share) / 100 for before in freed[:number])
        assert number - 1 < found.scans[share] <= number


# ---- facts of the target ----


def test_ksmd_of_a_vmcore() -> None:
    """It has run in one of them, and ends every pass with some CPU time."""
    found = ksmd_cpu_seconds(fixtures.target("x86_64-6.12-tiny-warm")._prog)  # type: ignore[attr-defined]
    assert found is not None
    assert 0.001 < found < 600
    idle = ksmd_cpu_seconds(fixtures.target(fixtures.TINY)._prog)  # type: ignore[attr-defined]
    assert idle is not None
    assert idle < 0.1 < 100 * found


def test_advisor_of_a_vmcore() -> None:
    found = read_advisor(fixtures.target(fixtures.TINY)._prog)  # type: ignore[attr-defined]
    assert AdvisorSettings(**found) == AdvisorSettings()
    assert read_advisor(fixtures.target("x86_64-6.1-tiny")._prog) == {}  # type: ignore[attr-defined]


def fake_proc(directory: Path, pid: int, comm: str, parent: int, flags: int) -> Path:
    task = directory / str(pid)
    task.mkdir()
    (task / "comm").write_text(comm + "\n")
    words = ["S", str(parent), "0", "0", "0", "-1", str(flags), *["0"] * 4, "7", "150", "0", "0"]
    (task / "stat").write_text(f"{pid} ({comm}) {' '.join(words)}\n")
    return task


def test_ksmd_of_proc(tmp_path: Path) -> None:
    fake_proc(tmp_path, 50, "ksmd", 1, 0)  # a program of that name
    fake_proc(tmp_path, 51, "ksmd", 2, 0)
    assert proc_ksmd_cpu_seconds(tmp_path) is None
    task = fake_proc(tmp_path, 37, "ksmd", 2, 0x00200040)
    assert proc_ksmd_cpu_seconds(tmp_path) == 1.57  # utime + stime, ticks of 10 ms
    (task / "schedstat").write_text("75130000000 12 34\n")
    assert proc_ksmd_cpu_seconds(tmp_path) == 75.13


def test_advisor_of_sysfs(tmp_path: Path) -> None:
    assert sysfs_advisor(tmp_path) == {}
    (tmp_path / "advisor_max_cpu").write_text("55\n")
    (tmp_path / "advisor_mode").write_text("[none] scan-time\n")
    assert AdvisorSettings(**sysfs_advisor(tmp_path)) == AdvisorSettings(max_cpu=55)
