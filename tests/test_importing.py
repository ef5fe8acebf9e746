"""Configs that exist become specs that render back to the same meaning.

SERVEWRIGHT_IMPORT_EXAMPLES sets how many made-up configs each property is tried with; all together were run with 2,000.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servewright import fleetfile, importing, pipeline, registry, yamltext
from servewright.backends.tfserving import protos
from servewright.backends.torchserve import properties, texts
from servewright.errors import InputError
from servewright.importing import Imported, Importer, Piece
from servewright.rendering import render
from servewright.yamlprinting import lines, printable

if TYPE_CHECKING:
    from conftest import Cli
    from servewright.backend import Backend

_CORPUS = Path(os.environ.get("SERVEWRIGHT_CORPUS", "/nonexistent"))
_EXAMPLES = int(os.environ.get("SERVEWRIGHT_IMPORT_EXAMPLES", "20"))
_BACKENDS = {"tfs": "tfserving", "ts": "torchserve"}
made_up = settings(max_examples=_EXAMPLES, suppress_health_check=[HealthCheck.too_slow], deadline=None)


@functools.cache
def taker(backend: str) -> Importer:
    importer = registry.get(backend).importing
    assert importer is not None
    return importer()


@functools.cache
def backend_of(name: str) -> Backend:
    """Return a backend; looking for it among all installed packages takes longer than an import."""
    return registry.get(name)


def imported(backend: str, *pieces: Piece) -> Imported:
    """Draft and print; what does not come back raises."""
    return importing.imported(taker(backend).draft(pieces), backend_of(backend), name="f", sources=["x"])


def back(folder: Path, found: Imported) -> dict[str, str]:
    """Write what was imported, load it as users do, and render it."""
    for path, text in found.texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    backend = registry.get(found.backend)
    return render(fleetfile.load(folder / "fleet.yaml", backends=registry.names()), backend)


def config(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.skipif(not _CORPUS.is_dir(), reason="SERVEWRIGHT_CORPUS names no corpus")
def test_every_file_of_the_corpus_that_parses_comes_back(tmp_path: Path) -> None:
    """Real configs: imported, written, loaded, rendered and parsed, each means what it meant; the rest is refused."""
    with (_CORPUS / "INDEX.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    refused, whole = [], []
    for number, row in enumerate(rows):
        name = _BACKENDS[row["kind"].partition("_")[0]]
        try:
            pieces = taker(name).pieces(_CORPUS / row["file"], row["kind"])
        except InputError:
            refused.append(row["file"])
            continue
        found = imported(name, *pieces)
        whole += [row["file"]] * any("is kept as its text" in note for note in found.notes)
        if number % 20 == 0:  # the disk adds little to what `imported` proves by itself
            rendered = back(tmp_path / str(number), found)
            wanted = registry.get(name).parse(_target(row["kind"]), pieces[0].text)
            assert wanted in [
                registry.get(name).parse(path, text)
                for path, text in rendered.items()
                if path.endswith(_target(row["kind"]))
            ]
    assert len(rows) == 262
    assert len(refused) == 13
    assert whole == []


def _target(kind: str) -> str:
    return {
        "tfs_model_config": "model_config.pbtxt", "tfs_batching": "batching_parameters.pbtxt",
        "tfs_monitoring": "monitoring.pbtxt", "ts_config_properties": "config.properties",
        "ts_model_config": "model-config.yaml", "ts_manifest": "MANIFEST.json",
    }[kind]  # fmt: skip


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.sampled_from(["a", "A", "b", "b-2", "model", "a/b", "", "ü", "$x"]) | TEXT
NUMBERS = st.sampled_from([0, 1, 2, 3, 8, 100, 2**31, 2**62, -1]) | st.integers(-(2**63), 2**63 - 1)


@st.composite
def model_configs(draw: st.DrawFn) -> Any:
    """Draw a ModelServerConfig of whatever the grammar allows."""
    message = protos.ModelServerConfig()
    message.model_config_list.SetInParent()
    for _ in range(draw(st.integers(0, 4))):
        model = message.model_config_list.config.add(
            name=draw(NAMES), base_path=draw(st.sampled_from(["/models/a", "gs://b/c", "", "rel", "/a/"]) | TEXT),
            model_platform=draw(st.sampled_from(["tensorflow", "", "other"])),
            version_labels=draw(st.dictionaries(st.sampled_from(["stable", "canary", "a/b", ""]), NUMBERS, max_size=2)),
        )  # fmt: skip
        policy = draw(st.sampled_from(["", "latest", "all", "specific"]))
        if policy == "latest":
            model.model_version_policy.latest.num_versions = draw(st.integers(0, 2**32 - 1))
        elif policy == "all":
            model.model_version_policy.all.SetInParent()
        elif policy == "specific":
            model.model_version_policy.specific.SetInParent()
            model.model_version_policy.specific.versions.extend(draw(st.lists(NUMBERS, max_size=3)))
        if draw(st.booleans()):
            model.logging_config.sampling_config.sampling_rate = draw(st.floats(allow_nan=False))
            model.logging_config.log_collector_config.filename_prefix = draw(TEXT)
    return message


@st.composite
def batchings(draw: st.DrawFn) -> Any:
    """Draw BatchingParameters, sensible and not."""
    message = protos.BatchingParameters()
    for name in ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads",
                 "max_execution_batch_size"):  # fmt: skip
        if draw(st.booleans()):
            getattr(message, name).value = draw(NUMBERS)
    message.allowed_batch_sizes.extend(draw(st.lists(NUMBERS, max_size=3)))
    if draw(st.booleans()):
        message.enable_large_batch_splitting.value = draw(st.booleans())
        message.thread_pool_name.value = draw(TEXT)
        message.pad_variable_length_inputs = draw(st.booleans())
    return message


@st.composite
def sessions(draw: st.DrawFn) -> Any:
    """Draw a ConfigProto, with what the server overwrites and without."""
    message = protos.ConfigProto(
        allow_soft_placement=draw(st.booleans()), intra_op_parallelism_threads=draw(st.sampled_from([0, 0, 4, -1]))
    )
    if draw(st.booleans()):
        message.gpu_options.visible_device_list = draw(TEXT)
        message.gpu_options.per_process_gpu_memory_fraction = draw(st.sampled_from([0.0, 0.0, 0.5]))
    return message


OWN_PATHS = st.sampled_from([f"{folder}/{version}" for folder in ("a", "A", "b/c", "m") for version in (0, 1, 2)])


@made_up
@given(
    models=model_configs() | st.none(), batching=batchings() | st.none(), metrics=st.booleans() | st.none(), path=TEXT,
    session=sessions() | st.none(), own=st.dictionaries(OWN_PATHS, batchings(), max_size=3),
)  # fmt: skip
def test_made_up_configs_of_tensorflow_serving_come_back(
    models: Any, batching: Any, metrics: Any, path: str, session: Any, own: dict[str, Any]
) -> None:
    """Any config that the grammar allows, with batching, monitoring and a session beside it: nothing is lost or added.

    What is kept as a text is what no words say, and takes no other file with it.
    """
    monitoring = (
        None if metrics is None else protos.MonitoringConfig(prometheus_config={"enable": metrics, "path": path})
    )
    found = {"tfs_model_config": models, "tfs_batching": batching, "tfs_monitoring": monitoring, "tfs_session": session}
    pieces = [
        Piece(kind=kind, path=Path("f", kind), text=text_format.MessageToString(message))
        for kind, message in found.items()
        if message is not None
    ]
    kept = "is kept as its text"
    alone = [piece for piece in pieces if any(kept in note for note in imported("tfserving", piece).notes)]
    if models is not None:
        pieces += [
            Piece(kind="tfs_batching", path=Path("f", where, "batching_params.pbtxt"), text=str(message))
            for where, message in own.items()
        ]
    notes = imported("tfserving", *pieces).notes if pieces else ()
    assert sum(kept in note for note in notes) <= len(alone)


KEYS = st.sampled_from(
    ["inference_address", "management_address", "load_models", "models", "model_store", "job_queue_size", "unknown key",
     "number_of_netty_threads", "disable_token_authorization", "enable_model_api", "metrics_mode", "max_request_size",
     "grpc_inference_port", "cors_allowed_origin", "enable_envvars_config", "vmargs"]
) | TEXT  # fmt: skip
VALUES = st.sampled_from(
    ["true", "True", "false", "0", "8", "http://0.0.0.0:8080", "http://127.0.0.1:9000", "unix:/tmp/x", "ALL",
     "a.mar,b=c.mar", "a=a.mar", "$$HOME$$", '{"m": {"1.0": {"batchSize": 4, "minWorkers": 2, "maxWorkers": 2}}}', "{"]
) | TEXT  # fmt: skip


@made_up
@given(entries=st.dictionaries(KEYS, VALUES, max_size=10), seed=st.text("# \nab", max_size=10))
def test_made_up_properties_come_back(entries: dict[str, str], seed: str) -> None:
    """Any Java properties file, of keys known and unknown."""
    text = "".join(f"{properties.escape_key(key)}={properties.escape_value(value)}\n" for key, value in entries.items())
    text = "".join(f"#{line}\n" for line in seed.splitlines()) + text
    imported("torchserve", Piece(kind="ts_config_properties", path=Path("config.properties"), text=text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
YAML_KEYS = st.sampled_from(
    ["minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "jobQueueSize", "responseTimeout", "deviceType",
     "deviceIds", "parallelType", "handler", "servewright", "torchrun"]
) | TEXT  # fmt: skip
YAML_VALUES = st.sampled_from([0, 1, 2, 8, 200, 1000, "gpu", "cpu", [0], [0, 1], "8", 1.5]) | JSON


MANIFEST_KEYS = st.sampled_from(["modelName", "modelVersion", "handler", "serializedFile", "requirementsFile"]) | TEXT


@made_up
@given(
    config=st.dictionaries(YAML_KEYS, YAML_VALUES, max_size=6),
    model=st.dictionaries(MANIFEST_KEYS, JSON, max_size=5),
    top=st.dictionaries(st.sampled_from(["runtime", "createdOn"]) | TEXT, JSON, max_size=3),
)
def test_made_up_archives_come_back(config: dict[str, Any], model: dict[str, Any], top: dict[str, Any]) -> None:
    """Any model-config.yaml and any manifest, whatever is in them."""
    written = yaml.safe_dump(config, allow_unicode=True)
    imported(
        "torchserve",
        Piece(kind="ts_model_config", path=Path("m/model-config.yaml"), text=written),
        Piece(kind="ts_manifest", path=Path("m/MANIFEST.json"), text=json.dumps({**top, "model": model})),
    )


@made_up
@given(values=st.dictionaries(TEXT, JSON.filter(printable), max_size=5))
def test_printed_values_are_read_as_they_were(values: dict[str, Any]) -> None:
    """What specs are written in holds every text and number, and means the same to the strict reader."""
    assert yamltext.parse(("\n".join(lines(values)) or "{}").encode(), file="x").value == values


class TestServers:
    """Whole folders of configs, as they lie about."""

    def test_of_torchserve_become_one_fleet(self, tmp_path: Path, cli: Cli) -> None:
        """The server's config, its archives and the spec's own words come together by the names of the archives."""
        config(
            tmp_path, "serve/config.properties",
            "# the team's server\ninference_address=http://127.0.0.1:9080\nload_models=tiny=tiny_v2.mar\n"
            "number_of_netty_threads=8\njob_queue_size=50\nmetrics_format=old\n",
        )  # fmt: skip
        manifest = {"runtime": "python", "model": {"modelName": "tiny", "modelVersion": "2.1", "handler": "h.py",
                    "configFile": "model-config.yaml"}}  # fmt: skip
        with zipfile.ZipFile(tmp_path / "serve" / "tiny_v2.mar", "w") as archive:
            archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
            archive.writestr(
                "model-config.yaml", "minWorkers: 2  # two\nmaxWorkers: 2\nbatchSize: 4\nmaxBatchDelay: 20\n"
            )
            archive.writestr("h.py", "def handle(data, context): return data\n")
        code, out, err = cli("import", tmp_path / "serve", "-o", tmp_path / "fleet", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["fleets"][0]["models"] == ["tiny"]
        fleet = pipeline.load(tmp_path / "fleet" / "fleet.yaml")
        spec = fleet.models[0].spec
        assert (spec.version, spec.workers, spec.batching.max_size, spec.batching.max_delay) == ("2.1", 2, 4, 20_000)
        assert (fleet.server.threads, fleet.server.ports.http) == (8, 9080)
        assert "# config.properties: the team's server" in (tmp_path / "fleet" / "fleet.yaml").read_text()
        assert "# model-config.yaml: minWorkers: 2 # two" in (tmp_path / "fleet" / "specs" / "tiny.yaml").read_text()
        rendered = render(fleet, registry.get("torchserve"))
        assert properties.parse(rendered["config.properties"]) == properties.parse(
            (tmp_path / "serve" / "config.properties").read_text()
        )
        assert texts.parse("MANIFEST.json", rendered["tiny/MANIFEST.json"]) == manifest

    def test_of_tensorflow_serving_become_one_fleet(self, tmp_path: Path, cli: Cli) -> None:
        """Models, batching and monitoring in three files; comments stay beside their model."""
        config(
            tmp_path, "models.config",
            "# all models\nmodel_config_list: {\n  # the old one\n  config: {name: 'a', base_path: 'gs://b/a/', "
            "model_platform: 'tensorflow', version_labels {key: 'stable' value: 3}},\n"
            "  config { name: 'b' base_path: '/m/b' model_platform: 'tensorflow' } # new\n}\n",
        )  # fmt: skip
        config(tmp_path, "batching.config", "max_batch_size { value: 16 }\nbatch_timeout_micros { value: 500 }\n")
        config(tmp_path, "monitoring.config", "prometheus_config { enable: true, path: '/metrics' }\n")
        code, out, err = cli("import", tmp_path, "-o", tmp_path / "out")
        assert (code, err) == (0, "")
        assert "2 models for tfserving" in out
        fleet = pipeline.load(tmp_path / "out" / "fleet.yaml")
        assert [document.spec.batching.max_size for document in fleet.models] == [16, 16]
        assert fleet.models[0].spec.versions.labels == {"stable": 3}
        assert "# the old one" in (tmp_path / "out" / "specs" / "a.yaml").read_text()
        assert "# new" in (tmp_path / "out" / "specs" / "b.yaml").read_text()
        assert "# model_config.pbtxt: all models" in (tmp_path / "out" / "fleet.yaml").read_text()

    def test_keep_no_more_than_one_file_as_its_text(self, tmp_path: Path, cli: Cli) -> None:
        """A session with threads, which no spec may say, takes neither labels nor batching with it, and is named."""
        config(
            tmp_path, "in/models.config",
            "model_config_list { config { name: 'a' base_path: '/m/a' model_platform: 'tensorflow' "
            "version_labels { key: 'stable' value: 3 } } }\n",
        )  # fmt: skip
        config(tmp_path, "in/batching.config", "max_batch_size { value: 16 }\nbatch_timeout_micros { value: 500 }\n")
        config(tmp_path, "in/monitoring.config", "prometheus_config { enable: true path: '/metrics' }\n")
        session = config(
            tmp_path, "in/session.pbtxt", "intra_op_parallelism_threads: 4\nallow_soft_placement: true  # CPUs\n"
        )
        code, out, err = cli("import", tmp_path / "in", "-o", tmp_path / "out")
        assert (code, err) == (0, "")
        notes = [line for line in out.splitlines() if line.startswith("note: ")]
        field = "tfserving.session.intra_op_parallelism_threads"
        why = f"{field}: the server overwrites it from its flags; use threads.intra_op"
        assert notes == [f"note: {session} is kept as its text, under tfserving.files: {why}"]
        fleet = pipeline.load(tmp_path / "out" / "fleet.yaml")
        spec = fleet.models[0].spec
        assert spec.versions.labels == {"stable": 3}
        assert (spec.batching.max_size, spec.batching.max_delay) == (16, 500)
        assert spec.options["tfserving"]["files"] == {"session.pbtxt": session.read_text().strip()}
        assert "entry" not in spec.options["tfserving"]
        flags = render(fleet, registry.get("tfserving"))["flags.txt"]
        assert "--allow_version_labels_for_unavailable_models=true" in flags
        assert "--tensorflow_session_config_file=" in flags

    def test_name_what_keeps_each_file_a_text(self, tmp_path: Path) -> None:
        """Two files that no words say are told one by one, with the field; the models beside them stay words."""
        found = imported(
            "tfserving",
            Piece(
                kind="tfs_model_config", path=Path("m.config"),
                text="model_config_list { config { name: 'a' base_path: '/m/a' model_platform: 'tensorflow' } }",
            ),
            Piece(kind="tfs_monitoring", path=Path("off.config"), text="prometheus_config { path: '/m' }"),
            Piece(
                kind="tfs_session", path=Path("s.config"), text="gpu_options { per_process_gpu_memory_fraction: 0.5 }"
            ),
        )  # fmt: skip
        field = "per_process_gpu_memory_fraction"
        overwritten = f"tfserving.session.gpu_options.{field}: the server overwrites it from its flags"
        assert found.notes == (
            "off.config is kept as its text, under tfserving.files: specs have no words for its prometheus_config",
            f"s.config is kept as its text, under tfserving.files: {overwritten}; use tfserving.flags.{field}",
        )
        assert "entry" not in found.texts["specs/a.yaml"]
        rendered = back(tmp_path, found)
        assert "enable" not in rendered["monitoring.pbtxt"]
        assert "0.5" in rendered["session.pbtxt"]

    def test_with_a_model_that_says_nothing_come_back(self, tmp_path: Path) -> None:
        """No patch leaves a model without any field, so the file is kept as its text."""
        text = "model_config_list { config { } }"
        found = imported("tfserving", Piece(kind="tfs_model_config", path=Path("m"), text=text))
        assert "m is kept as its text" in found.notes[0]
        assert back(tmp_path, found)["model_config.pbtxt"].strip() == text

    @pytest.mark.parametrize(
        "text",
        [
            "model_config_list { config { name: 'a' version_labels { key: 'x' value: -1 } } }",
            "model_config_list { config { name: 'a' } config { name: 'b' version_labels { key: 'a/b' value: 1 } } }",
        ],
    )
    def test_with_labels_that_no_spec_may_have_can_start(self, tmp_path: Path, text: str) -> None:
        """Labels that stay in an entry need the flag too, without which the first config fails."""
        found = imported("tfserving", Piece(kind="tfs_model_config", path=Path("m"), text=text))
        assert "versions:" not in found.texts["specs/a.yaml"]
        assert "--allow_version_labels_for_unavailable_models=true" in back(tmp_path, found)["flags.txt"]

    @pytest.mark.parametrize(
        ("options", "labelled"),
        [
            ({}, True),
            ({"entry": {"version_labels": None}}, False),
            ({"files": {"model_config.pbtxt": "model_config_list { config { name: 'a' } }"}}, False),
            (
                {
                    "files": {
                        "model_config.pbtxt": "model_config_list { config { name: 'a' "
                        "version_labels { key: 'x' value: 1 } } }"
                    }
                },
                True,
            ),
        ],
    )
    def test_take_labels_from_what_is_rendered(self, options: dict[str, Any], labelled: bool) -> None:
        """The flag of labels goes by the config that the server gets, whatever the specs' own words are."""
        source = {"tfserving": {"deployed": True, "path": "/m/a", "format": "saved_model"}}
        values = {"name": "a", "model": source, "signature": "unknown", "versions": {"labels": {"x": 1}}}
        fleet = importing.fleet_of(
            importing.Draft(entries=(importing.Entry(values={**values, "tfserving": options}),)), "tfserving"
        )
        flags = render(fleet, backend_of("tfserving"))["flags.txt"]
        assert ("--allow_version_labels_for_unavailable_models=true" in flags) is labelled

    def test_tell_what_to_mind(self, tmp_path: Path, cli: Cli) -> None:
        """Settings of models that stay in the server's config win over the specs; a secret is copied."""
        models = '{"m": {"1.0": {"batchSize": 4, "maxBatchDelay": 7, "minWorkers": 3, "maxWorkers": 3}}}'
        path = config(tmp_path, "config.properties", f"keystore_pass=x\nload_models=m.mar\nmodels={models}\n")
        code, out, _ = cli("import", path, "-o", tmp_path / "out")
        assert code == 0
        assert "note: models of " in out
        assert "note: keystore_pass of " in out
        spec = pipeline.load(tmp_path / "out" / "fleet.yaml").models[0].spec
        assert (spec.workers, spec.batching.max_size, spec.batching.max_delay) == (3, 4, 7000)

    def test_are_never_overwritten(self, tmp_path: Path, cli: Cli) -> None:
        """A fleet that is there already may have been edited."""
        config(tmp_path, "monitoring.config", "prometheus_config { enable: true }\n")
        assert cli("import", tmp_path / "monitoring.config", "-o", tmp_path / "out")[0] == 0
        code, _, err = cli("import", tmp_path / "monitoring.config", "-o", tmp_path / "out")
        assert code == 2
        assert "is there already; choose another folder" in err

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("models.config", "model_config_list { config { nme: 'a' } }", "models.config:1: .*nme.*servewright lint"),
            (
                "config.properties",
                "model_store=/m\nload_models=\\u12",
                "config.properties cannot be read: .*four hexadecimal",
            ),
            ("model-config.yaml", "minWorkers: [\nbatchSize: 1", "model-config.yaml cannot be read"),
            ("MANIFEST.json", '{"model": ', "MANIFEST.json cannot be read"),
            ("notes.txt", "nothing of a server", "no config of a model server in"),
        ],
    )
    def test_that_are_broken_are_named(self, tmp_path: Path, cli: Cli, name: str, text: str, said: str) -> None:
        """What the server could not read either is an error with its place, and nothing is written."""
        import re

        code, _, err = cli("import", config(tmp_path, name, text), "-o", tmp_path / "out")
        assert code == 2
        assert re.search(said, err)
        assert not (tmp_path / "out").exists()

    def test_come_one_at_a_time(self, tmp_path: Path, cli: Cli) -> None:
        """Two configs of one kind are two servers."""
        for name in ("a", "b"):
            config(tmp_path, f"{name}/config.properties", "model_store=/m\n")
        code, _, err = cli("import", tmp_path, "-o", tmp_path / "out")
        assert code == 2
        assert "are both config.properties; import one at a time" in err

    def test_of_both_kinds_get_folders(self, tmp_path: Path, cli: Cli) -> None:
        """A folder with both servers' configs becomes two fleets."""
        config(tmp_path, "in/config.properties", "model_store=/m\nload_models=a.mar\n")
        config(tmp_path, "in/models.config", "model_config_list {}\n")
        assert cli("import", tmp_path / "in", "-o", tmp_path / "out")[0] == 0
        assert (tmp_path / "out" / "torchserve" / "fleet.yaml").exists()
        assert (tmp_path / "out" / "tfserving" / "fleet.yaml").exists()

    def test_cannot_be_packaged_without_their_models(self, tmp_path: Path, cli: Cli) -> None:
        """A deployed model's files lie elsewhere: configs alone can be made of it."""
        config(tmp_path, "config.properties", "model_store=/m\nload_models=a.mar\n")
        assert cli("import", tmp_path / "config.properties", "-o", tmp_path / "out")[0] == 0
        code, _, err = cli("package", tmp_path / "out" / "fleet.yaml", "-b", "torchserve", "-o", tmp_path / "dist")
        assert code == 2
        assert "the model lies with its server, and none of it here" in err

    def test_live_want_to_be_named(self, tmp_path: Path, cli: Cli) -> None:
        """TensorFlow Serving tells no config, and an address alone does not say what answers."""
        code, _, err = cli("import", "--live", "http://127.0.0.1:1", "-o", tmp_path / "out")
        assert code == 2
        assert "add --backend" in err
        code, _, err = cli("import", "--live", "http://127.0.0.1:1", "-b", "tfserving", "-o", tmp_path / "out")
        assert code == 2
        assert "has no call that tells its config; give it too: --config" in err
        code, _, err = cli("import", "--live", "http://127.0.0.1:1", "-b", "torchserve", "-o", tmp_path / "out")
        assert code == 4


MODELS = """model_config_list {
  config { name: "a" base_path: "/srv/models/a" model_platform: "tensorflow" }
  config { name: "b" base_path: "gs://bucket/bees/" model_platform: "tensorflow" }
}
"""
OWN = "max_batch_size { value: 16 }  # measured\nallowed_batch_sizes: [4, 16]\n"


class TestBatchingOfOneModel:
    """A batching_params.pbtxt in a version's folder, which the server reads for that model alone."""

    def of(self, folder: Path, *, models: str = MODELS, **files: str) -> tuple[Imported, dict[str, str]]:
        """Import a folder of configs; the names of ``files`` have ``__`` for a slash, and no suffix."""
        config(folder, "serving/models.config", models)
        paths = [config(folder, f"serving/{name.replace('__', '/')}.pbtxt", text) for name, text in files.items()]
        assert all(path.exists() for path in paths)
        (found,) = pipeline.import_configs([folder / "serving"], name="f")
        return found, back(folder / "out", found)

    def test_stays_that_models(self, tmp_path: Path) -> None:
        """The model in whose folder it lies is batched, and no other; its comments stay beside it."""
        found, rendered = self.of(tmp_path, models__a__1__batching_params=OWN)
        a, b = (document.spec.batching for document in pipeline.load(tmp_path / "out" / "fleet.yaml").models)
        assert (a.max_size, a.allowed_sizes, b.max_size) == (16, (4, 16), 1)
        assert "# measured" in found.texts["specs/a.yaml"]
        assert "defaults" not in found.texts["fleet.yaml"]
        assert "--enable_per_model_batching_parameters=true" in rendered["flags.txt"]
        assert "b/batching_params.pbtxt" not in rendered
        (note,) = found.notes
        assert "rendered with --enable_per_model_batching_parameters" in note
        again = tmp_path / "again"
        for path, text in rendered.items():
            config(again, path, text)
        (second,) = pipeline.import_configs([again], name="f")
        assert back(tmp_path / "twice", second)["a/batching_params.pbtxt"] == rendered["a/batching_params.pbtxt"]

    def test_is_each_models_own(self, tmp_path: Path) -> None:
        """Two files are two models' batching, beside the threads of the server's file."""
        split = "enable_large_batch_splitting { value: true }\nmax_batch_size { value: 8 }\n"
        found, rendered = self.of(
            tmp_path, models__a__1__batching_params=OWN,
            bees__7__batching_params=split + "pad_variable_length_inputs: true",
            batching_parameters="num_batch_threads { value: 3 }\nthread_pool_name { value: 'p' }\n",
        )  # fmt: skip
        texts_of = {path: text_format.Parse(text, protos.BatchingParameters())
                    for path, text in rendered.items() if "batching_param" in path}  # fmt: skip
        assert sorted(texts_of) == ["a/batching_params.pbtxt", "b/batching_params.pbtxt", "batching_parameters.pbtxt"]
        assert texts_of["a/batching_params.pbtxt"].max_batch_size.value == 16
        assert texts_of["b/batching_params.pbtxt"].max_execution_batch_size.value == 8
        assert texts_of["b/batching_params.pbtxt"].pad_variable_length_inputs
        assert texts_of["batching_parameters.pbtxt"] == protos.BatchingParameters(
            num_batch_threads={"value": 3}, thread_pool_name={"value": "p"}
        )
        assert len(found.notes) == 1

    def test_is_the_servers_where_all_models_agree(self, tmp_path: Path) -> None:
        """One file for all is how agreeing specs are rendered; its threads are those of the server's file alone."""
        own = OWN + "num_batch_threads { value: 9 }\n"
        found, rendered = self.of(
            tmp_path, models__a__1__batching_params=own, bees__1__batching_params=OWN,
            batching_parameters="max_batch_size { value: 99 }\nnum_batch_threads { value: 3 }\n",
        )  # fmt: skip
        shared = text_format.Parse(rendered["batching_parameters.pbtxt"], protos.BatchingParameters())
        assert (shared.max_batch_size.value, shared.num_batch_threads.value) == (16, 3)
        assert "per_model" not in rendered["flags.txt"]
        assert [note.partition(": ")[2] for note in found.notes] == [
            "every model has this batching, so it is rendered once, for the server",
            "beside files of models, the server reads num_batch_threads and thread_pool_name of it alone",
        ]

    def test_keeps_the_servers_sizes_from_other_models(self, tmp_path: Path) -> None:
        """With files of models on, the server does not batch a model that has none, whatever its own file says."""
        found, rendered = self.of(
            tmp_path, models__a__1__batching_params=OWN, batching_parameters="max_batch_size { value: 99 }\n"
        )
        b = pipeline.load(tmp_path / "out" / "fleet.yaml").models[1].spec
        assert b.batching.max_size == 1
        assert "99" in rendered["batching_parameters.pbtxt"]
        assert any("alone" in note for note in found.notes)

    def test_is_that_of_the_newest_version_that_is_served(self, tmp_path: Path) -> None:
        """A spec has one batching; what other versions say differently is left out and named."""
        specific = "{ model_version_policy { specific { versions: 2 versions: 10 } } "
        found, _ = self.of(
            tmp_path, models=MODELS.replace("{ name: \"a\"", specific + 'name: "a"'),
            models__a__2__batching_params="max_batch_size { value: 2 }",
            models__a__10__batching_params="max_batch_size { value: 10 }",
            models__a__11__batching_params="max_batch_size { value: 11 }",
        )  # fmt: skip
        assert "max_size: 10" in found.texts["specs/a.yaml"]
        assert [note.partition(" is left out: ")[2] for note in found.notes[:2]] == [
            "a does not serve version 11",
            f"a spec has one batching, and {tmp_path / 'serving/models/a/10/batching_params.pbtxt'} is newer",
        ]

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("models__c__1__batching_params", OWN, "the config does not tell which model's folder holds it"),
            (
                "models__a__1__batching_params",
                "max_batch_size { value: 1 }",
                "specs have no words for its batch_timeout_micros, max_batch_size, max_enqueued_batches",
            ),
            (
                "models__a__1__batching_params",
                "max_batch_size {value: 4} max_execution_batch_size {value: 8} enable_large_batch_splitting {value: 1}",
                "it is above max_size 4",
            ),
        ],
    )
    def test_is_left_out_where_no_spec_can_say_it(self, tmp_path: Path, name: str, text: str, said: str) -> None:
        """A file of no known model, or with values that specs refuse, is named and changes nothing."""
        found, rendered = self.of(tmp_path, **{name: text})
        (note,) = found.notes
        assert " is left out: " in note
        assert said in note
        assert "batching" not in rendered["flags.txt"]

    def test_of_models_with_one_end_is_nobodys(self, tmp_path: Path) -> None:
        """Two folders that fit equally well are not guessed between; one folder of two models is both's."""
        path = {"models__a__1__batching_params": OWN}
        twins = MODELS.replace("gs://bucket/bees/", "/other/models/a")
        found, rendered = self.of(tmp_path / "twins", models=twins, **path)
        assert "does not tell which model's folder" in found.notes[0]
        assert "batching" not in rendered["flags.txt"]
        found, _ = self.of(tmp_path / "same", models=MODELS.replace("gs://bucket/bees/", "/srv/models/a/"), **path)
        assert "max_size: 16" in found.texts["fleet.yaml"]

    def test_by_name_alone_is_the_servers(self, tmp_path: Path) -> None:
        """Outside of a version's folder no model has one: a flag must have named the file."""
        _, rendered = self.of(tmp_path, models=MODELS.replace("models/a", "serving"), batching_params=OWN)
        assert "value: 16" in rendered["batching_parameters.pbtxt"]
        assert "per_model" not in rendered["flags.txt"]

    def test_wants_the_config_of_its_model(self, tmp_path: Path, cli: Cli) -> None:
        """Alone it says nothing of a server, and the advice is to bring the model's config."""
        path = config(tmp_path, "a/1/batching_params.pbtxt", OWN)
        code, _, err = cli("import", path, "-o", tmp_path / "out")
        assert code == 2
        assert "is one model's batching; import it together with the server's model config" in err
