"""`%ksm-eval` in a drgn session, by drgn's entry point for plug-ins (group drgn.plugins).

    %ksm-eval --comm php-fpm --children

takes those options of the command line that are about an answer, not about where memory comes
from: that is the session's Program. It prints the report and returns it, so that

    report = drgn.commands.run_command(prog, "ksm-eval --all")

has it. drgn before 0.1 has no commands: importing this does nothing there.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from drgn import Program

if TYPE_CHECKING:
    from ksm_eval.report.model import Report

try:
    from drgn.commands import CommandError, argument
    from drgn.commands.linux import linux_kernel_command
except ImportError:
    pass
else:

    @linux_kernel_command(  # type: ignore[untyped-decorator, unused-ignore]  # of drgn's stubs
        name="ksm-eval",
        description="predict what KSM would merge, without enabling it",
        arguments=(
            argument("--pid", type=int, action="append", default=[], help="process N"),
            argument("--children", action="store_true", help="also all that descend from them"),
            argument(
                "--comm", action="append", default=[], metavar="GLOB",
                help="processes whose command name matches",
            ),
            argument(
                "--cgroup", action="append", default=[], metavar="PATH",
                help="processes of a cgroup (v2 path) and those below it",
            ),
            argument("--all", action="store_true", help="all processes"),
            argument(
                "--mergeable-only", action="store_true",
                help="only what processes offer already (VM_MERGEABLE)",
            ),
            argument("--passes", type=int, default=0, metavar="N", help="full scans to tell"),
            argument("--json", action="store_true", help="as JSON, not as a table"),
        ),
    )  # fmt: skip
    def ksm_eval_command(
        prog: Program, name: str, args: argparse.Namespace, **kwargs: Any
    ) -> Report:
        """Print the report of the session's memory, and return it."""
        del name, kwargs
        from ksm_eval.errors import KsmEvalError

        try:
            return _evaluate(prog, args)
        except KsmEvalError as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise CommandError(f"{error.message}{hint}") from None


def _evaluate(prog: Program, args: argparse.Namespace) -> Report:
    import time

    from ksm_eval.errors import UsageError
    from ksm_eval.evaluate import evaluate
    from ksm_eval.report.to_terminal import to_terminal
    from ksm_eval.target import Selection
    from ksm_eval.target.session import target_of

    selection = Selection(
        pids=tuple(args.pid),
        children=args.children,
        comms=tuple(args.comm),
        cgroups=tuple(args.cgroup),
        all=args.all,
    )
    if not (args.pid or args.comm or args.cgroup or args.all):
        raise UsageError("no process selected", "use --pid, --comm, --cgroup or --all")
    if args.passes < 0:
        raise UsageError("--passes is less than 0", "give how many full scans to tell")
    started = time.monotonic()
    target = target_of(prog)
    try:
        report = evaluate(target, selection, mergeable_only=args.mergeable_only, passes=args.passes)
    finally:
        target.close()
    if args.json:
        print(_json(report, started, target.meter.bytes_read), end="")
    else:
        print(to_terminal(report), end="")
    return report


def _json(report: Report, started: float, bytes_read: int) -> str:
    import time
    from importlib.metadata import version

    from ksm_eval import __version__
    from ksm_eval.footprint import cpu_seconds, max_rss_bytes
    from ksm_eval.report.model import Run
    from ksm_eval.report.to_json import to_json

    return to_json(
        report,
        Run(
            version=__version__,
            drgn=version("drgn"),
            command=("%ksm-eval",),
            time=time.time(),
            duration=round(time.monotonic() - started, 3),
            cpu_seconds=round(cpu_seconds(), 3),
            bytes_read=bytes_read,
            max_rss_bytes=max_rss_bytes(),
            snapshot=None,
        ),
    )
