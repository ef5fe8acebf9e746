"""What a spec says against what a live server has: the embedded TF Serving, started as a program."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from servewright import drift, pipeline, registry, serving
from servewright.cli import run
from servewright.rendering import render

sys.path.insert(0, str(Path(__file__).parent))
import embedded_graphs as graphs
from embedded_running import Server, entry, eventually, write_config

if TYPE_CHECKING:
    from conftest import Cli
    from servewright.serving import Served

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
    graphs.save_signatures(
        folder / "other" / "5",
        [*graphs.half_plus(2.0), *graphs.quantized()],
        {
            "serving_default": graphs.signature_of({"x": graphs.FLOAT}, {"y": graphs.FLOAT}),
            "quantized": graphs.signature_of({"q": graphs.QINT8}, {"same": graphs.QINT8}),
        },
    )
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


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_signature_that_the_model_lacks_is_a_difference(fleet: Path, server: Server, cli: Cli, scheme: str) -> None:
    """The server was asked and its answer is another: exit 1, and the signatures that there are."""
    changed(fleet, "other", "signature: unknown", f"signature: {{name: nosuch, {SIGNATURE[1:]}")
    port = server.rest_port if scheme == "http" else server.grpc_port
    code, out, err = cli("diff", fleet, "--live", f"{scheme}://127.0.0.1:{port}", "--json")
    assert (code, err) == (1, "")
    (found,) = json.loads(out)["differences"]
    assert (found["setting"], found["found"]) == ("other: signature nosuch", "absent")
    assert found["source"] == "other has no signature 'nosuch'; it has quantized, serving_default"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_signature_that_no_spec_tells_is_a_difference(fleet: Path, server: Server, cli: Cli, scheme: str) -> None:
    """A tensor of quantized elements is no array: the answer names it, and the rest is compared."""
    changed(fleet, "other", "signature: unknown", f"signature: {{name: quantized, {SIGNATURE[1:]}")
    port = server.rest_port if scheme == "http" else server.grpc_port
    code, out, err = cli("diff", fleet, "--live", f"{scheme}://127.0.0.1:{port}", "--json")
    assert (code, err) == (1, "")
    (found,) = json.loads(out)["differences"]
    assert (found["setting"], found["found"]) == ("other: signature quantized", "not one of arrays")
    assert "qint8" in found["source"]


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


# -- flags and files, of servers that were started here -----------------------------------------------------------

BATCHED = "batching: {max_size: 8, max_delay: 5ms, queue: 64}"
SEVERAL = {"half": BATCHED, "other": "batching: {max_size: 16, max_delay: 1ms}", "plain": "workers: 1"}


def written(folder: Path, models: dict[str, str], *, server: str = "{}", options: str = "{}") -> Path:
    """Write a fleet of ``y = x / 2 + 2`` by names, each with the lines of its own; ``options`` are all models'."""
    entries = []
    for name, lines in models.items():
        if not (folder / name).exists():
            graphs.save_half_plus(folder / name, 2.0)
        source = f"{{path: {name}, format: saved_model}}"
        entries.append(f"- {{name: {name}, version: 1, model: {source}, signature: {SIGNATURE}, {lines}}}\n")
    path = folder / "fleet.yaml"
    defaults = f"defaults: {{tfserving: {options}}}\n"
    path.write_text(f"servewright: 1\nfleet: f\nserver: {server}\n{defaults}models:\n{''.join(entries)}")
    return path


def compared(fleet: Path, served: Served) -> drift.Drift:
    return drift.compare(pipeline.load(fleet), registry.get("tfserving"), served.server)


def differences(fleet: Path, served: Served) -> dict[str, tuple[object, object]]:
    return {each.setting: (each.wanted, each.found) for each in compared(fleet, served).differences}


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a server whose metrics are not where they usually are."""
    path = written(tmp_path_factory.mktemp("one"), {"half": BATCHED}, options="{monitoring_path: /metrics}")
    with serving.serve(path, backend="tfserving", runtime="embedded") as found:
        yield found


@pytest.fixture(scope="module")
def three_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run a server whose models differ in their batching."""
    path = written(tmp_path_factory.mktemp("three"), SEVERAL)
    with serving.serve(path, backend="tfserving", runtime="embedded") as found:
        yield found


class TestFilesThatFlagsName:
    """A server's own files, as they are when it is asked."""

    @pytest.fixture
    def batching(self, one_model: Served) -> Iterator[Path]:
        """Give the batching file, and put it back as it was."""
        assert one_model.server.site is not None
        path = Path(one_model.server.site.config) / "batching_parameters.pbtxt"
        before = path.read_text()
        yield path
        path.write_text(before)

    @pytest.fixture
    def fleet(self, tmp_path: Path) -> Path:
        return written(tmp_path, {"half": BATCHED}, options="{monitoring_path: /metrics}")

    def test_are_as_they_were_rendered(self, one_model: Served, fleet: Path) -> None:
        """Nothing differs, and batching is told by the metrics at the path that the spec names."""
        one_model.predict({"x": [1.0]})
        found = compared(fleet, one_model)
        assert (found.differences, found.unread) == ((), ())
        told = {each.setting: each.source for each in found.readings}
        assert told["batching on (up to 8)"] == "batching_session metrics"
        assert told["batching max_batch_size"] == "the file that --batching_parameters_file names"

    def test_tell_what_is_there_unasked(self, one_model: Served, fleet: Path, batching: Path) -> None:
        """A field that no spec asks for is a difference, unless it says what the server does anyway."""
        same = "enable_large_batch_splitting { value: false } pad_variable_length_inputs: false\n"
        batching.write_text(batching.read_text() + same)
        assert differences(fleet, one_model) == {}
        batching.write_text(batching.read_text() + "num_batch_threads { value: 3 } allowed_batch_sizes: [4, 8]\n")
        assert differences(fleet, one_model) == {
            "batching num_batch_threads": ("absent", 3),
            "batching allowed_batch_sizes": ("absent", [4, 8]),
        }

    def test_tell_what_is_gone(self, one_model: Served, tmp_path: Path, batching: Path) -> None:
        """A field that is not there is a difference, unless the server does without it what the spec says."""
        batching.write_text("max_enqueued_batches { value: 8 }\n")
        at_once = written(tmp_path, {"half": BATCHED.replace("5ms", "0ms")}, options="{monitoring_path: /metrics}")
        assert differences(at_once, one_model) == {"batching max_batch_size": (8, "absent")}

    @pytest.mark.parametrize("text", [None, "no such field: 1"])
    def test_that_cannot_be_read_tell_nothing(
        self, one_model: Served, fleet: Path, batching: Path, text: str | None
    ) -> None:
        """Nothing is known of the fields of a file that is not there any more, or makes no sense."""
        batching.write_text(text) if text else batching.unlink()
        found = compared(fleet, one_model)
        assert found.differences == ()
        assert {(each.setting, each.source) for each in found.unread} >= {
            ("batching max_batch_size", "the file that --batching_parameters_file names cannot be read")
        }

    def test_of_metrics_that_are_elsewhere(self, one_model: Served, tmp_path: Path) -> None:
        """The file differs; whether batching is on stays open where the spec says that it would be told."""
        fleet = written(tmp_path, {"half": BATCHED})
        assert list(differences(fleet, one_model)) == ["monitoring prometheus_config"]
        (unread,) = compared(fleet, one_model).unread
        assert unread.setting == "batching on (up to 8)"
        assert "the server has no metrics there" in unread.source
        assert "/monitoring/prometheus/metrics: 404" in unread.source

    def test_of_metrics_that_are_not_wanted(self, one_model: Served, tmp_path: Path) -> None:
        """Metrics are not asked where the fleet says that there are none."""
        fleet = written(tmp_path, {"half": BATCHED}, server="{metrics: false}")
        assert list(differences(fleet, one_model)) == ["--monitoring_config_file"]
        assert not any(each.setting.startswith("batching on") for each in compared(fleet, one_model).readings)


class TestBatchingOfEachModel:
    """Models of one server whose batching differs have each a file beside them."""

    def test_is_read_back(self, three_models: Served, tmp_path: Path) -> None:
        """Every field of every model's file, and whether the server batches at all."""
        three_models.predict({"x": [1.0]}, model="half")
        found = compared(written(tmp_path, SEVERAL), three_models)
        assert (found.differences, found.unread) == ((), ())
        told = {each.setting: each.found for each in found.readings}
        assert told["half: batching max_batch_size"] == 8
        assert told["half: batching max_enqueued_batches"] == 8
        assert told["other: batching batch_timeout_micros"] == 1000
        assert told["batching on (up to 16)"] is True
        assert not any(setting.startswith("plain: batching") for setting in told)

    def test_is_told_where_it_differs(self, three_models: Served, tmp_path: Path) -> None:
        """Another value in a spec is a difference of that model alone."""
        changed = SEVERAL | {"half": BATCHED.replace("max_size: 8", "max_size: 4").replace("64", "32")}
        assert differences(written(tmp_path, changed), three_models) == {"half: batching max_batch_size": (4, 8)}

    def test_is_told_where_nobody_asked_for_it(self, three_models: Served, tmp_path: Path) -> None:
        """A file beside a model that should not batch, and a field that no spec has."""
        fleet = written(tmp_path, SEVERAL)
        assert three_models.server.site is not None
        models = Path(three_models.server.site.models)
        half, plain = (models / name / "1" / "batching_params.pbtxt" for name in ("half", "plain"))
        before = half.read_text()
        try:
            half.write_text(before + "allowed_batch_sizes: 8\n")
            plain.write_text("max_batch_size { value: 4 }\n")
            assert differences(fleet, three_models) == {
                "half: batching allowed_batch_sizes": ("absent", [8]),
                "plain: batching max_batch_size": ("absent", 4),
            }
            half.unlink()
            found = compared(fleet, three_models)
            assert [each.setting for each in found.differences] == ["plain: batching max_batch_size"]
            assert {each.setting for each in found.unread} == {
                "half: batching max_batch_size", "half: batching batch_timeout_micros",
                "half: batching max_enqueued_batches",
            }  # fmt: skip
            assert found.unread[0].source == "batching_params.pbtxt of version 1 cannot be read"
        finally:
            half.write_text(before)
            plain.unlink()


@pytest.mark.parametrize(
    ("server", "options"), [("{metrics: false}", "{}"), ("{}", "{monitoring_path: /metrics}")], ids=["none", "moved"]
)
def test_metrics_that_are_not_where_they_usually_are_stop_no_check(
    tmp_path: Path, cli: Cli, server: str, options: str
) -> None:
    """A server without metrics, or with another path for them, is verified like any other."""
    path = written(tmp_path, {"half": BATCHED}, server=server, options=options)
    words = ("verify", path, "-b", "tfserving", "--runtime", "embedded", "--no-parity")
    code, out, err = cli(*words)
    assert code == 0, out + err


def test_a_model_is_awaited_by_the_servers_own_name(tmp_path: Path) -> None:
    """A name that only the server knows is what it is asked for, and what its settings are read back by."""
    path = written(tmp_path, {"my-model": "tfserving: {entry: {name: my model}}"})
    with serving.serve(path, backend="tfserving", runtime="embedded") as served:
        assert compared(path, served).differences == ()
        assert served.predict({"x": np.ones(1, np.float32)})["y"].tolist() == [2.5]
    assert run(["verify", str(path), "-b", "tfserving", "-r", "embedded", "--no-parity"]) == 0
