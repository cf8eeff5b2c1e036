"""The one rule of ksmd that no feature test finds."""

from __future__ import annotations

import re


def is_6_11(release: str) -> bool:
    """Is `release` (uname -r) a 6.11? cmp_and_merge_page() looks at the checksum first from 6.11
    on, and folio_walk_start(), by which newer ones are told, is of 6.12. What changed in 6.11
    itself is in static functions, which compilers inline."""
    return re.match(r"6\.11(?!\d)", release) is not None
