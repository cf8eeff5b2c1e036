"""Instructions as an assembler encodes them."""

from __future__ import annotations

import struct

import pytest

from ksm_eval.target.machine_code import (
    flag_cleared_aarch64,
    flag_cleared_x86,
    stored_before_call_aarch64,
    stored_before_call_x86,
)

HERE, CALLEE = 0xFFFF_FFFF_8120_0000, 0xFFFF_FFFF_8123_4560
TTU_SPLIT_HUGE_PMD = 4


def call_x86(at: int, callee: int = CALLEE) -> bytes:
    return b"\xe8" + struct.pack("<i", callee - (HERE + at + 5))


@pytest.mark.parametrize(
    "mask",
    [
        b"\x83\xe3\xfb",  # and $~4, %ebx
        b"\x83\x65\xb0\xfb",  # andl $~4, -0x50(%rbp)
        b"\x83\xa4\x24\x90\x00\x00\x00\xfb",  # andl $~4, 0x90(%rsp)
        b"\x41\x83\xe4\xfb",  # and $~4, %r12d
    ],
)
def test_x86_repaired(mask: bytes) -> None:
    before = b"\x90" * 7 + b"\xe8\x00\x00\x00\x00"  # a call of something else
    text = before + call_x86(len(before)) + b"\x48\x89\xdf" + mask + b"\xc3"
    assert flag_cleared_x86(text, HERE, CALLEE, TTU_SPLIT_HUGE_PMD) is True


def test_x86_not_repaired() -> None:
    far = b"\x90" * 40 + b"\x83\xe3\xfb"
    for rest in (b"\x31\xc0\xc3", b"\x83\xe3\xf7\xc3", far):
        text = b"\x90" * 3 + call_x86(3) + rest
        assert flag_cleared_x86(text, HERE, CALLEE, TTU_SPLIT_HUGE_PMD) is False


def test_x86_unknown() -> None:
    for text in (b"", bytes(500), b"\x90" * 3 + call_x86(3, CALLEE + 16) + b"\x83\xe3\xfb"):
        assert flag_cleared_x86(text, HERE, CALLEE, TTU_SPLIT_HUGE_PMD) is None


NOP = 0xD503201F
AND_W3_W3_NOT_4 = 0x121D7863  # and w3, w3, #0xfffffffb


def branch_and_link(at: int) -> int:
    return 0x94000000 | ((CALLEE - (HERE + at)) >> 2) & 0x3FFFFFF


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([NOP, branch_and_link(4), NOP, AND_W3_W3_NOT_4], True),
        ([NOP, branch_and_link(4), *[NOP] * 12, AND_W3_W3_NOT_4], False),
        ([AND_W3_W3_NOT_4, branch_and_link(4), NOP], False),
        ([NOP, branch_and_link(8), NOP, AND_W3_W3_NOT_4], None),
        ([0] * 20, None),
    ],
)
def test_aarch64(words: list[int], expected: bool | None) -> None:
    text = struct.pack(f"<{len(words)}I", *words)
    assert flag_cleared_aarch64(text, HERE, CALLEE, TTU_SPLIT_HUGE_PMD) is expected


def test_aarch64_calls_backwards() -> None:
    here = CALLEE + 0x1000
    word = 0x94000000 | (-0x1000 >> 2) & 0x3FFFFFF
    text = struct.pack("<2I", word, AND_W3_W3_NOT_4)
    assert flag_cleared_aarch64(text, here, CALLEE, TTU_SPLIT_HUGE_PMD) is True


MERGING_PAGES = 0x570  # offset of a member


@pytest.mark.parametrize(
    "store",
    [
        b"\x48\xc7\x83\x70\x05\x00\x00\x00\x00\x00\x00",  # movq $0, 0x570(%rbx)
        b"\x49\xc7\x84\x24\x70\x05\x00\x00\x00\x00\x00\x00",  # movq $0, 0x570(%r12)
        b"\x4d\x89\x87\x70\x05\x00\x00",  # mov %r8, 0x570(%r15)
    ],
)
def test_x86_stored(store: bytes) -> None:
    before = b"\x90" * 7 + b"\xe8\x00\x00\x00\x00" + store + b"\x48\x89\xdf"
    text = before + call_x86(len(before)) + b"\xc3"
    assert stored_before_call_x86(text, HERE, CALLEE, MERGING_PAGES) is True
    assert stored_before_call_x86(text, HERE, CALLEE, MERGING_PAGES + 8) is False
    assert stored_before_call_x86(text, HERE, CALLEE + 16, MERGING_PAGES) is None


def test_x86_not_stored() -> None:
    load = b"\x48\x8b\x83\x70\x05\x00\x00"  # mov 0x570(%rbx), %rax
    store = b"\x4d\x89\x87\x70\x05\x00\x00"
    for before in (load, store + b"\x90" * 64):
        text = before + call_x86(len(before)) + store
        assert stored_before_call_x86(text, HERE, CALLEE, MERGING_PAGES) is False


STR_XZR_X25_1032 = 0xF902073F  # str xzr, [x25, #1032]
LDR_X1_X25_1032 = 0xF9420721


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([STR_XZR_X25_1032, NOP, branch_and_link(8), NOP], True),
        ([LDR_X1_X25_1032, NOP, branch_and_link(8), STR_XZR_X25_1032], False),
        ([STR_XZR_X25_1032, *[NOP] * 16, branch_and_link(68)], False),
        ([STR_XZR_X25_1032, NOP], None),
    ],
)
def test_aarch64_stored(words: list[int], expected: bool | None) -> None:
    text = struct.pack(f"<{len(words)}I", *words)
    assert stored_before_call_aarch64(text, HERE, CALLEE, 1032) is expected
