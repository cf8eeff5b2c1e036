"""docs/ksm-eval.1: the text below, and the options as click knows them."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ksm_eval import __version__
from ksm_eval.options import command
from ksm_eval.subcommands import COMMANDS

PAGE = Path(__file__).parent.parent / "docs" / "ksm-eval.1"

_START = r""".\" Made by scripts/man; what is not an option is in scripts/manpage.py.
.TH KSM\-EVAL 1 "" "ksm\-eval @VERSION@" "User Commands"
.SH NAME
ksm\-eval \- predict what Linux KSM would merge, without enabling it
.SH SYNOPSIS
.B ksm\-eval
.RI [ OPTIONS ]
.br
.B ksm\-eval compare
.RI [ OPTIONS ]
.I OLD.json NEW.json
.br
.B ksm\-eval batch
.RI [ OPTIONS ]
.IR PATH ...
.SH DESCRIPTION
.B ksm\-eval
reads the memory of the selected processes out of a vmcore, the running kernel or a QEMU guest,
replays what the kernel's samepage merging (KSM) would do to it, and prints the counters that
.I /sys/kernel/mm/ksm
would show once ksmd has settled, how much memory would really come back, and what it would cost.
KSM is not enabled for that, and no setting of the target is changed.
.PP
Options that select processes add up.
By default the answer is as if
.B PR_SET_MEMORY_MERGE
were set for all of them, under the target's own settings.
.PP
The figures are those of one moment.
Pages that change are taken for calm unless there are several samples
.RB ( \-\-samples ,
or several
.BR \-c ),
so of one sample they are an upper bound.
.SS Gates
.B \-\-fail\-under
judges the memory gained: page frames freed less the records that ksmd keeps (net_bytes).
With several samples it is at most what the pages that stood still would give.
A percentage is of the RSS of the selected processes; where that is not known (the report's
rss_bytes is null), of the PSS of their candidate pages, which is less.
What is exactly the limit passes.
.PP
.B \-\-fail\-over\-volatile
judges the share of pages that changed, among the candidate pages that were there and readable in
every sample.
.PP
Whether the answer is complete is looked at first: where more than
.B \-\-max\-unreadable
could not be read the exit status is 4, and no gate is judged.
The report is written in any case.
"""

_END = r""".SH "EXIT STATUS"
.TP
.B 0
Done; all gates passed.
.TP
.B 1
A gate failed:
.BR \-\-fail\-under ,
.BR \-\-fail\-over\-volatile ,
or
.B \-\-fail\-if\-worse
of
.BR "ksm\-eval compare" .
.TP
.B 2
The command line makes no sense, nothing is selected, or the output cannot be written.
.TP
.B 3
The target cannot answer: unreadable, filtered of user pages, no symbols, no permission.
Of
.BR "ksm\-eval compare" :
a file cannot be read, is no JSON report, or is one of another schema_version.
.TP
.B 4
Answered, but more than
.B \-\-max\-unreadable
could not be read.
It comes before 1: an incomplete answer neither passes nor fails a gate.
.TP
.B 5
Internal error: a bug in ksm\-eval; of
.B ksm\-eval batch
also a crash while one vmcore was read.
.PP
.B ksm\-eval batch
exits with the worst of all vmcores, in the order 5, 2, 3, 4, 1, 0.
130 and 141 are SIGINT and SIGPIPE.
.SH EXAMPLES
What would a server and all its workers gain?
.PP
.nf
.RS
sudo ksm\-eval \-\-pid 1234 \-\-children
.RE
.fi
.PP
The same of a dump; fail where less than 5 % of the RSS comes back:
.PP
.nf
.RS
ksm\-eval \-c vmcore \-\-comm 'php\-fpm*' \-\-fail\-under 5%
.RE
.fi
.PP
What stands still, three looks 20 seconds apart:
.PP
.nf
.RS
sudo ksm\-eval \-\-comm postgres \-\-samples 3 \-\-interval 20
.RE
.fi
.PP
All dumps of a machine, for a CI server:
.PP
.nf
.RS
ksm\-eval batch /var/crash \-\-all \-\-out reports \-\-junit ksm.xml
ksm\-eval compare yesterday.json today.json \-\-fail\-if\-worse 10%
.RE
.fi
.PP
In a
.BR drgn (1)
session, of whatever it is debugging:
.PP
.nf
.RS
%ksm\-eval \-\-comm 'php\-fpm*'
.RE
.fi
.SH OVERHEAD
Reading costs.
Every distinct page of the selected processes is read and hashed, each time a sample is taken: on a
host where they have 50 GB that is 50 GB of memory traffic, at the speed of one CPU, which evicts
what others had in the CPU's caches.
It is done at the lowest CPU and disk priority unless
.BR "\-\-priority normal" ;
.B \-\-max\-rate
makes it slower and lighter.
.PP
While it reads
.IR /proc/PID/smaps ,
the process cannot map or unmap memory: some 80 ns for each page of a VMA, so a VMA of 100 GB holds
up a mmap() by two seconds.
Through
.I /proc
every page that is read is marked accessed, as if the process had used it, and reclaim spares it for
longer; do not do that on a host that is short of memory, or use
.BR "\-\-via kcore" .
Two files stay open for each process.
.PP
It takes some 70 MiB of memory of its own, up to 40 bytes for each page of a process (70 with
.BR \-\-passes ,
.B \-\-verify
or
.BR \-\-save )
and up to 240 (480) for each frame that processes may share, and each process of
.B \-\-jobs
some 100 MB: on a host that is about to run out of it, that may be what does it.
.B \-\-max\-memory
refuses what does not fit.
.PP
A kdump\-compressed vmcore takes some 20 microseconds of a CPU for each page, and by default up to 8
CPUs at once.
A QEMU guest is stopped once, for some 100 microseconds, unless
.B \-\-vmcoreinfo
is given; through QMP over TCP every page is asked for one by one.
.PP
What the reading has cost is in the report of what runs, and in "run" of the JSON.
What KSM itself would cost (scan time, ksmd's CPU, COW faults) is in the report, too, and is not
nothing.
.SH "SEE ALSO"
.BR drgn (1),
.BR makedumpfile (8),
.BR madvise (2),
.BR prctl (2),
.BR proc (5)
.PP
Documentation/admin\-guide/mm/ksm.rst of the Linux kernel
"""


def page() -> str:
    lines = [_START.replace("@VERSION@", _roff(__version__)), ".SH OPTIONS\n"]
    lines += [_option(option) for option in _options(command)]
    known: set[str | None] = {option.name for option in _options(command)}
    for name, subcommand in COMMANDS.items():
        lines.append(f'.SS "Options of ksm\\-eval {name}"\n')
        own = _options(subcommand)
        if name == "batch":
            lines.append("Those above that are about a vmcore are applied to each. Besides:\n")
            own = [option for option in own if option.name not in known]
        lines += [_option(option) for option in own]
    return "".join(lines) + _END


def _options(of: click.Command) -> list[click.Option]:
    return [param for param in of.params if isinstance(param, click.Option) and not param.hidden]


def _option(option: click.Option) -> str:
    names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in [*option.opts, *option.secondary_opts])
    if not option.is_flag:
        names += f" \\fI{_roff(_metavar(option))}\\fR"
    text = " ".join((option.help or "").split())
    if option.show_default and not option.is_flag:
        text += f" [default: {option.default}]"
    return f".TP\n{names}\n{_roff(text)}\n"


def _metavar(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    return option.metavar or "VALUE"


def _roff(text: str) -> str:
    """Nothing in it is a request or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return re.sub(r"^\.", r"\\&.", text)


if __name__ == "__main__":
    PAGE.write_text(page())
