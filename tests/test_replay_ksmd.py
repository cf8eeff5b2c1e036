"""ksmd visit by visit: numbers worked out by hand from mm/ksm.c, pass by pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ksm_eval.errors import TargetError
from ksm_eval.replay.contents import Kind
from ksm_eval.replay.converged import predict
from ksm_eval.replay.ksmd import Replay, simulate
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import FrameFlag, MappingFlag
from tests.snapshots import (
    KERNEL_6_1,
    KERNEL_6_12,
    KERNEL_6_18,
    KERNEL_7_3,
    LOCKED,
    ZERO,
    Builder,
)

PINNED = FrameFlag.PINNED | FrameFlag.EXCLUSIVE


def pages(replay: Replay) -> list[tuple[int, int, int, int]]:
    """(shared, sharing, unshared, volatile) after each pass."""
    return [
        (
            result.counters.pages_shared,
            result.counters.pages_sharing,
            result.counters.pages_unshared,
            result.counters.pages_volatile,
        )
        for result in replay.passes
    ]


def kinds(replay: Replay) -> list[Kind]:
    return [Kind(kind) for kind in replay.outcome.kind.tolist()]


def test_two_forked_processes_above_the_cap() -> None:
    """A: three equal pages and another; B: A's fork and one more equal page; cap 4."""
    builder = Builder()
    p1, p2, p3 = (builder.frame("X") for _ in range(3))
    p4, p5 = builder.frame("Y"), builder.frame("X")
    builder.process(p1, p2, p3, p4)
    builder.process(p1, p2, p3, p4, p5)
    replay = simulate(builder.build(), Settings(max_page_sharing=4), 6)
    assert pages(replay) == [
        (0, 0, 0, 9),
        (2, 5, 1, 1),
        (2, 5, 1, 1),
        (2, 5, 1, 1),
        (2, 5, 0, 2),  # A4 and B4 are skipped
        (2, 5, 1, 1),
    ]
    first, second, fifth = (replay.passes[n].counters for n in (0, 1, 4))
    assert first.general_profit == -576
    assert second.general_profit == 5 * 4096 - 9 * 64 == 19904
    assert (second.stable_node_chains, second.stable_node_dups) == (1, 2)
    assert (second.pages_scanned, second.full_scans) == (18, 2)
    assert (fifth.pages_skipped, fifth.pages_scanned) == (2, 9 * 4 + 7)
    assert replay.outcome.frame.tolist() == [p2, p2, p2, p4, p2, p2, p5, p4, p5]
    processes = replay.passes[-1].processes
    assert processes.ksm_rmap_items.tolist() == [4, 5]
    assert processes.ksm_merging_pages.tolist() == [3, 4]
    assert processes.ksm_process_profit is not None
    assert processes.ksm_process_profit.tolist() == [3 * 4096 - 4 * 64, 4 * 4096 - 5 * 64]


def test_smart_scan_visits_a_page_that_never_merges_ever_more_rarely() -> None:
    builder = Builder()
    builder.process(builder.frame("X"))
    replay = simulate(builder.build(), Settings(), 50)
    scanned = [0] + [result.counters.pages_scanned or 0 for result in replay.passes]
    visits = [n for n in range(1, 51) if scanned[n] > scanned[n - 1]]
    assert visits == [1, 2, 3, 4, 6, 9, 14, 23, 32, 41, 50]
    inserted = [n for n in range(1, 51) if replay.passes[n - 1].counters.pages_unshared]
    assert inserted == visits[1:]
    assert replay.passes[-1].counters.pages_skipped == 50 - len(visits)


def test_without_smart_scan_every_page_is_visited_in_every_pass() -> None:
    builder = Builder()
    builder.process(builder.frame("X"))
    replay = simulate(builder.build(), Settings(smart_scan=False), 8)
    assert replay.passes[-1].counters.pages_scanned == 8
    assert [row[2] for row in pages(replay)] == [0] + [1] * 7
    older = Builder(rules=KERNEL_6_1)
    older.process(older.frame("X"))
    counters = simulate(older.build(), Settings(smart_scan=True), 8).passes[-1].counters
    assert (counters.pages_unshared, counters.pages_volatile) == (1, 0)
    assert counters.pages_scanned is counters.pages_skipped is counters.general_profit is None


@pytest.mark.parametrize("mappings", [1, 2, 7])
def test_mappings_of_one_frame_never_merge(mappings: int) -> None:
    builder = Builder(rules=KERNEL_6_1)
    frame = builder.frame("X")
    for _ in range(mappings):
        builder.process(frame)
    assert pages(simulate(builder.build(), Settings(), 5))[1:] == [(0, 0, 1, mappings - 1)] * 4


@pytest.mark.parametrize("cap", [2, 3, 4, 8, 256])
def test_equal_pages_and_the_cap(cap: int) -> None:
    for n in [*range(1, 21), cap - 1, cap, cap + 1, 2 * cap + 1, 2 * cap + 2, 600]:
        builder = Builder()
        builder.process(*(builder.frame("X") for _ in range(n)))
        counters = simulate(builder.build(), Settings(max_page_sharing=cap), 4).passes[-1].counters
        nodes = n // cap + (n % cap >= 2)
        left = int(n % cap == 1)
        assert counters.pages_shared == nodes
        assert counters.pages_unshared == left
        assert counters.pages_sharing == n - left - nodes
        chained = nodes if nodes > 1 else 0
        assert (counters.stable_node_chains, counters.stable_node_dups) == (nodes > 1, chained)


def test_a_pinned_page_that_comes_first_keeps_its_twins_apart() -> None:
    builder = Builder()
    builder.process(builder.frame("X", PINNED), *(builder.frame("X") for _ in range(3)))
    replay = simulate(builder.build(), Settings(), 16)
    assert {row[:2] for row in pages(replay)} == {(0, 0)}
    assert kinds(replay) == [Kind.UNMERGED] * 4


def test_a_pinned_page_that_comes_last_does_no_harm() -> None:
    builder = Builder()
    builder.process(*(builder.frame("X") for _ in range(3)), builder.frame("X", PINNED))
    replay = simulate(builder.build(), Settings(), 3)
    # The pinned page finds a stable node and cannot be merged: it is in no tree.
    assert pages(replay)[1:] == [(1, 2, 0, 1)] * 2


def test_from_7_3_on_undone_merges_never_age_and_so_outlive_the_pinned_page() -> None:
    """The twins try in passes 2, 4, 6 and 8; in 8 the pinned page is skipped."""
    builder = Builder(rules=KERNEL_7_3)
    builder.process(builder.frame("X", PINNED), *(builder.frame("X") for _ in range(3)))
    rows = pages(simulate(builder.build(), Settings(), 16))
    assert [row[:2] for row in rows] == [(0, 0)] * 7 + [(1, 2)] * 9


@pytest.mark.parametrize(
    ("mapping", "frame", "merges"),
    [
        (0, FrameFlag.PINNED, True),  # clean, read-only, shared: references are not compared
        (MappingFlag.DIRTY, FrameFlag.PINNED, False),
        (MappingFlag.WRITE, FrameFlag.PINNED, False),
        (0, PINNED, False),
        (MappingFlag.WRITE | MappingFlag.DIRTY, FrameFlag.EXCLUSIVE, True),
    ],
)
def test_what_write_protect_page_refuses(mapping: int, frame: int, merges: bool) -> None:
    builder = Builder()
    builder.process(builder.frame("X"))
    builder.process(builder.frame("X", frame), flags=mapping)
    assert pages(simulate(builder.build(), Settings(), 2))[-1][:2] == (merges, merges)


def test_before_anon_exclusive_a_clean_read_only_page_passes() -> None:
    builder = Builder(rules=replace(KERNEL_6_1, anon_exclusive=False))
    builder.process(builder.frame("X"), builder.frame("X", PINNED))
    assert pages(simulate(builder.build(), Settings(), 2))[-1] == (1, 1, 0, 0)


def test_an_undone_merge_leaves_the_other_processes_an_orphan() -> None:
    """The pinned page waits in the tree; A's page is made a KSM page and undone, so A gets
    a copy and B keeps the KSM page without a stable node: it can never merge."""
    builder = Builder(rules=KERNEL_6_1)
    pinned, shared = builder.frame("X", PINNED), builder.frame("X")
    builder.process(pinned, shared)
    builder.process(shared)
    replay = simulate(builder.build(), Settings(), 5)
    assert pages(replay)[1:] == [(0, 0, 1, 2)] * 4
    assert kinds(replay) == [Kind.UNMERGED, Kind.UNMERGED, Kind.ORPHAN]
    assert replay.outcome.frame.tolist() == [0, 2, 1]  # the copy is the first of the new frames


def test_an_orphan_is_never_skipped_and_blocks_its_twins() -> None:
    builder = Builder()
    pinned, shared = builder.frame("X", PINNED), builder.frame("X")
    builder.process(pinned, shared)
    builder.process(shared)
    rows = pages(simulate(builder.build(), Settings(), 5))
    # Pass 5 skips the pinned page and the copy; the orphan is alone in the tree.
    assert rows[4] == (0, 0, 1, 2)


def test_twins_in_one_thp_merge_one_pass_later() -> None:
    builder = Builder(rules=KERNEL_6_1)
    builder.process(*builder.thp(["X", "X", "a", "b"]))
    replay = simulate(builder.build(), Settings(), 3)
    assert pages(replay) == [(0, 0, 0, 4), (0, 0, 3, 1), (1, 1, 2, 0)]
    assert replay.outcome.split.tolist() == [True]
    assert replay.split_failures == 1


def test_a_thp_is_split_by_its_first_merge() -> None:
    builder = Builder(rules=KERNEL_6_1)
    builder.process(builder.frame("X"), *builder.thp(["X", "a", "X"]))
    replay = simulate(builder.build(), Settings(), 2)
    assert pages(replay)[1] == (1, 2, 1, 0)
    assert replay.split_failures == 0


def test_a_pinned_thp_is_not_split_and_its_pages_do_not_merge() -> None:
    builder = Builder()
    builder.process(builder.frame("X"), *builder.thp(["X", "a"], pinned=True))
    replay = simulate(builder.build(), Settings(smart_scan=False), 4)
    assert pages(replay)[1:] == [(0, 0, 2, 1)] * 3
    assert replay.outcome.split.tolist() == [False]
    assert replay.split_failures == 3


def test_zero_subpages_of_a_split_thp_vanish() -> None:
    """6.12: the split maps them to the zero page, in all processes, and no KSM counter shows
    it. rmap_items behind the cursor go in the next pass, the others in this one."""
    builder = Builder()
    thp = builder.thp([ZERO, "X", ZERO])
    builder.process(builder.frame("X"), *thp)
    builder.process(*thp)
    replay = simulate(builder.build(), Settings(smart_scan=False), 3)
    assert pages(replay) == [(0, 0, 0, 7), (1, 2, 1, 0), (1, 2, 0, 0)]
    assert kinds(replay) == [
        Kind.MERGED, Kind.REMAPPED, Kind.MERGED, Kind.REMAPPED,
        Kind.REMAPPED, Kind.MERGED, Kind.REMAPPED,
    ]  # fmt: skip
    last = replay.passes[-1]
    assert (last.counters.ksm_rmap_items, last.counters.ksm_zero_pages) == (3, 0)
    assert last.processes.ksm_rmap_items.tolist() == [2, 1]


def test_zero_subpages_stay_in_an_mlocked_vma() -> None:
    builder = Builder()
    builder.process(builder.frame("X"), *builder.thp(["X", ZERO]), vma_flags=LOCKED)
    assert pages(simulate(builder.build(), Settings(), 3))[-1] == (1, 1, 1, 0)


def test_zero_subpages_behind_an_mlocked_mapping_stay_too() -> None:
    """Restoring the mapping in a VM_LOCKED VMA sets PG_mlocked, which spares all mappings that
    are restored after it (remap_page(), mm/huge_memory.c); those before it are remapped."""

    def settled(locked: int) -> tuple[int, ...]:
        builder = Builder(rules=replace(KERNEL_6_12, mlock_batch=0))
        alone, shared = builder.frame("X"), builder.thp(["X", ZERO])
        builder.process(alone)
        for number in range(3):
            builder.process(*shared, vma_flags=LOCKED if number == locked else 0)
        made = builder.build()
        counters = predict(made, Settings(smart_scan=False)).counters
        replayed = simulate(made, Settings(smart_scan=False), 4).passes[-1].counters
        found = counters.pages_unshared, counters.pages_volatile, counters.ksm_rmap_items
        assert found == (
            replayed.pages_unshared, replayed.pages_volatile, replayed.ksm_rmap_items
        )  # fmt: skip
        assert (counters.pages_shared, counters.pages_sharing) == (1, 3)
        return found

    # X has four mappings, which merge; the zero subpage keeps those from the locked one on.
    assert settled(locked=-1) == (0, 0, 4)
    assert settled(locked=0) == (1, 2, 7)
    assert settled(locked=1) == (1, 1, 6)
    assert settled(locked=2) == (1, 0, 5)


def test_zero_subpages_before_6_12_are_ordinary_pages() -> None:
    builder = Builder(rules=KERNEL_6_1)
    builder.process(builder.frame("X"), *builder.thp(["X", ZERO, ZERO]))
    assert pages(simulate(builder.build(), Settings(), 4))[-1] == (2, 2, 0, 0)


def test_a_zero_page_waiting_for_a_zero_subpage_is_undone() -> None:
    """The subpage waits in the tree; when the small page meets it the THP is split, the
    subpage is gone, and the small page gets a copy of itself."""
    builder = Builder()
    builder.process(*builder.thp([ZERO, "a"]), builder.frame(ZERO))
    replay = simulate(builder.build(), Settings(smart_scan=False), 3)
    assert pages(replay)[1:] == [(0, 0, 2, 1), (0, 0, 2, 0)]
    assert kinds(replay) == [Kind.REMAPPED, Kind.UNMERGED, Kind.UNMERGED]


def test_from_7_3_on_an_undone_page_is_skipped_in_other_passes_than_the_rest() -> None:
    """As above; the small page starts over in pass 2 and so is visited in passes 3 to 6, 8,
    11 …, but only from pass 4 on with a checksum; "a" in 2, 3, 4, 6, 9 …"""
    builder = Builder(rules=KERNEL_7_3)
    builder.process(*builder.thp([ZERO, "a"]), builder.frame(ZERO))
    rows = pages(simulate(builder.build(), Settings(), 11))
    assert [row[2] for row in rows[2:]] == [1, 2, 1, 2, 0, 1, 1, 0, 1]


def test_a_split_attempt_breaks_one_pmd_at_a_time() -> None:
    """6.16 to early 6.19: with k PMD mappers k-1 attempts fail. A1 (small) waits in the tree;
    A2, B2 and C2 each cost an attempt. C2 splits the THP and merges with A1; in the next
    pass the others merge too."""
    builder = Builder(rules=replace(KERNEL_6_18, smart_scan=False))
    thp = builder.thp(["X", "a"])
    builder.process(builder.frame("X"), *thp, flags=MappingFlag.HUGE)
    builder.process(*thp, flags=MappingFlag.HUGE)
    builder.process(*thp, flags=MappingFlag.HUGE)
    replay = simulate(builder.build(), Settings(), 3)
    assert [row[:2] for row in pages(replay)] == [(0, 0), (1, 1), (1, 3)]
    assert replay.split_failures == 2


def test_failed_splits_of_the_waiting_page_leave_orphans() -> None:
    """As above, but the THP waits in the tree: the small page, shared by D, is undone."""
    builder = Builder(rules=replace(KERNEL_6_18, smart_scan=False))
    thp, small = builder.thp(["X", "a"]), builder.frame("X")
    builder.process(*thp, flags=MappingFlag.HUGE)
    builder.process(*thp, flags=MappingFlag.HUGE)
    builder.process(small)
    builder.process(small)
    replay = simulate(builder.build(), Settings(), 3)
    # Pass 2: one PMD broken, process 2 has a copy, process 3 the orphan. Pass 3: the copy
    # merges with the waiting page; the THP is split now.
    assert pages(replay)[1] == (0, 0, 2, 4)
    assert pages(replay)[2][:2] == (1, 1)
    assert kinds(replay)[-1] == Kind.ORPHAN


def test_pages_merge_within_their_node_only() -> None:
    builder = Builder()
    builder.process(*(builder.frame("X", node=n) for n in (0, 1, 0, 1, 2)))
    snapshot = builder.build()
    apart = simulate(snapshot, Settings(merge_across_nodes=False), 2)
    assert pages(apart)[-1] == (2, 2, 1, 0)
    assert pages(simulate(snapshot, Settings(), 2))[-1] == (1, 4, 0, 0)


@pytest.mark.parametrize(
    ("rules", "counted"), [(KERNEL_6_1, None), (KERNEL_6_12, 3), (KERNEL_7_3, 3)]
)
def test_use_zero_pages(rules: object, counted: int | None) -> None:
    assert isinstance(rules, type(KERNEL_6_1))
    builder = Builder(rules=rules)
    zero = builder.frame(ZERO)
    builder.process(zero, builder.frame(ZERO), builder.frame("X"))
    builder.process(zero)
    replay = simulate(builder.build(), Settings(use_zero_pages=True, smart_scan=False), 3)
    # The rmap_items stay for a pass, volatile.
    assert pages(replay) == [(0, 0, 0, 4), (0, 0, 1, 3), (0, 0, 1, 0)]
    last = replay.passes[-1]
    assert last.counters.ksm_zero_pages == counted
    if counted is None:
        assert last.processes.ksm_zero_pages is None
    else:
        assert last.processes.ksm_zero_pages is not None
        assert last.processes.ksm_zero_pages.tolist() == [2, 1]
        assert last.counters.general_profit == 3 * 4096 - 64


def test_without_use_zero_pages_a_zero_page_is_like_any_other() -> None:
    builder = Builder()
    builder.process(builder.frame(ZERO), builder.frame(ZERO))
    assert pages(simulate(builder.build(), Settings(), 2))[-1] == (1, 1, 0, 0)


def test_unreadable_pages_are_counted_and_never_merge() -> None:
    builder = Builder()
    builder.process(*(builder.frame("X", FrameFlag.UNREADABLE) for _ in range(3)))
    replay = simulate(builder.build(), Settings(), 4)
    assert pages(replay) == [(0, 0, 0, 3)] * 4


def poison(first: bool) -> Builder:
    """6.1.y: a PROT_NONE page of another content, scanned first or last."""
    builder = Builder(rules=KERNEL_6_1, rank={"a": 0, "m": 1, "z": 2})
    hidden = builder.frame("m")
    builder.process(*([hidden] if first else []), flags=MappingFlag.PROT_NONE)
    builder.process(*(builder.frame(name) for name in "aazz"))
    if not first:
        builder.process(hidden, flags=MappingFlag.PROT_NONE)
    return builder


def test_prot_none_at_the_root_of_the_tree_blocks_everything() -> None:
    replay = simulate(poison(first=True).build(), Settings(), 4)
    assert pages(replay)[1:] == [(0, 0, 1, 4)] * 3


def test_prot_none_scanned_last_does_no_harm() -> None:
    replay = simulate(poison(first=False).build(), Settings(), 3)
    assert pages(replay)[1:] == [(2, 2, 1, 0)] * 2


def test_prot_none_blocks_one_side_of_the_tree() -> None:
    """z is the root, m (PROT_NONE) its left child: a and c must pass m, zz need not."""
    builder = Builder(rules=KERNEL_6_1, rank={name: n for n, name in enumerate("acmz")})
    builder.process(builder.frame("z"))
    builder.process(builder.frame("m"), flags=MappingFlag.PROT_NONE)
    builder.process(*(builder.frame(name) for name in "aacc"), builder.frame("z"))
    replay = simulate(builder.build(), Settings(), 2)
    # The two z merge and leave the tree with m in it.
    assert pages(replay)[1] == (1, 1, 1, 4)


def test_prot_none_is_harmless_where_it_can_be_read() -> None:
    builder = poison(first=True)
    builder.rules = KERNEL_6_12
    assert pages(simulate(builder.build(), Settings(), 2))[-1] == (2, 2, 1, 0)


def test_poison_without_the_order_of_contents_is_refused() -> None:
    builder = poison(first=True)
    builder.rank = None
    with pytest.raises(TargetError, match="order of the contents"):
        simulate(builder.build(), Settings(), 1)


def test_a_remapped_zero_page_in_the_tree_blocks_until_the_pass_ends() -> None:
    """6.12: the zero subpage is the root of the tree when its THP is split by X; what comes
    then must pass it, and merges in the next pass only."""
    builder = Builder(rank={ZERO: 0, "X": 1, "y": 2})
    thp = builder.thp([ZERO, "X"])
    builder.process(*thp, builder.frame("X"), builder.frame("y"), builder.frame("y"))
    rows = pages(simulate(builder.build(), Settings(), 3))
    assert rows[1:] == [(1, 1, 1, 2), (2, 2, 0, 0)]


def test_6_1_merges_a_new_page_into_a_ksm_page_at_its_first_visit() -> None:
    for rules, merged in ((KERNEL_6_1, 1), (KERNEL_6_12, 0)):
        builder = Builder(rules=rules)
        builder.process(builder.frame("X", FrameFlag.KSM), builder.frame("X"))
        rows = pages(simulate(builder.build(), Settings(), 2))
        assert rows == [(1, merged, 0, 1 - merged), (1, 1, 0, 0)]


def test_ksm_frames_of_the_target_keep_their_mappings() -> None:
    """Three dups of one content, one of them with room: a chain, and the page joins it."""
    builder = Builder()
    full, room = (
        [builder.frame("X", FrameFlag.KSM) for _ in range(2)],
        builder.frame("X", FrameFlag.KSM),
    )
    builder.process(*full, *full, room, room, builder.frame("X"))
    builder.process(*full, *full)
    replay = simulate(builder.build(), Settings(max_page_sharing=4), 2)
    assert pages(replay) == [(3, 7, 0, 1), (3, 8, 0, 0)]
    counters = replay.passes[-1].counters
    assert (counters.stable_node_chains, counters.stable_node_dups) == (1, 3)
    assert replay.outcome.frame.tolist()[6] == room


def test_zero_pages_the_target_has_already_are_counted() -> None:
    builder = Builder(zero_before=[7, 0])
    builder.process(builder.frame(ZERO))
    builder.process(builder.frame("X"))
    last = simulate(builder.build(), Settings(use_zero_pages=True), 3).passes[-1]
    assert last.counters.ksm_zero_pages == 8
    assert last.processes.ksm_zero_pages is not None
    assert last.processes.ksm_zero_pages.tolist() == [8, 0]


def test_nothing_selected() -> None:
    builder = Builder()
    builder.process()
    replay = simulate(builder.build(), Settings(), 2)
    assert pages(replay) == [(0, 0, 0, 0)] * 2
    assert replay.passes[-1].counters.general_profit == 0


def test_counters_inside_a_pass() -> None:
    """Three equal pages in one process, then a unique one: pass 2, page by page."""
    builder = Builder(rules=KERNEL_6_12)
    builder.process(*(builder.frame(content) for content in "XXXY"))
    seen = []
    for scanned in (1, 2, 3, 4):
        cut = simulate(builder.build(), Settings(), 1, cut=scanned).cut
        assert cut is not None
        counters = cut.counters
        assert (counters.full_scans, counters.pages_scanned) == (1, 4 + scanned)
        seen.append((counters.pages_shared, counters.pages_sharing, counters.pages_unshared))
    assert seen == [(0, 0, 1), (1, 1, 0), (1, 2, 0), (1, 2, 1)]
    more = simulate(builder.build(), Settings(), 1, cut=5).cut  # than the pass has: it is over
    assert more is not None
    assert (more.counters.full_scans, more.counters.pages_scanned) == (2, 8)


@pytest.mark.parametrize(("batch", "held"), [(31, 15), (15, 0), (0, 0)])
def test_pages_that_left_an_mlocked_vma(batch: int, held: int) -> None:
    """30 pages shared by three processes, mlocked in the first, merge with pages that are
    KSM pages by then. Each of the first one's merges puts the KSM page and the old page into
    the batch: 60 entries, of which 29 are left after the last time that 31 were reached, 15
    of them old pages. Those are pinned for the other two processes until the next pass. A
    batch of 15 has been emptied by the 60th."""
    builder = Builder(rules=replace(KERNEL_6_12, mlock_batch=batch))
    twins = [builder.frame(f"c{n}") for n in range(30) for _ in range(2)]
    shared = [builder.frame(f"c{n}") for n in range(30)]
    dirty = MappingFlag.DIRTY
    builder.process(*twins, flags=dirty)
    builder.process(*shared, flags=dirty, vma_flags=LOCKED)
    builder.process(*shared, flags=dirty)
    builder.process(*shared, flags=dirty)
    snapshot = builder.build()
    replay = simulate(snapshot, Settings(), 3)
    assert pages(replay) == [
        (0, 0, 0, 150),
        (30, 120 - 2 * held, 0, 2 * held),
        (30, 120, 0, 0),
    ]
    settled = predict(snapshot, Settings())
    assert settled.counters.pages_sharing == 120
    assert settled.savings.frames_freed == 60
