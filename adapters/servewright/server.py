"""A server that runs, whatever keeps it running."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from servewright.backend import LaunchPlan


class Handle(Protocol):
    """What keeps a server running: a process tree, or a container."""

    def alive(self) -> bool:
        """Tell whether it runs."""
        ...

    def log_tail(self, lines: int = 20) -> Sequence[str]:
        """Return the last lines that the server printed."""
        ...

    def stop(self, grace_s: float = 10.0) -> None:
        """End it and all that belongs to it; nothing happens where it has ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunningServer:
    """A server that runs: its addresses as ``host:port`` by name, and its run folder on this machine.

    ``handle`` is ``None`` for a server that somebody else started.
    """

    backend: str
    runtime: str
    endpoints: Mapping[str, str]
    plan: LaunchPlan | None = None
    folder: Path | None = None
    handle: Handle | None = None
    notes: tuple[str, ...] = ()

    def alive(self) -> bool:
        """Tell whether it runs, as far as can be known from here."""
        return self.handle is None or self.handle.alive()

    def log_tail(self, lines: int = 20) -> tuple[str, ...]:
        """Return the last lines of its log; none for a server that somebody else started."""
        return tuple(self.handle.log_tail(lines)) if self.handle else ()

    def log_head(self, lines: int = 400) -> tuple[str, ...]:
        """Return the first lines of its log, where servers print their settings."""
        log = getattr(self.handle, "log", None)
        if not isinstance(log, Path) or not log.is_file():
            return ()
        with log.open(encoding="utf-8", errors="replace") as file:
            return tuple(line.rstrip("\n") for line in islice(file, lines))

    def stop(self, grace_s: float = 10.0) -> None:
        """End it, and remove its run folder."""
        if self.handle is None:
            return
        try:
            self.handle.stop(grace_s)
        finally:
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
