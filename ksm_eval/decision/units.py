"""systemd units by cgroup paths, which come from the target and are not to be trusted."""

from __future__ import annotations

import re
from dataclasses import dataclass

# VALID_CHARS of systemd's unit names and the @ of templates; 255 is UNIT_NAME_MAX.
_NAME = re.compile(r"[A-Za-z0-9:_\\][A-Za-z0-9:_.\\@-]{0,246}\.(service|scope)", re.ASCII)
_SLICE = re.compile(r"[A-Za-z0-9:_\\][A-Za-z0-9:_.\\@-]{0,248}\.slice", re.ASCII)
_MANAGER = re.compile(r"user@\d{1,10}\.service", re.ASCII)
# Their restart ends sessions or takes the system down with it.
_VITAL = re.compile(
    r"(systemd-.*|dbus|dbus-broker|user@.*|user-runtime-dir@.*|(serial-|console-|container-)?getty@.*"
    r"|gdm|gdm3|sddm|lightdm|lxdm|xdm|display-manager|elogind)\.service"
)


@dataclass(frozen=True)
class Unit:
    name: str
    user: bool  # of a user's own service manager

    @property
    def is_scope(self) -> bool:
        """Started by others than systemd, which cannot set anything at its start."""
        return self.name.endswith(".scope")

    @property
    def is_vital(self) -> bool:
        """Not to be restarted while the system, or the user's session, is in use."""
        return _VITAL.fullmatch(self.name) is not None

    @property
    def template(self) -> str:
        """foo@.service of foo@1.service, else the name itself."""
        prefix, at, _ = self.name.partition("@")
        return f"{prefix}@.service" if at and not self.is_scope else self.name


def unit_of(cgroup: str) -> Unit | None:
    """The unit of this host's systemd, or of a user's; None if there is none or its name is not
    one of systemd's.

    Only slices are above a unit. What is below one is its own affair: a container may have a
    systemd there whose units are named as the host's are. Only user@.service is known to be a
    manager of this host.
    """
    user = False
    found: Unit | None = None
    root, *parts = cgroup.split("/")
    for part in parts if not root else ():
        name = part.removeprefix("_")  # cg_escape(): where it would look like a file of cgroupfs
        if _SLICE.fullmatch(name):
            continue
        if not _NAME.fullmatch(name):
            return found  # within user@.service this is that one
        found = Unit(name, user)
        if user or not _MANAGER.fullmatch(name):
            return found
        user = True
    return found
