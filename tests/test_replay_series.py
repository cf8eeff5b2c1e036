"""Several samples of a changing memory: numbers worked out by hand from mm/ksm.c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from ksm_eval.collect import collect
from ksm_eval.memcmp_order import common_order
from ksm_eval.replay.ksmd import simulate
from ksm_eval.replay.rules import Rules, Settings
from ksm_eval.replay.series import simulate_series
from ksm_eval.replay.state import PassResult
from ksm_eval.snapshot import FrameFlag, MappingFlag, Snapshot
from ksm_eval.target import Selection, read_page
from tests.fixtures import opted_in, target
from tests.snapshots import (
    KERNEL_6_1,
    KERNEL_6_12,
    KERNEL_6_18,
    KERNEL_7_3,
    LOCKED,
    ZERO,
    Builder,
    snapshots,
)
from tests.snapshots import settings as ksm_settings
from tests.test_replay_property import EXAMPLES

CALM = Settings(smart_scan=False)


def pages(results: list[PassResult]) -> list[tuple[int, int, int, int]]:
    """(shared, sharing, unshared, volatile) after each pass."""
    return [
        (c.pages_shared, c.pages_sharing, c.pages_unshared, c.pages_volatile)
        for c in (result.counters for result in results)
    ]


def one(
    contents: Sequence[str], rules: Rules = KERNEL_6_12, rank: dict[str, int] | None = None
) -> Snapshot:
    """One process that maps a frame of each of these contents; "" leaves the frame out."""
    builder = Builder(rules=rules, rank=rank)
    found = [builder.frame(content) for content in contents]
    builder.process(*found)
    made = builder.build()
    # A content's hash is its own in every sample.
    hashes = np.array([hash_of(content) for content in contents], np.uint64)
    made = replace(made, frames=replace(made.frames, hash=hashes))
    return without(made, [i for i, content in enumerate(contents) if not content])


def hash_of(content: str) -> int:
    return int.from_bytes(content.encode().ljust(8, b"\1")[:8], "little")


def without(made: Snapshot, mappings: list[int]) -> Snapshot:
    """Nothing is mapped at these positions."""
    keep = np.ones(len(made.mappings), np.bool_)
    keep[mappings] = False
    columns = {name: column[keep] for name, column in vars(made.mappings).items()}
    vma = np.repeat(np.arange(len(made.vmas)), np.diff(made.vmas.offset))[keep]
    counts = np.bincount(vma, minlength=len(made.vmas))
    offset = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return replace(
        made,
        mappings=replace(made.mappings, **columns),
        vmas=replace(made.vmas, offset=offset),
    )


def forked(made: Snapshot, parents: dict[int, int]) -> Snapshot:
    """Process rows and their parents: the child's VMA, one each, is where the parent's is."""
    start, end = made.vmas.start.copy(), made.vmas.end.copy()
    size = end - start
    ppid = np.ones(len(made.processes), np.int32)
    for child, parent in parents.items():
        start[child] = start[parent]
        ppid[child] = made.processes.pid[parent]
    return replace(
        made,
        vmas=replace(made.vmas, start=start, end=start + size),
        processes=replace(made.processes, ppid=ppid),
    )


def series(*samples: Sequence[str], rules: Rules = KERNEL_6_12) -> list[tuple[int, int, int, int]]:
    return pages(simulate_series([one(sample, rules) for sample in samples], CALM))


def test_nothing() -> None:
    assert simulate_series([], Settings()) == []


def test_a_merged_page_is_written_and_written_back() -> None:
    """Pass 3 sees the COW, pass 4 a checksum that stays; back again it is the same until 6.10
    merges at its first visit, as the stable tree is searched first."""
    samples = ["XXY", "XXY", "ZXY", "ZXY", "XXY", "XXY"]
    assert series(*samples) == [
        (0, 0, 0, 3), (1, 1, 1, 0), (1, 0, 1, 1), (1, 0, 2, 0), (1, 0, 1, 1), (1, 1, 1, 0),
    ]  # fmt: skip
    assert series(*samples, rules=KERNEL_6_1)[4:] == [(1, 1, 1, 0), (1, 1, 1, 0)]


def test_writes_to_merged_pages_are_cow_faults() -> None:
    """Merged in pass 2; both are written by the third sample, one again by the fourth, when it
    is not merged any more. A page that is not merged takes no fault."""

    def breaks(*samples: str, settings: Settings = CALM) -> list[int]:
        made = [one(sample) for sample in samples]
        return [result.cow_breaks for result in simulate_series(made, settings)]

    assert breaks("XXY", "XXY", "abZ", "cbZ") == [0, 0, 2, 0]
    assert breaks("XXX", "XXX", "aXX", "aXX", "abX") == [0, 0, 1, 0, 1]
    assert breaks("aXb", "cXd", "eXf") == [0, 0, 0]


def test_writes_to_zero_pages_are_faults_too() -> None:
    zero = [one([ZERO, "Y"]), one([ZERO, "Y"]), one(["a", "Y"])]
    settings = Settings(smart_scan=False, use_zero_pages=True)
    assert [r.cow_breaks for r in simulate_series(zero, settings)] == [0, 0, 1]


def test_a_stable_node_without_mappings_goes_at_the_first_touch() -> None:
    rows = series("XX", "XX", "ab", "ab", "XX", "XX")
    assert rows == [(0, 0, 0, 2), (1, 1, 0, 0), (0, 0, 0, 2), (0, 0, 2, 0), (0, 0, 0, 2),
                    (1, 1, 0, 0)]  # fmt: skip


def test_a_changing_page_is_never_merged() -> None:
    assert series("aX", "bX", "aX", "bX")[1:] == [(0, 0, 1, 1)] * 3


def test_an_address_that_is_gone_loses_its_item() -> None:
    rows = series("XXY", "XXY", ["X", "", "Y"], "XXY", "XXY")
    assert rows[2:] == [(1, 0, 1, 0), (1, 0, 1, 1), (1, 1, 1, 0)]


def test_what_was_merged_stays_merged_wherever_its_frame_goes() -> None:
    made = one("XXY")
    moved = replace(made, frames=replace(made.frames, pfn=made.frames.pfn + np.uint64(7)))
    assert pages(simulate_series([made, made, moved, moved], CALM))[2:] == [(1, 1, 1, 0)] * 2


def test_from_7_3_on_a_page_that_left_starts_over() -> None:
    """A merged page is written before pass 3. Until then it has been visited twice, and so is
    skipped from pass 5 on; on 7.3 it is as if it were new."""
    samples = ["XX", "XX", "aX", "aX"]
    assert series(*samples) == series(*samples, rules=KERNEL_7_3)
    smart = [one(sample, KERNEL_7_3) for sample in [*samples, "aX", "aX", "aX"]]
    skipped = [result.counters.pages_skipped for result in simulate_series(smart, Settings())]
    assert skipped == [0] * 7
    older = [one(sample) for sample in [*samples, "aX", "aX", "aX"]]
    skipped = [result.counters.pages_skipped for result in simulate_series(older, Settings())]
    assert skipped == [0, 0, 0, 0, 1, 1, 2]


def test_a_process_that_exits_takes_its_items_along() -> None:
    builder = Builder()
    builder.process(builder.frame("X"), builder.frame("a"))
    builder.process(builder.frame("X"), builder.frame("b"))
    both = builder.build()
    alone = Builder()
    alone.process(alone.frame("X"), alone.frame("a"))
    left = alone.build()
    left = replace(left, frames=replace(left.frames, hash=both.frames.hash[:2]))
    results = simulate_series([both, both, left, left], CALM)
    assert pages(results)[1:] == [(1, 1, 2, 0), (1, 0, 1, 0), (1, 0, 1, 0)]
    assert results[2].counters.ksm_rmap_items == 2
    assert results[2].processes.ksm_merging_pages.tolist() == [1]


def family(rules: Rules, children: int, shared: Sequence[str] = "XXXY") -> Snapshot:
    """A process and forked ones that have all its frames."""
    builder = Builder(rules=rules)
    frames = [builder.frame(content) for content in shared]
    for _ in range(1 + children):
        builder.process(*frames)
    made = builder.build()
    made = replace(
        made, frames=replace(made.frames, hash=np.array([hash_of(c) for c in shared], np.uint64))
    )
    return forked(made, dict.fromkeys(range(1, 1 + children), 0))


def test_a_fork_inherits_what_was_merged_and_what_was_not() -> None:
    """Cap 2: two of three X merged, the third is left over. The child's pages are those of the
    parent: two attach beyond the cap, the left over one is the same frame."""
    first, after = family(KERNEL_6_12, 0), family(KERNEL_6_12, 1)
    results = simulate_series([first, first, after, after], replace(CALM, max_page_sharing=2))
    assert pages(results)[1:] == [(1, 1, 2, 0), (1, 3, 2, 2), (1, 3, 2, 2)]
    assert results[-1].processes.ksm_merging_pages.tolist() == [2, 2]


def test_a_fork_inherits_from_its_parent_as_it_was() -> None:
    """A grandchild whose parent is new, too; the parent's page was written meanwhile."""
    first, after = family(KERNEL_6_12, 0), family(KERNEL_6_12, 2)
    after = forked(after, {1: 0, 2: 0})
    ppid = after.processes.ppid
    assert ppid is not None
    ppid[2] = after.processes.pid[1]
    results = simulate_series([first, first, after], CALM)
    assert pages(results)[-1] == (1, 8, 1, 2)


def test_an_old_process_that_has_a_frame_again_inherits_nothing() -> None:
    """The frames were merged; mapped at another address they are new pages (2.5)."""
    builder = Builder()
    frames = [builder.frame("X"), builder.frame("X")]
    builder.process(*frames)
    first = builder.build()
    again = replace(
        first,
        vmas=replace(
            first.vmas,
            start=first.vmas.start + np.uint64(1 << 40),
            end=first.vmas.end + np.uint64(1 << 40),
        ),
    )
    assert pages(simulate_series([first, first, again, again], CALM))[2:] == [
        (0, 0, 0, 2),
        (1, 1, 0, 0),
    ]


def test_until_6_17_a_child_starts_with_its_parents_counters() -> None:
    first, after = family(KERNEL_6_1, 0), family(KERNEL_6_1, 1)
    results = simulate_series([first, first, after], CALM)
    assert results[-1].processes.ksm_rmap_items.tolist() == [4, 8]
    assert results[-1].processes.ksm_merging_pages.tolist() == [3, 6]
    assert results[-1].counters.ksm_rmap_items == 8


@pytest.mark.parametrize("rules", [KERNEL_6_1, KERNEL_6_12])
def test_zero_pages_are_inherited_and_end_with_a_write(rules: Rules) -> None:
    ksm = replace(CALM, use_zero_pages=True)
    first, after = family(rules, 0, [ZERO, "Y"]), family(rules, 1, [ZERO, "Y"])
    made = [first, first, first, after, after]
    results = simulate_series(made, ksm)
    zero = [result.counters.ksm_zero_pages for result in results]
    assert zero == ([0, 1, 1, 2, 2] if rules.zero_counter else [None] * 5)
    assert results[-1].counters.ksm_rmap_items == 2
    # Both write: the pages are candidates again.
    hashes = after.frames.hash.copy()
    hashes[0] ^= np.uint64(1)
    flags = np.zeros_like(after.frames.flags)
    written = replace(after, frames=replace(after.frames, hash=hashes, flags=flags))
    last = simulate_series([*made, written], ksm)[-1].counters
    assert (last.ksm_rmap_items, last.ksm_zero_pages or 0) == (4, 0)


def test_until_6_17_zero_pages_of_a_child_are_its_own_but_not_the_systems() -> None:
    """ksm_fork() adds them to no counter there; each that ends is taken from both."""
    ksm = replace(CALM, use_zero_pages=True)
    rules = replace(KERNEL_6_12, fork_copies_counters=True)
    first, after = family(rules, 0, [ZERO, "Y"]), family(rules, 1, [ZERO, "Y"])
    hashes = after.frames.hash ^ np.array([1, 0], np.uint64)
    written = replace(after, frames=replace(after.frames, hash=hashes, flags=np.zeros(2, np.uint8)))
    results = simulate_series([first, first, after, written], ksm)
    assert [result.counters.ksm_zero_pages for result in results] == [0, 1, 1, -1]
    own = [result.processes.ksm_zero_pages for result in results[1:]]
    assert [None if zero is None else zero.tolist() for zero in own] == [[1], [1, 1], [0, 0]]


def test_zero_pages_written_before_a_fork_are_not_inherited() -> None:
    """The write took the page from both counters; the child starts with its parent's 0. Until
    6.17, as ksm_fork() adds nothing, and afterwards, as there is nothing to add."""
    ksm = replace(CALM, use_zero_pages=True)
    for copies in (True, False):
        rules = replace(KERNEL_6_12, fork_copies_counters=copies)
        first, after = family(rules, 0, [ZERO, "Y"]), family(rules, 1, [ZERO, "Y"])
        hashes, pfn = after.frames.hash.copy(), after.frames.pfn.copy()
        hashes[0] ^= np.uint64(1)
        pfn[0] += np.uint64(4000)  # the copy, which both map
        frames = replace(after.frames, hash=hashes, pfn=pfn, flags=np.zeros(2, np.uint8))
        written = replace(after, frames=frames)
        results = simulate_series([first, first, first, written, written], ksm)
        assert [result.counters.ksm_zero_pages for result in results] == [0, 1, 1, 0, 0]
        zero = [result.processes.ksm_zero_pages for result in results]
        assert [None if z is None else z.tolist() for z in zero[2:]] == [[1], [0, 0], [0, 0]]


def test_a_thp_at_other_addresses_is_a_new_one() -> None:
    """6.12: the split remaps the zero subpage; the THP that comes back has it, until its own
    split. Where it stays, it stays remapped."""

    def sample(start: int) -> Snapshot:
        builder = Builder()
        builder.process(builder.frame("X"))
        builder.vma(*builder.thp(["X", ZERO]), flags=MappingFlag.HUGE)
        made = builder.build()
        move = np.array([0, start << 40], np.uint64)
        return replace(
            made,
            vmas=replace(made.vmas, start=made.vmas.start + move, end=made.vmas.end + move),
        )

    here, there = sample(0), sample(1)
    results = simulate_series([here, here, here, there, there, there], CALM)
    items = [result.counters.ksm_rmap_items for result in results]
    assert items == [3, 2, 2, 3, 2, 2]
    assert pages(results)[2] == pages(results)[-1] == (1, 1, 0, 0)


def test_a_chain_collapses_when_a_search_passes_it() -> None:
    """Cap 2: two dups of X, then one is stale and goes with its items. The chain of one is left
    until a search meets it; that a, b pass X is known from the order only."""
    ksm = replace(CALM, max_page_sharing=2)

    def chains(rank: dict[str, int] | None) -> list[tuple[int, int]]:
        samples = [one(sample, rank=rank) for sample in ("XXXX", "XXXX", "abXX", "abXX")]
        return [
            (c.stable_node_chains, c.stable_node_dups)
            for c in (result.counters for result in simulate_series(samples, ksm))
        ]

    assert chains({"X": 5, "a": 1, "b": 9}) == [(0, 0), (1, 2), (1, 1), (0, 0)]
    assert chains(None) == [(0, 0), (1, 2), (1, 1), (1, 1)]


def test_mlocked_pages_wait_in_a_batch() -> None:
    """A, mlocked, merges its page; B has the same frame, which waits with a reference more:
    the pass after merges it, too."""
    builder = Builder(rules=replace(KERNEL_6_12, mlock_batch=31))
    frames = [builder.frame("X"), builder.frame("X")]
    builder.process(*frames, vma_flags=LOCKED)
    builder.process(*frames, flags=MappingFlag.DIRTY)
    made = builder.build()
    rows = pages(simulate_series([made] * 3, CALM))
    assert rows[1:] == [(1, 2, 0, 1), (1, 3, 0, 0)]
    assert rows == pages(simulate(made, CALM, 3).passes)


@pytest.mark.parametrize(("batch", "waits"), [(4, 0), (31, 1)])
def test_a_copy_in_an_mlocked_vma_passes_through_the_batch(batch: int, waits: int) -> None:
    """The pinned X is met first, so B's X is undone: its copy and what it was a copy of make two
    entries. B's Y, merged, makes two more, the last of them its old page, which C maps, too."""
    builder = Builder(rules=replace(KERNEL_6_12, mlock_batch=batch))
    dirty, shared = MappingFlag.DIRTY, builder.frame("Y")
    builder.process(builder.frame("X", FrameFlag.PINNED), flags=dirty)
    builder.process(builder.frame("Y"), builder.frame("Y"), flags=dirty)
    builder.process(builder.frame("X"), shared, flags=dirty, vma_flags=LOCKED)
    builder.process(shared, flags=dirty)
    rows = pages(simulate(builder.build(), CALM, 3).passes)
    # The pinned X waits in the tree, its twin is volatile.
    assert rows[1:] == [(1, 3 - waits, 1, 1 + waits), (1, 3, 1, 1)]


def test_a_pte_mapper_behind_the_last_pmd_costs_an_attempt() -> None:
    """6.16 to early 6.19, as thp_split_page_failed of such a guest shows."""
    for order, failures in (((1, 0), 1), ((0, 1), 0)):
        builder = Builder(rules=KERNEL_6_18)
        builder.process(builder.frame("X"))
        thp = builder.thp(["X", "a"])
        for huge in order:
            builder.process(*thp, flags=MappingFlag.HUGE * huge)
        made = builder.build()
        replay = simulate(made, CALM, 3)
        assert replay.split_failures == failures
        assert_equal(simulate_series([made] * 3, CALM), replay.passes)


@pytest.mark.parametrize(("behind", "failures"), [(False, 0), (True, 1)])
def test_a_pte_mapper_behind_a_pmd_of_nobody_selected(behind: bool, failures: int) -> None:
    """Of a THP that a process maps by PMD which ksmd does not scan; 6.18 with such a guest counted
    one more thp_split_page_failed, as its children came behind it in rmap_walk()."""
    builder = Builder(rules=KERNEL_6_18)
    builder.process(builder.frame("X"))
    builder.process(*builder.thp(["X", "a"]))
    made = builder.build()
    one_pmd = np.ones(1, np.uint32)
    known = replace(made.compounds, pmd_mapcount=one_pmd, pte_behind=np.array([behind]))
    made = replace(made, compounds=known)
    replay = simulate(made, CALM, 3)
    assert replay.split_failures == failures
    assert_equal(simulate_series([made] * 3, CALM), replay.passes)


def test_ranks_that_mean_the_same_in_two_dumps() -> None:
    """Both dumps are of one kind of guest, so they have many contents in common."""
    names = ("x86_64-6.12-tiny", "x86_64-6.12-tiny-cap")
    taken = [
        (target(name), collect(target(name), Selection(pids=tuple(opted_in(name))), seed=5))
        for name in names
    ]
    ranked = common_order(taken)
    pages_of: dict[int, bytes] = {}
    for (vm, _), made in zip(taken, ranked, strict=True):
        assert made.frames.order is not None
        for pfn, rank in zip(made.frames.pfn.tolist(), made.frames.order.tolist(), strict=True):
            content = read_page(vm, pfn)
            assert pages_of.setdefault(rank, content) == content
    ordered = [pages_of[rank] for rank in sorted(pages_of)]
    assert ordered == sorted(set(ordered))
    common = {tuple(np.unique(made.frames.hash).tolist()) for made in ranked}
    assert len(set.intersection(*(set(hashes) for hashes in common))) > 200


def assert_equal(ours: list[PassResult], theirs: list[PassResult]) -> None:
    assert [result.counters for result in ours] == [result.counters for result in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name, column in vars(b.processes).items():
            assert np.array_equal(getattr(a.processes, name), column), name


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(snapshot=snapshots(warm=False), ksm=ksm_settings())
def test_equal_samples_are_a_memory_that_stands_still(snapshot: Snapshot, ksm: Settings) -> None:
    assert_equal(simulate_series([snapshot] * 7, ksm), simulate(snapshot, ksm, 7).passes)
