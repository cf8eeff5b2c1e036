"""/proc/PID/smaps: VMAs, and why ksmd would or would not scan each."""

from __future__ import annotations

import re
from pathlib import Path

from ksm_eval.target import Vma
from ksm_eval.target.vma_rules import (
    VM_DONTEXPAND,
    VM_DROPPABLE,
    VM_HUGETLB,
    VM_IO,
    VM_MAYSHARE,
    VM_MERGEABLE,
    VM_MIXEDMAP,
    VM_PFNMAP,
    VM_SHARED,
    ineligible,
)

VM_READ, VM_WRITE, VM_EXEC = 1, 2, 4

# show_smap_vma_flags() of fs/proc/task_mmu.c; the bits of include/linux/mm.h. Of the others,
# some have no fixed bit and none matters here.
_BITS = {
    "rd": VM_READ,
    "wr": VM_WRITE,
    "ex": VM_EXEC,
    "sh": VM_SHARED,
    "mr": 0x10,
    "mw": 0x20,
    "me": 0x40,
    "ms": VM_MAYSHARE,
    "gd": 0x100,
    "pf": VM_PFNMAP,
    "lo": 0x2000,  # VM_LOCKED
    "io": VM_IO,
    "sr": 0x8000,
    "rr": 0x10000,
    "dc": 0x20000,
    "de": VM_DONTEXPAND,
    "ac": 0x100000,
    "nr": 0x200000,
    "ht": VM_HUGETLB,
    "sf": 0x800000,
    "wf": 0x2000000,
    "dd": 0x4000000,
    "mm": VM_MIXEDMAP,
    "hg": 0x20000000,
    "nh": 0x40000000,
    "mg": VM_MERGEABLE,
    "dp": VM_DROPPABLE,
}
SHOWN = sum(_BITS.values())
"""Of vm_flags, what smaps shows."""
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+) \d+ *(.*)$")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_GATE = "[vsyscall]"  # no VMA: smaps adds it


def parse_smaps(text: str, *, mergeable_only: bool, dax_devices: frozenset[str]) -> list[Vma]:
    """The VMAs by address. `dax_devices`: "major:minor" of file systems mounted with DAX.

    Raises ValueError if a VMA has no VmFlags (5.10 to 7.3 always have them).
    """
    vmas: list[Vma] = []
    head: re.Match[str] | None = None
    anonymous = 0
    for line in text.split("\n"):  # not splitlines(): names may hold its other separators
        if not line:
            continue
        if line[0].isupper():
            key, _, value = line.partition(":")
            if key in ("Anonymous", "Swap"):
                anonymous += int(value.split()[0])
            elif key == "VmFlags" and head is not None:
                vma = _vma(head, value.split(), anonymous, mergeable_only, dax_devices)
                if vma.name != _GATE:
                    vmas.append(vma)
                head, anonymous = None, 0
        else:
            if head is not None:
                raise ValueError("smaps without VmFlags")
            head, anonymous = _HEAD.match(line), 0
            if head is None:
                raise ValueError(f"smaps: {line!r}")
    if head is not None:
        raise ValueError("smaps is cut short")
    return vmas


def _vma(
    head: re.Match[str],
    flags: list[str],
    anonymous: int,
    mergeable_only: bool,
    dax_devices: frozenset[str],
) -> Vma:
    bits = 0
    for flag in flags:
        bits |= _BITS.get(flag, 0)
    start, end, device, name = head.groups()
    reason = ineligible(bits, dax=device in dax_devices, mergeable_only=mergeable_only)
    return Vma(
        start=int(start, 16),
        end=int(end, 16),
        flags=bits,
        name=_ESCAPE.sub(lambda match: chr(int(match[1], 8)), name),
        reason=reason,
        # Read faults on fresh memory give zero pages only: then there is no anon_vma either,
        # and ksmd passes over the VMA.
        has_anon=anonymous > 0,
    )


def dax_devices(mountinfo: Path) -> frozenset[str]:
    """Devices of file systems mounted with dax or dax=always, as smaps writes them (hex).

    With dax=inode no file of /proc tells; pages of a DAX file itself are no candidates anyway.
    """
    found = set()
    try:
        lines = mountinfo.read_text(errors="replace").split("\n")
    except OSError:
        return frozenset()
    for line in lines:
        words = line.split(" ")
        if len(words) < 10:
            continue
        options = {*words[5].split(","), *words[-1].split(",")}
        if options & {"dax", "dax=always"}:
            major, minor = words[2].split(":")
            found.add(f"{int(major):02x}:{int(minor):02x}")
    return frozenset(found)
