"""Classes of the contents that most frames have."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ksm_eval import content_kinds as module
from ksm_eval.content_kinds import TOP, content_kinds, kind_of, most_frequent
from ksm_eval.snapshot import NO_COMPOUND, ContentKind, FrameFlag, Frames
from ksm_eval.target import Target, Unreadable, read_page
from tests.fixtures import NAMES, TINY, WARM, snapshot, target

SEED, SIZE = 9, 4096


@pytest.mark.parametrize("size", [4096, 65536])
def test_kinds(size: int) -> None:
    word = bytes(range(8))
    last = size - 1

    def changed(page: bytes, at: int) -> bytes:
        return page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :]

    assert kind_of(bytes(size)) == ContentKind.ZERO
    assert kind_of(b"\xff" * size) == ContentKind.CONSTANT_BYTE
    assert kind_of(word * (size // 8)) == ContentKind.REPEATED_WORD
    assert kind_of(b"\0\1" * (size // 2)) == ContentKind.REPEATED_WORD  # shorter periods too
    assert kind_of(bytes(range(16)) * (size // 16)) == ContentKind.OTHER
    for page in (bytes(size), b"\1" * size, word * (size // 8)):
        for at in (0, 7, 8, size // 2, last):
            assert kind_of(changed(page, at)) == ContentKind.OTHER


@pytest.mark.parametrize("name", [*NAMES, *WARM])
def test_of_a_vmcore(name: str) -> None:
    """Every frame read one by one and compared byte by byte with all others."""
    made, vm = snapshot(name), target(name)
    assert made.contents is not None
    frames: Counter[bytes] = Counter()
    content_of: dict[int, bytes] = {}
    for pfn, hash_ in zip(made.frames.pfn.tolist(), made.frames.hash.tolist(), strict=True):
        page = read_page(vm, pfn)
        frames[page] += 1
        assert content_of.setdefault(hash_, page) == page
    most = sorted((count for count in frames.values() if count > 1), reverse=True)
    found = [content_of[value] for value in made.contents.hash.tolist()]
    assert len(most) > (TOP if name in NAMES else 20)  # ksmd has merged most of them
    assert len(set(found)) == len(found) == min(len(most), TOP)
    assert [frames[page] for page in found] == most[:TOP]
    kinds = []
    for page in found:
        words = np.frombuffer(page, np.uint64)
        if len(set(page)) == 1:
            kinds.append(ContentKind.CONSTANT_BYTE if page[0] else ContentKind.ZERO)
        else:
            same = bool((words == words[0]).all())
            kinds.append(ContentKind.REPEATED_WORD if same else ContentKind.OTHER)
    assert made.contents.kind.tolist() == kinds
    if name in NAMES:
        # scripts/fixtures/init.c: zero pages in each worker and in THPs, and one content that is
        # still more frequent, or almost; its pages are a pattern of 64 bytes.
        assert kinds.count(ContentKind.ZERO) == 1
        assert set(kinds[:2]) == {ContentKind.ZERO, ContentKind.OTHER}


def test_the_key_does_not_matter() -> None:
    """Which contents are taken, where more are as frequent as the last of them."""
    hashes = snapshot(TINY).frames.hash
    one = most_frequent(snapshot(TINY).frames, 50)
    mixed = (hashes ^ np.uint64(0x1234567890ABCDEF)) * np.uint64(0x9E3779B97F4A7C15)
    other = most_frequent(_frames(mixed), 50)
    assert one.tolist() == other.tolist()


def _frames(hashes: Any, flags: Any = 0) -> Frames:
    n = len(hashes)
    return Frames(
        pfn=np.arange(n, dtype=np.uint64),
        hash=np.array(hashes, np.uint64),
        flags=np.broadcast_to(np.array(flags, np.uint8), n).copy(),
        mapcount=np.ones(n, np.uint32),
        node=np.zeros(n, np.uint16),
        compound=np.full(n, NO_COMPOUND, np.uint32),
    )


@given(
    drawn=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=60),
    top=st.integers(1, 6),
    block=st.integers(1, 70),
)
def test_most_frequent(drawn: list[tuple[int, bool]], top: int, block: int) -> None:
    unreadable = [FrameFlag.UNREADABLE if lost else 0 for _, lost in drawn]
    readable = [(row, value) for row, (value, lost) in enumerate(drawn) if not lost]
    counts = Counter(value for _, value in readable)
    first = {value: row for row, value in reversed(readable)}
    repeated = [value for value, count in counts.items() if count > 1]
    repeated.sort(key=lambda value: (-counts[value], first[value]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        found = most_frequent(_frames([value for value, _ in drawn], unreadable), top)
    assert found.tolist() == [first[value] for value in repeated[:top]]


class _Memory:
    """Pages by place; what is not there cannot be read."""

    class info:
        page_size = SIZE

    def __init__(self, pages: dict[int, bytes]) -> None:
        self.pages = pages
        self.read: list[int] = []

    def places(self, pfns: Any) -> Any:
        return pfns + np.uint64(1000)

    def read_into(self, buffer: memoryview, place: int) -> None:
        self.read.append(place)
        if place not in self.pages:
            raise Unreadable("gone")
        buffer[:] = self.pages[place]


def test_changed_and_gone() -> None:
    """One frame of each is read, from its place; zero pages are known from the sweep."""
    word = b"12345678" * (SIZE // 8)
    contents = [word, b"7" * SIZE, bytes(SIZE), bytes(range(64)) * 64, b"x" * SIZE, b"alone" * 9]
    rows = [0, 0, 1, 0, 1, 2, 2, 2, 2, 3, 3, 4, 4, 0, 5]  # which content each frame has
    hashes = [xxhash.xxh3_64_intdigest(contents[row], SEED) for row in rows]
    flags = [FrameFlag.ZERO if row == 2 else 0 for row in rows]
    memory = _Memory({1000: word, 1002: contents[1], 1009: b"changed!" * (SIZE // 8)})
    found = content_kinds(cast(Target, memory), _frames(hashes, flags), SEED)
    assert found.hash.tolist() == [hashes[row] for row in (0, 5, 2, 9, 11)]
    assert found.kind.tolist() == [
        *(ContentKind.REPEATED_WORD, ContentKind.ZERO, ContentKind.CONSTANT_BYTE),
        *(ContentKind.UNKNOWN, ContentKind.UNKNOWN),
    ]
    assert memory.read == [1000, 1002, 1009, 1011]


def test_none() -> None:
    for frames in (_frames([]), _frames([1, 2, 3]), _frames([5, 5], FrameFlag.UNREADABLE)):
        found = content_kinds(cast(Target, _Memory({})), frames, SEED)
        assert len(found) == 0
        assert (found.hash.dtype.str, found.kind.dtype.str) == ("<u8", "|u1")
