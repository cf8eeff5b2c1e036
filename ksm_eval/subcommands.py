"""`ksm-eval compare` and `ksm-eval batch`: their options, and what they answer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from ksm_eval.errors import UsageError
from ksm_eval.options import Options, check, command, percent
from ksm_eval.report.text import printable


@dataclass(frozen=True)
class Answer:
    """What is to be written where, and then how to end."""

    text: str
    output: Path | None = None
    failed: str = ""  # why a gate failed
    code: int = 0


_EXIT_OF_COMPARE: Final = """\b
Exit codes:
  0  compared
  1  the gain fell by more than --fail-if-worse allows
  2  the command line makes no sense, or its output cannot be written
  3  a file cannot be read, is no JSON report, or of another schema_version

\b
Example:
  ksm-eval compare yesterday.json today.json --fail-if-worse 10%"""

_EXIT_OF_BATCH: Final = """\b
Exit codes: the worst of all vmcores, in this order:
  5  internal error, or a crash
  2  the command line makes no sense, or nothing is selected there
  3  the vmcore cannot answer
  4  answered, but more than --max-unreadable could not be read
  1  a gate failed
  0  all is well

\b
Example:
  ksm-eval batch /var/crash --all --fail-under 5% --junit ksm.xml --out reports"""

_HELP: Final[Mapping[str, Any]] = {"help_option_names": ["-h", "--help"], "max_content_width": 80}


@click.command(context_settings=dict(_HELP), epilog=_EXIT_OF_COMPARE)
@click.argument("old", type=click.Path(path_type=Path), metavar="OLD.json")
@click.argument("new", type=click.Path(path_type=Path), metavar="NEW.json")
@click.option(
    "--fail-if-worse", callback=percent, metavar="PERCENT",
    help="Exit with 1 if the memory gained (net_bytes) fell by more.",
)  # fmt: skip
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True,
    help="For a person or for a program.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="PATH",
    help="Write the comparison to a file.",
)  # fmt: skip
def compare_command(
    old: Path, new: Path, fail_if_worse: float | None, form: str, output: Path | None
) -> Answer:
    """Compare two JSON reports: what is gained, the counters, each comm and cgroup.

    Selections, settings and kernels that differ are said first: figures that answer different
    questions do not compare.
    """
    from ksm_eval.compare import compare, is_worse, read_report
    from ksm_eval.files import check_writable
    from ksm_eval.report.compare_text import compare_json, compare_text

    if output is not None and str(output) != "-":
        check_writable(output)
        if output.resolve() in (old.resolve(), new.resolve()):
            raise UsageError("--output would overwrite what is compared", "choose another file")
    comparison = compare(read_report(old), read_report(new))
    if fail_if_worse is not None:  # a gate on such figures must not pass in silence
        if comparison.differ:
            names = ", ".join(what for what, _, _ in comparison.differ)
            _warn(f"the reports hardly compare, they differ in {names}")
        for line in comparison.incomplete:
            _warn(line)
    text = compare_json(comparison) if form == "json" else compare_text(comparison)
    if fail_if_worse is None or not is_worse(comparison, fail_if_worse / 100):
        return Answer(text, output)
    net = comparison.savings[0]
    by = "" if comparison.fell is None else f" by {100 * comparison.fell:.3g} %"
    failed = (
        f"net_bytes fell{by}, from {net.old} to {net.new}, "
        f"--fail-if-worse allows {fail_if_worse:g} %"
    )
    return Answer(text, output, failed)


def _warn(line: str) -> None:
    _tell(f"ksm-eval: warning: {line}")


def _tell(line: str) -> None:
    """To standard error; there may be names of files or of the target in it."""
    if sys.stderr is not None:
        click.echo(printable(line), err=True)


_NOT_OF_A_BATCH: Final = frozenset(
    {
        *("cores", "via", "qemu", "snapshot", "samples", "interval", "max_rate", "priority"),
        *("save", "form", "output", "progress", "fail_over_volatile", "version", "help"),
    }
)
"""Options of ksm-eval that are about something else than single vmcores, or are the batch's own.
All others are passed on, those that come later, too."""


class _Batch(click.Command):
    """Keeps the words of the options that are passed on, as they were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given: Mapping[str, Any] = self.make_parser(ctx).parse_args(args=list(args))[0]
        ctx.obj = [
            word
            for option in _passed_on()
            if option.name in given
            for word in _words(option, given[option.name])
        ]
        return super().parse_args(ctx, args)


def _passed_on() -> list[click.Option]:
    return [
        option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in _NOT_OF_A_BATCH
    ]


def _words(option: click.Option, value: object) -> list[str]:
    name = max(option.opts, key=len)
    if option.is_flag:
        return [name if value else max(option.secondary_opts, key=len)]
    return [f"{name}={one}" for one in (value if isinstance(value, list) else [value])]


def _batch(
    ctx: click.Context, /, paths: tuple[Path, ...], out: Path | None, junit: Path | None, **_: Any
) -> Answer:
    from ksm_eval.batch import Evaluation, evaluate_all, find_cores, worst
    from ksm_eval.files import atomic_write, check_writable
    from ksm_eval.report.batch_text import batch_text
    from ksm_eval.report.outcome import Outcome
    from ksm_eval.report.to_junit import to_junit

    words: list[str] = ctx.obj
    cores = find_cores(paths)
    # What makes no sense for one makes none for all.
    options = command.main(
        ["-c", str(cores[0].path), *words], prog_name="ksm-eval batch", standalone_mode=False
    )
    assert isinstance(options, Options)
    check(options)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make {out}: {error.strerror}", "choose another") from None
    if junit is not None:
        check_writable(junit)
    speaks = sys.stderr is not None and not options.quiet

    def done(outcome: Outcome, number: int, of: int) -> None:
        if speaks and sys.stderr.isatty():
            _tell(f"[{number}/{of}] {outcome.name}: {outcome.result}")

    evaluation = Evaluation([*words, "--format=json"], out, _tell)
    outcomes = evaluate_all(cores, evaluation, done=done)
    if junit is not None:
        with atomic_write(junit, 0o666) as file:
            file.write(to_junit(outcomes).encode())
    return Answer(batch_text(outcomes), code=worst(outcomes))


batch_command = _Batch(
    "batch",
    callback=click.pass_context(_batch),
    params=[
        click.Argument(["paths"], nargs=-1, required=True, type=click.Path(path_type=Path),
                       metavar="PATH..."),
        click.Option(["--out"], type=click.Path(path_type=Path), metavar="DIR",
                     help="Write the JSON report of each vmcore into this folder."),
        click.Option(["--junit"], type=click.Path(path_type=Path), metavar="FILE",
                     help="Write JUnit XML: a test case a vmcore."),
        *_passed_on(),
    ],
    help="""Evaluate many vmcores: files, and all that are in and below folders.

    Each is evaluated by a process of its own, so a broken one stops none of the others. The other
    options are those of ksm-eval -c, and apply to every vmcore.""",
    context_settings=dict(_HELP),
    epilog=_EXIT_OF_BATCH,
)  # fmt: skip

COMMANDS: Final[Mapping[str, click.Command]] = {"compare": compare_command, "batch": batch_command}


def answer(name: str, arguments: Sequence[str]) -> Answer:
    """Raises what cli.run() turns into exit codes."""
    run: Callable[..., object] = COMMANDS[name].main
    result = run(list(arguments), prog_name=f"ksm-eval {name}", standalone_mode=False)
    return result if isinstance(result, Answer) else Answer("")  # of --help
