"""The outcomes of a batch on a screen of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.console import Console

from ksm_eval.report.blocks import (
    counted,
    fit,
    hanging,
    human_bytes,
    or_dash,
    percent,
    plain,
    table_of,
)
from ksm_eval.report.outcome import Outcome
from ksm_eval.report.text import printable


def batch_text(outcomes: Sequence[Outcome], *, width: int = 80) -> str:
    """A row each, then what was wrong with which. Names are escaped."""
    file = StringIO()
    console = Console(
        file=file, width=width, color_system=None, highlight=False, markup=False, emoji=False,
        legacy_windows=False,
    )  # fmt: skip
    table = table_of(
        ("vmcore", False), ("gained", True), ("of RSS", True), ("frames freed", True),
        ("result", False),
    )  # fmt: skip
    for outcome in outcomes:
        share, net = outcome.share_of_rss, outcome.net_bytes
        cells = (
            fit(printable(outcome.name), width - 50),
            "-" if net is None else human_bytes(net),
            "-" if share is None else f"{100 * share:.1f} %",
            or_dash(outcome.frames_freed),
            outcome.result,
        )
        table.add_row(*map(plain, cells))
    console.print(table)
    console.print()
    told = [outcome for outcome in outcomes if outcome.message]
    for outcome in told:
        console.print(hanging("- ", f"{outcome.name}: {outcome.message}"))
    good = sum(outcome.code == 0 for outcome in outcomes)
    console.print(
        f"{counted(len(outcomes), 'vmcore', 'vmcores')}, {good} ok"
        + (f" ({percent(good / len(outcomes))})" if len(outcomes) > 1 else "")
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
