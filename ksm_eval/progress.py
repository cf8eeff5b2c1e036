"""Progress on standard error, for a person who waits."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from ksm_eval.target import READING, WAITING, WALKING

_UNITS = {WALKING: "processes", READING: "pages", WAITING: "s"}


class _Count(ProgressColumn):
    """What is done of how much, how fast, and how long the rest takes."""

    def render(self, task: Task) -> Text:
        unit = next((u for stage, u in _UNITS.items() if task.description.endswith(stage)), "")
        done, left = int(task.completed), task.time_remaining
        text = f"{done}/{int(task.total)} {unit}" if task.total else f"{done} {unit}"
        if unit == "pages" and task.speed:
            text += f" {task.speed / 1000:.0f}k/s"
        if left is not None and unit != "s":
            text += f" {int(left) // 60}:{int(left) % 60:02d} left"
        return Text(text)


class ProgressBar:
    """Context manager of a `target.Progress` callback; leaves nothing on the screen."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            _Count(),
            console=Console(stderr=True),
            transient=True,
        )
        self._stage = ""
        self._task = TaskID(0)

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
        """A line that stays, above the bar."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`total` 0: unknown, the bar only shows that something happens."""
        if stage != self._stage or not self._progress.tasks:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._stage = stage
            self._task = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._task, completed=done, total=total or None)
