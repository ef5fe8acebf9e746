"""The embedded TF Serving as a program that tests start, ask and stop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

import embedded_graphs as graphs
from servewright.backends.tfserving import protos

STATES = {30: "AVAILABLE", 50: "END"}


def eventually(found: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until ``found`` says yes."""
    end = time.monotonic() + within_s
    while not found():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


class Server:
    """A running server and its clients."""

    def __init__(self, folder: Path, flags: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.grpc_port, self.rest_port = one.getsockname()[1], other.getsockname()[1]
        self.log = folder / f"server-{self.grpc_port}.log"
        words = [f"--port={self.grpc_port}", f"--rest_api_port={self.rest_port}", *flags]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "servewright.backends.tfserving.embedded", *words],
                stdout=log,
                stderr=log,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(env or {})},
            )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}")

    def ready(self) -> Server:
        """Wait until both ports are open."""
        eventually(lambda: self.ended() or (self.listens(self.grpc_port) and self.listens(self.rest_port)))
        assert not self.ended(), self.log.read_text()
        return self

    def ended(self) -> bool:
        return self.process.poll() is not None

    def listens(self, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def call(self, method: str, request: Any, answer: str, timeout: float = 20) -> Any:
        """Return a gRPC answer."""
        data = self.channel.unary_unary(method)(request.SerializeToString(), timeout=timeout)
        return protos.SCHEMA[answer].FromString(data)

    def predict(self, model: str, values: Sequence[float], timeout: float = 20, **spec: Any) -> list[float]:
        """Return ``y`` for the floats ``values``."""
        tensor = {"dtype": 1, "tensor_shape": {"dim": [{"size": len(values)}]}, "float_val": values}
        request = protos.PredictRequest(model_spec={"name": model, **spec}, inputs={"x": tensor})
        return list(self.call(protos.PREDICT, request, "PredictResponse", timeout).outputs["y"].float_val)

    def states(self, model: str) -> dict[int, str]:
        """Return the state of each version of a model."""
        request = protos.GetModelStatusRequest(model_spec={"name": model})
        answer = self.call(protos.GET_MODEL_STATUS, request, "GetModelStatusResponse")
        return {entry.version: STATES.get(entry.state, str(entry.state)) for entry in answer.model_version_status}

    def reload(self, *models: Mapping[str, Any]) -> None:
        """Send a new config."""
        request = protos.ReloadConfigRequest(config={"model_config_list": {"config": models}})
        self.call(protos.RELOAD_CONFIG, request, "ReloadConfigResponse")

    def web(self, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """Return status and JSON of a REST answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.rest_port}{path}", data, dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def stop(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def start(*flags: str, env: Mapping[str, str] | None = None) -> Server:
        servers.append(Server(tmp_path, flags, env))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """Write a model with one version, ``y = x / 2 + 2``."""
    graphs.save_half_plus(tmp_path / "half" / "1", 2.0)
    return tmp_path / "half"


def entry(name: str, path: Path, **fields: Any) -> dict[str, Any]:
    """Return a model of a config."""
    return {"name": name, "base_path": str(path), "model_platform": "tensorflow", **fields}


def write_config(path: Path, *models: Mapping[str, Any]) -> str:
    """Write a model config file and return the flag for it."""
    beside = path.with_suffix(".new")
    beside.write_text(str(protos.ModelServerConfig(model_config_list={"config": models})) + "# \n")
    beside.rename(path)
    return f"--model_config_file={path}"
