"""What is read from a vmcore, against what the guest's own /proc said of the same memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from drgn import Program
from drgn.helpers.linux.mm import (
    access_process_vm,
    compound_head,
    pfn_to_page,
)

from ksm_eval.collect import collect
from ksm_eval.errors import TargetError, UsageError
from ksm_eval.memcmp_order import memcmp_order
from ksm_eval.memory import SETTLED
from ksm_eval.snapshot import NO_COMPOUND, Entry, MappingFlag, Snapshot, has
from ksm_eval.sweep import sweep
from ksm_eval.target import Process, Selection, Vma, WalkedVmas, read_page
from ksm_eval.target.kernel import KernelTarget
from ksm_eval.target.program import open_core
from tests.fixtures import NAMES, TINY, WARM, opted_in, snapshot, target, truth, vmcore


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


# 4 KiB, but for what the names say.
PAGE_KB = {name: int((re.search(r"aarch64.*-(\d+)k$", name) or [0, 4])[1]) for name in NAMES}


def everything(name: str) -> Snapshot:
    return collect(target(name), Selection(all=True))


def pids(found: Snapshot) -> set[int]:
    return set(found.processes.pid.tolist())


def by_role(name: str) -> dict[str, list[int]]:
    roles: dict[str, list[int]] = {}
    for process in truth(name)["processes"]:
        roles.setdefault(process["comm"], []).append(process["pid"])
    return roles


def test_who_has_merge_any(name: str) -> None:
    """PR_SET_MEMORY_MERGE; before 6.4 the fixtures' processes use madvise()."""
    asked = {p.pid for p in target(name).processes(Selection(all=True)) if p.merge_any}
    prctl = "general_profit" in truth(name)["passes"][-1]["ksm"]
    shares = by_role(name)["threads-vm"]  # the mm of threads
    assert asked == (set(opted_in(name)).difference(shares) if prctl else set())
    found = everything(name).processes
    assert found.merge_any is not None
    assert set(found.pid[found.merge_any].tolist()) == asked


def test_all_processes(name: str) -> None:
    """One entry an mm: threads-vm shares the mm of threads. init is in no truth list."""
    found = everything(name).processes
    rows = {pid: row for row, pid in enumerate(found.pid.tolist())}
    real = {p["pid"]: p for p in truth(name)["processes"] if p["comm"] != "threads-vm"}
    assert set(rows) == {1, *real}
    for pid, process in real.items():
        row = rows[pid]
        assert found.comm[row] == process["comm"]
        assert found.cgroup[row] == process["cgroup"]
        assert found.uid[row] == process["uid"]


@pytest.mark.parametrize("name", [*NAMES, *WARM])
def test_resident_pages_are_those_of_smaps(name: str) -> None:
    """To the page, with what the CPU had not yet added to the counters."""
    found = everything(name)
    assert found.processes.rss_pages is not None
    rss = dict.fromkeys(pids(found), 0)
    for vma in truth(name)["before"]["vmas"]:
        if vma["pid"] in rss:  # threads-vm is not
            rss[vma["pid"]] += vma["rss_kb"] * 1024 // found.meta.page_size
    mine = dict(zip(found.processes.pid.tolist(), found.processes.rss_pages.tolist(), strict=True))
    assert mine.pop(1) > 0  # init is in no truth list
    del rss[1]
    assert mine == rss
    assert sum(rss.values()) > 8000


def test_user_namespaces(name: str) -> None:
    """All are in the first: PROC_USER_INIT_INO, include/linux/proc_ns.h."""
    found = everything(name).processes
    assert found.user_ns is not None
    assert set(found.user_ns.tolist()) == {0xEFFFFFFD}


def test_scan_order_is_registration_order(name: str) -> None:
    """ksmd's list: the order in which the guest's processes asked for KSM, that is by pid."""
    found = everything(name).processes
    registered = found.pid[found.registered].tolist()
    asked = [pid for pid in opted_in(name) if pid not in by_role(name)["threads-vm"]]
    assert set(asked) <= set(registered)
    assert registered == sorted(registered)
    assert not found.registered[found.pid == 1].any()


def test_selection_adds_up(name: str) -> None:
    roles = by_role(name)
    vm = target(name)

    def select(**parts: Any) -> set[int]:
        return {process.pid for process in vm.processes(Selection(**parts))}

    family = {*roles["srv-master"], *roles["srv-worker"], *roles["outsider"]}
    master, loner, threads = roles["srv-master"][0], roles["loner"][0], roles["threads"][0]
    assert select(pids=(master,)) == {master}
    assert select(pids=(master,), children=True) == family
    assert select(comms=("srv-*",)) == family - set(roles["outsider"])
    assert select(comms=("loner",), pids=(master,)) == {loner, master}
    threads_tids = next(p["tids"] for p in truth(name)["processes"] if p["pid"] == threads)
    assert select(pids=(threads_tids[-1],)) == {threads}
    assert select(pids=(threads, *roles["threads-vm"])) == {threads}
    cgroups = {p["pid"]: p["cgroup"] for p in truth(name)["processes"]}
    below_web = {pid for pid, path in cgroups.items() if (path + "/").startswith("/web/")}
    assert below_web
    assert select(cgroups=("/web",)) == below_web == select(cgroups=("web/",))


@pytest.mark.parametrize(
    ("selection", "complaint"),
    [
        (Selection(pids=(99999,)), "pid 99999 does not exist"),
        (Selection(pids=(2,)), "pid 2 (kthreadd) has no memory of its own"),
        (Selection(comms=("nobody*",)), "no process is called 'nobody*'"),
        (Selection(cgroups=("/we",)), "no process is in cgroup '/we'"),
    ],
)
def test_selection_of_nothing(selection: Selection, complaint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(complaint)):
        target(TINY).processes(selection)


def test_vmas_are_those_of_smaps(name: str) -> None:
    """Bounds and names; smaps adds the gate area [vsyscall], which is no VMA."""
    found = everything(name)
    for row, pid in enumerate(found.processes.pid.tolist()):
        real = smaps(name, pid)
        if not real:
            continue  # init
        mine = {
            (int(found.vmas.start[v]), int(found.vmas.end[v])): found.vmas.name[v]
            for v in np.flatnonzero(found.vmas.process == row).tolist()
        }
        assert set(mine) == set(real), pid
        for bounds, vma in real.items():
            ours, theirs = mine[bounds], vma["name"].removesuffix(" (deleted)")
            theirs = DRGN_NAMES.get(theirs, theirs)
            assert ours.removesuffix(" (deleted)") == theirs


DRGN_NAMES = {"/anon_hugepage": "[hugetlbfs]", "/dev/zero": "[tmpfs]"}
"""Files of kernel-internal mounts, which drgn calls by the file system."""

EXCLUDING = {"sh", "ms", "pf", "io", "de", "ht", "mm", "dp"}
"""VmFlags of smaps for the flags in vma_ksm_compatible(); dp is VM_DROPPABLE, 6.11+."""


def smaps(name: str, pid: int) -> dict[tuple[int, int], dict[str, Any]]:
    return {
        (vma["start"], vma["end"]): vma
        for vma in truth(name)["before"]["vmas"]
        if vma["pid"] == pid and vma["name"] != "[vsyscall]"
    }


def test_mergeable_as_the_kernel_decides(name: str) -> None:
    """VMAs of processes that opted in: 'mg' (VM_MERGEABLE) in smaps means it qualified."""
    found = snapshot(name)
    reasons = set()
    for v in range(len(found.vmas)):
        pid = int(found.processes.pid[found.vmas.process[v]])
        real = smaps(name, pid)[int(found.vmas.start[v]), int(found.vmas.end[v])]
        assert (found.vmas.reason[v] == "") == ("mg" in real["vm_flags"]), real
        assert (found.vmas.reason[v] != "") == bool(EXCLUDING & set(real["vm_flags"])), real
        reasons.add(found.vmas.reason[v])
    assert {"", "hugetlb", "shared mapping", "VM_PFNMAP", "VM_DONTEXPAND"} <= reasons


def test_mergeable_only(name: str) -> None:
    """Nothing of a process that never asked is mergeable already."""
    never = by_role(name)["never"][0]
    found = collect(target(name), Selection(pids=(never,)), mergeable_only=True)
    assert set(found.vmas.reason) >= {"VM_MERGEABLE not set"}
    assert len(found.mappings) == 0
    assert len(collect(target(name), Selection(pids=(never,))).mappings) > 50
    asked = collect(
        target(name), Selection(pids=tuple(opted_in(name))), mergeable_only=True, seed=0
    )
    assert np.array_equal(asked.mappings.page, snapshot(name).mappings.page)


def test_candidates_are_the_anonymous_pages_of_smaps(name: str) -> None:
    found = everything(name)
    page_kb = PAGE_KB[name]
    assert found.meta.page_size == page_kb * 1024
    total = 0
    for v in range(len(found.vmas)):
        pid = int(found.processes.pid[found.vmas.process[v]])
        real = smaps(name, pid).get((int(found.vmas.start[v]), int(found.vmas.end[v])))
        if real is None or found.vmas.reason[v]:
            continue
        candidates = int(found.vmas.offset[v + 1] - found.vmas.offset[v])
        assert candidates * page_kb == real["anonymous_kb"], real
        assert candidates == found.vmas.entries[v][Entry.CANDIDATE]
        flags = found.mappings.flags[found.vmas.offset[v] : found.vmas.offset[v + 1]]
        assert int(has(flags, MappingFlag.HUGE).sum()) * page_kb == real["anon_huge_pages_kb"]
        total += candidates
    assert total > 8000


def test_mapcount_gives_pss(name: str) -> None:
    """Pss of smaps for VMAs with nothing but anonymous pages, in smaps_account()'s arithmetic:
    20.12 fixed point, each page's share rounded down."""
    found = everything(name)
    share = (PAGE_KB[name] << 22) // found.frames.mapcount[found.mappings.frame].astype(np.int64)
    compared = 0
    for v in range(len(found.vmas)):
        pid = int(found.processes.pid[found.vmas.process[v]])
        real = smaps(name, pid).get((int(found.vmas.start[v]), int(found.vmas.end[v])))
        if real is None or found.vmas.reason[v] or real["rss_kb"] != real["anonymous_kb"]:
            continue
        pss = int(share[found.vmas.offset[v] : found.vmas.offset[v + 1]].sum())
        assert pss >> 22 == real["pss_kb"], real
        compared += 1
    assert compared > 50


def test_struct_page_against_drgn(name: str) -> None:
    """Every 37th frame, by drgn's own helpers."""
    found = everything(name)
    prog: Program = open_core(vmcore(name)).prog
    for row in range(0, len(found.frames), 37):
        page = pfn_to_page(prog, int(found.frames.pfn[row]))
        head = compound_head(page)
        assert head.mapping.value_() & 3 == 1  # PAGE_MAPPING_ANON
        compound = int(found.frames.compound[row])
        head_pfn = (head - pfn_to_page(prog, 0)).value_()
        if compound == NO_COMPOUND:
            assert head_pfn == found.frames.pfn[row]
            assert page._mapcount.counter.value_() + 1 == found.frames.mapcount[row]
        else:
            assert head_pfn == found.compounds.head[compound]
            assert found.compounds.pages[compound] == PAGE_KB[name] * 128  # of 8 bytes an entry


def test_hashes_tell_contents_apart(name: str) -> None:
    """Read one worker page by page through its address space: equal bytes, equal hash."""
    found = snapshot(name)
    prog: Program = open_core(vmcore(name)).prog
    pid = by_role(name)["srv-worker"][-1]
    row = found.processes.pid.tolist().index(pid)
    hash_of: dict[bytes, int] = {}
    pages = 0
    size = PAGE_KB[name] * 1024
    from drgn.helpers.linux.pid import find_task

    task = find_task(prog, pid)
    for v in np.flatnonzero(found.vmas.process == row).tolist():
        for m in range(int(found.vmas.offset[v]), int(found.vmas.offset[v + 1])):
            if has(found.mappings.flags[m : m + 1], MappingFlag.PROT_NONE)[0]:
                continue  # drgn's access_process_vm does not read them
            address = int(found.vmas.start[v]) + int(found.mappings.page[m]) * size
            contents = access_process_vm(task, address, size)
            value = int(found.frames.hash[found.mappings.frame[m]])
            assert hash_of.setdefault(contents, value) == value
            pages += 1
    assert len(set(hash_of.values())) == len(hash_of)
    assert pages > 900
    assert len(hash_of) < pages


@pytest.mark.parametrize(("gap", "run"), [(0, 1), (0, 256), (1, 7), (100, 4096)])
def test_sweep_does_not_depend_on_chunking(gap: int, run: int) -> None:
    pfns = snapshot(TINY).frames.pfn
    usual = sweep(target(TINY), pfns, 5)
    other = sweep(target(TINY), pfns, 5, max_gap=gap, max_run=run)
    assert np.array_equal(usual.hash, other.hash)
    assert np.array_equal(usual.flags, other.flags)
    assert not usual.unreadable


def test_a_hole_costs_only_itself() -> None:
    """Frames past the end of memory are unreadable, their neighbours are not."""
    vm = target(TINY)
    good = snapshot(TINY).frames.pfn
    beyond = np.array([1 << 30, (1 << 30) + 1], np.uint64)
    swept = sweep(vm, np.concatenate((good, beyond)), 5)
    assert swept.unreadable == {"not in the dump": 2}
    assert np.array_equal(swept.hash[:-2], sweep(vm, good, 5).hash)
    assert swept.flags[-2:].tolist() == [32, 32]


@pytest.mark.parametrize("memcmp_name", [TINY, "aarch64-6.12-64k"])
def test_memcmp_order(memcmp_name: str) -> None:
    """Some of the pages differ in their last eight bytes only, some not at all."""
    vm = target(memcmp_name)
    pfns = snapshot(memcmp_name).frames.pfn[::5]
    contents = [read_page(vm, int(pfn)) for pfn in pfns.tolist()]
    assert len({page[:-8] for page in contents}) < len(set(contents)) < len(contents)
    order = memcmp_order(vm, pfns)
    assert [contents[i] for i in order.tolist()] == sorted(contents)


def test_totals(name: str) -> None:
    vm = target(name)
    assert isinstance(vm, KernelTarget)
    real = truth(name)
    assert vm.info.release == real["kernel"]
    megabytes = real["memory_mib"]
    pages = 1024 * (sum(megabytes) if isinstance(megabytes, list) else megabytes) // PAGE_KB[name]
    assert 0.6 * pages < vm.info.total_ram_pages < pages


def test_numa_nodes() -> None:
    """numa_maps of the guest, for VMAs with nothing but anonymous pages."""
    compared = 0
    for name in NAMES:
        found = snapshot(name)
        for v in range(len(found.vmas)):
            pid = int(found.processes.pid[found.vmas.process[v]])
            real = smaps(name, pid)[int(found.vmas.start[v]), int(found.vmas.end[v])]
            if found.vmas.reason[v] or real["rss_kb"] != real["anonymous_kb"]:
                continue
            rows = found.mappings.frame[found.vmas.offset[v] : found.vmas.offset[v + 1]]
            nodes = np.bincount(found.frames.node[rows], minlength=2)
            expected = real.get("node_pages", {})
            if expected:
                assert nodes.tolist() == [expected.get("0", 0), expected.get("1", 0)], real
                compared += 1
            else:
                assert nodes[1] == 0
    assert compared > 50


def test_too_much_is_refused_before_all_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, walks = target(TINY), list[int]()

    def walk(process: Process, vmas: Sequence[Vma]) -> WalkedVmas:
        found = type(vm).walk(vm, process, vmas)
        walks.append(len(found.pfn))
        return found

    monkeypatch.setattr(vm, "walk", walk)
    whole = collect(vm, Selection(all=True))
    assert len(walks) == len(whole.processes) > 5
    several = sum(walks[:3])
    monkeypatch.setattr("ksm_eval.memory.available_bytes", lambda: SETTLED.mapping * several - 1)
    walks.clear()
    # By the kernel's own counts all of them are too many.
    with pytest.raises(TargetError, match="pages need at least"):
        collect(vm, Selection(all=True))
    assert walks == []
    # Of what a process offers already the kernel has no count.
    walks.clear()
    with pytest.raises(TargetError, match="pages need more than"):
        collect(vm, Selection(all=True), mergeable_only=True)
    assert 1 < len(walks) < len(whole.processes)
