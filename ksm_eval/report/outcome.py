"""Outcome: what became of one vmcore of a batch, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    name: str  # of the vmcore, as short as tells it from the others
    path: str
    code: int  # the exit code that `ksm-eval -c` alone has
    message: str  # what is wrong, "" if nothing is
    seconds: float
    # Of the report; None if there is none.
    net_bytes: int | None = None
    share_of_rss: float | None = None
    frames_freed: int | None = None

    @property
    def result(self) -> str:
        return _RESULTS.get(self.code, f"error {self.code}")


_RESULTS = {0: "ok", 1: "gate failed", 4: "incomplete"}
