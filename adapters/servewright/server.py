"""A server that runs, whatever keeps it running."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from servewright.backend import Site
from servewright.runs import Run


class Handle(Protocol):
    """What keeps a server running: a process tree, or a container. Its output goes to the file ``log``."""

    log: Path

    def alive(self) -> bool:
        """Tell whether it runs."""
        ...

    def log_tail(self, lines: int = 20) -> Sequence[str]:
        """Return the last lines that the server printed."""
        ...

    def stop(self, grace_s: float = 10.0) -> None:
        """End it and all that belongs to it; nothing happens where it has ended."""
        ...

    def release(self) -> None:
        """Let it outlive this process."""
        ...

    def record(self) -> Mapping[str, Any]:
        """Return what a later command needs to find it: values of `state.Record`."""
        ...

    def why_ended(self) -> str:
        """Return what ended it, or keeps it from its work, as far as that is known; else an empty text."""
        ...

    def command_line(self) -> Sequence[str]:
        """Return the arguments of the server's process, as the system has them; none where they cannot be read."""
        ...

    def environment(self, pid: int) -> Mapping[str, str]:
        """Return the environment of the process that the server knows as ``pid``; empty where it cannot be read."""
        ...

    def listeners(self) -> Mapping[int, str]:
        """Return the addresses on which it listens, by port; none where its sockets cannot be looked at."""
        ...

    def file(self, path: str) -> Readable:
        """Return the file that the server sees at ``path``, which may start at its working folder."""
        ...


class Readable(Protocol):
    """A file that can be read as a whole: a path, or a file inside a container."""

    def read_bytes(self) -> bytes:
        """Return its content; `OSError` where there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunningServer:
    """A server that runs: its addresses as ``host:port`` by name, and its run folder on this machine.

    ``handle`` is ``None`` for a server that somebody else started, ``run`` for one that outlived the command that
    started it. ``site`` is where it lives as it sees it,
    ``image`` what its container runs.
    """

    backend: str
    runtime: str
    endpoints: Mapping[str, str]
    site: Site | None = None
    folder: Path | None = None
    handle: Handle | None = None
    run: Run | None = None
    image: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def alive(self) -> bool:
        """Tell whether it runs, as far as can be known from here."""
        return self.handle is None or self.handle.alive()

    def log_tail(self, lines: int = 20) -> tuple[str, ...]:
        """Return the last lines of its log; none for a server that somebody else started."""
        return tuple(self.handle.log_tail(lines)) if self.handle else ()

    def why_ended(self) -> str:
        """Return what ended it, as far as that is known."""
        return self.handle.why_ended() if self.handle else ""

    def log_head(self, lines: int = 400) -> tuple[str, ...]:
        """Return the first lines of its log, where servers print their settings."""
        if self.handle is None or not self.handle.log.is_file():
            return ()
        with self.handle.log.open(encoding="utf-8", errors="replace") as file:
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
            if self.run is not None:
                self.run.close()

    def release(self) -> None:
        """Let it outlive this process, with its folder."""
        if self.handle is not None:
            self.handle.release()
        if self.run is not None:
            self.run.close()
