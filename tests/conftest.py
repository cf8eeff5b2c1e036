"""Hypothesis, the same in every test run: a red run is the change's fault, and not timed.

With KSM_EVAL_EXAMPLES set (a long search), examples are drawn at random.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile(
    "steady", deadline=None, derandomize="KSM_EVAL_EXAMPLES" not in os.environ
)
settings.load_profile("steady")
