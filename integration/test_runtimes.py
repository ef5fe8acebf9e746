"""The main job on every runtime that this machine has: the same checks everywhere, and nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.conftest import KERAS, Models
from integration.sandbox import Sandbox

RUNTIMES = ("process", "embedded", "docker")
Need = Callable[[str, str], None]
BATCHED = "batching: {max_size: 16, max_delay: 5ms, allowed_sizes: [4, 16], queue: 256, threads: 2}\n"
FORMATS = ("torchscript", "exported_program", "saved_model")


def backend_of(model_format: str) -> str:
    """Return the server that takes ``model_format``."""
    return "tfserving" if model_format in KERAS else "torchserve"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("model_format", FORMATS)
def test_verify_passes(
    model_format: str, runtime: str, models: Models, tmp_path: Path, box: Sandbox, need: Need
) -> None:
    """`verify` passes, makes every check that has to do with answers, names the image, and leaves nothing."""
    backend = backend_of(model_format)
    if (backend, runtime) == ("torchserve", "embedded"):
        pytest.skip("the same as process: TorchServe has no stand-in")
    need(backend, runtime)
    spec = models.spec(tmp_path / "digits.yaml", model_format, extra=BATCHED)
    done = box.run("verify", str(spec), "--runtime", runtime, "--json", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    passed = {check["name"] for check in report["checks"] if check["status"] == "pass"}
    for transport in ("http", "grpc"):
        assert {f"golden[0] over {transport}", f"parity over {transport}", f"batching by value over {transport}"} <= (
            passed
        )
    assert report["runtime"] == runtime
    assert report["artifacts"].get("image_id", "").startswith("sha256:") is (runtime == "docker")
    assert box.left() == []


@pytest.mark.parametrize("model_format", ["torchscript", "saved_model"])
def test_the_same_checks_everywhere(
    model_format: str, models: Models, tmp_path: Path, box: Sandbox, need: Need
) -> None:
    """A container is checked as thoroughly as a local server: the same checks, with the same results."""
    backend = backend_of(model_format)
    local = "process" if backend == "torchserve" else "embedded"
    need(backend, local)
    need(backend, "docker")
    spec = models.spec(tmp_path / "digits.yaml", model_format, extra=BATCHED + "threads: {intra_op: 1}\n")
    found = {}
    for runtime in (local, "docker"):
        box.run("verify", str(spec), "--runtime", runtime, "--json", str(tmp_path / f"{runtime}.json"))
        report = json.loads((tmp_path / f"{runtime}.json").read_text())
        # What a server calls itself may differ between an image and what is installed here.
        found[runtime] = [(check["name"], check["status"]) for check in report["checks"]]
    assert found["docker"] == found[local]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("model_format", ["torchscript", "saved_model"])
def test_a_server_that_stays(
    model_format: str, runtime: str, models: Models, tmp_path: Path, box: Sandbox, need: Need
) -> None:
    """`up` starts a server that outlives it; `ps`, `logs` and `probe` find it, and `down --all` leaves nothing."""
    if (model_format, runtime) == ("torchscript", "embedded"):
        pytest.skip("the same as process: TorchServe has no stand-in")
    need(backend_of(model_format), runtime)
    spec = models.spec(tmp_path / "digits.yaml", model_format)
    record = box.json("up", str(spec), "--runtime", runtime, "--name", "staying", "--wait", "--json")
    assert record["ok"]
    assert set(record["endpoints"]) >= {"http", "grpc"}
    assert [(found["name"], found["state"]) for found in box.json("ps", "--json")] == [("staying", "running")]
    assert box.json("logs", "staying", "--json")["lines"]
    probed = box.run("probe", str(spec), "--name", "staying", "--no-parity")
    assert probed.returncode == 0, probed.stdout
    assert "setting" in probed.stdout
    assert box.run("down", "--all").returncode == 0
    assert (box.left(), box.json("ps", "--json")) == ([], [])
