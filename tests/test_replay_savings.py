"""Frames really freed, and the closed form's own figures."""

from __future__ import annotations

import numpy as np
import pytest

from ksm_eval.errors import TargetError
from ksm_eval.replay.converged import predict
from ksm_eval.replay.rules import Settings
from ksm_eval.snapshot import FrameFlag, MappingFlag
from tests.snapshots import KERNEL_6_1, KERNEL_7_3, ZERO, Builder

PINNED = FrameFlag.PINNED | FrameFlag.EXCLUSIVE


def test_worked_example() -> None:
    """5 "sharing", and 2 frames freed: four forked mappings saved nothing."""
    builder = Builder()
    p1, p2, p3 = (builder.frame("X") for _ in range(3))
    p4, p5 = builder.frame("Y"), builder.frame("X")
    builder.process(p1, p2, p3, p4)
    builder.process(p1, p2, p3, p4, p5)
    prediction = predict(builder.build(), Settings(max_page_sharing=4))
    counters = prediction.counters
    assert (counters.pages_shared, counters.pages_sharing) == (2, 5)
    assert (counters.pages_unshared, counters.pages_volatile) == (1, 1)
    skip = prediction.skip_phase
    assert (skip.pages_unshared, skip.pages_volatile) == (0, 2)
    assert counters.general_profit == skip.general_profit == 19904
    assert prediction.savings.frames_freed == 2
    assert prediction.savings.merged == 2
    assert prediction.replayed == 7  # fork-shared and above the cap
    assert prediction.passes == 2
    assert prediction.stable_nodes == 3  # two nodes and their chain
    assert prediction.savings.metadata_bytes == 9 * 64 + 3 * 64 + 2 * 48
    # Before: every frame but p5 is shared by two. After: P2 by A1 A2 A3 B1 B2, P5 by B3 B5.
    assert prediction.savings.pss_before.tolist() == [4 * 2048, 4 * 2048 + 4096]
    assert prediction.savings.pss_after.tolist() == [
        pytest.approx(4096 * (3 / 5 + 1 / 2)),
        pytest.approx(4096 * (2 / 5 + 1 + 1 / 2)),
    ]
    assert prediction.ksm_pages.tolist() == [3, 4]


def test_simple_groups_need_no_replay() -> None:
    builder = Builder()
    forked = [builder.frame("X") for _ in range(3)]
    for _ in range(4):
        builder.process(*forked, builder.frame("own"))
    prediction = predict(builder.build(), Settings())
    assert prediction.replayed == 0
    assert prediction.counters.pages_shared == 2
    assert prediction.counters.pages_sharing == 12 - 1 + 4 - 1
    assert prediction.savings.frames_freed == (3 - 1) + (4 - 1)


def test_above_the_cap_without_fork_needs_no_replay() -> None:
    builder = Builder()
    builder.process(*(builder.frame("X") for _ in range(1000)))
    prediction = predict(builder.build(), Settings())
    assert prediction.replayed == 0
    assert prediction.counters.pages_shared == 4
    assert prediction.counters.stable_node_dups == 4
    assert prediction.savings.frames_freed == 996


def test_a_frame_mapped_outside_the_selection_is_not_freed() -> None:
    builder = Builder()
    builder.process(builder.frame("X"), builder.frame("X"), builder.frame("X", outside=1))
    prediction = predict(builder.build(), Settings())
    assert prediction.counters.pages_sharing == 2
    assert prediction.savings.frames_freed == 1
    # The second visited is the KSM frame: the third stays for the stranger.
    assert prediction.placed.nodes.ksm.tolist() == [1]
    # Were it the second, it would be the KSM frame, and both others free.
    builder.outside = {0: 0, 1: 1, 2: 0}
    swapped = predict(builder.build(), Settings())
    assert swapped.savings.frames_freed == 2
    assert swapped.savings.pss_after.tolist() == [3 * 4096 / 4]


def test_zero_pages_and_zero_subpages_apart() -> None:
    builder = Builder()
    builder.process(builder.frame(ZERO), builder.frame(ZERO), builder.frame("X"))
    builder.process(*builder.thp(["X", ZERO, ZERO, ZERO]))
    builder.process(*builder.thp(["a"] + ["b"] + ["c"] * 510))
    savings = predict(builder.build(), Settings(use_zero_pages=True)).savings
    assert (savings.merged, savings.zero, savings.thp_zero) == (1 + 508 + 0, 2, 3)
    assert savings.frames_freed == 509 + 5
    assert (savings.thps, savings.thps_split, savings.compounds_split) == (1, 1, 2)


def test_copies_made_in_vain_cost_frames() -> None:
    builder = Builder(rules=KERNEL_6_1)
    pinned, shared = builder.frame("X", PINNED), builder.frame("X")
    builder.process(pinned, shared)
    builder.process(shared)
    prediction = predict(builder.build(), Settings())
    assert prediction.savings.frames_freed == -1
    assert prediction.orphans == 1
    assert prediction.ksm_pages.tolist() == [0, 1]  # smaps counts it: a KSM page


def test_unreadable_pages_are_counted_apart() -> None:
    builder = Builder()
    builder.process(builder.frame("X"), builder.frame("X", FrameFlag.UNREADABLE))
    prediction = predict(builder.build(), Settings())
    assert prediction.unreadable == 1
    assert prediction.counters.ksm_rmap_items == 2
    assert (prediction.counters.pages_unshared, prediction.counters.pages_volatile) == (1, 1)


def test_pages_that_are_all_pinned_are_unshared_once() -> None:
    builder = Builder()
    builder.process(*(builder.frame("X", PINNED) for _ in range(5)))
    prediction = predict(builder.build(), Settings())
    assert prediction.replayed == 0
    assert (prediction.counters.pages_unshared, prediction.counters.pages_volatile) == (1, 4)


def test_ksm_frames_of_the_target() -> None:
    builder = Builder()
    ksm = builder.frame("X", FrameFlag.KSM)
    for _ in range(4):
        builder.process(ksm)
    prediction = predict(builder.build(), Settings())
    assert (prediction.counters.pages_shared, prediction.counters.pages_sharing) == (1, 3)
    assert prediction.savings.frames_freed == 0
    assert prediction.ksm_pages.tolist() == [1] * 4


def test_poisoned_tree_is_replayed_as_a_whole() -> None:
    builder = Builder(rules=KERNEL_6_1, rank={"a": 0, "m": 1, "z": 2})
    builder.process(builder.frame("m"), flags=MappingFlag.PROT_NONE)
    builder.process(*(builder.frame(name) for name in "aazz"))
    snapshot = builder.build()
    prediction = predict(snapshot, Settings())
    assert prediction.replayed == 5
    assert (prediction.counters.pages_shared, prediction.counters.pages_unshared) == (0, 1)
    assert prediction.counters.pages_volatile == 4
    builder.rank = None
    with pytest.raises(TargetError):
        predict(builder.build(), Settings())


def test_pss_sums_to_the_frames_when_nobody_else_maps_them() -> None:
    builder = Builder()
    forked = [builder.frame(name) for name in "XXXYZ"]
    for _ in range(3):
        builder.process(*forked, builder.frame("Y"))
    savings = predict(builder.build(), Settings()).savings
    assert np.isclose(savings.pss_before.sum(), 8 * 4096)
    assert np.isclose(savings.pss_after.sum(), (8 - savings.frames_freed) * 4096)
    assert savings.frames_freed == 2 + 3


def test_a_late_split_takes_the_zero_pages_of_settled_contents_too() -> None:
    """7.3: the pinned X keeps the others apart until pass 8, when it is skipped. Only then is
    the THP split, and its zero subpage, alone of its content and long settled, goes."""
    builder = Builder()
    builder.rules = KERNEL_7_3
    builder.process(builder.frame("X", PINNED), builder.frame("X"), builder.frame("X"))
    builder.process(builder.frame("Y", PINNED), builder.frame("Y"), *builder.thp(["Y", ZERO]))
    prediction = predict(builder.build(), Settings())
    assert (prediction.counters.pages_shared, prediction.counters.pages_sharing) == (2, 2)
    assert prediction.savings.thp_zero == 1
    assert prediction.counters.ksm_rmap_items == 6
    assert prediction.placed.told.split.tolist() == [True]
