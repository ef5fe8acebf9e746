"""The main job on every runtime that this machine has: the same checks everywhere, and nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import KERAS, Models, Need, require
from integration.sandbox import Sandbox, sandbox

RUNTIMES = ("process", "embedded", "docker")
BATCHED = (
    "batching: {max_size: 16, max_delay: 5ms, allowed_sizes: [4, 16], queue: 256, threads: 2}\nthreads: {intra_op: 1}\n"
)
FORMATS = ("torchscript", "exported_program", "saved_model")


def backend_of(model_format: str) -> str:
    """Return the server that takes ``model_format``."""
    return "tfserving" if model_format in KERAS else "torchserve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What one run of `verify` returned, reported and left."""

    code: int
    said: str
    report: dict[str, Any]
    left: list[str]


@pytest.fixture(scope="module")
def verified(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Verified]:
    """Return what runs `verify` for a format and a runtime, once."""

    @cache
    def verified(model_format: str, runtime: str) -> Verified:
        require(backend_of(model_format), runtime)
        folder = tmp_path_factory.mktemp(f"{model_format}-{runtime}")
        spec = models.spec(folder / "digits.yaml", model_format, extra=BATCHED)
        with sandbox() as box:
            done = box.run("verify", str(spec), "--runtime", runtime, "--json", str(folder / "report.json"))
            assert (folder / "report.json").exists(), done.stderr
            report = json.loads((folder / "report.json").read_text())
            return Verified(code=done.returncode, said=done.stdout + done.stderr, report=report, left=box.left())

    return verified


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("model_format", FORMATS)
def test_verify_passes(model_format: str, runtime: str, verified: Callable[[str, str], Verified]) -> None:
    """`verify` passes, makes every check that has to do with answers, names the image, and leaves nothing."""
    if (backend_of(model_format), runtime) == ("torchserve", "embedded"):
        pytest.skip("the same as process: TorchServe has no stand-in")
    found = verified(model_format, runtime)
    assert found.code == 0, found.said
    passed = {check["name"] for check in found.report["checks"] if check["status"] == "pass"}
    for transport in ("http", "grpc"):
        assert {f"golden[0] over {transport}", f"parity over {transport}", f"batching by value over {transport}"} <= (
            passed
        )
    assert found.report["runtime"] == runtime
    assert found.report["artifacts"].get("image_id", "").startswith("sha256:") is (runtime == "docker")
    assert found.left == []


@pytest.mark.parametrize("model_format", FORMATS)
def test_the_same_checks_everywhere(model_format: str, verified: Callable[[str, str], Verified]) -> None:
    """A container is checked as thoroughly as a local server: the same checks, with the same results."""
    local = "process" if backend_of(model_format) == "torchserve" else "embedded"
    # What a server calls itself may differ between an image and what is installed here.
    there, here = (
        [(check["name"], check["status"]) for check in verified(model_format, runtime).report["checks"]]
        for runtime in ("docker", local)
    )
    assert there == here


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
