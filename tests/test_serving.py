"""A server for as long as a block lasts: ready inside it, gone after it."""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from servewright import pipeline, serving
from servewright.backend import TRANSPORTS
from servewright.errors import InputError, LaunchError, ServewrightError, SpecError, UnavailableError
from servewright.processes import wait_until

sys.path.insert(0, str(Path(__file__).parent))
import embedded_graphs as graphs

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow's library"),
]
SPEC = """servewright: 1
name: half
model: {path: half, format: saved_model}
signature:
  inputs: [{name: x, dtype: float32, shape: [null]}]
  outputs: [{name: y, dtype: float32, shape: [null]}]
"""
X = {"x": np.array([2.0, 4.0], np.float32)}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Write the model ``y = x / 2 + 1`` and its spec."""
    graphs.save_half_plus(tmp_path / "half", 1.0)
    path = tmp_path / "half.yaml"
    path.write_text(SPEC)
    return path


def test_serves_inside_the_block_alone(spec: Path) -> None:
    """Predictions by name over both transports; the server and its files end with the block."""
    with serving.serve(str(spec), runtime="embedded") as server:
        folder = server.server.folder
        assert folder is not None
        assert (server.name, server.backend, server.runtime) == ("half", "tfserving", "embedded")
        for transport in TRANSPORTS:
            np.testing.assert_allclose(server.predict(X, transport=transport)["y"], [2.0, 3.0])
        assert (server.url, server.headers) == (f"http://{server.endpoints['http']}", {})
        assert any("half" in line for line in server.log_tail())
    assert not server.alive()
    assert not folder.exists()


def test_leaves_ports_to_the_system(spec: Path) -> None:
    """A port that a fleet names could be had once only: here it is taken. Of several models, one must be named."""
    spec.with_name("other.yaml").write_text(SPEC.replace("name: half", "name: other"))
    fleet = spec.with_name("fleet.yaml")
    with socket.create_server(("127.0.0.1", 0)) as holder:
        ports = f"{{http: {holder.getsockname()[1]}}}"
        fleet.write_text(f"servewright: 1\nfleet: pair\nserver: {{ports: {ports}}}\nmodels: [half.yaml, other.yaml]\n")
        with serving.serve(fleet, runtime="embedded") as server:
            assert server.predict(X, model="other")["y"].tolist() == [2.0, 3.0]
            with pytest.raises(InputError, match="pair serves half, other; say which"):
                server.predict(X)


def test_asks_a_kept_server_for_the_signature_of_its_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model has no serving_default; the server stays behind the block, and is found again by name."""
    monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))
    graphs.save_half_plus(tmp_path / "half", 1.0, signature="halved")
    path = tmp_path / "half.yaml"
    path.write_text(SPEC.replace("signature:\n", "signature:\n  name: halved\n"))
    try:
        with serving.kept(path, "stays", runtime="embedded") as server:
            assert server.predict(X)["y"].tolist() == [2.0, 3.0]
        with serving.attached("stays") as server:
            assert server.predict(X, transport="grpc")["y"].tolist() == [2.0, 3.0]
        psutil.Process(server.server.handle.pid).kill()  # type: ignore[union-attr]  (it is a process)
        wait_until(lambda: not server.alive(), within_s=10, what="the server ends")
        with pytest.raises(LaunchError, match="stays is dead; see: servewright logs stays"), serving.attached("stays"):
            pass
    finally:
        pipeline.down("stays")
    assert not server.alive()


def test_says_what_is_wrong_before_anything_starts(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad spec, an absent runtime and an unknown name are errors of their own kinds."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{spec.parent}/no.sock")
    with pytest.raises(UnavailableError, match="no Docker Engine answers"), serving.serve(spec, runtime="docker"):
        pass
    spec.write_text(SPEC + "batchin: 3\n")
    with pytest.raises(SpecError, match=r"half.yaml:7:1: batchin"), serving.serve(spec, runtime="docker"):
        pass
    with pytest.raises(ServewrightError, match="no server 'nobody'"), serving.attached("nobody"):
        pass
