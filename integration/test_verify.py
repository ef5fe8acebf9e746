"""The main job in one command, on real models and running servers."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from integration.conftest import KERAS, SOURCES, Models
from servewright.cli import run

BATCHED = (
    "batching: {max_size: 16, max_delay: 5ms, allowed_sizes: [4, 16], queue: 256, threads: 2}\nthreads: {intra_op: 1}\n"
)
Left = Callable[[], list[str]]


def _verify(spec: Path, report: Path, *options: str) -> tuple[int, dict]:
    code = run(["verify", str(spec), "--json", str(report), *options])
    return code, json.loads(report.read_text()) if report.exists() else {}


def _failed(report: dict) -> list[str]:
    return [check["name"] for check in report["checks"] if check["status"] == "fail"]


@pytest.mark.parametrize("model_format", SOURCES)
def test_every_format_passes(model_format: str, models: Models, tmp_path: Path, left_behind: Left) -> None:
    """`verify` passes for every model format, with batching, and leaves nothing behind."""
    spec = models.spec(tmp_path / "digits.yaml", model_format, extra=BATCHED)
    code, report = _verify(spec, tmp_path / "report.json")
    assert (code, report["ok"], _failed(report)) == (0, True, [])
    names = {check["name"] for check in report["checks"] if check["status"] == "pass"}
    for transport in ("http", "grpc"):
        assert {
            f"golden[0] over {transport}",
            f"parity over {transport}",
            f"batching by value over {transport}",
        } <= names
    assert report["server"]["stand_in"] is (model_format in KERAS)
    assert left_behind() == []


def test_one_spec_serves_both(models: Models, tmp_path: Path) -> None:
    """One spec with a model for each server passes on both."""
    spec = models.spec(tmp_path / "digits.yaml", "torchscript", "saved_model", extra=BATCHED)
    for backend in ("torchserve", "tfserving"):
        code, report = _verify(spec, tmp_path / f"{backend}.json", "--backend", backend, "--form", "directory")
        assert (code, report["backend"]) == (0, backend)


@pytest.mark.parametrize("model_format", ["torchscript", "saved_model"])
def test_a_changed_golden_fails(
    model_format: str, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output that is not the recorded one fails the run, and the line says where and by how much."""
    home = "keras" if model_format in KERAS else "torch"
    spec = models.spec(
        tmp_path / "digits.yaml",
        model_format,
        extra=f"golden: [{{inputs: {home}/golden/in.npz, outputs: wrong.npz}}]\n",
    )
    with np.load(models.folder / home / "golden" / "out.npz") as recorded:
        scores = recorded["scores"].copy()
    scores[2, 7] += 1.0
    np.savez(tmp_path / "wrong.npz", scores=scores)
    code, report = _verify(spec, tmp_path / "report.json", "--no-parity")
    assert code == 1
    assert _failed(report) == ["golden[0] over http", "golden[0] over grpc"]
    assert "scores[2, 7]" in capsys.readouterr().out


def test_a_handler_that_answers_wrongly_fails(models: Models, tmp_path: Path) -> None:
    """A handler that shifts the classes is caught by the golden data and by parity."""
    spec = models.spec(tmp_path / "digits.yaml", "torchscript", extra="handler: {use: shifted.py}\n")
    (tmp_path / "shifted.py").write_text(
        "import numpy as np\n"
        "import servewright_tensor\n\n\n"
        "class Shifted(servewright_tensor.TensorHandler):\n"
        "    def encode(self, outputs, about, *, over_http):\n"
        "        shifted = {name: np.roll(array, 1, axis=1) for name, array in outputs.items()}\n"
        "        return super().encode(shifted, about, over_http=over_http)\n"
    )
    code, report = _verify(spec, tmp_path / "report.json")
    assert code == 1
    assert {"golden[0] over http", "parity over grpc"} <= set(_failed(report))


@pytest.mark.parametrize(
    ("model_format", "setting"), [("torchscript", "batchSize"), ("saved_model", "batching max_batch_size")]
)
def test_a_server_with_other_settings_fails(
    model_format: str, setting: str, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_behind: Left
) -> None:
    """A running server whose batching is not the spec's fails `probe`; `up`, `ps`, `logs` and `down` carry it."""
    monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))
    started = models.spec(tmp_path / "started.yaml", model_format, extra="batching: {max_size: 8, max_delay: 5ms}\n")
    wanted = models.spec(tmp_path / "wanted.yaml", model_format, extra="batching: {max_size: 4, max_delay: 5ms}\n")
    assert run(["up", str(started), "--name", "drifted"]) == 0
    try:
        assert run(["ps"]) == 0
        assert run(["logs", "drifted"]) == 0
        assert run(["probe", str(started), "--name", "drifted", "--no-parity"]) == 0
        report = tmp_path / "report.json"
        assert run(["probe", str(wanted), "--name", "drifted", "--no-parity", "--json", str(report)]) == 1
        assert f"setting {setting}" in _failed(json.loads(report.read_text()))
    finally:
        assert run(["down", "drifted"]) == 0
    assert left_behind() == []


def test_the_process_runtime_takes_any_binary(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named by the environment runs as `process`; that it is a stand-in is read from the server."""
    binary = tmp_path / "tensorflow_model_server"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m servewright.backends.tfserving.embedded "$@"\n')
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("SERVEWRIGHT_TENSORFLOW_MODEL_SERVER", str(binary))
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    code, report = _verify(spec, tmp_path / "report.json", "--runtime", "process")
    assert (code, report["runtime"], report["server"]["stand_in"]) == (0, "process", True)
    code, report = _verify(spec, tmp_path / "report.json", "--runtime", "process", "--require-real", "--no-parity")
    assert (code, _failed(report)) == (1, ["server"])


def test_a_handler_that_cannot_load_ends_at_once(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], left_behind: Left
) -> None:
    """A handler that raises while it loads is exit 4 with the server's own line, and nothing is left."""
    spec = models.spec(tmp_path / "digits.yaml", "torchscript", extra="handler: {use: broken.py}\n")
    (tmp_path / "broken.py").write_text(
        "class Broken:\n"
        "    def initialize(self, context):\n"
        "        raise RuntimeError('the vocabulary is from another planet')\n"
        "    def handle(self, data, context):\n"
        "        return data\n"
    )
    assert run(["verify", str(spec)]) == 4
    assert "from another planet" in capsys.readouterr().err
    assert left_behind() == []
