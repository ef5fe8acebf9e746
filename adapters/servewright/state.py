"""Servers that outlive the command that started them: one folder each, below the user's state folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from servewright import processes
from servewright.errors import InputError
from servewright.server import RunningServer

FILE = "server.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A server as `up` left it: what `ps`, `logs` and `down` need."""

    name: str
    backend: str
    runtime: str
    endpoints: dict[str, str]
    spec: str
    run: str
    log: str
    pid: int
    created: float
    stand_in: bool
    models: tuple[str, ...]

    def handle(self) -> processes.ServerProcess:
        """Return the process, whether or not it still runs."""
        return processes.attach(self.pid, self.created, Path(self.log), scratch=(Path(self.run),))

    def server(self) -> RunningServer:
        """Return the running server, to talk to."""
        return RunningServer(
            backend=self.backend,
            runtime=self.runtime,
            endpoints=self.endpoints,
            folder=Path(self.run),
            handle=self.handle(),
        )


def root() -> Path:
    """Return the folder that holds one folder per server."""
    override = os.environ.get("SERVEWRIGHT_STATE")
    return Path(override) if override else user_state_path("servewright", appauthor=False) / "servers"


def records() -> list[Record]:
    """Return every server that `up` started and `down` has not ended, by name."""
    folder = root()
    found = []
    for path in sorted(folder.glob(f"*/{FILE}")) if folder.is_dir() else []:
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found.append(Record(**values | {"models": tuple(values["models"])}))
        except (OSError, ValueError, TypeError, KeyError):
            continue  # half-written by a run that was killed; `down --all` removes it
    return found


def find(name: str) -> Record:
    """Return the record of the server called ``name``."""
    known = records()
    for record in known:
        if record.name == name:
            return record
    names = ", ".join(record.name for record in known) or "none runs"
    raise InputError(f"no server {name!r} ({names}); see: servewright ps")


@contextmanager
def claimed(name: str) -> Iterator[Path]:
    """Take ``name`` for a new server and yield its folder; a start that fails gives the name back."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "server"
    folder = root() / name
    for record in records():
        if record.name == name and not record.handle().alive():
            forget(record.name)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise InputError(
            f"a server called {name!r} runs already; choose --name, or: servewright down {name}"
        ) from error
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write(folder: Path, record: Record) -> None:
    """Note a server in its folder; readers see all of it or nothing."""
    part = folder / f".{FILE}.part"
    part.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    part.replace(folder / FILE)


def forget(name: str) -> None:
    """Remove what is kept of the server called ``name``."""
    shutil.rmtree(root() / name, ignore_errors=True)
