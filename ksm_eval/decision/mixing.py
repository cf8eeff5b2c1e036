"""Numbers to random-looking ones."""

from __future__ import annotations

import numpy as np

from ksm_eval.snapshot import U64


def mixed(values: U64) -> U64:
    """splitmix64: one to one, and sums or exclusive ors of the results do not meet by accident."""
    found = values + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))
