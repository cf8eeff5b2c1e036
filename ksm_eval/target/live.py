"""Open what runs: this machine's kernel, or a QEMU guest from outside. Nothing is written."""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import drgn
from drgn import Program, ProgramFlags

from ksm_eval.errors import TargetError
from ksm_eval.target import dwarf
from ksm_eval.target.program import (
    OpenedProgram,
    classify_symbols,
    read_vmcoreinfo,
    with_debug_info,
)
from ksm_eval.target.rights import refused

KCORE: Final = Path("/proc/kcore")
_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
_QMP_TIMEOUT: Final = 10.0  # seconds

_UNREADABLE = (drgn.FaultError, drgn.BadDataError, OSError)


def open_kernel(*, symbols: Sequence[Path] = ()) -> OpenedProgram:
    """The running kernel through /proc/kcore.

    `symbols` as for open_core(). Debug info: a vmlinux with DWARF, given or found, else
    /sys/kernel/btf/vmlinux and kallsyms. Raises TargetError where there is no /proc/kcore
    (CONFIG_PROC_KCORE), or where it is not for us.
    """
    given = classify_symbols(symbols)
    prog = Program()
    _check_kcore()
    try:
        with dwarf.quiet():
            prog.set_kernel()
    except Exception as error:  # drgn has no class for a kcore that it cannot make sense of
        raise TargetError(f"cannot open {KCORE}: {error}", "use --via proc") from None
    opened = OpenedProgram(prog, "kernel", "", "")
    try:
        opened.debug_info = with_debug_info(prog, given, opened.notes, _BTF)
    except _UNREADABLE as error:
        raise TargetError(f"cannot make sense of {KCORE}: {error}", "use --via proc") from None
    return opened


def _check_kcore() -> None:
    """TargetError if it cannot be opened (open_kcore(), fs/proc/kcore.c)."""
    try:
        fd = os.open(KCORE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TargetError(
            "this kernel has no /proc/kcore (CONFIG_PROC_KCORE)", "use --via proc"
        ) from None
    except OSError as error:
        locked = _lockdown()
        if locked == "confidentiality":
            raise TargetError(
                "the kernel is locked down (confidentiality), which closes /proc/kcore",
                "use --via proc",
            ) from None
        raise refused("kcore", f"/proc/kcore cannot be read ({error.strerror})") from None
    masked = not stat.S_ISREG(os.fstat(fd).st_mode)
    os.close(fd)
    if masked:
        raise TargetError(
            "/proc/kcore is masked, as container runtimes do",
            "run it on the host, or use --via proc",
        )


def _lockdown() -> str:
    """The lockdown level in force: "none", "integrity", "confidentiality"; "" if unknown."""
    try:
        text = _LOCKDOWN.read_text()
    except OSError:
        return ""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else ""


def open_qemu(
    address: str, *, symbols: Sequence[Path] = (), vmcoreinfo: Path | None = None
) -> OpenedProgram:
    """A QEMU guest by its QMP socket: a path, or HOST:PORT, which is much slower.

    QEMU's memory is read by process_vm_readv(), so that costs the guest nothing; over HOST:PORT
    every page is asked for through QMP. Only for VMCOREINFO drgn has QEMU dump a byte, for which
    QEMU stops the guest for an instant; not with `vmcoreinfo`. Raises TargetError if there is
    no such guest, or if it does not say what it is.
    """
    given = classify_symbols(symbols)
    info = read_vmcoreinfo(vmcoreinfo)
    connection = _connect(address)

    def check_there() -> None:
        _check_connected(connection, address)

    try:
        prog = Program(vmcoreinfo=info)
        with dwarf.quiet():
            prog.set_qemu_qmp(os.dup(connection.fileno()))  # drgn closes it
        if info is not None:
            prog = _as_linux(prog, info)
        elif not prog.flags & ProgramFlags.IS_LINUX_KERNEL:
            raise _no_vmcoreinfo(address, by_path=connection.family == socket.AF_UNIX)
        opened = OpenedProgram(prog, "qemu", address, "", check_there=check_there)
        opened.debug_info = with_debug_info(prog, given, opened.notes)
    except TargetError:
        check_there()
        raise
    except Exception as error:  # drgn has no class for what QEMU refuses
        check_there()
        raise TargetError(f"cannot read the guest at {address}: {error}") from None
    return opened


def _as_linux(guest: Program, vmcoreinfo: bytes) -> Program:
    """The same memory as a Linux kernel's: set_qemu_qmp() of drgn 0.3.0 forgets to say so where
    it need not ask QEMU for VMCOREINFO."""
    prog = Program(platform=guest.platform)
    prog.set_linux_kernel_custom(vmcoreinfo, True)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        del address, physical
        data: bytes = guest.read(offset, count, True)
        return data

    prog.add_memory_segment(0, (1 << 64) - 1, read, True)
    return prog


def _no_vmcoreinfo(address: str, *, by_path: bool) -> TargetError:
    if not by_path:
        return TargetError(
            f"over {address} a guest's VMCOREINFO cannot be had",
            "use QMP's Unix socket, or give --vmcoreinfo",
        )
    return TargetError(
        f"the guest at {address} has no VMCOREINFO: no Linux, or it did not tell QEMU",
        "run QEMU with -device vmcoreinfo, and load qemu_fw_cfg in the guest; or give --vmcoreinfo",
    )


def _connect(address: str) -> socket.socket:
    """To QMP, as far as its greeting, which is left for drgn to read."""
    hint = "start QEMU with -qmp unix:PATH,server=on,wait=off, and give that path"
    try:
        connection = _connected(address)
    except (TimeoutError, BlockingIOError):
        raise _busy(address) from None
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EACCES:
            hint = "run it as root, or as the user of QEMU"
        raise TargetError(f"cannot connect to {address}: {reason}", hint) from None
    try:
        greeting = connection.recv(64, socket.MSG_PEEK)
    except TimeoutError:
        connection.close()
        raise _busy(address) from None
    except OSError as error:
        connection.close()
        raise TargetError(f"cannot read from {address}: {error.strerror}", hint) from None
    if not greeting.lstrip().startswith(b'{"QMP"'):
        connection.close()
        raise TargetError(f"{address} is no QMP socket", hint)
    connection.settimeout(None)
    return connection


def _connected(address: str) -> socket.socket:
    """drgn's rule: HOST:PORT is TCP unless HOST begins like a path; all else is a path."""
    host, colon, port = address.rpartition(":")
    if colon and not host.startswith(("/", ".")) and port.isdecimal() and 0 < int(port) < 65536:
        return socket.create_connection((host or "localhost", int(port)), _QMP_TIMEOUT)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_QMP_TIMEOUT)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _busy(address: str) -> TargetError:
    return TargetError(
        f"QEMU does not answer at {address}",
        "a QMP socket serves one client at a time (libvirt keeps its own): give QEMU another -qmp",
    )


def _check_connected(connection: socket.socket, address: str) -> None:
    poll = select.poll()
    poll.register(connection, select.POLLHUP | select.POLLRDHUP)
    if poll.poll(0):
        raise TargetError(
            f"QEMU at {address} ended, or closed the connection, while it was read",
            "try again while the guest runs",
        )
