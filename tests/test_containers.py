"""Headers of vmcores: what is recognised, what is refused, what a filter left out."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ksm_eval.errors import TargetError
from ksm_eval.target.containers import ContainerError, Holes, identify, reassemble
from tests import containers

VMCORES = Path(__file__).parent.parent / "fixtures" / "vmcores"
TINY = VMCORES / "x86_64-6.12-tiny.kdump"
FILTERED = VMCORES / "x86_64-6.12-tiny.makedumpfile-d31.kdump"

needs_makedumpfile = pytest.mark.skipif(
    shutil.which("makedumpfile") is None, reason="makedumpfile is not installed"
)


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "release", "level"),
    [
        ("x86_64-6.12-tiny.kdump", "6.12.117-ksmeval", 0),
        ("x86_64-6.1-tiny.kdump", "6.1.192-ksmeval", 0),
        ("x86_64-6.12-debian-cloud.kdump", "6.12.117+deb12-cloud-amd64", 0),
        ("x86_64-6.12-tiny.makedumpfile-d31.kdump", "6.12.117-ksmeval", 31),
    ],
)
def test_kdump(name: str, release: str, level: int) -> None:
    container = identify(VMCORES / name)
    assert container.description == "kdump-compressed vmcore"
    assert (container.machine, container.release) == ("x86_64", release)
    assert container.dump_level == level
    assert container.excludes_user_pages == (level == 31)


@pytest.mark.parametrize("level", range(32))
def test_dump_levels_with_bit_8_exclude_user_pages(level: int, tmp_path: Path) -> None:
    path = write(tmp_path, containers.set_dump_level(TINY.read_bytes(), level))
    assert identify(path).excludes_user_pages == (level in {*range(8, 16), *range(24, 32)})


def test_elf_without_holes(tmp_path: Path) -> None:
    container = identify(write(tmp_path, containers.elf(containers.memory(TINY))))
    assert container.description == "ELF vmcore"
    assert (container.machine, container.dump_level) == ("x86_64", None)
    assert not container.holes
    assert not container.excludes_user_pages


def test_elf_with_holes(tmp_path: Path) -> None:
    wanted = [(0x1400000, 0x1500000), (0x1600000, 0x1777000)]
    data = containers.elf(containers.memory(TINY), holes=wanted)
    holes = identify(write(tmp_path, data)).holes
    assert list(zip(holes.start.tolist(), holes.end.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("kind", ["kdump", "elf"])
def test_flattened_is_the_same_file(kind: str, tmp_path: Path) -> None:
    plain = TINY.read_bytes() if kind == "kdump" else containers.elf(containers.memory(TINY))
    path = write(tmp_path, containers.flattened(plain))
    container = identify(path)
    assert container.flattened
    assert container.kind == {"kdump": "kdump", "elf": "ELF"}[kind]
    assert container.machine == "x86_64"
    out = io.BytesIO()
    reassemble(path, out)
    assert out.getvalue() == plain


@needs_makedumpfile
def test_reassemble_as_makedumpfile_does(tmp_path: Path) -> None:
    path = write(tmp_path, containers.flattened(TINY.read_bytes()))
    plain = tmp_path / "plain"
    with path.open("rb") as stdin:
        subprocess.run(
            ["makedumpfile", "-R", plain], stdin=stdin, check=True, stdout=subprocess.DEVNULL
        )
    assert plain.read_bytes() == TINY.read_bytes()


def kdump_bytes() -> bytes:
    return TINY.read_bytes()


@pytest.mark.parametrize("form", ["kdump", "elf", "flattened"])
@pytest.mark.parametrize("missing", [1, 5000, 0.5, 0.99, 0.9999])
def test_truncated(form: str, missing: float, tmp_path: Path) -> None:
    data = kdump_bytes()
    if form == "elf":
        data = containers.elf(containers.memory(TINY))
    elif form == "flattened":
        data = containers.flattened(data)
    cut = int(missing * len(data)) if isinstance(missing, float) else missing
    with pytest.raises(ContainerError, match=r"is truncated$"):
        identify(write(tmp_path, data[: len(data) - cut]))


def test_kdump_that_filled_the_disk(tmp_path: Path) -> None:
    data = kdump_bytes()
    (status,) = struct.unpack_from("<I", data, 424)
    data = data[:424] + struct.pack("<I", status | 8) + data[428:]  # DUMP_DH_COMPRESSED_INCOMPLETE
    with pytest.raises(ContainerError, match=r"is truncated$"):
        identify(write(tmp_path, data))


def test_part_of_a_split_dump(tmp_path: Path) -> None:
    data = kdump_bytes()
    data = data[: 4096 + 12] + struct.pack("<i", 1) + data[4096 + 16 :]
    with pytest.raises(ContainerError, match="one part of a split dump") as error:
        identify(write(tmp_path, data))
    assert "--reassemble" in error.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is not a vmcore"),
        (b"KSM" * 1000, "is not a vmcore"),
        (b"\x7fELF\x02\x01", "is truncated"),
        (b"\x7fELF\x01\x01\x01" + bytes(57), "is of a 32-bit machine"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0" + bytes(46), "an ELF file but not a vmcore"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x04\0" + bytes(46), "program headers of 0 bytes"),
        (b"KDUMP   " + bytes(4096), "a block size of 0 bytes"),
        (b"KDUMP   ", "is truncated"),
        (b"makedumpfile\0\0\0\0", "is truncated"),
        (b"makedumpfile\0\0\0\0".ljust(4096, b"\0") + b"\xff" * 16, "is empty"),
        (b"makedumpfile\0\0\0\0".ljust(4096, b"\0") + bytes(16), "a piece of 0 bytes at 0"),
    ],
)
def test_no_vmcore(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match=message) as error:
        identify(write(tmp_path, data))
    assert error.value.exit_code == 3
    assert "\n" not in error.value.message + error.value.hint


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ContainerError, match="does not exist"):
        identify(tmp_path / "missing")
    with pytest.raises(ContainerError, match="is a directory"):
        identify(tmp_path)


def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path, b"x")
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(ContainerError, match="no permission to read"):
            identify(path)
    finally:
        os.seteuid(user)


@given(st.data())
def test_damaged_headers_never_surprise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any bytes in the headers: a Container or a TargetError, nothing else."""
    original = kdump_bytes()[:20000]
    place = data.draw(st.integers(8, 4096 + 104))
    junk = data.draw(st.binary(min_size=1, max_size=8))
    path = write(tmp_path_factory.mktemp("d"), original[:place] + junk + original[place + 8 :])
    with pytest.raises(TargetError):  # the pages are cut off, so never whole
        identify(path)


@given(
    st.lists(st.integers(0, 60), max_size=12, unique=True).map(sorted),
    st.integers(0, 50),
    st.integers(1, 20),
)
def test_holes_by_the_byte(edges: list[int], address: int, size: int) -> None:
    """Against a map of every byte; edges pair up to holes, pages have 4 bytes here."""
    edges = edges[: len(edges) & ~1]
    holes = Holes(np.array(edges[::2], np.uint64), np.array(edges[1::2], np.uint64))
    inside = {byte for a, b in zip(edges[::2], edges[1::2], strict=True) for byte in range(a, b)}
    assert holes.touch(address, size) == any(b in inside for b in range(address, address + size))
    pfns = np.arange(18, dtype=np.uint64)
    wanted = [any(4 * pfn + byte in inside for byte in range(4)) for pfn in range(18)]
    assert holes.contain(pfns, 4).tolist() == wanted


@pytest.mark.parametrize(
    ("runs", "proof"),
    [
        ([(1000, 1512)], True),  # 512 in a row, all in the file
        ([(1000, 1511), (1512, 2000)], False),
        ([(4500, 5500)], False),  # 500 before the hole and 244 behind it
        ([(4488, 5500)], True),  # 512 before the hole
        ([(5000, 5256)], False),
        ([], False),
    ],
)
def test_what_proves_that_holes_were_zeros(runs: list[tuple[int, int]], proof: bool) -> None:
    holes = Holes(np.array([5000 * 4096], np.uint64), np.array([5256 * 4096], np.uint64))
    pfns = np.array([pfn for run in runs for pfn in range(*run)], np.uint64)
    assert holes.hold_only_zeros(pfns, 4096) == proof
