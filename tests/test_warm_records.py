"""ksmd's records worked out by hand: what a real one leaves there only now and then."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ksm_eval.collect import collect
from ksm_eval.evaluate import open_target
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.warm import simulate_warm
from ksm_eval.save import load, save
from ksm_eval.save_check import Invalid, check_ksmd
from ksm_eval.snapshot import EMPTY, FrameFlag, KsmdState, MappingFlag, Snapshot
from ksm_eval.target import Selection
from ksm_eval.target.jiffies import Jiffies, read_jiffies
from ksm_eval.target.ksm_state import CHAIN, _Reader
from ksm_eval.target.records import Contradiction, Memory
from tests.fixtures import NAMES, WARM, opted_in, target, vmcore
from tests.snapshots import KERNEL_6_1, KERNEL_6_12, LOCKED, Builder

CALM = Settings(smart_scan=False)
RANK = {"X": 0, "Z": 1}


def at_work(
    builder: Builder,
    merged: list[int],
    *,
    tree: list[tuple[int, int, int, int, int]],
    stale: int = 0,
    cursor: int = -1,
    waiting: Sequence[int] = (),
    other: Sequence[int] = (),
) -> Snapshot:
    """ksmd has done two passes. Process 0 maps the KSM pages `merged`, one mapping each; all other
    pages have been visited twice.

    `stale`: dups of one more chain, whose pages are gone. `cursor`: the process that ksmd is at, in
    pass 3. `waiting` and `other`: frames that wait in mm/mlock.c's batch and in others; -1: some
    other page.
    """
    made = builder.build(CALM)
    vmas, mappings = made.vmas, made.mappings
    vma = np.repeat(np.arange(len(vmas)), np.diff(vmas.offset))
    address = vmas.start[vma] + mappings.page.astype(np.uint64) * np.uint64(4096)
    node = np.array([merged.index(f) if f in merged else -1 for f in mappings.frame.tolist()])
    n, frames = len(mappings), made.frames
    pfns = [int(frames.pfn[f]) if f >= 0 else 5 for f in (*waiting, *other)]
    state = KsmdState(
        item_process=vmas.process[vma].astype(np.int32),
        item_dying=np.zeros(n, np.bool_),
        item_address=address,
        item_unstable=np.zeros(n, np.bool_),
        item_seqnr=np.zeros(n, np.uint8),
        item_node=node.astype(np.int64),
        item_current=node < 0,
        item_age=np.full(n, 2, np.uint8),
        item_skips=np.zeros(n, np.uint8),
        node_pfn=np.append(frames.pfn[merged], np.arange(stale, dtype=np.uint64)),
        node_hash=np.append(frames.hash[merged], np.zeros(stale, np.uint64)),
        node_length=np.bincount(node[node >= 0], minlength=len(merged) + stale).astype(np.int32),
        node_chain=np.array([-1] * len(merged) + [0] * stale, np.int32),
        node_stale=np.arange(len(merged) + stale) >= len(merged),
        tree=np.array(tree, np.int64),
        batch_pfn=np.array(pfns, np.uint64),
        batch_mlock=np.arange(len(pfns)) < len(waiting),
        full_scans=2,
        cursor_process=cursor,
        cursor_address=0,
    )
    return replace(made, ksmd=state)


def counters(made: Snapshot, passes: int, *names: str) -> list[tuple[int, ...]]:
    results = simulate_warm(made, CALM, passes)
    return [tuple(getattr(result.counters, name) for name in names) for result in results]


def empty_chain(rank: dict[str, int] | None, stale: int = 0) -> Snapshot:
    """X is a KSM page, at the tree's root a chain, of stale nodes or empty; Z is new to ksmd's
    trees."""
    builder = Builder(rules=KERNEL_6_12, rank=rank)
    merged = builder.frame("X", FrameFlag.KSM)
    builder.process(merged, builder.frame("Z"))
    root = 1 if stale else EMPTY
    return at_work(builder, [merged], tree=[(root, -1, 0, 0, 0), (0, 0, 0, 1, 0)], stale=stale)


def test_an_empty_chain_goes_when_a_search_passes_it() -> None:
    """chain_prune() frees it, whatever the page that is sought: stable_node_dup() finds nothing
    in it, before anything is compared."""
    names = ("stable_node_chains", "stable_node_dups", "pages_shared", "pages_unshared")
    assert counters(empty_chain(RANK), 2, *names) == [(1, 0, 1, 0), (0, 0, 1, 1), (0, 0, 1, 1)]
    # Without the tree's shape no search passes it.
    assert counters(empty_chain(None), 1, *names)[-1] == (1, 0, 1, 1)


def test_a_chain_of_stale_nodes_goes_when_a_search_passes_it() -> None:
    names = ("stable_node_chains", "stable_node_dups", "pages_shared", "pages_unshared")
    assert counters(empty_chain(RANK, 2), 1, *names) == [(1, 2, 1, 0), (0, 0, 1, 1)]
    assert counters(empty_chain(None, 2), 1, *names)[-1] == (1, 2, 1, 1)


def test_an_empty_chain_is_saved(tmp_path: Path) -> None:
    made = empty_chain(RANK)
    save(made, tmp_path / "x")
    back = load(tmp_path / "x")
    assert made.ksmd is not None
    assert back.ksmd is not None
    assert np.array_equal(back.ksmd.tree, made.ksmd.tree)
    bad = replace(made.ksmd, tree=made.ksmd.tree - np.array([1, 0, 0, 0, 0]))
    with pytest.raises(Invalid, match="does not fit the stable nodes"):
        check_ksmd(bad, 1, 4096)


def test_a_chain_whose_dups_are_gone_is_read() -> None:
    """The vmcore's own stable tree, with one chain made empty."""
    name = WARM[1]
    with closing(open_target(vmcore(name))) as vm:
        prog: Any = vm._prog  # type: ignore[attr-defined]
        before = _Reader(prog, prog.read, 4096, {})
        before._read_tree()
        assert EMPTY not in [row[0] for row in before.tree]
        chains = [address for address in before.seen if before._length(address) == CHAIN]
        assert len(chains) == before.chains > 0
        first = chains[0] + before.node.at["hlist"]
        nothing = struct.pack("<Q", 0)
        prog.add_memory_segment(first, 8, lambda _, n, offset, __: nothing[offset : offset + n])
        after = _Reader(prog, prog.read, 4096, {})
        after._read_tree()
        assert [row[0] for row in after.tree].count(EMPTY) == 1
        assert [row[1:] for row in after.tree] == [row[1:] for row in before.tree]
        made = collect(vm, Selection(pids=tuple(opted_in(name))), exact=True)
        assert made.ksmd is not None
        assert (made.ksmd.tree[:, 0] == EMPTY).sum() == 1
        now = simulate_warm(made, made.meta.settings, 1)[0].counters
        assert now.stable_node_chains == before.chains


def test_a_rank_that_is_not_known_takes_the_trees_shape() -> None:
    """A KSM page that no process of the snapshot maps has no rank."""
    made = empty_chain(RANK)
    state = made.ksmd
    assert state is not None
    state = replace(
        state,
        node_pfn=np.append(state.node_pfn, np.uint64(77)),
        node_hash=np.append(state.node_hash, np.uint64(123)),
        node_length=np.append(state.node_length, np.int32(0)),
        node_chain=np.append(state.node_chain, np.int32(-1)),
        node_stale=np.append(state.node_stale, False),
        tree=np.vstack([state.tree, [1, 0, 1, 1, 0]]),
    )
    check_ksmd(state, 1, 4096)
    for ksmd, exact, chains in ((made.ksmd, True, 0), (state, False, 1)):
        [_, result] = simulate_warm(replace(made, ksmd=ksmd), CALM, 1)
        assert (result.exact, result.counters.stable_node_chains) == (exact, chains)


def interrupted(ago: int | None, cursor: int = 0) -> Snapshot:
    """ksmd is inside pass 3. The tree is a chain of one dup, X with one mapping, last
    pruned `ago` ms ago; two more X, which are new to ksmd."""
    builder = Builder(rules=KERNEL_6_1, rank=RANK)
    merged = builder.frame("X", FrameFlag.KSM)
    builder.process(merged, builder.frame("X"), builder.frame("X"))
    made = at_work(builder, [merged], tree=[(0, -1, 0, 0, 0)], stale=0, cursor=cursor)
    assert made.ksmd is not None
    pruned = None if ago is None else np.array([ago], np.int64)
    chain = np.zeros(1, np.int32)
    return replace(made, ksmd=replace(made.ksmd, node_chain=chain, tree_pruned=pruned))


@pytest.mark.parametrize(
    ("ago", "chains", "exact"),
    [
        (0, [1, 1, 1], True),
        (1979, [1, 1, 1], True),
        (1980, [1, 1, 1], False),  # due within the 20 ms that the rest of the pass takes
        (1999, [1, 1, 1], False),
        (2000, [1, 0, 0], True),
        (None, [1, 0, 0], False),  # taken as due
    ],
)
def test_when_a_chain_was_pruned_last(
    ago: int | None, chains: list[int], exact: bool, tmp_path: Path
) -> None:
    """A chain with one dup left collapses when it is pruned, until 6.10 only then. Here one search
    passes it, in the rest of the pass."""
    made = interrupted(ago)
    save(made, tmp_path / "x")
    results = simulate_warm(load(tmp_path / "x"), CALM, 2)
    assert [result.counters.stable_node_chains for result in results] == chains
    assert [result.exact for result in results[1:]] == [exact, True]
    between = simulate_warm(interrupted(ago, cursor=-1), CALM, 1)
    assert [(r.counters.stable_node_chains, r.exact) for r in between] == [(1, True), (0, True)]


def test_prune_times_that_do_not_fit() -> None:
    state = interrupted(5).ksmd
    assert state is not None
    for bad in ([-1], [5, 5], [-2]):
        with pytest.raises(Invalid, match="tree_pruned"):
            check_ksmd(replace(state, tree_pruned=np.array(bad, np.int64)), 1, 4096)


@pytest.mark.parametrize(
    ("stamp", "ago"),
    [(1000, 0), (999, 4), (750, 1000), ((1 << 64) - 250, 5000), (1001, 0)],
)
def test_jiffies(stamp: int, ago: int) -> None:
    assert Jiffies(now=1000, hz=250).milliseconds_since(stamp) == ago


@pytest.mark.parametrize("name", [*NAMES, *WARM])
def test_the_clock_of_ticks(name: str) -> None:
    """All are built with HZ=250; jiffies start five minutes below 2^32, and the dumps were taken
    within minutes."""
    vm: Any = target(name)
    clock = read_jiffies(vm._prog)
    assert clock is not None
    assert clock.hz == 250
    assert 0 < clock.now - ((1 << 32) - 300 * 250) < 300 * 250


@pytest.mark.parametrize("name", WARM)
def test_when_the_chains_of_a_dump_were_pruned(name: str) -> None:
    made = collect(target(name), Selection(pids=tuple(opted_in(name))))
    assert made.ksmd is not None
    assert made.ksmd.tree_pruned is not None
    pruned = made.ksmd.tree_pruned
    assert (pruned >= 0).sum() == made.meta.counters["stable_node_chains"]
    assert pruned.max() < 60_000


def mlocked(entries: int, other: bool = False) -> Snapshot:
    """ksmd is at process 1, whose two X, mlocked, merge: four entries of mm/mlock.c's batch. That
    has `entries` already, the first of them process 2's page."""
    dirty = MappingFlag.DIRTY
    builder = Builder(rules=replace(KERNEL_6_12, mlock_batch=31), rank=RANK)
    merged = builder.frame("X", FrameFlag.KSM)
    builder.process(merged)
    builder.process(builder.frame("X"), builder.frame("X"), flags=dirty, vma_flags=LOCKED)
    waits = builder.frame("X")
    builder.process(waits, flags=dirty)
    batch = [waits, *[-1] * (entries - 1)]
    return at_work(
        builder,
        [merged],
        tree=[(0, -1, 0, 0, 0)],
        cursor=1,
        waiting=[] if other else batch,
        other=batch if other else [],
    )


@pytest.mark.parametrize(
    ("made", "sharing"),
    [
        (mlocked(1), [0, 2, 3]),  # five entries: it waits until the next pass
        (mlocked(26), [0, 2, 3]),
        (mlocked(27), [0, 3, 3]),  # the 31st empties the batch
        (mlocked(30), [0, 3, 3]),
        (mlocked(30, other=True), [0, 2, 3]),  # those of mm/swap.c are not emptied by merges
    ],
)
def test_batches_at_a_dump_inside_a_pass(
    made: Snapshot, sharing: list[int], tmp_path: Path
) -> None:
    """PAGEVEC_SIZE is 31; a page in a batch has one reference too many to be merged."""
    save(made, tmp_path / "x")
    expected = [(1, value) for value in sharing]
    assert counters(load(tmp_path / "x"), 2, "pages_shared", "pages_sharing") == expected


def test_records_are_metered_and_must_be_there() -> None:
    with closing(open_target(vmcore(WARM[1]))) as vm:
        before = vm.meter.bytes_read
        assert vm.ksmd([]) is not None
        assert vm.meter.bytes_read - before > 4 * 4096
        memory = Memory(vm._read_virtual, 4096)  # type: ignore[attr-defined]
        with pytest.raises(Contradiction, match="not in the target"):
            memory.word(0x1000)
