"""Servers to ask: started from flags and files in a folder of their own, or running already."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BINARY = "SERVEWRIGHT_TENSORFLOW_MODEL_SERVER"
ADDRESS = "SERVEWRIGHT_TFSERVING_ADDRESS"
EMBEDDED = "servewright.backends.tfserving.embedded"


@dataclass(slots=True)
class Place:
    """A folder with the texts of one setup, and what its placeholders stand for."""

    work: Path
    models: Path
    grpc_port: int
    rest_port: int

    def fill(self, text: str) -> str:
        """Return ``text`` with its placeholders filled in."""
        for name, value in self.values.items():
            text = text.replace("${" + name + "}", value)
        return text

    @property
    def values(self) -> Mapping[str, str]:
        """What each placeholder stands for."""
        return {
            "MODELS": str(self.models),
            "WORK": str(self.work),
            "GRPC_PORT": str(self.grpc_port),
            "REST_PORT": str(self.rest_port),
        }


@dataclass(slots=True)
class Server:
    """A started process, or an address (then ``process`` is ``None``)."""

    place: Place
    process: subprocess.Popen[bytes] | None = None
    host: str = "127.0.0.1"
    outputs: list[Path] = field(default_factory=list)

    def text(self) -> str:
        """Return all that the server has printed."""
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in self.outputs)

    def exit_code(self) -> int | None:
        """Return how the process ended, or ``None``; a signal is its negative number."""
        return self.process.poll() if self.process else None

    def port_open(self, port: int) -> bool:
        """Tell whether somebody listens at ``port``."""
        with socket.socket() as probe:
            probe.settimeout(0.5)
            return probe.connect_ex((self.host, port)) == 0

    def wait_for_ports(self, ports: Iterable[int], within_s: float) -> bool:
        """Wait until all of ``ports`` are open; ``False`` if the process ends or time runs out before."""
        end = time.monotonic() + within_s
        ports = list(ports)
        while time.monotonic() < end:
            if self.exit_code() is not None:
                return False
            if all(self.port_open(port) for port in ports):
                return True
            time.sleep(0.05)
        return False


def program() -> list[str]:
    """Return how the server is started: the binary that the environment names, or the embedded one."""
    binary = os.environ.get(BINARY)
    return [binary] if binary else [sys.executable, "-m", EMBEDDED]


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses at this moment."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def place(models: Path) -> Iterator[Place]:
    """Give a folder and two ports for as long as the ``with`` block lasts."""
    grpc_port, rest_port = free_ports(2)
    work = Path(tempfile.mkdtemp(prefix="conformance-")).resolve()
    try:
        yield Place(work, models, grpc_port, rest_port)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def started(where: Place, flags: Sequence[str]) -> Iterator[Server]:
    """Run a server with ``flags`` for as long as the ``with`` block lasts."""
    outputs = [where.work / "stdout.log", where.work / "stderr.log"]
    with outputs[0].open("wb") as out, outputs[1].open("wb") as err:
        process = subprocess.Popen(
            [*program(), *(where.fill(flag) for flag in flags)],
            stdout=out, stderr=err, cwd=where.work, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
    try:
        yield Server(where, process, outputs=outputs)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def write_setup(where: Place, setup: Mapping[str, object]) -> None:
    """Write the config texts of a setup into its folder."""
    for key, name in (("model_config", "models"), ("batching", "batching"), ("monitoring", "monitoring")):
        text = setup.get(key)
        if isinstance(text, str):
            (where.work / f"{name}.config").write_text(where.fill(text), encoding="utf-8")
    other = setup.get("other_files")
    if isinstance(other, Mapping):
        for name, text in other.items():
            (where.work / str(name)).write_text(where.fill(str(text)), encoding="utf-8")


def known_address(models: Path) -> Server | None:
    """Return the server at ``HOST:GRPC_PORT:REST_PORT`` of the environment, if that is set."""
    text = os.environ.get(ADDRESS)
    if not text:
        return None
    host, grpc_port, rest_port = text.rsplit(":", 2)
    return Server(Place(Path("/nowhere"), models, int(grpc_port), int(rest_port)), host=host)
