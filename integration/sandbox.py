"""A place of its own for commands that are killed: what they leave is told from all else on the machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from servewright import docker_runtime, engine, launching, registry
from servewright.containers import Container
from servewright.engine import Engine
from servewright.errors import UnavailableError

REQUIRED = frozenset(os.environ.get("SERVEWRIGHT_REQUIRE", "").replace(",", " ").split())


def wait_for(command: subprocess.Popen[str], text: str, *, within_s: float = 120.0) -> str:
    """Return what ``command`` prints, up to the line that has ``text`` in it; it is killed after ``within_s``."""
    assert command.stdout is not None
    said = ""
    deadline = threading.Timer(within_s, command.kill)
    deadline.start()
    try:
        for line in command.stdout:
            said += line
            if text in line:
                return said
    finally:
        deadline.cancel()
        deadline.join()
    raise AssertionError(f"{text!r} is not in: {said}")


def server_pid(container: Container) -> int:
    """Return the number that a watched server has inside: the init starts the watch, and this the server."""
    pid = 1
    for _ in range(2):
        pid = int(container.file(f"/proc/{pid}/task/{pid}/children").read_bytes().split()[0])
    return pid


def missing(backend: str, runtime: str) -> str | None:
    """Return why ``backend`` cannot be run by ``runtime`` here; nothing is pulled to find that out."""
    try:
        found = registry.get(backend)
        launching.find(found, runtime, launching.image_for(found), pull=False, progress=lambda _share, _what: None)
    except UnavailableError as error:
        return str(error)
    return None


@dataclass
class Sandbox:
    """Folders for temporary files and for the state of servers, and the engine, if there is one."""

    folder: Path
    engine: Engine | None
    deadline: str = "10min"
    variables: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    volumes: set[str] = field(default_factory=set)

    @property
    def environment(self) -> dict[str, str]:
        """What a command sees."""
        own = {
            "TMPDIR": str(self.folder / "tmp"),
            "SERVEWRIGHT_STATE": str(self.folder / "state"),
            "SERVEWRIGHT_DEADLINE": self.deadline,
        }
        return os.environ | own | self.variables

    def command(self, *words: str) -> list[str]:
        """Return the command line of `servewright`."""
        return [sys.executable, "-m", "servewright", *words]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `servewright` and return at once; it ends with the sandbox at the latest."""
        process = subprocess.Popen(
            self.command(*words), env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def run(self, *words: str, timeout_s: float = 180.0) -> subprocess.CompletedProcess[str]:
        """Run `servewright` to its end."""
        return subprocess.run(
            self.command(*words), env=self.environment, text=True, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip

    def json(self, *words: str) -> Any:
        """Run `servewright` and return what it prints as JSON."""
        done = self.run(*words)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def containers(self) -> list[dict[str, Any]]:
        """Return the containers of this sandbox, running or not."""
        if self.engine is None:
            return []
        own = [
            found
            for found in docker_runtime.listed(self.engine)
            if found["Labels"][docker_runtime.RUN].startswith(str(self.folder))
        ]
        # Volumes bear no mark of their owner: these are known by the containers that were seen with them.
        mounts = [mount for found in own for mount in found["Mounts"]]
        self.volumes |= {mount["Name"] for mount in mounts if mount["Type"] == "volume"}
        return own

    def running(self) -> list[str]:
        """Return the names of the containers that run."""
        return [found["Names"][0] for found in self.containers() if found["State"] == "running"]

    def left(self) -> list[str]:
        """Return all that is left: containers, their volumes, temporary folders, folders of servers, half files."""
        containers = [f"container {found['Names'][0]} ({found['State']})" for found in self.containers()]
        # Frameworks keep caches of their own among the temporary files.
        folders = [str(path) for path in (self.folder / "tmp").iterdir() if "servewright" in path.name]
        folders += [str(path) for path in (self.folder / "state").glob("*")]
        return sorted(containers + [f"volume {name}" for name in self.volumes & self._known_volumes()] + folders)

    def _known_volumes(self) -> set[str]:
        found = self.engine.api.volumes()["Volumes"] if self.engine else None
        return {volume["Name"] for volume in found or []}


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """Make a sandbox, and remove it with all that is still in it."""
    # Not below pytest's folders: worker sockets lie in it, and their paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    (folder / "tmp").mkdir()
    found: Engine | None = None
    with suppress(UnavailableError):
        found = engine.connect()
    box = Sandbox(folder, found)
    try:
        yield box
    finally:
        for process in box.started:
            if process.poll() is None:
                process.kill()
            if process.stdout is not None and not process.stdout.closed:
                process.communicate(timeout=30)
        for container in box.containers():
            assert box.engine is not None
            box.engine.api.remove_container(container["Id"], force=True, v=True)
        if box.engine is not None:
            box.engine.api.close()
        shutil.rmtree(folder, ignore_errors=True)
