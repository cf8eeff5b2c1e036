"""Frames that a running target no longer maps where they were found."""

from __future__ import annotations

import numpy as np
import pytest

from ksm_eval.snapshot import U64, FrameFlag, has
from ksm_eval.sweep import sweep
from ksm_eval.target import WENT_AWAY, Vma, WalkedVmas, rewalk
from ksm_eval.target.kernel import KernelTarget
from ksm_eval.target.program import open_core
from ksm_eval.target.rewalk import Seen, Walk, unchanged, walk_of
from tests.fixtures import TINY, vmcore


def numbers(*values: int) -> U64:
    return np.array(values, np.uint64)


BEFORE = Walk(numbers(10, 11, 12, 20), numbers(5, 6, 5, 7))


@pytest.mark.parametrize(
    ("page", "pfn", "same"),
    [
        ((10, 11, 12, 20), (5, 6, 5, 7), [5, 6, 5, 7]),
        ((10, 11, 12, 20), (5, 9, 5, 7), [5, 5, 7]),  # another frame there
        ((9, 10, 12, 21), (6, 5, 5, 7), [5, 5]),  # unmapped, mapped, moved
        ((), (), []),
    ],
)
def test_what_is_still_mapped(page: tuple[int, ...], pfn: tuple[int, ...], same: list[int]) -> None:
    assert unchanged(BEFORE, Walk(numbers(*page), numbers(*pfn))).tolist() == same


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_many_that_may_be_mapped(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Against numpy's own intersection."""
    monkeypatch.setattr(rewalk, "BLOCK", block)
    draw = np.random.default_rng(5)
    walks = []
    for mapped in (300, 200):
        page = np.sort(draw.choice(400, mapped, replace=False)).astype(np.uint64)
        walks.append(Walk(page, draw.integers(0, 2, mapped).astype(np.uint64)))
    before, now = walks
    _, mine, others = np.intersect1d(before.page, now.page, return_indices=True)
    pfn = before.pfn[mine]
    assert unchanged(before, now).tolist() == pfn[pfn == now.pfn[others]].tolist()


@pytest.mark.parametrize("stray", [[], [1 << 40]])
def test_frames_of_several_walks(stray: list[int]) -> None:
    seen = Seen(numbers(5, 6, 7, *stray))
    seen.add(numbers(7, 99, 1, 7))
    assert seen.rows().tolist()[:3] == [False, False, True]
    seen.add(numbers(5, *stray))
    assert seen.rows().tolist() == [True, False, True, *(True for _ in stray)]
    none = Seen(numbers())
    none.add(numbers(5))
    assert none.rows().tolist() == []


def test_page_numbers() -> None:
    vmas = [Vma(0x4000, 0x8000, 0, "", ""), Vma(0x10000, 0x20000, 0, "", "")]
    walked = WalkedVmas(
        offset=np.array([0, 2, 3]),
        pfn=numbers(1, 2, 3),
        page=np.array([0, 3, 1], np.uint32),
        flags=np.zeros(3, np.uint8),
        entries=np.zeros((2, 9), np.uint32),
    )
    assert walk_of(vmas, walked, 0x1000).page.tolist() == [4, 7, 0x11]


def test_what_was_read_of_a_frame_that_went_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its contents may be another process's: neither a hash nor ZERO stays."""
    target = KernelTarget(open_core(vmcore(TINY)))
    zero = int(target._prog["zero_pfn"].value_())
    pfns = numbers(zero, zero + 1)
    before = sweep(target, pfns, seed=1)
    assert has(before.flags, FrameFlag.ZERO).tolist()[0]
    monkeypatch.setattr(target, "still_mapped", lambda _: np.array([False, True]))
    after = sweep(target, pfns, seed=1)
    assert (int(after.hash[0]), int(after.flags[0])) == (0, FrameFlag.UNREADABLE)
    assert int(after.hash[1]) == int(before.hash[1])
    assert after.unreadable == {WENT_AWAY: 1}
