"""What a container may do: as little as possible, relaxed one step at a time where an image cannot live with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

# Threads count too: a model server has one per request in flight and several per core.
_PIDS = 4096
_PIDS_PER_CPU = 32
# Without a limit of its own, a server may take most of the machine's memory and not the machine.
_SHARE_OF_MEMORY = 0.9
NOBODY = "65534:65534"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardening:
    """The limits of one container. ``user`` is ``None`` for the image's own; sizes are in bytes.

    ``watched``: a few lines of shell start the server, and end it when its owner dies or the deadline has come.
    """

    user: str | None
    memory: int | None
    cpus: float | None
    pids: int | None
    read_only: bool = True
    no_capabilities: bool = True
    no_new_privileges: bool = True
    init: bool = True
    watched: bool = True
    labels: bool = True
    relaxed: tuple[str, ...] = ()

    def host_config(self) -> dict[str, Any]:
        """Return it in the words of the Engine's API."""
        options = ["no-new-privileges"] if self.no_new_privileges else []
        if not self.labels:
            options.append("label=disable")
        found: dict[str, Any] = {
            "ReadonlyRootfs": self.read_only,
            "CapDrop": ["ALL"] if self.no_capabilities else [],
            "SecurityOpt": options,
            "Init": self.init,
        }
        if self.memory:
            found |= {"Memory": self.memory, "MemorySwap": self.memory}
        if self.cpus:
            found["NanoCpus"] = int(self.cpus * 1e9)
        if self.pids:
            found["PidsLimit"] = self.pids
        return found


def strictest(
    *,
    image_user: str,
    own_user: str | None,
    memory: int | None,
    cpus: float | None,
    machine_memory: int,
    machine_cpus: int,
    selinux: bool,
) -> Hardening:
    """Return the limits to start with.

    ``own_user`` is who we are where that is not root: then files that only we may read can be read inside.
    """
    root = image_user.partition(":")[0] in ("", "0", "root")
    found = Hardening(
        user=(own_user or NOBODY) if root else None,
        memory=memory or int(machine_memory * _SHARE_OF_MEMORY) or None,
        cpus=min(cpus or machine_cpus, machine_cpus),
        pids=_PIDS + _PIDS_PER_CPU * machine_cpus,
    )
    # A file gets SELinux's label with the file itself, and what is mounted here is linked to the user's own files.
    return _step(found, "SELinux labels off: mounted files bear none", labels=False) if selinux else found


def _step(hardening: Hardening, why: str, **changes: Any) -> Hardening:
    return replace(hardening, relaxed=(*hardening.relaxed, why), **changes)


@dataclass(frozen=True, slots=True)
class _Step:
    """One relaxation: what an image or an engine says that needs it, and what changes."""

    said: str
    applies: Callable[[Hardening], bool]
    changes: Mapping[str, Any]
    name: str


# By the engine itself, or by the init that it put before the shell.
_NO_SHELL = r'exec: "sh": executable file not found|exec: "sh": stat|exec sh failed'
_NO_INIT = r"docker-init|catatonit|unable to find init"
_NO_PIDS = r"(?i)pids?[ ._]?limit|pids\.max"
_NO_CPUS = r"(?i)NanoCPUs|cpu cfs|cpu\.max|cpu_quota"
_NO_MEMORY = r"(?i)memory\.max|memory\.limit|memory limit.*not support|swap limit"
_READ_ONLY = r"(?i)read-only file system|EROFS"
_FORBIDDEN = r"(?i)operation not permitted|EPERM"
_DENIED = _FORBIDDEN + r"|permission denied|EACCES|uid not found|unable to find user|no matching entries"
_PRIVILEGES = r"(?i)no[ _]new[ _]privileges|effective uid is not 0"

# In this order: what gives away least comes first.
_STEPS = (
    _Step(_NO_SHELL, lambda h: h.watched, {"watched": False}, "no watch inside the container: it has no shell"),
    _Step(_NO_INIT, lambda h: h.init, {"init": False}, "no init: the engine has none"),
    _Step(_NO_PIDS, lambda h: h.pids is not None, {"pids": None}, "no limit of processes"),
    _Step(_NO_CPUS, lambda h: h.cpus is not None, {"cpus": None}, "no limit of CPUs"),
    _Step(_NO_MEMORY, lambda h: h.memory is not None, {"memory": None}, "no limit of memory"),
    _Step(_READ_ONLY, lambda h: h.read_only, {"read_only": False}, "the root may be written"),
    _Step(_DENIED, lambda h: h.user is not None, {"user": None}, "the image's own user"),
    _Step(_FORBIDDEN, lambda h: h.no_capabilities, {"no_capabilities": False}, "capabilities kept"),
    _Step(_PRIVILEGES, lambda h: h.no_new_privileges, {"no_new_privileges": False}, "new privileges allowed"),
)


def relax(hardening: Hardening, said: str) -> Hardening | None:
    """Return ``hardening`` one step milder, as ``said`` (an engine's error, a server's last lines) asks for.

    ``None`` where it asks for nothing that would help.
    """
    for step in _STEPS:
        if step.applies(hardening) and (found := re.search(step.said, said)):
            line = next(line for line in said.splitlines() if found[0] in line)
            return _step(hardening, f"{step.name} ({line.strip()[:200]})", **step.changes)
    return None
