"""Several samples of a changing memory: numbers worked out by hand from mm/ksm.c."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings

from ksm_eval.replay.ksmd import simulate
from ksm_eval.replay.rules import Settings
from ksm_eval.replay.series import simulate_series
from ksm_eval.replay.state import PassResult
from ksm_eval.snapshot import Snapshot
from tests.snapshots import settings as ksm_settings
from tests.snapshots import snapshots
from tests.test_replay_property import EXAMPLES


def assert_equal(ours: list[PassResult], theirs: list[PassResult]) -> None:
    assert [result.counters for result in ours] == [result.counters for result in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name, column in vars(b.processes).items():
            assert np.array_equal(getattr(a.processes, name), column), name


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(snapshot=snapshots(warm=False), ksm=ksm_settings())
def test_equal_samples_are_a_memory_that_stands_still(snapshot: Snapshot, ksm: Settings) -> None:
    assert_equal(simulate_series([snapshot] * 7, ksm), simulate(snapshot, ksm, 7).passes)
