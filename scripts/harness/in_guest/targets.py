"""The running kernel, opened once each way: that takes seconds here."""

from __future__ import annotations

from functools import cache

from ksm_eval.evaluate import open_live
from ksm_eval.target import Target

VIAS = ("kcore", "proc")


@cache
def _opened(via: str) -> Target:
    return open_live(via)


def opened(via: str) -> Target:
    """With no notes of what was read before."""
    target = _opened(via)
    target.info.notes.clear()
    return target
