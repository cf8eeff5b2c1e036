"""What to type next, filled in. Words of the target (comm, cgroup) are quoted or left out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ksm_eval.decision.cost import asked_for, by_advisor, worth_writing
from ksm_eval.decision.units import Unit, unit_of
from ksm_eval.replay.rules import Settings
from ksm_eval.report.decision import Cost, Madvise, Reason, Step, Verdict, WhatIf
from ksm_eval.report.words import counted, duration, percent, size
from ksm_eval.snapshot import Snapshot, has_merged

KSM = "/sys/kernel/mm/ksm"
_UNITS = 3
_RANGES = 10
_WORTH_CHANGING = 0.01  # of the saving, of the memory
_PRCTL = (
    "python3 -c 'import ctypes, os, sys; "
    'ctypes.CDLL(None).prctl(67, 1, 0, 0, 0) and sys.exit("prctl failed"); '
    "os.execvp(sys.argv[1], sys.argv[1:])' COMMAND ARGUMENTS"
)
"""PR_SET_MEMORY_MERGE is 67 (include/uapi/linux/prctl.h)."""
_PIDS = 5
_VM_MERGEABLE = 0x80000000
_ENOUGH = 0.9  # of what those gain that have not opted in


def next_steps(
    snapshot: Snapshot,
    settings: Settings,
    cost: Cost,
    madvise: Sequence[Madvise],
    verdict: Verdict,
    *,
    what_if: Sequence[WhatIf] = (),
    why_not: Sequence[Reason] = (),
    gains: NDArray[np.float64] | None = None,
) -> tuple[Step, ...]:
    """In the order in which they are to be done. `gains`: bytes of PSS that each process loses,
    less its rmap_items, shape (P,); without them all count the same."""
    if gains is None:
        gains = np.ones(len(snapshot.processes))
    if verdict.worth not in ("yes", "little"):
        return tuple(_instead(snapshot, verdict, why_not))
    steps = []
    if snapshot.meta.question == "merge_any":
        steps += list(_opt_in(snapshot, madvise, gains))
    steps.append(_switch_on(snapshot, settings, cost, what_if))
    steps.append(_check(snapshot, cost, verdict, gains))
    return tuple(steps)


def _opt_in(
    snapshot: Snapshot, madvise: Sequence[Madvise], gains: NDArray[np.float64]
) -> Iterator[Step]:
    rules, processes = snapshot.meta.rules, snapshot.processes
    rows = _not_opted_in(snapshot)
    if any(_is_qemu(processes.comm[row]) for row in rows):
        yield Step(
            "Let QEMU offer the guests' memory",
            (),
            "-machine …,mem-merge=on is the default: look for mem-merge=off, libvirt's "
            "<nosharepages/> and share=on of the memory backend, which forbid it",
        )
        rows = [row for row in rows if not _is_qemu(processes.comm[row])]
    if not rows:
        return
    # smart_scan came with 6.7, as did the repair that keeps the prctl over exec.
    if not rules.general_profit or not rules.smart_scan:
        yield _by_madvise(madvise, has_prctl=rules.general_profit)
        return
    starters = _enough(_starters(snapshot, rows, gains))
    units = [one.unit for one in starters if one.unit is not None]
    for one in starters:
        if one.unit is None:
            yield _by_prctl(one)
        elif one.unit in units[:_UNITS]:
            yield _drop_in(one.unit)
    if len(units) > _UNITS:
        names = ", ".join(unit.name for unit in units[_UNITS:])
        yield Step("The same for the other services", (), names)


def _is_qemu(comm: str) -> bool:
    return comm.startswith("qemu-system-") or comm in ("qemu-kvm", "kvm")


def _selected(snapshot: Snapshot) -> list[int]:
    return [row for row, chosen in enumerate(snapshot.processes.selected.tolist()) if chosen]


def _not_opted_in(snapshot: Snapshot) -> list[int]:
    """Of the selected ones, those some of whose pages ksmd would not scan as they are. Of QEMU
    only guest memory counts: it is mergeable, or nothing is."""
    processes, vmas = snapshot.processes, snapshot.vmas
    offered = (vmas.flags & np.uint64(_VM_MERGEABLE)) != 0
    has_pages = np.diff(vmas.offset) > 0
    lacking, offering = np.zeros((2, len(processes)), np.bool_)
    lacking[vmas.process[has_pages & ~offered]] = True
    offering[vmas.process[has_pages & offered]] = True
    merge_any = processes.merge_any
    return [
        row
        for row in _selected(snapshot)
        if lacking[row]
        and not (merge_any is not None and merge_any[row])
        and not (offering[row] and _is_qemu(processes.comm[row]))
    ]


@dataclass
class _Starter:
    """What starts some of the processes, and so could opt them in."""

    unit: Unit | None  # a service; None: all that no service starts
    gain: float = 0.0
    pids: list[int] = field(default_factory=list)  # those that gain most


def _starters(
    snapshot: Snapshot, rows: Sequence[int], gains: NDArray[np.float64]
) -> list[_Starter]:
    """The best first. Instances of a template are one: its drop-in is for all of them."""
    found: dict[tuple[str, bool] | None, _Starter] = {}
    for row in sorted(rows, key=lambda row: -gains[row]):
        unit = unit_of(snapshot.processes.cgroup[row])
        if unit is not None and unit.is_scope:
            unit = None
        key = None if unit is None else (unit.template, unit.user)
        starter = found.setdefault(key, _Starter(unit))
        starter.gain += float(gains[row])
        pid = int(snapshot.processes.pid[row])
        if pid > 0 and gains[row] > 0:
            starter.pids.append(pid)
    return sorted(found.values(), key=lambda one: -one.gain)


def _enough(starters: Sequence[_Starter]) -> list[_Starter]:
    """The first of them that have _ENOUGH of the gain together."""
    wanted = _ENOUGH * sum(max(one.gain, 0.0) for one in starters)
    found, gained = [], 0.0
    for one in starters:
        if one.gain <= 0 or gained >= wanted:
            break
        found.append(one)
        gained += one.gain
    return found


def _drop_in(unit: Unit) -> Step:
    folder = f"/etc/systemd/{'user' if unit.user else 'system'}/{unit.template}.d"
    why = "PR_SET_MEMORY_MERGE (systemd 254, Linux 6.7) for the service and all that it starts"
    if unit.template != unit.name:
        why += f", in every instance of {unit.template}"
    if unit.is_vital:
        why += "; it is in force from the next boot on: do not restart this one by hand"
    elif unit.user:
        why += "; it is in force once the unit is started anew, at the next login at the latest"
    else:
        why += "; it is in force at its next restart, which is yours to time"
    if unit.user:
        why += "; the last line as the user whose unit it is"
    return Step(
        f"Let systemd opt {unit.name} in",
        (
            f"sudo mkdir -p {shlex.quote(folder)}",
            f"printf '[Service]\\nMemoryKSM=yes\\n' | sudo tee {shlex.quote(folder + '/ksm.conf')}",
            "systemctl --user daemon-reload" if unit.user else "sudo systemctl daemon-reload",
        ),
        why,
    )


def _by_prctl(starter: _Starter) -> Step:
    pids = ", ".join(map(str, starter.pids[:_PIDS]))
    most = "" if not pids else f"; pid {pids} gain{'' if ', ' in pids else 's'} most"
    return Step(
        "Opt in by prctl what no service starts",
        (_PRCTL,),
        "PR_SET_MEMORY_MERGE (Linux 6.4; kept over exec since 6.7) makes all memory of a "
        "process mergeable, and of all it starts. Start the program through this line, or call "
        f"the prctl in the program itself; in a container put it before the entry point{most}",
    )


def _by_madvise(madvise: Sequence[Madvise], *, has_prctl: bool) -> Step:
    lines = [
        f"madvise({row.start:#x}, {row.end - row.start:#x}, MADV_MERGEABLE); "
        f"// pid {row.pid}, {size(row.gain_bytes)}"
        for row in madvise[:_RANGES]
    ]
    covered = madvise[len(lines) - 1].covered if lines else 0.0
    why = (
        "this kernel forgets PR_SET_MEMORY_MERGE over exec (until 6.7), so the program must call "
        "it, or this, itself"
        if has_prctl
        else "this kernel has no PR_SET_MEMORY_MERGE (6.4): the program must call this itself"
    )
    if lines:
        why += (
            f". These ranges are {100 * covered:.0f} % of the gain; addresses change at a restart"
        )
    return Step("Offer the memory that pays", tuple(lines), why)


def _echo(value: int | str, name: str) -> str:
    return f"echo {value} | sudo tee {KSM}/{name}"


def _switch_on(
    snapshot: Snapshot, settings: Settings, cost: Cost, what_if: Sequence[WhatIf]
) -> Step:
    commands, why = [], []
    own, row, asked = cost.rows[0], worth_writing(cost), asked_for(cost)
    if by_advisor(cost) is not None:
        commands.append(_echo("scan-time", "advisor_mode"))
        why.append(cost.advisor)
    elif row is not None:
        if snapshot.meta.rules.advisor:
            commands.append(_echo("none", "advisor_mode"))  # while it is on, it alone sets it
        commands.append(_echo(row.pages_to_scan, "pages_to_scan"))
        if row.sleep_millisecs != settings.sleep_millisecs:
            commands.append(_echo(row.sleep_millisecs, "sleep_millisecs"))
        why.append(
            f"a full scan in {duration(row.seconds)} instead of "
            f"{duration(own.seconds)}, at {percent(row.cpu_percent / 100)} of one CPU"
        )
    else:
        meets = ", as fast as was asked for or faster" if asked is not None else ""
        why.append(
            f"pages_to_scan {own.pages_to_scan} will do: a full scan in "
            f"{duration(own.seconds)} at {percent(own.cpu_percent / 100)} of one CPU{meets}"
        )
    why += [one.note for one in cost.rows if one.kind == "unreachable"]
    for name, value, gained in _better_settings(what_if):
        commands.append(_echo(value, name))
        why.append(f"{name}={value} gains {size(gained)} more")
    title = "Switch ksmd on"
    if snapshot.meta.counters.get("run") == 1:
        title = "Set ksmd's pace" if commands else "Leave ksmd as it is set: it runs"
    else:
        commands.append(_echo(1, "run"))
    why.append("echo 2 to run instead takes all merges back, and needs the memory for it")
    return Step(title, tuple(commands), "; ".join(why))


def _better_settings(what_if: Sequence[WhatIf]) -> Iterator[tuple[str, int, int]]:
    """Of use_zero_pages and max_page_sharing, the values that gain enough: (name, value, bytes)."""
    if not what_if:
        return
    enough = _WORTH_CHANGING * abs(what_if[0].net_bytes)
    for kind in ("use_zero_pages", "max_page_sharing"):
        rows = [row for row in what_if if row.kind == kind and not row.current]
        best = max(rows, key=lambda row: row.difference, default=None)
        if best is not None and best.difference > enough:
            yield kind, int(best.name.partition("=")[2]), best.difference


def _check(snapshot: Snapshot, cost: Cost, verdict: Verdict, gains: NDArray[np.float64]) -> Step:
    rules, pids = snapshot.meta.rules, snapshot.processes.pid
    commands = [f"grep . {KSM}/*"]
    best = max(
        (row for row in _selected(snapshot) if pids[row] > 0),
        key=lambda row: gains[row],
        default=None,
    )
    if rules.general_profit and best is not None:
        commands.append(f"cat /proc/{pids[best]}/ksm_stat")
    if snapshot.meta.kind != "procfs":  # it compares with ksmd's own records in kernel memory
        commands.append("sudo ksm-eval --verify")
    why = "pids change at a restart"
    if "99" in cost.passes_to:
        scans = counted(cost.passes_to["99"], "full scan")
        row = worth_writing(cost)
        seconds, at = cost.seconds_to["99"], "the target's own pages_to_scan"
        if by_advisor(cost) is not None:
            seconds, at = cost.advisor_seconds_to["99"], "what the advisor sets"
        elif row is not None:
            seconds *= row.seconds / cost.rows[0].seconds
            at = f"pages_to_scan {row.pages_to_scan}"
        why = f"99 % should be there after {scans}, {duration(seconds)} at {at}; {why}"
    if verdict.general_profit is not None:
        why += (
            f"; general_profit is to be {size(verdict.general_profit)} for what was selected, and "
            f"{size(verdict.net_bytes)} of memory come back"
        )
    return Step("Look whether it came true", tuple(commands), why)


def _instead(snapshot: Snapshot, verdict: Verdict, why_not: Sequence[Reason]) -> Iterator[Step]:
    """What would change a no."""
    if not snapshot.processes.selected.all() or snapshot.meta.selection != ["--all"]:
        yield Step(
            "Ask about more processes together",
            ("ksm-eval --all",),
            "pages merge only with equals: two instances of a program, or guests of one system, "
            "may have in common what each alone has not",
        )
    if snapshot.meta.unreadable or snapshot.meta.lost:
        dump = snapshot.meta.kind == "vmcore"
        yield Step(
            "Read what could not be read",
            ("makedumpfile -d 17 /proc/vmcore DUMP",) if dump else (),
            "levels that include 8 drop user pages, and with them the answer"
            if dump
            else "run it as root, see what is said of rights in the README",
        )
    enough = _WORTH_CHANGING * (
        verdict.rss_bytes or len(snapshot.mappings) * snapshot.meta.page_size
    )
    helped = [one for one in why_not if one.reason not in _FUTILE and one.bytes > enough]
    for reason in helped[:3]:
        yield Step(f"Not eligible: {reason.reason} ({size(reason.bytes)})", (), reason.advice)
    if snapshot.meta.kind != "vmcore":
        yield Step(
            "Ask again under load",
            ("ksm-eval --all --samples 3",),
            "one moment is not the program; pages that stand still show over several samples",
        )
    if has_merged(snapshot):
        why = "these pages add nothing to what is merged already"
    elif verdict.worth == "no":
        why = "it costs memory for its records and CPU time, and gives nothing back here"
    else:
        why = "it would scan this memory again and again for nothing"
    yield Step(
        "Otherwise leave KSM as it is" if has_merged(snapshot) else "Otherwise leave KSM off",
        (),
        why,
    )


_FUTILE = (
    *("page of a file", "zero page"),  # take nothing, or are shared already
    *("VM_PFNMAP", "VM_IO", "VM_MIXEDMAP", "VM_DONTEXPAND", "VM_DROPPABLE"),
    *("special", "device memory", "poisoned"),
)
"""Reasons about which nothing can be done."""
