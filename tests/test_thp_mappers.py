"""The order in which rmap_walk() gets to those who map a THP."""

from __future__ import annotations

import struct
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from drgn import Object
from drgn.helpers.linux.mm import pfn_to_page
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry

from ksm_eval.evaluate import open_target
from ksm_eval.snapshot import MappingFlag, has
from ksm_eval.target import thp_mappers
from tests.fixtures import snapshot, target, vmcore


@pytest.mark.parametrize("name", ["x86_64-6.12-tiny", "x86_64-6.1-tiny", "aarch64-6.12-16k"])
def test_mappers_are_those_of_the_anon_vmas_tree(name: str) -> None:
    """Against drgn's own walk of the tree, and the page tables as the snapshot has them: of a THP
    that six processes map by a PMD and one, which wrote to it, by PTEs."""
    made, vm = snapshot(name), target(name)
    frames, compounds, prog = made.frames, made.compounds, vm._prog  # type: ignore[attr-defined]
    compound = frames.compound[made.mappings.frame]
    huge = has(made.mappings.flags, MappingFlag.HUGE)
    vma = np.repeat(np.arange(len(made.vmas)), np.diff(made.vmas.offset))
    process = made.vmas.process[vma]
    several = np.flatnonzero(compounds.pmd_mapcount > 1)
    assert compounds.pmd_mapcount[several].tolist() == [6]
    [row] = several.tolist()
    inside = compound == row
    first = np.flatnonzero(inside)[0]  # forked: it is at one address in all of them
    at = int(made.vmas.start[vma[first]]) + int(made.mappings.page[first]) * made.meta.page_size
    by_pmd = dict(zip(process[inside].tolist(), huge[inside].tolist(), strict=True))
    assert sorted(by_pmd.values()) == [False] + [True] * (len(by_pmd) - 1)

    head = int(compounds.head[row])
    folio = Object(prog, "struct folio *", value=pfn_to_page(prog, head).value_())
    vmas = [chain.vma for chain in _chains(prog, folio)]
    vmas = [vma for vma in vmas if vma.vm_start.value_() <= at < vma.vm_end.value_()]
    pids = [vma.vm_mm.owner.pid.value_() for vma in vmas]
    row_of = {pid: i for i, pid in enumerate(made.processes.pid.tolist())}
    expected = [by_pmd[row_of[pid]] for pid in pids if row_of.get(pid) in by_pmd]
    assert len(expected) == len(by_pmd)

    whole: Any = vm
    reader = thp_mappers._Reader(
        prog, whole._read_virtual, made.meta.page_size, whole._page_layout.base
    )
    walked = list(
        reader.mappers(whole._read_physical, whole._layout, head, int(compounds.pages[row]))
    )
    known = [kind for mm, kind in reversed(walked) if _pid(prog, mm) in row_of]
    assert known == expected
    behind = whole.pte_behind(compounds.head[several], compounds.pages[several])
    assert behind.tolist() == [not expected[-1]]


def _pid(prog: Any, mm: int) -> int:
    return int(Object(prog, "struct mm_struct *", value=mm).owner.pid.value_())


def _chains(prog: Any, folio: Any) -> list[Any]:
    anon_vma = Object(prog, "struct anon_vma *", value=folio.mapping.value_() & ~3)
    tree = anon_vma.rb_root.rb_root.address_of_()
    return list(rbtree_inorder_for_each_entry("struct anon_vma_chain", tree, "rb"))


def _overlay(prog: Any, address: int, value: int) -> None:
    data = struct.pack("<Q", value)
    prog.add_memory_segment(address, 8, lambda _, n, offset, __: data[offset : offset + n], False)


@pytest.mark.parametrize("name", ["x86_64-6.12-tiny", "x86_64-6.1-tiny", "aarch64-6.12-16k"])
def test_the_last_mapper_decides(name: str) -> None:
    """The VMA that maps the THP by PTEs is put to the last, the last but one and the first place of
    the tree, all others by PMD; then the tree gets a loop."""
    made = snapshot(name)
    compound = made.frames.compound[made.mappings.frame]
    [row] = np.flatnonzero(made.compounds.pmd_mapcount > 1).tolist()
    ptes = (compound == row) & ~has(made.mappings.flags, MappingFlag.HUGE)
    vma = int(np.searchsorted(made.vmas.offset, np.flatnonzero(ptes)[0], side="right")) - 1
    pid, start = int(made.processes.pid[made.vmas.process[vma]]), int(made.vmas.start[vma])
    heads, pages = made.compounds.head[[row]], made.compounds.pages[[row]]

    def behind(place: int, loop: bool = False) -> Any:
        with closing(open_target(vmcore(name))) as vm:
            whole: Any = vm
            prog = whole._prog
            page = pfn_to_page(prog, int(heads[0])).value_()
            chains = _chains(prog, Object(prog, "struct folio *", value=page))
            chains = [c for c in chains if c.vma.vm_start.value_() == start]
            assert len(chains) == 7
            [mine] = [c for c in chains if c.vma.vm_mm.owner.pid.value_() == pid]
            there = chains[place]
            first, second = mine.vma.value_(), there.vma.value_()
            if first != second:
                _overlay(prog, mine.vma.address_of_().value_(), second)
                _overlay(prog, there.vma.address_of_().value_(), first)
            if loop:
                right = there.rb.rb_right.address_of_().value_()
                _overlay(prog, right, there.rb.address_of_().value_())
            return whole.pte_behind(heads, pages)

    assert behind(-1).tolist() == [True]
    assert behind(-2).tolist() == [False]
    assert behind(0).tolist() == [False]
    assert behind(-1, loop=True) is None
