"""The command line's options, and what is wrong with them before anything is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ksm_eval import __version__
from ksm_eval.errors import UsageError

if TYPE_CHECKING:
    from ksm_eval.gate import AtLeast

_F = TypeVar("_F", bound=Callable[..., Any])

LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "none")  # drgn's

FORMATS = ("table", "json", "jsonl", "csv", "prometheus", "html")

VIAS = ("auto", "kcore", "proc")

EXAMPLES = """\
  sudo ksm-eval --pid 1234 --children
  sudo ksm-eval --comm postgres --samples 3 --interval 20
  ksm-eval -c vmcore --comm 'php-fpm*'
  ksm-eval -c vmcore --cgroup /system.slice/nginx.service"""


@dataclass(frozen=True)
class Options:
    """The command line, parsed."""

    pids: tuple[int, ...]
    children: bool
    comms: tuple[str, ...]
    cgroups: tuple[str, ...]
    everything: bool
    cores: tuple[Path, ...]
    via: str | None
    qemu: str | None
    snapshot: Path | None
    symbols: tuple[Path, ...]
    vmcoreinfo: Path | None
    architecture: str | None
    jobs: int | None  # None: as many as help
    mergeable_only: bool
    max_page_sharing: int | None
    use_zero_pages: bool | None
    merge_across_nodes: bool | None
    smart_scan: bool | None
    within: str | None
    group_by: str | None
    what_if: bool
    target_scan_time: float
    passes: int
    samples: int
    interval: float | None  # None: as long as a full scan takes
    max_rate: float
    priority: str | None
    max_memory: float
    progress: bool | None  # None: if standard error is a terminal
    verify: bool
    save: Path | None
    form: str
    output: Path | None
    max_unreadable: float
    fail_under: AtLeast | None
    fail_over_volatile: float | None
    log_level: str | None
    quiet: bool


def _percent(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """0 to 100, with or without a percent sign."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number <= 100:  # false for NaN, too
        raise click.BadParameter(f"{text!r} is not from 0 to 100", context, parameter)
    return number


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def _size(context: click.Context, parameter: click.Parameter, text: str | None) -> float:
    """Bytes: "200M", "1.5 GiB"; the prefixes are powers of 1024. 0 if not given."""
    if text is None:
        return 0.0
    found = _SIZE.fullmatch(text.strip())
    size = float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ") if found else 0.0
    if not size:
        raise click.BadParameter(f"{text!r} is not a size such as 200M", context, parameter)
    return size


def _at_least(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> AtLeast | None:
    """A size as of _size(), or with a percent sign a share; 0 is a limit, too."""
    if text is None:
        return None
    from ksm_eval.gate import AtLeast

    if text.strip().endswith("%"):
        return AtLeast(share=_percent(context, parameter, text.strip()) / 100)
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise click.BadParameter(f"{text!r} is neither like 512M nor like 5%", context, parameter)
    return AtLeast(bytes=float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def percent(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """As _percent(), None if not given."""
    return None if text is None else _percent(context, parameter, text)


def _share(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    return None if text is None else _percent(context, parameter, text) / 100


def _seconds(context: click.Context, parameter: click.Parameter, text: str | None) -> float:
    """More than 0; 0 if not given."""
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:  # false for NaN, too
        raise click.BadParameter(f"{text!r} is not above 0 and below 1e9", context, parameter)
    return seconds


def _interval(context: click.Context, parameter: click.Parameter, text: str) -> float | None:
    """Seconds, None for "auto"."""
    if text == "auto":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:  # false for NaN, too
        raise click.BadParameter(f"{text!r} is neither seconds nor auto", context, parameter)
    return seconds


def _file(*names: str, **more: Any) -> Callable[[_F], _F]:
    return click.option(*names, type=click.Path(path_type=Path), metavar="PATH", **more)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="""\b
Further commands, each with a --help of its own:
  ksm-eval compare OLD.json NEW.json   what differs between two JSON reports
  ksm-eval batch PATH...               many vmcores: a table, JUnit XML

\b
Exit codes:
  0  done
  1  a gate failed: --fail-under, --fail-over-volatile (not judged if 4)
  2  the command line makes no sense, or its output cannot be written
  3  the target cannot answer: unreadable, filtered, no symbols, no permission
  4  answered, but more than --max-unreadable could not be read
  5  internal error: a bug in ksm-eval

\b
Examples:
"""
    + EXAMPLES,
)
@click.option(
    "--pid", "pids", type=click.IntRange(min=1), multiple=True, metavar="N",
    help="Process N (or any of its threads). May be given more than once.",
)  # fmt: skip
@click.option("--children", is_flag=True, help="Also all that descend from those selected.")
@click.option(
    "--comm", "comms", multiple=True, metavar="GLOB",
    help="Processes whose command name matches. May be given more than once.",
)  # fmt: skip
@click.option(
    "--cgroup", "cgroups", multiple=True, metavar="PATH",
    help="Processes of a cgroup (v2 path) and those below it. May be given more than once.",
)  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="All processes.")
@_file(
    "-c", "--core", "cores", multiple=True,
    help="Read the memory of a vmcore; several are samples of one boot, in this order.",
)  # fmt: skip
@click.option(
    "--via", type=click.Choice(VIAS),
    help="How to read the running kernel, the target without -c or --qemu.  [default: auto]",
)  # fmt: skip
@click.option(
    "--qemu", metavar="ADDRESS",
    help="Read a QEMU guest from outside: path of its QMP socket, or HOST:PORT.",
)  # fmt: skip
@_file("--snapshot", help="Evaluate what --save wrote; needs no vmcore.")
@_file(
    "-s", "--symbols", multiple=True,
    help="Kernel image with debug info (vmlinux), or System.map. May be given more than once.",
)  # fmt: skip
@_file("--vmcoreinfo", help="vmcoreinfo file, instead of the one in the vmcore.")
@click.option("--architecture", metavar="ARCH", help="Architecture, if the vmcore lacks it.")
@click.option(
    "--jobs", type=click.IntRange(1, 1024), metavar="N",
    help="Processes that read a vmcore.  [default: for kdumps one a CPU, at most 8; else 1]",
)  # fmt: skip
@click.option(
    "--mergeable-only", is_flag=True,
    help="Only what processes offer already (VM_MERGEABLE), not all they could.",
)  # fmt: skip
@click.option(
    "--max-page-sharing",
    type=click.IntRange(min=2),
    metavar="N",
    help="Instead of the target's own: mappings a KSM page may have.",
)
@click.option(
    "--use-zero-pages/--no-use-zero-pages",
    default=None,
    help="Instead of the target's own: map the kernel's zero page where all bytes are zero.",
)
@click.option(
    "--merge-across-nodes/--no-merge-across-nodes",
    default=None,
    help="Instead of the target's own: merge pages of different NUMA nodes.",
)
@click.option(
    "--smart-scan/--no-smart-scan",
    default=None,
    help="Instead of the target's own: skip pages that did not merge, ever longer.",
)
@click.option(
    "--within", type=click.Choice(["uid", "cgroup", "user_ns"]),
    help="As if KSM merged only inside one uid, cgroup or user namespace.",
)  # fmt: skip
@click.option(
    "--group-by", type=click.Choice(["cgroup", "comm", "uid"]),
    help="Sums of processes.  [default: cgroup if there are several, else comm]",
)  # fmt: skip
@click.option(
    "--what-if", is_flag=True,
    help="Also with other settings, without THPs, and without each process.",
)  # fmt: skip
@click.option(
    "--target-scan-time", callback=_seconds, metavar="SECONDS",
    help="Tell which pages_to_scan gets a full scan done in that time.",
)  # fmt: skip
@click.option(
    "--passes", type=click.IntRange(min=0, max=10_000), default=0, metavar="N",
    help="Also the counters after each of the first N full scans.",
)  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="K",
    help="Read what runs K times: what stands still, and a full scan a sample.",
)  # fmt: skip
@click.option(
    "--interval", callback=_interval, default="auto", show_default=True, metavar="SECONDS|auto",
    help="From one sample to the next; auto: as long as ksmd would take for a full scan.",
)  # fmt: skip
@click.option(
    "--max-rate", callback=_size, metavar="SIZE",
    help="Read no more than this a second, for example 200M.",
)  # fmt: skip
@click.option(
    "--priority", type=click.Choice(["low", "normal"]),
    help="CPU and disk priority of this process where it reads what runs.  [default: low]",
)  # fmt: skip
@click.option(
    "--max-memory", callback=_size, metavar="SIZE",
    help="Take no more than this, for example 2G; what does not fit is refused.",
)  # fmt: skip
@click.option(
    "--verify", is_flag=True,
    help="Where ksmd has run: its own records and their replay beside the target's counters.",
)  # fmt: skip
@_file("--save", help="Write a snapshot: hashes and page tables, no page contents.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="table", show_default=True,
    help="table and html are for persons, the others for programs (docs/json-schema.md).",
)  # fmt: skip
@_file("-o", "--output", help="Write the report to a file.")
@click.option(
    "--max-unreadable", callback=_percent, default="1", show_default=True, metavar="PERCENT",
    help="Exit with 4 if more of the pages could not be read.",
)  # fmt: skip
@click.option(
    "--fail-under", callback=_at_least, metavar="SIZE|PERCENT",
    help="Exit with 1 if less is gained, as 512M or as 5% of the processes' RSS.",
)  # fmt: skip
@click.option(
    "--fail-over-volatile", callback=_share, metavar="PERCENT",
    help="Exit with 1 if more of the pages change between samples.",
)  # fmt: skip
@click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), help="Log to standard error.  [default: warning]"
)
@click.option(
    "--progress/--no-progress", default=None,
    help="On standard error; without a terminal a line now and then.  [default: on a terminal]",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Neither logs nor progress.")
@click.version_option(__version__, message="%(prog)s %(version)s")
def command(**options: Any) -> Options:
    """Predict what Linux KSM would merge, without enabling it.

    Reads the memory of the selected processes (options add up), replays what ksmd would do to it
    and prints the counters ksmd would show once settled, and what that would really save. By
    default as if PR_SET_MEMORY_MERGE were set for them, with the target's own settings.
    """
    return Options(**options)


def check(options: Options) -> None:
    """Refuse what cannot work now, not after all the work."""
    opening = {
        "--symbols": options.symbols,
        "--vmcoreinfo": options.vmcoreinfo,
        "--architecture": options.architecture,
    }
    if options.verify:
        _check_verify(options)
    if options.samples > 1 or len(options.cores) > 1:
        _refuse({"--within": options.within}, "several samples", "evaluate one of them")
    if options.snapshot is not None:
        collecting = {
            "--core": options.cores,
            "--via": options.via,
            "--qemu": options.qemu is not None,
            **opening,
            "--jobs": options.jobs,
            "--pid": options.pids,
            "--children": options.children,
            "--comm": options.comms,
            "--cgroup": options.cgroups,
            "--all": options.everything,
            "--mergeable-only": options.mergeable_only,
            "--save": options.save,
            "--samples": options.samples > 1,
            "--interval": options.interval is not None,
            "--max-rate": options.max_rate,
            "--priority": options.priority,
        }
        _refuse(collecting, "--snapshot", "all that was settled when the snapshot was taken")
    else:
        _check_selection(options)
        if len(options.cores) > 1:
            one = {"--passes": options.passes, "--save": options.save}
            _refuse(one, "several vmcores", "each of them is one sample and one full scan")
        _check_samples(options)
        _check_target(options)
    _check_gates(options)
    if options.quiet:
        _refuse({"--progress": options.progress}, "--quiet", "leave one of them out")
    _check_outputs(options)


def _check_samples(options: Options) -> None:
    if options.samples > 1:
        _refuse({"--core": options.cores}, "--samples", "several -c are samples already")
        one = {"--passes": options.passes, "--save": options.save, "--verify": options.verify}
        _refuse(one, "--samples", "each sample is one full scan")
    elif options.interval is not None and not options.cores:
        raise UsageError("--interval of what?", "add --samples K")


def _check_gates(options: Options) -> None:
    if options.verify:
        gates = {
            "--fail-under": options.fail_under is not None,
            "--fail-over-volatile": options.fail_over_volatile is not None,
        }
        _refuse(gates, "--verify", "it is about what ksmd has done, not about what it would gain")
    if options.fail_over_volatile is not None and options.samples < 2 and len(options.cores) < 2:
        raise UsageError(
            "--fail-over-volatile needs several samples",
            "one look does not tell what changes: add --samples K, or further -c",
        )


def _check_target(options: Options) -> None:
    """What belongs to another kind of target."""
    via = {
        "--via": options.via,
        "--interval": options.interval is not None,
        "--max-rate": options.max_rate,
        "--priority": options.priority,
    }
    if options.cores:
        _refuse(via, "a vmcore", "it is about what runs")
        _refuse({"--qemu": options.qemu is not None}, "a vmcore", "evaluate one after the other")
        return
    _refuse({"--jobs": options.jobs}, "what runs", "it is about a vmcore (-c)")
    if options.qemu is not None:
        _refuse({"--via": options.via}, "--qemu", "it is about the running kernel")
        _refuse({"--architecture": options.architecture}, "--qemu", "QEMU tells it")
    else:
        more = {"--vmcoreinfo": options.vmcoreinfo, "--architecture": options.architecture}
        _refuse(more, "the running kernel", "name a vmcore with -c")
        if options.via == "proc":
            _refuse({"--symbols": options.symbols}, "--via proc", "it needs no symbols")


def _refuse(options: Mapping[str, object], beside: str, hint: str) -> None:
    for option, value in options.items():
        if value:
            raise UsageError(f"{option} cannot be used with {beside}", hint)


def _check_verify(options: Options) -> None:
    """What ksmd scans and how is the target's to say."""
    given = {
        "--pid": options.pids,
        "--children": options.children,
        "--comm": options.comms,
        "--cgroup": options.cgroups,
        "--all": options.everything,
        "--mergeable-only": options.mergeable_only,
        "--max-page-sharing": options.max_page_sharing,
        "--use-zero-pages": options.use_zero_pages is not None,
        "--merge-across-nodes": options.merge_across_nodes is not None,
        "--smart-scan": options.smart_scan is not None,
        "--within": options.within,
    }
    _refuse(given, "--verify", "it is about what ksmd has done, with the target's own settings")
    if len(options.cores) > 1:
        raise UsageError("--verify takes one vmcore", "verify them one by one")


def _check_selection(options: Options) -> None:
    for option, values in (("--comm", options.comms), ("--cgroup", options.cgroups)):
        if not all(values):
            raise UsageError(f"{option} is empty", "give a name")
    if options.verify or options.everything or options.pids or options.comms or options.cgroups:
        return
    if options.children:
        raise UsageError("--children of whom?", "add --pid, --comm or --cgroup")
    raise UsageError(
        "no process selected", f"use --pid, --comm, --cgroup or --all, for example\n{EXAMPLES}"
    )


def _check_outputs(options: Options) -> None:
    from ksm_eval.files import check_writable

    sources = [*options.cores, *([options.snapshot] if options.snapshot else [])]
    taken = {source.resolve(): "the input" for source in sources}
    for option, path in (("--save", options.save), ("--output", options.output)):
        if path is None:
            continue
        check_writable(path)
        other = taken.setdefault(path.resolve(), option)
        if other != option and not path.is_char_device():  # /dev/null may be both
            raise UsageError(f"{option} would overwrite {other}", "choose another file")
