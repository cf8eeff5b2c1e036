"""systemd units by cgroup paths, which come from the target and are not to be trusted."""

from __future__ import annotations

import re
from dataclasses import dataclass

# VALID_CHARS of systemd's unit names and the @ of templates; 255 is UNIT_NAME_MAX.
_NAME = re.compile(r"[A-Za-z0-9:_\\][A-Za-z0-9:_.\\@-]{0,246}\.(service|scope)", re.ASCII)
_MANAGER = re.compile(r"user@\d{1,10}\.service", re.ASCII)


@dataclass(frozen=True)
class Unit:
    name: str
    user: bool  # of a user's own service manager

    @property
    def is_scope(self) -> bool:
        """Started by others than systemd, which cannot set anything at its start."""
        return self.name.endswith(".scope")

    @property
    def template(self) -> str:
        """foo@.service of foo@1.service, else the name itself."""
        prefix, at, _ = self.name.partition("@")
        return f"{prefix}@.service" if at and not self.is_scope else self.name


def unit_of(cgroup: str) -> Unit | None:
    """The innermost unit; None if there is none or its name is not one of systemd's."""
    user = False
    found: Unit | None = None
    for part in cgroup.split("/"):
        name = part.removeprefix("_")  # cg_escape(): where it would look like a file of cgroupfs
        if not _NAME.fullmatch(name):
            if name.endswith((".service", ".scope")):
                return None
            continue
        if found is not None and _MANAGER.fullmatch(found.name):
            user = True
        found = Unit(name, user)
    return found
