"""The target's clock of ticks, and how long its ticks are."""

from __future__ import annotations

from dataclasses import dataclass

from drgn import FaultError, Program

WORD = (1 << 64) - 1


@dataclass(frozen=True)
class Jiffies:
    now: int
    hz: int

    def milliseconds_since(self, stamp: int) -> int:
        """Rounded down: what is compared with it, msecs_to_jiffies() rounds up. 0 if `stamp` is in
        the future."""
        passed = (self.now - stamp) & WORD
        return 0 if passed >> 63 else passed * 1000 // self.hz


def read_jiffies(prog: Program) -> Jiffies | None:
    """None if it cannot be read.

    HZ is a constant of the build. The clocksource that every kernel starts with counts jiffies
    (kernel/time/jiffies.c): mult is TICK_NSEC << shift, and timekeeping never changes it.
    Jiffies stand still while all CPUs of the target are idle, in ksmd's eyes until it runs.
    """
    try:
        now = int.from_bytes(prog.read(prog.symbol("jiffies_64").address, 8), "little")
        clock = prog.symbol("clocksource_jiffies").address
        kind = prog.type("struct clocksource")
        mult, shift = (
            int.from_bytes(prog.read(clock + int(kind.member(name).bit_offset) // 8, 4), "little")
            for name in ("mult", "shift")
        )
    except (LookupError, FaultError):
        return None
    tick = mult >> shift if shift < 32 else 0  # ns
    hz = round(1_000_000_000 / tick) if tick else 0
    return Jiffies(now, hz) if 10 <= hz <= 10_000 else None
