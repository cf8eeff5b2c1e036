"""The clock of a Python measurement: stages from outside, around functions of the product."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ksm_eval.footprint import cpu_seconds, max_rss_bytes

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Clock:
    """Seconds by stage, and the processor's. What runs inside another stage counts for the inner
    one only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._open: list[str] = []
        self._since = (0.0, 0.0)

    def _charge(self) -> None:
        now = time.perf_counter(), cpu_seconds()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now[0] - self._since[0]
            self.cpu[name] = self.cpu.get(name, 0.0) + now[1] - self._since[1]
        self._since = now

    def measurement(self, *off: str) -> dict[str, Any]:
        """Without the stages that are `off` the clock, which are `parts`."""
        stages = {name: s for name, s in self.seconds.items() if name not in off}
        return {
            "stages": stages,
            "parts": {name: self.seconds.get(name, 0.0) for name in off},
            "seconds": sum(stages.values()),
            "cpu": sum(s for name, s in self.cpu.items() if name not in off),
            "peak_rss": max_rss_bytes(),
        }

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def around(
        self, name: str, function: Callable[_Arguments, _Result]
    ) -> Callable[_Arguments, _Result]:
        @wraps(function)
        def timed(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed

    def replace(self, owner: object, attribute: str, name: str) -> None:
        """Put the clock around a function where it is looked up; nothing if it is not there:
        then it counts for whatever calls what it became."""
        function = getattr(owner, attribute, None)
        if callable(function):
            setattr(owner, attribute, self.around(name, function))


def status(field: str) -> int:
    """VmRSS or VmHWM in bytes. Not ru_maxrss, which begins with what the parent had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)
