"""Servers that outlive the command that started them: one folder each, below the user's state folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from servewright import processes, runs
from servewright.backend import Site
from servewright.errors import InputError, LaunchError, ServewrightError
from servewright.server import Handle, RunningServer

FILE = "server.json"
_OURS = ".servewright"  # in every folder that was made for a server


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
    stand_in: bool
    site: dict[str, Any]
    models: tuple[str, ...]
    pid: int = 0
    created: float = 0.0
    boot: str = ""
    container: str = ""
    image: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    signatures: dict[str, str] = field(default_factory=dict)  # by model: which one its spec names
    called: dict[str, str] = field(default_factory=dict)  # by model: what its server calls it

    def handle(self) -> Handle:
        """Return the process or the container, whether or not it still runs."""
        if self.container:
            from servewright import containers, engine

            return containers.Container(engine.connect(), self.container, Path(self.log))
        return processes.attach(self.pid, self.created, Path(self.log), boot=self.boot, scratch=(Path(self.run),))

    def server(self) -> RunningServer:
        """Return the running server, to talk to."""
        return RunningServer(
            backend=self.backend,
            runtime=self.runtime,
            endpoints=self.endpoints,
            site=Site(**self.site),
            folder=Path(self.run),
            handle=self.handle(),
            image=self.image,
            notes=self.notes,
        )


def root() -> Path:
    """Return the folder that holds one folder per server."""
    override = os.environ.get("SERVEWRIGHT_STATE")
    return Path(override) if override else user_state_path("servewright", appauthor=False) / "servers"


def records() -> list[Record]:
    """Return every server that `up` started and `down` has not ended, by name."""
    folder = root()
    found = [_read(path.parent) for path in sorted(folder.glob(f"*/{FILE}"))] if folder.is_dir() else []
    return [record for record in found if record is not None]


def _read(folder: Path) -> Record | None:
    """Return the record in a folder; ``None`` where another version, or somebody by hand, wrote it."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        values |= {key: tuple(values.get(key, ())) for key in ("models", "notes")}
        record = Record(**values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if record.name == folder.name else None


def word_for(record: Record) -> str:
    """Return how the server is: running, dead, or unknown where its runtime does not answer."""
    try:
        return "running" if record.handle().alive() else "dead"
    except ServewrightError:
        return "unknown"


def find(name: str) -> Record:
    """Return the record of the server called ``name``."""
    known = records()
    for record in known:
        if record.name == name:
            return record
    names = ", ".join(record.name for record in known) or "none runs"
    raise InputError(f"no server {name!r} ({names}); see: servewright ps")


def running(name: str) -> Record:
    """Return the record of the server called ``name``, which is to be asked something; `LaunchError` for a dead one."""
    record = find(name)
    if word_for(record) == "dead":
        raise LaunchError(f"{name} is dead; see: servewright logs {name}")
    return record


@contextmanager
def claimed(name: str) -> Iterator[Path]:
    """Take ``name`` for a new server and yield its folder; a start that fails gives the name back."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", name):
        raise InputError(f"{name!r} is not a name for a server; use letters, digits, '_', '-' and '.'")
    folder = root() / name
    known = records()
    for record in known:
        if record.name == name and not record.handle().alive():
            end(record)
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    sweep()
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        if name not in {record.name for record in known} and (folder / FILE).exists():
            raise InputError(
                f"{folder / FILE} is not of this version; end that server and remove {folder}, or choose --name"
            ) from error
        raise InputError(
            f"a server called {name!r} runs already; choose --name, or: servewright down {name}"
        ) from error
    lock = runs.claim(folder)
    if lock is None:
        raise InputError(f"another command starts a server called {name!r} at this moment; choose --name")
    try:
        (folder / _OURS).touch()
        yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def sweep() -> None:
    """Remove what commands left that were killed before their server was noted; nothing that others put there."""
    runs.sweep_folders(root().glob("*"), keep=_is_kept)


def _is_kept(folder: Path) -> bool:
    return (folder / FILE).exists() or (not (folder / _OURS).exists() and any(folder.iterdir()))


def write(folder: Path, record: Record) -> None:
    """Note a server in its folder; readers see all of it or nothing."""
    part = folder / f".{FILE}.part"
    part.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    part.replace(folder / FILE)


def end(record: Record) -> None:
    """End a server and remove what is kept of it, unless another command has taken its name meanwhile."""
    record.server().stop()
    runs.sweep_folders([root() / record.name], keep=lambda folder: _read(folder) != record)
