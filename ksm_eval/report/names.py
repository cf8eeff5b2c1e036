"""What the counters, questions and kinds of a report are called, for every reader of it."""

from __future__ import annotations

from collections.abc import Mapping

from ksm_eval.report.model import Phase

PAGES = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "ksm_zero_pages")
BYTES = ("general_profit",)
ORDER = (
    *PAGES,
    "ksm_rmap_items",
    "stable_node_chains",
    "stable_node_dups",
    *BYTES,
)
QUESTIONS = {
    "merge_any": "as if PR_SET_MEMORY_MERGE had been set for them",
    "mergeable_only": "only what they offer already (VM_MERGEABLE)",
}
FREED_BY = {
    "merged": "duplicates merged",
    "zero": "zero pages mapped to the zero page",
    "thp_zero": "zero subpages of split THPs",
}


def phase_of(actual: Mapping[str, int], phases: Mapping[str, Phase]) -> str | None:
    """The phase that counters read from a kernel are of, if any fits."""
    read = (actual.get("pages_unshared"), actual.get("pages_volatile"))
    for name, phase in phases.items():
        if read == (phase.pages_unshared, phase.pages_volatile):
            return name
    return None
