"""Progress on standard error, for a person who waits: a bar on a terminal, else lines."""

from __future__ import annotations

import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from ksm_eval.target import (
    CLASSIFYING,
    ORDERING,
    READING,
    RECORDS,
    REPLAYING,
    WAITING,
    WALKING,
    WALKING_PROCESSES,
)

_PAGES = "pages"
_BYTES = "MiB"
_UNITS = {
    WALKING: _PAGES,
    WALKING_PROCESSES: "processes",
    CLASSIFYING: _BYTES,
    RECORDS: _BYTES,
    READING: _PAGES,
    ORDERING: _BYTES,
    REPLAYING: "full scans",
    WAITING: "s",
}
_UPDATES = 0.1  # seconds between two that are not thrown away
_FRAMES = 5  # of the bar, a second
_LINES = 5.0  # seconds between two lines
_MEMORY = 30.0  # seconds by which what was measured has faded to a third
_MEASURED = 0.5  # seconds of reading before it is told how long all of it takes
_LONG = 5.0  # seconds that are worth a word before


class Pace:
    """Units a second, for the time left: of the last half minute more than of what was before, so
    it is calm where single reads are slow and follows where the rest of a dump is another kind."""

    def __init__(self, now: float) -> None:
        self._now, self._done = now, 0
        self._seconds = self._units = 0.0

    def note(self, now: float, done: int) -> None:
        passed = now - self._now
        if passed <= 0:
            return
        fade = math.exp(-passed / _MEMORY)
        self._seconds = self._seconds * fade + passed
        self._units = self._units * fade + done - self._done
        self._now, self._done = now, done

    @property
    def rate(self) -> float:
        return self._units / self._seconds if self._seconds else 0.0


class Stage:
    """What is being done, how much of how much, and since when."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.unit = next((unit for stage, unit in _UNITS.items() if name.endswith(stage)), "")
        self.started = now
        self.done = self.total = 0
        self.pace = Pace(now)
        self._ends: float | None = None

    def note(self, now: float, done: int, total: int) -> None:
        self.done, self.total = done, total
        self.pace.note(now, done)
        rate = self.pace.rate
        self._ends = now + (total - done) / rate if total and rate > 0 else None

    def words(self, now: float) -> str:
        """`12.3M/26.2M pages 150k/s 1:32 left`: short, the bar shares 80 columns with it."""
        if not (self.unit and (self.done or self.total)):
            return _clock(now - self.started)
        scale = 1 << 20 if self.unit == _BYTES else 1
        words = [_short(self.done // scale), self.unit]
        if self.total:
            words[0] += f"/{_short(self.total // scale)}"
        if self.unit == _PAGES and self.pace.rate:
            words.append(f"{_short(round(self.pace.rate))}/s")
        if self._ends is not None and self.unit != "s":
            words.append(f"{_clock(max(0.0, self._ends - now))} left")
        elif self.unit != "s":
            words.append(_clock(now - self.started))
        return " ".join(words)


def _short(number: int) -> str:
    """Three or four digits: 9999, 87k, 1.23M."""
    if number < 10_000:
        return str(number)
    if number < 1_000_000:
        return f"{number // 1000}k"
    return f"{number / 1e6:.2f}M" if number < 10_000_000 else f"{number / 1e6:.1f}M"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else (
        f"{minutes}:{rest:02d}"
    )  # fmt: skip


def _about(seconds: float) -> str:
    """Not more exact than it is known."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Teller(ABC):
    """A `target.Progress` callback that costs next to nothing however often it is called.

    Before frames are read that takes long it says how long: from the first half second of it,
    as nothing else knows how fast this dump is on this disk.
    """

    page_size = 0  # 0: not known yet

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stage = Stage("", clock())
        self._next = 0.0
        self._estimated = False

    def __enter__(self) -> Teller:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del kind, error, traceback  # nothing to put away

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`total` 0: unknown."""
        now = self._clock()
        if stage == self._stage.name and now < self._next:
            return
        self._next = now + _UPDATES
        if stage != self._stage.name:
            self._stage = Stage(stage, now)
        self._stage.note(now, done, total)
        if stage.endswith(READING) and not self._estimated:
            self._estimate(now)
        self.show(self._stage, now)

    def _estimate(self, now: float) -> None:
        stage = self._stage
        passed = now - stage.started
        if passed < _MEASURED or not stage.done:
            return
        self._estimated = True
        seconds = passed * stage.total / stage.done
        if seconds > _LONG:
            size = f" ({_size(stage.total * self.page_size)})" if self.page_size else ""
            self.say(
                f"ksm-eval: {stage.total:,} frames{size} to read and hash: about "
                f"{_about(seconds)} ({_short(round(stage.done / passed))} pages/s)"
            )

    @abstractmethod
    def say(self, line: str) -> None:
        """A line that stays."""

    @abstractmethod
    def show(self, stage: Stage, now: float) -> None:
        """Where it is now."""


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size >> 20} MiB"


class _Words(ProgressColumn):
    def __init__(self, words: Callable[[], str]) -> None:
        super().__init__()
        self._words = words

    def render(self, task: Task) -> Text:
        del task
        return Text(self._words(), no_wrap=True)


class ProgressBar(Teller):
    """On a terminal; leaves nothing on the screen. A thread draws it, so that it moves also where
    no call comes for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            _Words(lambda: self._stage.words(self._clock())),
            console=Console(stderr=True),
            refresh_per_second=_FRAMES,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, stage: Stage, now: float) -> None:
        del now
        if self._progress.tasks[0].description != stage.name:
            self._progress.reset(self._task, description=stage.name, visible=True)
        total = stage.total or None
        self._progress.update(self._task, completed=stage.done, total=total)


class ProgressLines(Teller):
    """Where there is no terminal (--progress): a line now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._told = -math.inf

    def say(self, line: str) -> None:
        if sys.stderr is not None:
            with suppress(OSError):  # nobody listens any more: no reason not to answer
                print(line, file=sys.stderr, flush=True)

    def show(self, stage: Stage, now: float) -> None:
        if now - self._told >= _LINES:
            self._told = now
            words = stage.words(now) if now > stage.started else ""
            self.say(f"ksm-eval: {stage.name}" + (f": {words}" if words else ""))
