"""Command line: options into calls, results into output. No kernel knowledge, no arithmetic.

What needs drgn, numpy or rich is imported where it is used: --help and a mistyped option
answer at once.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ksm_eval import __version__
from ksm_eval.errors import GateError, IncompleteError, KsmEvalError, TargetError, UsageError
from ksm_eval.options import Options, check, command
from ksm_eval.report.text import printable

if TYPE_CHECKING:
    from ksm_eval.decision import Questions
    from ksm_eval.progress import Teller
    from ksm_eval.report.model import Report, Run
    from ksm_eval.sampling import Samples
    from ksm_eval.snapshot import Snapshot
    from ksm_eval.target import Selection, Target

SUBCOMMANDS = ("compare", "batch")
EXIT_INTERNAL = 5  # a bug in ksm-eval
EXIT_INTERRUPT = 130  # as a shell says for SIGINT
EXIT_PIPE = 141  # and for SIGPIPE


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """What `ksm-eval ARGUMENTS` does; returns its exit code. Never raises."""
    try:
        if arguments and arguments[0] in SUBCOMMANDS:
            return _subcommand(arguments[0], arguments[1:])
        # click only parses: what it makes of exceptions is for programs that have no exit codes.
        options = command.main(list(arguments), prog_name="ksm-eval", standalone_mode=False)
        if isinstance(options, Options):  # else --help or --version
            _work(options, arguments)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = "ksm-eval" if context is None else context.command_path
        return _fail(error.format_message(), f"see {path} --help", UsageError.exit_code)
    except GateError as error:
        return _fail(error.message, error.hint, error.exit_code, "gate failed")
    except KsmEvalError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPT
    except (BrokenPipeError, SystemExit):  # SystemExit: click's own, when --help has no reader
        _forget_stdout()
        return EXIT_PIPE
    except MemoryError:
        return _fail("out of memory", "select fewer processes", TargetError.exit_code)
    except Exception as error:
        logging.getLogger("ksm_eval").debug("internal error", exc_info=True)
        return _fail(
            f"internal error: {type(error).__name__}: {error}",
            "a bug in ksm-eval; --log-level debug shows where",
            EXIT_INTERNAL,
        )
    return 0


def _subcommand(name: str, arguments: Sequence[str]) -> int:
    from ksm_eval.subcommands import answer

    found = answer(name, arguments)
    if found.text:
        _write(found.text, found.output)
    if found.failed:
        raise GateError(found.failed)
    return found.code


def _work(options: Options, arguments: Sequence[str]) -> None:
    started = time.monotonic()
    _start_logging(options)
    check(options)
    report, bytes_read, short = _report(options)
    now = _run(options, arguments, report, bytes_read, started)
    _write(_rendered(options, report, now), options.output)
    _check_complete(report, options.max_unreadable)
    if short:
        raise IncompleteError(
            f"fewer samples than asked for: {short}", "the report is of those that were taken"
        )
    _check_gates(options, report)  # last: of an incomplete answer no gate passes or fails


def _rendered(options: Options, report: Report, now: Run) -> str:
    form = options.form
    if form == "json":
        from ksm_eval.report.to_json import to_json

        return to_json(report, now)
    if form == "jsonl":
        from ksm_eval.report.to_jsonl import to_jsonl

        return to_jsonl(report, now)
    if form == "csv":
        from ksm_eval.report.to_csv import to_csv

        return to_csv(report)
    if form == "prometheus":
        from ksm_eval.report.to_prometheus import to_prometheus

        return to_prometheus(report)
    if form == "html":
        from ksm_eval.report.to_html import to_html

        return to_html(report, now)
    from ksm_eval.report.to_terminal import to_terminal

    return to_terminal(report, now, **_terminal(options))


def _run(
    options: Options, arguments: Sequence[str], report: Report, bytes_read: int, started: float
) -> Run:
    from ksm_eval.footprint import cpu_seconds, max_rss_bytes
    from ksm_eval.report.model import Run

    source = options.snapshot
    return Run(
        version=__version__,
        drgn=None if source or report.target.kind == "procfs" else _version_of("drgn"),
        command=("ksm-eval", *arguments),
        time=time.time(),
        duration=round(time.monotonic() - started, 3),
        cpu_seconds=round(cpu_seconds(), 3),
        bytes_read=bytes_read,
        max_rss_bytes=max_rss_bytes(),
        snapshot=str(source) if source else None,
    )


def _start_logging(options: Options) -> None:
    level = options.log_level or ("none" if options.quiet else "warning")
    logging.basicConfig(format="%(levelname)s: %(name)s: %(message)s")
    above_all = logging.CRITICAL + 1
    logging.getLogger().setLevel(above_all if level == "none" else level.upper())


def _report(options: Options) -> tuple[Report, int, str]:
    """The report, how many bytes were read for it, and what came short of the question."""
    with _progress(options) as progress:
        if options.snapshot is not None:
            return _one(options, _loaded(options, options.snapshot), progress), 0, ""
        if len(options.cores) > 1:
            return *_cores(options, progress), ""
        return _sampled(options, progress)


def _sampled(options: Options, progress: Teller | None) -> tuple[Report, int, str]:
    from ksm_eval.evaluate import evaluate_taken
    from ksm_eval.save import save

    taken = _taken(options, progress)
    snapshot = taken.snapshots[0]
    if options.save is not None:
        save(snapshot, options.save)
    if options.samples == 1:
        return _one(options, snapshot, progress), taken.bytes_read, ""
    short = "" if taken.stopped is None else taken.stopped.message
    report = evaluate_taken(
        taken,
        _overrides(options),
        max_memory=int(options.max_memory),
        progress=progress,
        questions=_questions(options),
    )
    return report, taken.bytes_read, short


def _loaded(options: Options, path: Path) -> Snapshot:
    from ksm_eval.memory import memory
    from ksm_eval.save import load

    limit = int(options.max_memory)
    exact = options.passes > 0 or options.verify
    return load(path, memory(limit, 0, exact=exact) if limit else None)


def _one(options: Options, snapshot: Snapshot, progress: Teller | None) -> Report:
    from ksm_eval.evaluate import evaluate_snapshot, verify_snapshot

    if options.verify:
        return verify_snapshot(snapshot, passes=options.passes or 1, progress=progress)
    return evaluate_snapshot(
        snapshot,
        _overrides(options),
        passes=options.passes,
        progress=progress,
        questions=_questions(options),
        within=options.within,
        max_memory=int(options.max_memory),
    )


def _cores(options: Options, progress: Teller | None) -> tuple[Report, int]:
    """Several vmcores: one sample each, all hashed under one key; the targets stay open."""
    from ksm_eval.evaluate import collect, evaluate_samples

    seed = secrets.randbits(64)
    with ExitStack() as stack:
        samples = []
        for core in options.cores:
            target = _open(options, core, progress)
            stack.callback(target.close)
            snapshot = collect(
                target,
                _selection(options),
                mergeable_only=options.mergeable_only,
                jobs=options.jobs,
                progress=progress,
                seed=seed,
                max_memory=int(options.max_memory),
            )
            samples.append((target, snapshot))
        report = evaluate_samples(
            samples,
            _overrides(options),
            max_memory=int(options.max_memory),
            progress=progress,
            questions=_questions(options),
        )
        return report, sum(target.meter.bytes_read for target, _ in samples)


def _taken(options: Options, progress: Teller | None) -> Samples:
    """One vmcore, or as many samples as were asked for of what runs."""
    from ksm_eval.evaluate import take_samples
    from ksm_eval.footprint import step_back

    core = options.cores[0] if options.cores else None
    if core is None and options.priority != "normal":
        step_back()

    def announce(seconds: float) -> None:
        line = (
            f"ksm-eval: a full scan would take ksmd {seconds:.1f} s; waiting as long before "
            "each further sample (--interval changes it)"
        )
        if progress is not None:
            progress.say(line)
        elif not options.quiet and sys.stderr is not None:
            click.echo(line, err=True)

    return take_samples(
        lambda: _open(options, core, progress),
        _selection(options),
        samples=options.samples,
        interval=options.interval,
        max_rate=options.max_rate,
        mergeable_only=options.mergeable_only or options.verify,
        exact=options.passes > 0 or options.verify or options.save is not None,
        max_memory=int(options.max_memory),
        jobs=options.jobs,
        progress=progress,
        announce=announce,
    )


def _selection(options: Options) -> Selection:
    from ksm_eval.target import Selection

    return Selection(
        pids=options.pids,
        children=options.children,
        comms=options.comms,
        cgroups=options.cgroups,
        # Of all processes what they offer: that is what ksmd scans.
        all=options.everything or options.verify,
    )


def _progress(options: Options) -> AbstractContextManager[Teller | None]:
    if options.quiet or options.progress is False or sys.stderr is None:
        return nullcontext()
    # A dumb terminal cannot go back in a line.
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if not (terminal or options.progress):
        return nullcontext()
    from ksm_eval.progress import ProgressBar, ProgressLines

    return ProgressBar() if terminal else ProgressLines()


def _open(options: Options, core: Path | None, progress: Teller | None) -> Target:
    from ksm_eval.target import OPENING

    if progress is not None:
        progress(OPENING, 0, 0)
    target = _opened(options, core)
    if progress is not None:
        progress.page_size = target.info.page_size
    return target


def _opened(options: Options, core: Path | None) -> Target:
    from ksm_eval.evaluate import open_guest, open_live, open_target

    if core is not None:
        return open_target(
            core,
            symbols=options.symbols,
            vmcoreinfo=options.vmcoreinfo,
            architecture=options.architecture,
        )
    if options.qemu is not None:
        return open_guest(options.qemu, symbols=options.symbols, vmcoreinfo=options.vmcoreinfo)
    return open_live(options.via or "auto", symbols=options.symbols)


def _questions(options: Options) -> Questions:
    from ksm_eval.decision import Questions

    return Questions(options.group_by, options.target_scan_time or None, options.what_if)


def _overrides(options: Options) -> dict[str, int | bool]:
    names = ("max_page_sharing", "use_zero_pages", "merge_across_nodes", "smart_scan")
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _check_complete(report: Report, allowed: float) -> None:
    gone = report.completeness.processes_lost
    if gone and allowed < 100:
        raise IncompleteError(
            f"{len(gone)} of the selected processes could not be read: {gone[0]}",
            "the report says which; to accept it use --max-unreadable 100",
        )
    lost = 100 * report.completeness.share_unreadable
    if lost > allowed:
        raise IncompleteError(
            f"{lost:.3g} % of the pages could not be read, --max-unreadable allows {allowed:g} %",
            "the report says why; to accept it raise --max-unreadable",
        )


def _check_gates(options: Options, report: Report) -> None:
    if options.fail_under is None and options.fail_over_volatile is None:
        return
    from ksm_eval.gate import check_gates

    check_gates(report, options.fail_under, options.fail_over_volatile)


def _version_of(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _terminal(options: Options) -> dict[str, Any]:
    """Width and colour of where the table goes."""
    if options.output is not None or sys.stdout is None or not sys.stdout.isatty():
        return {}
    columns = shutil.get_terminal_size().columns
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return {"width": max(40, min(80, columns)), "color": not plain}


def _write(text: str, path: Path | None) -> None:
    """`text` to `path` or standard output. Raises UsageError, or BrokenPipeError."""
    if path is not None and str(path) != "-":
        from ksm_eval.files import atomic_write

        with atomic_write(path, 0o666) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
        return
    if sys.stdout is None:
        raise UsageError("standard output is closed", "use -o")
    try:
        encoding = sys.stdout.encoding or "utf-8"
        # A name from the target need not exist in the locale's encoding.
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _forget_stdout()
        raise UsageError(f"cannot write the report: {error.strerror}", "use -o") from error


def _forget_stdout() -> None:
    """Keep the interpreter from failing once more when it flushes at its end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, hint: str, code: int, what: str = "error") -> int:
    """Say what is wrong; names in it may come from the target."""
    lines = [f"ksm-eval: {what}: {printable(message)}"]
    if hint:
        first, *more = map(printable, hint.splitlines())
        lines += [f"ksm-eval: hint: {first}", *more]
    if sys.stderr is not None:  # closed: nobody wants to know, least of all standard output
        with suppress(OSError):
            print("\n".join(lines), file=sys.stderr, flush=True)
    return code
