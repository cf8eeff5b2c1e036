"""smaps, mounts and NUMA nodes, from texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ksm_eval.target.proc_maps import dax_devices, parse_smaps
from ksm_eval.target.proc_nodes import nodes


def test_nodes(tmp_path: Path) -> None:
    for node, blocks in ((0, (0, 1)), (1, (2, 5))):
        for block in blocks:
            (tmp_path / f"node/node{node}/memory{block}").mkdir(parents=True)
    (tmp_path / "memory").mkdir()
    notes: list[str] = []
    pfns = np.array([0, 0x7FFF, 0x8000, 0x10000, 0x2FFFF, 1 << 30], np.uint64)
    assert nodes(pfns, 4096, notes, tmp_path).tolist() == [0] * 6
    assert len(notes) == 1
    (tmp_path / "memory/block_size_bytes").write_text("8000000\n")
    assert nodes(pfns, 4096, [], tmp_path).tolist() == [0, 0, 0, 1, 1, 0]


SMAPS = """\
00400000-00401000 r-xp 00000000 08:01 42                         /a b\\012c (deleted)
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 
Anonymous:            16 kB
AnonHugePages:         0 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me ac sd hg mg
7f0000200000-7f0000400000 rw-p 00000000 103:02 7 /dax/file
Anonymous:             0 kB
Swap:                  4 kB
SwapPss:               9 kB
VmFlags: rd wr mr mw me
7fff00000000-7fff00002000 r--p 00000000 00:00 0 [vvar]
VmFlags: rd mr pf io de dd
7fff00002000-7fff00003000 rw-s 00000000 00:01 9 /dev/zero (deleted)
VmFlags: rd wr sh mr mw me ms sd
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex
"""


def test_smaps() -> None:
    dax = frozenset({"103:02"})
    vmas = parse_smaps(SMAPS, mergeable_only=False, dax_devices=dax)
    assert [(vma.name, vma.reason, vma.has_anon) for vma in vmas] == [
        ("/a b\nc (deleted)", "", False),
        ("", "", True),
        ("/dax/file", "DAX", True),
        ("[vvar]", "VM_PFNMAP", False),
        ("/dev/zero (deleted)", "shared mapping", False),
    ]
    assert (vmas[1].start, vmas[1].end) == (0x7F0000000000, 0x7F0000200000)
    only = parse_smaps(SMAPS, mergeable_only=True, dax_devices=dax)
    assert [vma.reason for vma in only[:3]] == ["VM_MERGEABLE not set", "", "DAX"]
    for broken in (SMAPS[:-12], SMAPS.replace("VmFlags: rd ex mr mw me\n", ""), "nonsense\n"):
        with pytest.raises(ValueError, match="smaps"):
            parse_smaps(broken, mergeable_only=False, dax_devices=dax)


def test_dax_mounts(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(
        "36 35 98:0 / /mnt rw,noatime shared:1 - ext3 /dev/root rw,errors=continue\n"
        "37 35 259:2 / /dax rw,noatime shared:1 - xfs /dev/pmem0 rw,attr2,dax=always\n\n"
    )
    assert dax_devices(tmp_path / "mountinfo") == {"103:02"}
    assert dax_devices(tmp_path / "none") == frozenset()
