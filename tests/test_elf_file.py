"""An ELF vmcore read by its own program headers, against drgn's reads of the same file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ksm_eval.collect import collect
from ksm_eval.snapshot import FrameFlag, Snapshot, has
from ksm_eval.target import Selection
from ksm_eval.target.containers import Segments, identify
from ksm_eval.target.elf_file import ElfFile, open_elf
from ksm_eval.target.kernel import KernelTarget
from ksm_eval.target.program import open_core
from tests.containers import PAGE, elf, memory
from tests.fixtures import TINY, opted_in, vmcore


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elf") / "vmcore"
    path.write_bytes(elf(memory(vmcore(TINY))))
    return path


def snapshot_of(target: KernelTarget) -> Snapshot:
    return collect(target, Selection(pids=tuple(opted_in(TINY))), seed=5)


def test_the_same_snapshot(core: Path) -> None:
    """With and without drgn's reads, and as the kdump has it."""
    found = []
    for path, direct in ((core, True), (core, False), (vmcore(TINY), False)):
        target = KernelTarget(open_core(path))
        assert (target.direct is not None) == (path == core)
        if not direct and target.direct is not None:
            target.direct.close()
            target.direct = None
        found.append(snapshot_of(target))
        target.close()
    for other in found[1:]:
        assert found[0].frames.hash.tolist() == other.frames.hash.tolist()
        assert found[0].frames.flags.tolist() == other.frames.flags.tolist()
    assert len(found[0].frames) > 1000
    assert not has(found[0].frames.flags, FrameFlag.UNREADABLE).any()


def test_what_the_file_does_not_hold(core: Path) -> None:
    segments = identify(core).segments
    assert segments is not None
    file = ElfFile(core, segments)
    first = int(np.argmax(segments.size))
    start, size = int(segments.address[first]), int(segments.size[first])
    page = memoryview(bytearray(2 * PAGE))
    assert file.read_into(page, start)
    assert file.read_into(page, start + size - 2 * PAGE)
    assert not file.read_into(page, start + size - PAGE)  # beyond its end
    assert not file.read_into(page, 1 << 50)
    before = min(segments.address.tolist())
    assert before == 0 or not file.read_into(page, before - PAGE)
    file.close()
    assert not file.read_into(page, start)


def test_addresses_that_are_not_drgns_are_not_used(core: Path) -> None:
    """A core whose headers have other physical addresses than drgn goes by."""
    segments = identify(core).segments
    assert segments is not None
    shifted: Segments = replace(segments, offset=segments.offset + np.uint64(PAGE // 2))
    target = KernelTarget(open_core(core))

    def read(address: int, size: int) -> bytes:
        data: bytes = target._prog.read(address, size, True)
        return data

    assert open_elf(core, shifted, read, PAGE) is None
    kept = open_elf(core, segments, read, PAGE)
    assert kept is not None
    kept.close()
    assert open_elf(core, None, read, PAGE) is None
    target.close()


def test_a_file_that_became_shorter(core: Path, tmp_path: Path) -> None:
    """A page that is cut off is not read, nor one of which a part is."""
    path = tmp_path / "vmcore"
    path.write_bytes(core.read_bytes())
    segments = identify(path).segments
    assert segments is not None
    last = int(np.argmax(segments.offset))
    end = int(segments.address[last] + segments.size[last])
    file, page = ElfFile(path, segments), memoryview(bytearray(PAGE))
    with path.open("r+b") as shorter:
        shorter.truncate(int(segments.offset[last] + segments.size[last]) - PAGE - 1)
    assert not file.read_into(page, end - PAGE)
    assert not file.read_into(page, end - 2 * PAGE)
    assert file.read_into(page, end - 3 * PAGE)
    file.close()
