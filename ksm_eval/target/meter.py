"""What a target has read, and no faster than it may."""

from __future__ import annotations

import time
from collections.abc import Callable


class Meter:
    """Counts the bytes that a target reads of processes and of tables; `max_rate` (bytes a second,
    0: no limit) holds it back. Left out is what there is little of: single structs, symbols,
    settings, /proc files that list processes."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self.max_rate = 0.0
        self.listener: Callable[[], None] | None = None  # hears of every read
        self._free_at = 0.0  # when the bytes so far are paid for, on the monotonic clock

    def wait(self, size: int) -> None:
        """Before `size` bytes are read, or behind a read that tells its size only then: sleep
        until those before them are paid for.

        Bytes of one read are never split, so no rate is exceeded by more than one of them.
        """
        self.bytes_read += size
        if self.listener is not None:
            self.listener()
        if not self.max_rate:
            return
        now = time.monotonic()
        if self._free_at > now:
            time.sleep(self._free_at - now)
        # Time in which nothing was read is not saved up for a burst.
        self._free_at = max(now, self._free_at) + size / self.max_rate
