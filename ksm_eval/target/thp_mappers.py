"""In which order rmap_walk() gets to the processes that map a THP: by its anon_vma's tree.

Decides on kernels where an attempt to split a THP ends at the first PMD (Rules.pmd_at_a_time). VMAs
come by the file offset at which they start (vm_pgoff), then in the order in which they were put
into the tree: forked ones after their parent's, but one whose limits changed since (mprotect,
mlock, munmap of a part) after those that were there then. So only the tree itself tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from drgn import Object, Program
from drgn.helpers.linux.mm import virt_to_phys
from numpy.typing import NDArray

from ksm_eval.snapshot import U32, U64, MappingFlag, has
from ksm_eval.target import Vma
from ksm_eval.target.frames import Read
from ksm_eval.target.page_table import Layout, ReadTables, walk
from ksm_eval.target.records import Contradiction, Memory, record

MAPPING_BITS = 3  # low bits of folio->mapping


@dataclass(frozen=True)
class _Place:
    """A VMA in which a page may be."""

    mm: int
    start: int
    end: int


def pte_behind(
    prog: Program,
    read: Read,
    read_tables: ReadTables,
    layout: Layout,
    page_struct: int,
    heads: U64,
    pages: U32,
) -> NDArray[np.bool_]:
    """Of each THP that some VMA maps by a PMD: does one that maps it by PTEs follow the last such?

    `page_struct`: address of the struct page of frame 0. Raises LookupError if types are not
    known, Contradiction or FaultError if the memory makes no sense.
    """
    reader = _Reader(prog, read, 1 << layout.paging.page_shift, page_struct)
    found = np.zeros(len(heads), np.bool_)
    for row, (head, count) in enumerate(zip(heads.tolist(), pages.tolist(), strict=True)):
        _, by_pmd = next(reader.mappers(read_tables, layout, head, count), (0, True))
        found[row] = not by_pmd
    return found


class _Reader:
    def __init__(self, prog: Program, read: Read, page_size: int, page_struct: int) -> None:
        self.prog, self.page_size, self.page_struct = prog, page_size, page_struct
        self.memory = Memory(read, page_size)
        self.rb = record(prog, ("struct rb_node",), "rb_left", "rb_right").at
        self.tree = record(prog, ("struct anon_vma",), "rb_root").at["rb_root"]
        self.tree += record(prog, ("struct rb_root_cached",), "rb_root").at["rb_root"]
        self.chain = record(prog, ("struct anon_vma_chain",), "vma", "rb").at
        self.vma = record(
            prog, ("struct vm_area_struct",), "vm_mm", "vm_start", "vm_end", "vm_pgoff"
        ).at
        folio = record(prog, ("struct folio",), "mapping", "index")
        self.folio, self.size = folio.at, int(prog.type("struct page").size or 64)

    def places(self, head: int, pages: int) -> Iterator[_Place]:
        """Where a THP may be mapped, the last one of the walk first."""
        folio, word = self.page_struct + head * self.size, self.memory.word
        anon_vma = word(folio + self.folio["mapping"]) & ~MAPPING_BITS
        index, size = word(folio + self.folio["index"]), self.page_size
        for chain in self._in_reverse(word(anon_vma + self.tree)):
            vma = word(chain + self.chain["vma"])
            mm, start, end, pgoff = (word(vma + at) for at in self.vma.values())
            first = start + (index - pgoff) * size
            low, high = max(first, start), min(first + pages * size, end)
            if low < high:
                yield _Place(mm, low, high)

    def mappers(
        self, read: ReadTables, layout: Layout, head: int, pages: int
    ) -> Iterator[tuple[int, bool]]:
        """(mm, maps it by a PMD) of each VMA that maps any of a THP, the last of the walk first."""
        for place in self.places(head, pages):
            root = virt_to_phys(Object(self.prog, "struct mm_struct *", place.mm).pgd).value_()
            entries = walk(read, root, [Vma(place.start, place.end, 0, "", "")], layout)
            inside = (entries.pfn >= head) & (entries.pfn < head + pages)
            if inside.any():
                yield place.mm, bool(has(entries.flags[inside], MappingFlag.HUGE).any())

    def _in_reverse(self, root: int) -> Iterator[int]:
        """anon_vma_chains of a tree, from the right."""
        above: list[int] = []
        at, seen = root, set[int]()
        while at or above:
            while at:
                if at in seen:
                    raise Contradiction("an anon_vma's tree has a loop")
                seen.add(at)
                above.append(at)
                at = self.memory.word(at + self.rb["rb_right"])
            at = above.pop()
            yield at - self.chain["rb"]
            at = self.memory.word(at + self.rb["rb_left"])
