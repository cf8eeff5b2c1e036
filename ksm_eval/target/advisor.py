"""The scan-time advisor's own settings (6.8+), by their sysfs names without "advisor_"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ksm_eval.target.proc_rules import KSM

if TYPE_CHECKING:
    from drgn import Program

_NAMES = ("target_scan_time", "max_cpu", "max_pages_to_scan", "min_pages_to_scan")


def sysfs_advisor(directory: Path = KSM) -> dict[str, int]:
    """Those that the running kernel shows."""
    found = {}
    for name in _NAMES:
        try:
            found[name] = int((directory / f"advisor_{name}").read_text())
        except (OSError, ValueError):
            continue
    return found


def read_advisor(prog: Program) -> dict[str, int]:
    """Those whose variable can be found: static, so with CONFIG_KALLSYMS_ALL or DWARF only."""
    from drgn import FaultError

    found = {}
    for name in _NAMES:
        try:
            found[name] = int(prog[f"ksm_advisor_{name}"].value_())
        except (LookupError, FaultError):
            continue
    return found
