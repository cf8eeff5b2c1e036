"""What to type next, filled in. Words of the target (comm, cgroup) are quoted or left out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from ksm_eval.decision.cost import asked_for, worth_writing
from ksm_eval.decision.units import Unit, unit_of
from ksm_eval.decision.words import counted, duration, percent, size
from ksm_eval.replay.rules import Settings
from ksm_eval.report.decision import Cost, Madvise, Reason, Step, Verdict, WhatIf
from ksm_eval.snapshot import Snapshot, has_merged

KSM = "/sys/kernel/mm/ksm"
_UNITS = 3
_RANGES = 10
_WORTH_CHANGING = 0.01  # of the saving
_PRCTL = (
    "python3 -c 'import ctypes, os, sys; "
    'ctypes.CDLL(None).prctl(67, 1, 0, 0, 0) and sys.exit("prctl failed"); '
    "os.execvp(sys.argv[1], sys.argv[1:])' COMMAND ARGUMENTS"
)
"""PR_SET_MEMORY_MERGE is 67 (include/uapi/linux/prctl.h)."""
_QEMU = ("qemu-system", "qemu-kvm", "kvm")


def next_steps(
    snapshot: Snapshot,
    settings: Settings,
    cost: Cost,
    madvise: Sequence[Madvise],
    verdict: Verdict,
    *,
    what_if: Sequence[WhatIf] = (),
    why_not: Sequence[Reason] = (),
) -> tuple[Step, ...]:
    """In the order in which they are to be done."""
    if verdict.worth not in ("yes", "little"):
        return tuple(_instead(snapshot, verdict, why_not))
    steps = []
    if snapshot.meta.question == "merge_any":
        steps += list(_opt_in(snapshot, madvise))
    steps.append(_switch_on(snapshot, settings, cost, what_if))
    steps.append(_check(snapshot, cost, verdict))
    return tuple(steps)


def _opt_in(snapshot: Snapshot, madvise: Sequence[Madvise]) -> Iterator[Step]:
    rules, processes = snapshot.meta.rules, snapshot.processes
    rows = _not_opted_in(snapshot)
    if not rows:
        return
    comms = [processes.comm[row] for row in rows]
    if any(comm.startswith(_QEMU) for comm in comms):
        yield Step(
            "Let QEMU offer the guests' memory",
            ("-machine …,mem-merge=on",),
            "mem-merge=on is the default: look for mem-merge=off, libvirt's <nosharepages/> and "
            "share=on of the memory backend, which forbid it",
        )
        if all(comm.startswith(_QEMU) for comm in comms):
            return
    # smart_scan came with 6.7, as did the repair that keeps the prctl over exec.
    if not rules.general_profit or not rules.smart_scan:
        yield _by_madvise(madvise, has_prctl=rules.general_profit)
        return
    units, others = _units(snapshot, rows)
    services = [unit for unit in units if not unit.is_scope]
    for unit in services[:_UNITS]:
        yield _drop_in(unit, _is_template(unit, services))
    if len(services) > _UNITS:
        names = ", ".join(unit.name for unit in services[_UNITS:])
        yield Step("The same for the other services", (), names)
    if others or len(services) < len(units):
        yield Step(
            "Opt in by prctl what no service starts",
            (_PRCTL,),
            "PR_SET_MEMORY_MERGE (Linux 6.4; kept over exec since 6.7) makes all memory of a "
            "process mergeable, and of all it starts. Start the program through this line, or call "
            "the prctl in the program itself; in a container put it before the entry point",
        )


def _selected(snapshot: Snapshot) -> list[int]:
    return [row for row, chosen in enumerate(snapshot.processes.selected.tolist()) if chosen]


def _not_opted_in(snapshot: Snapshot) -> list[int]:
    """Of the selected ones, those that ksmd does not scan yet."""
    registered = snapshot.processes.registered
    return [row for row in _selected(snapshot) if not registered[row]]


def _units(snapshot: Snapshot, rows: Sequence[int]) -> tuple[list[Unit], bool]:
    """Units of these processes, each once; and whether some are in none."""
    found = [unit_of(snapshot.processes.cgroup[row]) for row in rows]
    units = [unit for unit in found if unit is not None]
    by_template: dict[tuple[str, bool], Unit] = {}
    for unit in units:
        by_template.setdefault((unit.template, unit.user), unit)
    return list(by_template.values()), None in found


def _is_template(unit: Unit, services: Sequence[Unit]) -> bool:
    return unit.template != unit.name and unit in services


def _drop_in(unit: Unit, instance: bool) -> Step:
    file_of = unit.template if instance else unit.name
    folder = f"/etc/systemd/{'user' if unit.user else 'system'}/{file_of}.d"
    manager = "systemctl --user" if unit.user else "sudo systemctl"
    why = "PR_SET_MEMORY_MERGE at its start (systemd 254, Linux 6.7), for all that it starts, too"
    if instance:
        why += f"; for every instance of {file_of}"
    if unit.user:
        why += "; the last two as the user whose unit it is"
    return Step(
        f"Let systemd opt {unit.name} in",
        (
            f"sudo mkdir -p {shlex.quote(folder)}",
            f"printf '[Service]\\nMemoryKSM=yes\\n' | sudo tee {shlex.quote(folder + '/ksm.conf')}",
            f"{manager} daemon-reload",
            f"{manager} restart {shlex.quote(unit.name)}",
        ),
        why,
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
    row = worth_writing(cost)
    if _by_advisor(cost):
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
            f"{duration(cost.rows[0].seconds)}, at {percent(row.cpu_percent / 100)} of one CPU"
        )
    else:
        first = cost.rows[0]
        why.append(
            f"pages_to_scan {first.pages_to_scan} will do: a full scan in "
            f"{duration(first.seconds)} at {percent(first.cpu_percent / 100)} of one CPU"
        )
    for name, value, gained in _better_settings(what_if):
        commands.append(_echo(value, name))
        why.append(f"{name}={value} gains {size(gained)} more")
    commands.append(_echo(1, "run"))
    why.append("echo 2 to run instead takes all merges back, and needs the memory for it")
    return Step("Switch ksmd on", tuple(commands), "; ".join(why))


def _by_advisor(cost: Cost) -> bool:
    """Leave pages_to_scan to it: it holds still, and nobody asked for another time."""
    return asked_for(cost) is None and "would settle" in cost.advisor


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


def _check(snapshot: Snapshot, cost: Cost, verdict: Verdict) -> Step:
    rules = snapshot.meta.rules
    commands = [f"grep . {KSM}/*"]
    rows = _selected(snapshot)
    if rules.general_profit and rows and snapshot.processes.pid[rows[0]] > 0:
        commands.append(f"cat /proc/{snapshot.processes.pid[rows[0]]}/ksm_stat")
    commands.append("sudo ksm-eval --verify")
    why = "pids change at a restart"
    if "99" in cost.passes_to:
        scans = counted(cost.passes_to["99"], "full scan")
        row = None if _by_advisor(cost) else worth_writing(cost)
        seconds, at = cost.seconds_to["99"], "the target's own pages_to_scan"
        if row is not None:
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
    for reason in why_not[:3]:
        if reason.bytes > 0 and reason.reason not in _HARMLESS:
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


_HARMLESS = ("page of a file", "zero page")
