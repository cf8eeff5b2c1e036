"""/proc/PID/pagemap, kpageflags and kpagecount in bulk."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ksm_eval.target import proc_pages
from tests import host

PAGE = os.sysconf("SC_PAGE_SIZE")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def frozen() -> Iterator[list[int]]:
    with host.frozen_prefork() as pids:
        yield pids


@needs_root
def test_lookup_finds_what_single_reads_find() -> None:
    fd = os.open("/proc/kpageflags", os.O_RDONLY)
    pfns = np.unique(np.random.default_rng(1).integers(0, 1 << 16, 3000)).astype(np.uint64)
    pfns = np.concatenate((pfns, np.arange(70_000, 70_500, dtype=np.uint64)))
    found = proc_pages.lookup(fd, np.append(pfns, np.uint64(1 << 40)))
    bits = proc_pages.KPF_ZERO_PAGE | 1 << 20  # what does not change: these and holes
    for number, flag in zip(pfns[::50].tolist(), found[:-1][::50].tolist(), strict=True):
        one = int.from_bytes(os.pread(fd, 8, number * 8), "little")
        assert one & bits == flag & bits
    assert found[-1] == 0  # beyond the end
    os.close(fd)


@needs_root
def test_regions_are_the_same_for_any_step(frozen: list[int]) -> None:
    """Of all VMAs of a process: with holes, PMDs, PTEs beside PMDs."""
    vmas = [
        [int(bound, 16) for bound in line.split()[0].split("-")]
        for line in Path(f"/proc/{frozen[0]}/maps").read_text().splitlines()
        if "[vsyscall]" not in line
    ]

    def regions(fd: int, step: int) -> list[list[tuple[int, int, bool]]]:
        listed = proc_pages.Regions(PAGE, step)
        found = [list(listed.populated(fd, start, end)) for start, end in vmas]
        if not listed.works:
            pytest.skip("this kernel has no PAGEMAP_SCAN")
        return found

    with Path(f"/proc/{frozen[0]}/pagemap").open("rb", buffering=0) as pagemap:
        whole = regions(pagemap.fileno(), 1 << 60)
        for step in (PAGE, 7 * PAGE, 2 << 20, 128 << 20):
            assert regions(pagemap.fileno(), step) == whole
    assert {huge for found in whole for _, _, huge in found} == {False, True}
    for found in whole:
        for before, after in itertools.pairwise(found):
            assert before[1] < after[0] or (before[1] == after[0] and before[2] != after[2])


def test_the_extent_of_compounds(tmp_path: Path) -> None:
    """Orders 0, 1, 2 and 3 in one block of 16, and a whole block."""
    flags = np.zeros(32, np.uint64)
    for first, pages in ((2, 2), (4, 4), (8, 8), (16, 16)):
        flags[first + 1 : first + pages] = proc_pages.KPF_TAIL
    (tmp_path / "kpageflags").write_bytes(flags.tobytes())
    fd = os.open(tmp_path / "kpageflags", os.O_RDONLY)
    pfns = np.array([0, 1, 3, 4, 6, 7, 8, 15, 16, 31], np.uint64)
    head, size = proc_pages.compounds(fd, pfns, 16)
    os.close(fd)
    assert head.tolist() == [0, 1, 2, 4, 4, 4, 8, 8, 16, 16]
    assert size.tolist() == [1, 1, 2, 4, 4, 4, 8, 8, 16, 16]


def test_ranges_to_read() -> None:
    """Every region is in them, no larger hole is; the PMDs of each are told."""
    draw = np.random.default_rng(8)
    bounds = np.cumsum(draw.choice([1, 3, 63, 64, 65, 66, 200, 300_000], 400)).tolist()
    regions = [
        (first, last, bool(draw.integers(2)))
        for first, last in zip(bounds[::2], bounds[1::2], strict=True)
    ]
    read, huge = set[int](), set[int]()
    for first, last, by_pmd in proc_pages.joined(iter(regions)):
        assert first < last <= first + proc_pages.CHUNK
        pages = range(first, last)
        assert read.isdisjoint(pages)
        read.update(pages)
        huge.update(*(range(max(first, begin), min(last, end)) for begin, end in by_pmd))
    expected, before = set[int](), bounds[0]
    for first, last, _ in regions:
        expected.update(range(before if first - before <= proc_pages.HOLE else first, last))
        before = last
    assert read == expected
    assert huge == {page for first, last, kind in regions if kind for page in range(first, last)}
    assert list(proc_pages.joined([])) == []


def test_readers_wait_before_each_read(tmp_path: Path) -> None:
    """As many bytes as are read, a CHUNK at a time."""
    chunk = proc_pages.CHUNK
    entries = np.arange(2 * chunk + 64, dtype=np.uint64)
    (tmp_path / "entries").write_bytes(entries.tobytes())
    waits: list[int] = []
    with (tmp_path / "entries").open("rb") as file:
        every = proc_pages.lookup(file.fileno(), entries, waits.append)
        assert waits == [8 * chunk, 8 * chunk, 8 * 64]
        waits.clear()
        some = np.array([1, 3, 2 * chunk], np.uint64)
        found = proc_pages.lookup(file.fileno(), some, waits.append)
        assert waits == [8 * 3, 8]
        waits.clear()
        proc_pages.compounds(file.fileno(), some, 16, waits.append)
        assert waits == [8 * 16, 8 * 16]
    assert np.array_equal(every, entries)
    assert np.array_equal(found, some)
