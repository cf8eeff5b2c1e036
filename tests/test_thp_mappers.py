"""The order in which rmap_walk() gets to those who map a THP."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drgn import Object
from drgn.helpers.linux.mm import pfn_to_page
from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry

from ksm_eval.snapshot import MappingFlag, has
from ksm_eval.target import thp_mappers
from tests.fixtures import snapshot, target


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
    anon_vma = Object(prog, "struct anon_vma *", value=folio.mapping.value_() & ~3)
    chains = rbtree_inorder_for_each_entry(
        "struct anon_vma_chain", anon_vma.rb_root.rb_root.address_of_(), "rb"
    )
    vmas = [chain.vma for chain in chains]
    vmas = [vma for vma in vmas if vma.vm_start.value_() <= at < vma.vm_end.value_()]
    pids = [vma.vm_mm.owner.pid.value_() for vma in vmas]
    row_of = {pid: i for i, pid in enumerate(made.processes.pid.tolist())}
    expected = [by_pmd[row_of[pid]] for pid in pids if row_of.get(pid) in by_pmd]
    assert len(expected) == len(by_pmd)

    whole: Any = vm
    reader = thp_mappers._Reader(prog, made.meta.page_size, whole._page_layout.base)
    walked = list(
        reader.mappers(whole._read_physical, whole._layout, head, int(compounds.pages[row]))
    )
    known = [kind for mm, kind in walked if _pid(prog, mm) in row_of]
    assert known == expected
    behind = whole.pte_behind(compounds.head[several], compounds.pages[several])
    assert behind.tolist() == [not walked[-1][1]]


def _pid(prog: Any, mm: int) -> int:
    return int(Object(prog, "struct mm_struct *", value=mm).owner.pid.value_())
