"""What a spec says against what a live server has: the embedded TF Serving, started as a program."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from servewright import pipeline, registry
from servewright.rendering import render

sys.path.insert(0, str(Path(__file__).parent))
import embedded_graphs as graphs
from embedded_running import Server, entry, eventually, write_config

if TYPE_CHECKING:
    from conftest import Cli

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow's library"),
]
SIGNATURE = "{inputs: [{name: x, dtype: float32, shape: [null]}], outputs: [{name: y, dtype: float32, shape: [null]}]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two models, one with two versions, and the config that serves them."""
    folder = tmp_path_factory.mktemp("site")
    graphs.save_half_plus(folder / "half" / "1", 2.0)
    shutil.copytree(folder / "half" / "1", folder / "half" / "2")
    shutil.copytree(folder / "half" / "1", folder / "other" / "5")
    both = {"specific": {"versions": [1, 2]}}
    write_config(
        folder / "models.config",
        entry("half", folder / "half", model_version_policy=both, version_labels={"stable": 1}),
        entry("other", folder / "other"),
    )
    return folder


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[Server]:
    """Run one server for tests that change nothing."""
    flags = ["--allow_version_labels_for_unavailable_models=true", f"--model_config_file={site / 'models.config'}"]
    running = Server(site, flags)
    try:
        running.ready()
        eventually(lambda: running.states("half") == {1: "AVAILABLE", 2: "AVAILABLE"})
        yield running
    finally:
        running.stop()


@pytest.fixture
def fleet(site: Path, server: Server, cli: Cli, tmp_path: Path) -> Path:
    """Import the config beside the live server."""
    live = f"http://127.0.0.1:{server.rest_port}"
    code, _, err = cli("import", "--live", live, "--config", site / "models.config", "-o", tmp_path / "fleet")
    assert (code, err) == (0, "")
    return tmp_path / "fleet" / "fleet.yaml"


def changed(fleet: Path, name: str, old: str, new: str) -> None:
    spec = fleet.parent / "specs" / f"{name}.yaml"
    text = spec.read_text()
    assert old in text
    spec.write_text(text.replace(old, new))


def test_a_live_import_tells_the_versions(fleet: Path, site: Path) -> None:
    """The config says what is wanted, the server which versions there are; it renders back to the config."""
    loaded = pipeline.load(fleet)
    assert [(document.spec.name, document.spec.version) for document in loaded.models] == [("half", 2), ("other", 5)]
    assert "# versions when it was imported: 1 AVAILABLE, 2 AVAILABLE" in (fleet.parent / "specs/half.yaml").read_text()
    backend = registry.get("tfserving")
    parsed = backend.parse("model_config.pbtxt", render(loaded, backend)["model_config.pbtxt"])
    assert parsed == backend.parse("model_config.pbtxt", (site / "models.config").read_text())


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nothing_differs_from_what_was_imported(fleet: Path, server: Server, cli: Cli, scheme: str) -> None:
    """Exit 0, over either API; what cannot be read is counted, and fails with --strict alone."""
    port = server.rest_port if scheme == "http" else server.grpc_port
    code, out, err = cli("diff", fleet, "--live", f"{scheme}://127.0.0.1:{port}", "--json")
    found = json.loads(out)
    assert (code, err, found["ok"], found["differences"]) == (0, "", True, [])
    assert found["server"]["stand_in"] is True
    assert {each["setting"] for each in found["same"]} == {
        "half: version", "half: label stable", "half: versions served", "other: version",
    }  # fmt: skip
    assert found["unread"]
    assert cli("diff", fleet, "--live", f"{scheme}://127.0.0.1:{port}", "--strict")[0] == 1


def test_every_difference_is_told(fleet: Path, server: Server, cli: Cli) -> None:
    """Versions, labels, policies, signatures and models that are absent: all at once, exit 1."""
    changed(fleet, "half", "stable: 1", "stable: 2")
    changed(fleet, "half", "specific: [1, 2]", "specific: [2, 3]")
    changed(fleet, "other", "version: 5", "version: 6")
    changed(fleet, "other", "signature: unknown", f"signature: {SIGNATURE.replace('[null]', '[null, 3]')}")
    (fleet.parent / "specs/gone.yaml").write_text(
        (fleet.parent / "specs/other.yaml").read_text().replace("other", "gone")
    )
    fleet.write_text(fleet.read_text() + '- "specs/gone.yaml"\n')
    code, out, _ = cli("diff", fleet, "--live", f"http://127.0.0.1:{server.rest_port}", "--json")
    assert code == 1
    found = {each["setting"]: (each["wanted"], each["found"]) for each in json.loads(out)["differences"]}
    signature = found.pop("other: signature serving_default")
    assert signature[0]["inputs"] == {"x": "float32 [None, 3]"}
    assert signature[1]["inputs"] != signature[0]["inputs"]
    assert found == {
        "half: label stable": (2, 1),
        "half: versions served": ([2, 3], [1, 2]),
        "other: version": ("6 AVAILABLE", "6 absent"),
        "gone: model": ("served", "absent"),
    }
    text = cli("diff", fleet, "--live", f"http://127.0.0.1:{server.rest_port}")[1]
    assert "half: label stable: the spec says 2, the server has 1 (GetModelMetadata by label)" in text
    assert "5 differ, 1 as in the spec" in text


@pytest.mark.parametrize(
    ("live", "code", "said"),
    [
        ("http://127.0.0.1:1", 4, "127.0.0.1:1"),
        ("nobody", 2, "nobody"),
        ("ftp://x", 2, "says nothing known; write http://host:port"),
    ],
)
def test_a_server_that_cannot_be_asked_is_an_error(fleet: Path, cli: Cli, live: str, code: int, said: str) -> None:
    """No drift is told where nothing was compared."""
    found, out, err = cli("diff", fleet, "--live", live)
    assert (found, out) == (code, "")
    assert said in err
