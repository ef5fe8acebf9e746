"""A real TorchServe: imported from its management API, compared with what was imported, and with what is not so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.test_torchserve_process import DOUBLE, Started, archive, torchserve
from servewright.backends.torchserve.process import KEY_FILE
from servewright.cli import run


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Run a server with two models, one of them in two versions; tokens are on."""
    store = tmp_path_factory.mktemp("store")
    archive(store, "double", DOUBLE)
    archive(store, "other", DOUBLE)
    archive(store, "second", DOUBLE)
    with torchserve(store, "double", "other", model_api=True) as started:
        started.wait_ready("double", "other")
        # The archive of another model, under the name and with a version of its own.
        started.client.register("second.mar", batch_size=4, max_batch_delay_ms=30, workers=1)
        yield started


def live(served: Started) -> list[str]:
    return ["--live", f"http://{served.endpoints['management']}", "--key-file", str(served.run / KEY_FILE)]


@pytest.fixture
def fleet(served: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Import the live server."""
    code = run(["import", *live(served), "-b", "torchserve", "-o", str(tmp_path / "fleet"), "--json"])
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    assert json.loads(printed.out)["fleets"][0]["models"] == ["double", "other", "second"]
    return tmp_path / "fleet" / "fleet.yaml"


def compared(served: Started, fleet: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, object]]:
    code = run(["diff", str(fleet), "-b", "torchserve", *live(served), "--json"])
    printed = capsys.readouterr()
    assert printed.err == ""
    return code, json.loads(printed.out)


def test_an_import_and_the_server_agree(served: Started, fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every setting that the management API tells is in the specs, and the same."""
    text = (fleet.parent / "specs" / "second.yaml").read_text()
    assert "batching: {max_size: 4, max_delay: " in text
    code, found = compared(served, fleet, capsys)
    assert (code, found["ok"], found["differences"]) == (0, True, [])
    same = found["same"]
    assert isinstance(same, list)
    settings = {each["setting"] for each in same}
    for name in ("version", "minWorkers", "maxWorkers", "workers READY", "batchSize", "maxBatchDelay", "jobQueueSize",
                 "responseTimeout", "startupTimeout", "deviceType"):  # fmt: skip
        assert f"second: {name}" in settings


def test_every_difference_is_told(served: Started, fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Settings, versions, models that are absent and models that nobody asked for: exit 1."""
    spec = fleet.parent / "specs" / "second.yaml"
    spec.write_text(spec.read_text().replace("max_size: 4", "max_size: 8"))
    other = fleet.parent / "specs" / "other.yaml"
    other.write_text(other.read_text().replace("other", "gone"))
    code, found = compared(served, fleet, capsys)
    assert code == 1
    differences = found["differences"]
    assert isinstance(differences, list)
    told = {each["setting"]: (each["wanted"], each["found"]) for each in differences}
    assert told["second: batchSize"] == (8, 4)
    assert told["gone: model"] == ("version 1.0", "absent")
    assert told["other: model"][0] == "absent"
    assert set(told) == {"second: batchSize", "gone: model", "other: model"}


def test_a_token_is_needed(served: Started, fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without one the server cannot be asked: an error, and no drift."""
    code = run(["diff", str(fleet), "-b", "torchserve", "--live", f"http://{served.endpoints['management']}"])
    printed = capsys.readouterr()
    assert (code, printed.out) == (4, "")
    assert "Token" in printed.err
