"""The running kernel through /proc, on processes that are started here."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ksm_eval import cli
from ksm_eval.collect import collect
from ksm_eval.errors import TargetError, UsageError
from ksm_eval.evaluate import open_live
from ksm_eval.snapshot import U64, ContentKind, Entry, FrameFlag, MappingFlag, Snapshot, has
from ksm_eval.target import Gone, Selection, Target, Unreadable, proc_pages, proc_tasks, read_page
from ksm_eval.target.proc_tasks import ProcGroup, read_ksm_stat
from ksm_eval.target.procfs import ProcTarget
from tests import host

PAGE = os.sysconf("SC_PAGE_SIZE")
KSM_HOST = Path("/sys/kernel/mm/ksm/general_profit").exists()
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not KSM_HOST, reason="needs root, and a kernel with KSM from 6.4 on"
)


@pytest.fixture(scope="module")
def frozen() -> Iterator[list[int]]:
    with host.frozen_prefork() as pids:
        yield pids


@pytest.fixture
def target() -> Iterator[Target]:
    opened = open_live("proc")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def snapshot(frozen: list[int]) -> Snapshot:
    opened = open_live("proc")
    found = collect(opened, Selection(pids=(frozen[0],), children=True))
    opened.close()
    return found


def test_what_exec_leaves_out(target: Target) -> None:
    """A program that got PR_SET_MEMORY_MERGE over exec: the kernel did not mark its stack, and
    to set it again would not."""
    opt_in = Path(__file__).parent.parent / "scripts/harness/opt_in.py"
    command = [sys.executable, "-S", "-E", str(opt_in), "root", "/bin/sleep", "1000"]
    with subprocess.Popen(command) as sleep:
        try:
            host.wait_until_runs(sleep.pid, "sleep")
            if not read_ksm_stat(sleep.pid).merge_any:
                pytest.skip("this kernel does not keep PR_SET_MEMORY_MERGE over exec, or tell")
            vmas = collect(target, Selection(pids=(sleep.pid,))).vmas
            marked, start = set(), 0
            for line in Path(f"/proc/{sleep.pid}/smaps").read_text().splitlines():
                if not line[0].isupper():
                    start = int(line.partition("-")[0], 16)
                elif line.startswith("VmFlags:") and "mg" in line.split():
                    marked.add(start)
        finally:
            sleep.kill()
    assert len(marked) > 5
    rows = list(zip(vmas.start.tolist(), vmas.name, vmas.reason, strict=True))
    assert {start for start, _, reason in rows if not reason} == marked
    assert [r for _, name, r in rows if name == "[stack]"] == ["VM_MERGEABLE not set"]


def smaps_kb(pids: list[int], key: str) -> int:
    return sum(
        int(line.split()[1])
        for pid in pids
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith(f"{key}:")
    )


def test_every_page_is_there(frozen: list[int], snapshot: Snapshot) -> None:
    """Anonymous memory as the kernel counts it: mappings, frames, huge pages."""
    assert snapshot.processes.pid.tolist() == frozen
    assert len(snapshot.mappings) * 4 == smaps_kb(frozen, "Anonymous")
    # Nobody else maps these frames; smaps_rollup cuts PSS to 1 kB a process.
    assert len(snapshot.frames) * 4 == pytest.approx(smaps_kb(frozen, "Pss_Anon"), abs=4)
    huge = has(snapshot.mappings.flags, MappingFlag.HUGE)
    assert int(huge.sum()) * 4 == smaps_kb(frozen, "AnonHugePages")
    assert not has(snapshot.frames.flags, FrameFlag.UNREADABLE).any()
    assert snapshot.meta.unreadable == {}
    # 40 PROT_NONE pages in each process; 200 zero pages and 12 in a THP, once.
    assert int(has(snapshot.mappings.flags, MappingFlag.PROT_NONE).sum()) == 40 * len(frozen)
    assert int(has(snapshot.frames.flags, FrameFlag.ZERO).sum()) >= 212


def test_resident_pages(frozen: list[int], snapshot: Snapshot) -> None:
    """As statm has them. smaps counts page-table entries: what the CPUs have not yet added to the
    three counters is missing before 6.16 (mm_counters.py)."""
    assert snapshot.processes.rss_pages is not None
    cpus = os.cpu_count() or 1
    slack = 3 * cpus * max(32, 2 * cpus)
    for pid, rss in zip(frozen, snapshot.processes.rss_pages.tolist(), strict=True):
        assert rss == int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        assert rss == pytest.approx(smaps_kb([pid], "Rss") * 1024 // PAGE, abs=slack)
        assert rss > 1000


def test_contents_that_most_frames_have(snapshot: Snapshot) -> None:
    """prefork.py: zero pages, and random ones."""
    assert snapshot.contents is not None
    hashes, counts = np.unique(snapshot.frames.hash, return_counts=True)
    of = dict(zip(hashes.tolist(), counts.tolist(), strict=True))
    found = [of[value] for value in snapshot.contents.hash.tolist()]
    assert found == sorted(counts[counts > 1].tolist(), reverse=True)[:100]
    kinds = snapshot.contents.kind.tolist()
    assert kinds[0] == ContentKind.ZERO
    assert kinds.count(ContentKind.ZERO) == 1
    assert ContentKind.UNKNOWN not in kinds
    assert kinds.count(ContentKind.OTHER) > 80


def test_mapcounts(frozen: list[int], snapshot: Snapshot) -> None:
    """Of frames that only these processes map: as often as the snapshot does."""
    mine = np.bincount(snapshot.mappings.frame, minlength=len(snapshot.frames))
    np.testing.assert_array_equal(snapshot.frames.mapcount, mine)
    assert mine.max() == len(frozen)


def test_compounds(snapshot: Snapshot) -> None:
    whole = snapshot.compounds.pages == 512
    heads = snapshot.compounds.head[whole]
    assert len(heads) >= 3
    assert (heads % 512 == 0).all()
    assert set(snapshot.compounds.pmd_mapcount[whole].tolist()) <= {0, 1, 4}


def test_contents(frozen: list[int], snapshot: Snapshot) -> None:
    """Equal hashes where the pages are equal, read one by one by other means."""
    rows = np.flatnonzero(snapshot.vmas.process == 0)
    first: dict[int, bytes] = {}
    with Path(f"/proc/{frozen[0]}/mem").open("rb", buffering=0) as memory:
        for vma in rows.tolist():
            start, end = snapshot.vmas.offset[vma : vma + 2].tolist()
            for mapping in range(start, end, 7):
                page = int(snapshot.mappings.page[mapping])
                address = int(snapshot.vmas.start[vma]) + page * PAGE
                content = os.pread(memory.fileno(), PAGE, address)
                key = int(snapshot.frames.hash[snapshot.mappings.frame[mapping]])
                assert first.setdefault(key, content) == content
    assert len(first) == len(set(first.values()))
    assert len(first) > 100


REFERENCED, LRU, ACTIVE, IDLE = 1 << 2, 1 << 5, 1 << 6, 1 << 25  # of /proc/kpageflags


def page_flags(pids: list[int]) -> tuple[U64, U64]:
    """PFN and flags of each anonymous page."""
    found = []
    for pid in pids:
        with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                start, end = (int(bound, 16) // PAGE for bound in line.split()[0].split("-"))
                if "[vsyscall]" not in line:
                    found.append(proc_pages.read_entries(pagemap.fileno(), start, end))
    entries = np.concatenate(found)
    present = (entries & np.uint64(proc_pages.PM_PRESENT)) != 0
    anonymous = present & ((entries & np.uint64(proc_pages.PM_FILE)) == 0)
    pfns = np.unique(entries[anonymous] & np.uint64(proc_pages.PM_PFN))
    with Path("/proc/kpageflags").open("rb", buffering=0) as flags:
        return pfns, proc_pages.lookup(flags.fileno(), pfns)


def test_nothing_is_disturbed(frozen: list[int]) -> None:
    def state() -> dict[str, int]:
        keys = ("Rss", "AnonHugePages", "Swap", "Anonymous", "Pss_Anon")
        found = {key: smaps_kb(frozen, key) for key in keys}
        for pid in frozen:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[f"minflt {pid}"], found[f"majflt {pid}"] = int(words[7]), int(words[9])
        return found

    before, marks = state(), page_flags(frozen)
    assert before["AnonHugePages"] > 0
    assert cli.run(["-q", "--pid", str(frozen[0]), "--children", "-o", "/dev/null"]) == 0
    assert state() == before
    # But for this, of pages in the same places: read() marks a page as accessed.
    pfns, flags = marks
    again, now = page_flags(frozen)
    assert np.array_equal(again, pfns)
    changed = (flags ^ now) & ~np.uint64(IDLE)  # DAMON_STAT (6.17+) sets it at any time
    lru = (changed & np.uint64(LRU)) != 0  # some pages at a time wait for the LRU's lock
    assert lru.sum() <= 2 * 31 * 512 * (os.cpu_count() or 1)
    assert int(np.bitwise_or.reduce(changed)) & ~(REFERENCED | ACTIVE | LRU) == 0
    assert int(np.bitwise_or.reduce(changed)) & (REFERENCED | ACTIVE) != 0


def test_what_reading_disturbs_is_said(target: Target) -> None:
    assert any("/proc marks it accessed" in note for note in target.info.notes)


def test_selection(frozen: list[int], target: Target) -> None:
    def pids(**selection: object) -> list[int]:
        return [p.pid for p in target.processes(Selection(**selection))]  # type: ignore[arg-type]

    parent = frozen[0]
    assert pids(pids=(parent,), children=True) == frozen
    assert pids(pids=tuple(frozen[::-1])) == frozen
    comm = Path(f"/proc/{parent}/comm").read_text().strip()
    assert set(frozen) <= set(pids(comms=(comm,)))
    everything = pids(all=True)
    assert set(frozen) <= set(everything)
    assert os.getpid() not in everything
    assert os.getpid() in pids(pids=(os.getpid(),))
    path = Path(f"/proc/{parent}/cgroup").read_text().partition("0::")[2].split("\n")[0]
    if path:
        assert set(frozen) <= set(pids(cgroups=(path,)))
    process = target.processes(Selection(pids=(parent,)))[0]
    assert (process.uid, process.registered, process.comm) == (0, True, comm)
    assert process.observed["ksm_rmap_items"] == 0
    for wrong, message in (
        (Selection(pids=(1 << 22,)), "does not exist"),
        (Selection(pids=(2,)), "kernel thread"),
        (Selection(comms=("no such",)), "no process is called"),
        (Selection(cgroups=("/no/such",)), "no process is in cgroup"),
    ):
        with pytest.raises(UsageError, match=message):
            target.processes(wrong)


@pytest.fixture
def sleeper() -> Iterator[Callable[[str], list[int]]]:
    """Start Python with a program that prints pids and then sleeps."""
    started = []

    def start(program: str) -> list[int]:
        source = f"import ctypes, os, sys, threading, time\n{program}\ntime.sleep(1000)"
        process = subprocess.Popen([sys.executable, "-S", "-c", source], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        return [process.pid, *map(int, process.stdout.readline().split())]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_thread_stands_for_its_process(
    sleeper: Callable[[str], list[int]], target: Target
) -> None:
    pid, thread = sleeper(
        "t = threading.Thread(target=time.sleep, args=(1000,), daemon=True); t.start()\n"
        "print(t.native_id, flush=True)"
    )
    assert [p.pid for p in target.processes(Selection(pids=(thread,)))] == [pid]


def test_a_shared_mm_counts_once(sleeper: Callable[[str], list[int]], target: Target) -> None:
    """clone(CLONE_VM) without CLONE_THREAD, as vfork() makes it; a fork of the same program
    has its own."""
    pid, shared, forked = sleeper(
        "libc = ctypes.CDLL(None)\n"
        "stack = ctypes.create_string_buffer(65536)\n"
        "top = ctypes.c_void_p(ctypes.addressof(stack) + 65536 - 64)\n"
        "shared = libc.clone(ctypes.cast(libc.pause, ctypes.c_void_p), top, 0x100 | 17, None)\n"
        "forked = os.fork() or time.sleep(1000)\n"
        "print(shared, forked, flush=True)"
    )
    try:
        found = target.processes(Selection(pids=(shared, pid, forked)))
        assert [p.pid for p in found] == [pid, forked]
    finally:
        os.kill(shared, signal.SIGKILL)
        os.kill(forked, signal.SIGKILL)


def test_user_namespaces(sleeper: Callable[[str], list[int]], target: Target) -> None:
    """Each process's as it sees it itself."""
    pid, error, inside = sleeper(
        "error = ctypes.CDLL(None, use_errno=True).unshare(0x10000000) and ctypes.get_errno()\n"
        "print(error, os.stat('/proc/self/ns/user').st_ino, flush=True)"
    )
    if error:
        pytest.skip(f"unshare(CLONE_NEWUSER) is not permitted: {os.strerror(error)}")
    own = Path("/proc/self/ns/user").stat().st_ino
    assert inside != own
    found = target.processes(Selection(pids=(pid, os.getpid())))
    assert {process.pid: process.user_ns for process in found} == {pid: inside, os.getpid(): own}


def test_no_user_namespace_to_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(proc_tasks, "PROC", tmp_path)
    assert proc_tasks.user_ns(7) == 0
    (tmp_path / "7/ns").mkdir(parents=True)
    (tmp_path / "7/ns/user").symlink_to("user:[4026531837]")
    assert proc_tasks.user_ns(7) == 4026531837
    (tmp_path / "8/ns").mkdir(parents=True)
    (tmp_path / "8/ns/user").symlink_to("nothing known")
    assert proc_tasks.user_ns(8) == 0


def test_processes_that_end(sleeper: Callable[[str], list[int]]) -> None:
    """Between any two steps: never an exception, never another process's pages."""
    pid, *_ = sleeper("print(flush=True)")
    for explicit, kind in ((False, Gone), (True, Unreadable)):
        target = open_live("proc")
        (process,) = target.processes(Selection(pids=(pid,)))
        group = process.handle
        assert isinstance(group, ProcGroup)
        group.explicit = explicit
        # The pid is another process's by now: one that started later.
        recycled = replace(group, stat=replace(group.stat, start_time=group.stat.start_time - 1))
        with pytest.raises(Unreadable) as caught:
            target.vmas(replace(process, handle=recycled), mergeable_only=False)
        assert type(caught.value) is kind
        with pytest.raises(Unreadable):
            target.walk(replace(process, handle=recycled), [])
        target.close()
    target = open_live("proc")
    (process,) = target.processes(Selection(pids=(pid,)))
    vmas = [vma for vma in target.vmas(process, mergeable_only=False) if not vma.reason]
    walked = target.walk(process, vmas)
    pfns = np.unique(walked.pfn)
    target.frames(pfns)
    places = target.places(pfns).tolist()
    assert len(read_page(target, places[0])) == PAGE
    os.kill(pid, signal.SIGKILL)
    host.wait_ended(pid)
    for place in places:
        with pytest.raises(Unreadable):
            read_page(target, place)
    with pytest.raises(Unreadable):
        target.vmas(process, mergeable_only=False)
    target.close()


def test_too_many_open_files(frozen: list[int]) -> None:
    """Whatever the step at which no file is left: no process is blamed, or left out."""
    messages = []
    for more in range(1, 2 * len(frozen) + 3):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover
            message = "failed"
            try:
                opened = open_live("proc")
                top = 1 + os.dup(0)
                while os.dup(0) < top:  # no number below is free
                    pass
                os.close(top)
                hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
                resource.setrlimit(resource.RLIMIT_NOFILE, (top + more, hard))
                found = collect(opened, Selection(pids=tuple(frozen)))
                message = f"{len(found.processes)} processes, {found.meta.lost}"
            except TargetError as error:
                message = f"{error.message}: {error.hint}"
            finally:
                os.write(write, message.encode())
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            messages.append(file.read())
        os.waitpid(child, 0)
    *refused, enough = messages
    assert enough == f"{len(frozen)} processes, []"
    assert len(refused) >= 2 * len(frozen)
    for message in refused[: 2 * len(frozen)]:
        assert "files may be open, and each process takes two: raise the limit" in message


@pytest.mark.parametrize("drop", ["uid", "CAP_SYS_ADMIN"])
def test_without_permission(drop: str) -> None:
    """One line that says what is missing, and the command that works."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        code = 99
        try:
            os.dup2(write, 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            if drop == "uid":
                os.setgid(65534)
                os.setuid(65534)
            else:
                libc = ctypes.CDLL(None)
                header = (ctypes.c_uint32 * 2)(0x20080522, 0)
                sets = (ctypes.c_uint32 * 6)()
                libc.capget(header, sets)
                for position in range(3):
                    sets[position] &= ~(1 << 21)
                libc.capset(header, sets)
            code = cli.run(["-q", "--pid", str(os.getppid()), "-o", "/dev/null"])
        finally:
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as file:
        text = file.read()
    assert os.waitstatus_to_exitcode(status) == 3, text
    message, hint = text.splitlines()
    assert "pagemap cannot be read" in message if drop == "uid" else "are hidden" in message
    assert "CAP_SYS_ADMIN" in message
    assert "sudo ksm-eval" in hint


def test_drgn_is_not_needed(frozen: list[int]) -> None:
    program = (
        "import sys; sys.modules['drgn'] = None; from ksm_eval.cli import run;"
        f"sys.exit(run(['-q', '--via', 'proc', '--pid', '{frozen[0]}', '--format', 'json']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["run"]["drgn"] is None
    assert report["target"]["kind"] == "procfs"
    assert "the running kernel was read through /proc: as asked" in report["notes"]


def test_the_tests_processes_did_not_opt_in() -> None:
    assert not read_ksm_stat(os.getpid()).registered


def test_rules_of_this_host(target: Target) -> None:
    assert isinstance(target, ProcTarget)
    rules = target.rules()
    assert rules.general_profit
    assert rules.zero_counter == Path("/sys/kernel/mm/ksm/ksm_zero_pages").exists()
    assert target.info.sizeof["stable_node"] == 64
    assert target.info.total_ram_pages * PAGE > 1 << 28
    assert target.ksmd([]) is None
    assert "cannot be read through /proc" in target.info.notes[-1]


def test_entries(snapshot: Snapshot) -> None:
    totals = snapshot.vmas.entries.sum(axis=0)
    assert int(totals[Entry.CANDIDATE]) == len(snapshot.mappings)
    assert int(totals[Entry.UNREADABLE]) == 0


@pytest.mark.skipif(Path("/proc/kcore").exists(), reason="this host has /proc/kcore")
def test_kcore_where_there_is_none() -> None:
    with pytest.raises(TargetError, match="/proc/kcore"):
        open_live("kcore")
