"""Rendering: texts that mean what was meant, whatever a spec says; the same for the same spec, on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from google.protobuf import text_format
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from servewright import registry
from servewright.backend import Backend, Fate
from servewright.backends.tfserving import protos
from servewright.backends.torchserve import properties
from servewright.errors import InputError, SpecError
from servewright.rendering import ParseBackError, outcomes, render, site_of

if TYPE_CHECKING:
    from conftest import Cli, Workshop

TFSERVING, TORCHSERVE = registry.get("tfserving"), registry.get("torchserve")


X = {"name": "x", "dtype": "float32", "shape": [None, 4]}


def refusal(workshop: Workshop, backend: Backend, **changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        render(workshop.fleet(workshop.values(backend, **changes)), backend)
    return str(caught.value)


class TestTensorFlowServing:
    """The files of TensorFlow Serving, read by protobuf's own parser."""

    def test_shows_every_setting_of_a_rich_spec(self, workshop: Workshop) -> None:
        """Each field holds what the spec says, in the server's own units."""
        texts = render(workshop.fleet(workshop.rich_values(TFSERVING)), TFSERVING)
        config = text_format.Parse(texts["model_config.pbtxt"], protos.ModelServerConfig()).model_config_list.config[0]
        assert (config.name, config.base_path, config.model_platform) == ("digits", "/models/digits", "tensorflow")
        assert config.model_version_policy.latest.num_versions == 2
        assert dict(config.version_labels) == {"stable": 3}
        batching = text_format.Parse(texts["batching_parameters.pbtxt"], protos.BatchingParameters())
        assert batching.max_batch_size.value == 32
        assert batching.batch_timeout_micros.value == 5000
        assert batching.max_enqueued_batches.value == 32
        assert batching.num_batch_threads.value == 2
        assert list(batching.allowed_batch_sizes) == [8, 16, 32]
        flags = dict(line.removeprefix("--").split("=") for line in texts["flags.txt"].splitlines())
        assert flags["enable_batching"] == flags["allow_version_labels_for_unavailable_models"] == "true"
        assert (flags["tensorflow_intra_op_parallelism"], flags["tensorflow_inter_op_parallelism"]) == ("2", "1")
        assert flags["rest_api_timeout_in_ms"] == "30000"
        # All that may wait, each on a thread: 32 batches of 32 in the queue, 2 in work.
        assert int(flags["grpc_max_threads"]) == int(flags["rest_api_num_threads"]) == 34 * 32 + 16

    def test_says_a_poll_of_0(self, workshop: Workshop) -> None:
        """The server then looks for versions once; its default is every second."""
        fleet = workshop.fleet(workshop.values(TFSERVING), poll=0)
        assert "--file_system_poll_wait_seconds=0\n" in render(fleet, TFSERVING)["flags.txt"]
        assert "poll" not in render(workshop.fleet(workshop.values(TFSERVING)), TFSERVING)["flags.txt"]

    def test_takes_the_flag_of_warm_up(self, workshop: Workshop) -> None:
        """A warm-up file that came with the model, and is broken, keeps it from loading."""
        values = workshop.values(TFSERVING, tfserving={"flags": {"enable_model_warmup": False}})
        assert "--enable_model_warmup=false" in render(workshop.fleet(values), TFSERVING)["flags.txt"]

    def test_writes_only_the_files_that_are_needed(self, workshop: Workshop) -> None:
        """Without batching, metrics or a session there is no file for them, and no flag."""
        texts = render(workshop.fleet(workshop.values(TFSERVING), metrics=False), TFSERVING)
        assert sorted(texts) == ["flags.txt", "model_config.pbtxt"]
        assert "batching" not in texts["flags.txt"]

    @pytest.mark.parametrize(
        ("policy", "fields"),
        [
            ("all", "all {\n}\n"),
            ({"latest": 5}, "latest {\n  num_versions: 5\n}\n"),
            ({"specific": [3, 7]}, "specific {\n  versions: 3\n  versions: 7\n}\n"),
        ],
    )
    def test_shows_each_version_policy(self, workshop: Workshop, policy: object, fields: str) -> None:
        """The three policies are three fields of one message."""
        texts = render(workshop.fleet(workshop.values(TFSERVING, versions={"policy": policy})), TFSERVING)
        config = text_format.Parse(texts["model_config.pbtxt"], protos.ModelServerConfig()).model_config_list.config[0]
        assert text_format.MessageToString(config.model_version_policy) == fields

    def test_gives_each_model_its_own_batching_where_they_differ(self, workshop: Workshop) -> None:
        """One file serves models that agree; else each version's folder has one, and the global one the pool alone."""
        one = workshop.values(TFSERVING, name="one", batching={"max_size": 8, "threads": 3})
        two = workshop.values(TFSERVING, name="two", batching={"max_size": 4, "threads": 2})
        three = workshop.values(TFSERVING, name="three")
        texts = render(workshop.fleet(one, two, three), TFSERVING)
        assert "one/batching_params.pbtxt" in texts
        assert "three/batching_params.pbtxt" not in texts
        pool = text_format.Parse(texts["batching_parameters.pbtxt"], protos.BatchingParameters())
        assert text_format.MessageToString(pool) == "num_batch_threads {\n  value: 3\n}\n"
        assert "--enable_per_model_batching_parameters=true" in texts["flags.txt"]
        del one["batching"]["threads"], two["batching"]["threads"]
        own = render(workshop.fleet(one, two), TFSERVING)["batching_parameters.pbtxt"]
        assert text_format.Parse(own, protos.BatchingParameters()) == protos.BatchingParameters()
        assert own.startswith("#")  # a file of no bytes stops the server with 255
        agreed = render(workshop.fleet(one, one | {"name": "two"}), TFSERVING)
        assert "one/batching_params.pbtxt" not in agreed

    def test_shows_the_session_and_the_gpu(self, workshop: Workshop) -> None:
        """Fields of ConfigProto come in either spelling; the GPU's number joins them."""
        values = workshop.values(TFSERVING, device="gpu:1", tfserving={"session": {"allowSoftPlacement": True}})
        session = text_format.Parse(render(workshop.fleet(values), TFSERVING)["session.pbtxt"], protos.ConfigProto())
        assert session.allow_soft_placement
        assert session.gpu_options.visible_device_list == "1"

    def test_serves_a_fleet_on_the_gpu_that_one_of_it_wants(self, workshop: Workshop) -> None:
        """The image is one for GPUs whichever model comes first; two numbers are refused, for a server has one list."""
        cpu, gpu, other = (
            workshop.values(TFSERVING, name=name, device=device)
            for name, device in (("a", "cpu"), ("b", "gpu:1"), ("c", "gpu:0"))
        )
        site = site_of(workshop.fleet(cpu), TFSERVING)
        for fleet in (workshop.fleet(cpu, gpu), workshop.fleet(gpu, cpu)):
            plan = TFSERVING.plan(fleet, site)
            assert plan.gpu
            assert plan.image.endswith("-gpu")
        with pytest.raises(SpecError, match="one server has one value"):
            render(workshop.fleet(gpu, other), TFSERVING)

    def test_lets_no_model_shorten_the_time_of_another(self, workshop: Workshop) -> None:
        """Who says nothing keeps the server's default."""
        hasty = workshop.values(TFSERVING, name="a", limits={"response_timeout": "5s"})
        alone, beside = (
            render(fleet, TFSERVING)["flags.txt"]
            for fleet in (workshop.fleet(hasty), workshop.fleet(hasty, workshop.values(TFSERVING, name="b")))
        )
        assert "--rest_api_timeout_in_ms=5000" in alone
        assert "--rest_api_timeout_in_ms=30000" in beside


class TestTorchServe:
    """The files of TorchServe, read as the JVM and PyYAML read them."""

    def test_shows_every_setting_of_a_rich_spec(self, workshop: Workshop) -> None:
        """Each key holds what the spec says, in the server's own units."""
        texts = render(workshop.fleet(workshop.rich_values(TORCHSERVE)), TORCHSERVE)
        found = properties.parse(texts["config.properties"])
        assert found["load_models"] == "digits=digits.mar"
        assert found["max_request_size"] == found["max_response_size"] == str(64 * 2**20)
        small = workshop.values(TORCHSERVE, name="a", limits={"request": "1MiB"})
        for fleet, most in (
            (workshop.fleet(small), 2**20), (workshop.fleet(small, workshop.values(TORCHSERVE, name="b")), 6_553_500)
        ):  # fmt: skip
            assert properties.parse(render(fleet, TORCHSERVE)["config.properties"])["max_request_size"] == str(most)
        assert found["disable_token_authorization"] == found["enable_model_api"] == "false"
        assert found["allowed_urls"].startswith("file://")
        config = yaml.safe_load(texts["digits/model-config.yaml"])
        assert (config["minWorkers"], config["maxWorkers"], config["batchSize"], config["maxBatchDelay"]) == (
            2,
            2,
            32,
            5,
        )
        assert (config["jobQueueSize"], config["responseTimeout"], config["startupTimeout"]) == (1024, 30, 90)
        assert config["servewright"]["options"]["threads"] == 2
        assert config["servewright"]["signature"]["inputs"][0]["shape"] == [None, 1, 8, 8]
        manifest = json.loads(texts["digits/MANIFEST.json"])
        assert manifest["model"]["modelVersion"] == "3"
        assert "createdOn" not in manifest

    def test_writes_values_out_that_occur_twice(self, workshop: Workshop) -> None:
        """TorchServe's reader gives up at fifty aliases."""
        text = "a: &x [1, 2]\n" + "".join(f"b{index}: *x\n" for index in range(60))
        own = "".join(f"    {line}\n" for line in text.splitlines())
        spec = yaml.safe_dump(workshop.values(TORCHSERVE)) + "torchserve:\n  yaml:\n" + own
        rendered = render(workshop.fleet(spec), TORCHSERVE)["digits/model-config.yaml"]
        assert "*" not in rendered
        assert yaml.safe_load(rendered)["b59"] == [1, 2]

    def test_shows_the_servers_settings(self, workshop: Workshop) -> None:
        """A fleet's settings open what was closed, and say so in the file."""
        fleet = workshop.fleet(workshop.values(TORCHSERVE), tokens=False, model_api=True, metrics=False, threads=9)
        found = properties.parse(render(fleet, TORCHSERVE)["config.properties"])
        assert found["disable_token_authorization"] == found["enable_model_api"] == "true"
        assert (found["enable_metrics_api"], found["metrics_mode"]) == ("false", "log")
        assert found["number_of_netty_threads"] == "9"


class TestSites:
    """Where a server will find its files."""

    def test_are_the_official_images_unless_told(self, workshop: Workshop, backend: Backend) -> None:
        """Ports come from the fleet, folders from the caller."""
        values = workshop.values(backend)
        fleet = replace(workshop.fleet(values), server=workshop.fleet(values, ports={"http": 9000}).server)
        site = site_of(fleet, backend, models="/elsewhere")
        assert (site.models, site.config, site.ports["http"]) == ("/elsewhere", backend.home.config, 9000)
        assert site.ports["grpc"] == backend.home.ports["grpc"]
        assert any("9000" in text for text in render(fleet, backend).values())
        assert any("/elsewhere" in text for text in render(fleet, backend, site).values())

    @pytest.mark.parametrize("folder", ["models", "", "./x", "/a\n--port=1", "~"])
    def test_are_absolute(self, workshop: Workshop, backend: Backend, folder: str) -> None:
        """Servers refuse relative folders, and a line break would begin another setting."""
        with pytest.raises(InputError, match="is not an absolute path; write it as the server sees it"):
            site_of(workshop.fleet(workshop.values(backend)), backend, models=folder)


_AWKWARD = (
    (
        '"',
        "\\",
        "\n",
        "a\nb",
        "x\r\ninjected=1",
        "#",
        "!",
        "${HOME}",
        "$$PATH$$",
        "{{ 1 }}",
        "{% raw %}",
        "null",
        "yes",
    ),
    ("~", "- a", "a: b", "&x", "*x", "'", "\\u000a", "\t", " ", " leading", "trailing ", "\u2028", "\x85", "\ufeff"),
    ("ключ", "=", "=a:b", "a=b", "--port=1", "/* x */", "\x00", "\x1b[31m", "]]>", "\\n", "e\u0301", "😀"),
)
ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30) | st.sampled_from(
    [text for row in _AWKWARD for text in row]
)
# What a flag or a label takes: others are refused with their place, which would leave nothing to look at.
ONE_LINE = ANY.map(lambda text: "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Zl", "Zp"))).filter(
    bool
)
LABELS = ONE_LINE.map(lambda text: "".join(c for c in text if not c.isspace() and c not in "/:")).filter(bool)
LEAVES = ANY | st.integers(-9, 9) | st.booleans() | st.none()


def mapping(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(keys)


def hostile(line: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Specs with any text wherever a spec takes text, and ``line`` where that is one line."""
    tensor = mapping(name=ANY, dtype=st.just("float32"), shape=st.just([None]))
    tensors = st.lists(tensor, min_size=1, max_size=3, unique_by=lambda tensor: tensor["name"])
    return mapping(
        signature=mapping(name=ANY, inputs=tensors, outputs=tensors),
        versions=mapping(labels=st.dictionaries(LABELS, st.just(3), max_size=3)),
        tfserving=mapping(
            base_path=ONE_LINE.map(lambda text: f"/{text}"),
            flags=mapping(saved_model_tags=line, ssl_config_file=line),
            session=mapping(gpu_options=mapping(visible_device_list=ANY)),
            batching=mapping(thread_pool_name=ANY),
        ),
        torchserve=mapping(
            properties=mapping(vmargs=ANY, cors_allowed_origin=ANY),
            yaml=st.dictionaries(ANY.map(lambda text: f"x{text}"), LEAVES | st.lists(LEAVES), max_size=3),
        ),
    )


class TestNoString:
    """No string in a spec can inject a line, or lose one."""

    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(changes=hostile(ONE_LINE))
    def test_changes_what_a_file_means(self, workshop: Workshop, backend: Backend, changes: dict[str, Any]) -> None:
        """Rendered files mean just what the spec says, and hold as many settings as it has."""
        values = workshop.values(backend, batching={"max_size": 4, "max_delay": "1ms"}, **changes)
        assume("$$" not in str(values["torchserve"]["properties"]))
        _assert_shape(render(workshop.fleet(values), backend), backend, values)

    @settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(changes=hostile(ANY))
    def test_makes_anything_but_a_file_or_a_refusal(
        self, workshop: Workshop, backend: Backend, changes: dict[str, Any]
    ) -> None:
        """What a server's format cannot hold is refused, with its path in the spec."""
        values = workshop.values(backend, batching={"max_size": 4, "max_delay": "1ms"}, **changes)
        try:
            texts = render(workshop.fleet(values), backend)
        except SpecError as error:
            _assert_placed(error)
        else:
            _assert_shape(texts, backend, values)


def _assert_placed(error: SpecError) -> None:
    assert all(problem.reason and problem.path for problem in error.problems)


def _assert_shape(texts: dict[str, str], backend: Backend, values: dict[str, Any]) -> None:
    """Check the number of settings in each file, which an injected one would change."""
    if backend is TORCHSERVE:
        own = values["torchserve"]
        found = properties.parse_lines(texts["config.properties"])
        assert len(found) == len({entry.key for entry in found}) == texts["config.properties"].count("\n")
        assert {entry.key: entry.value for entry in found}["vmargs"] == own["properties"]["vmargs"]
        config = yaml.safe_load(texts["digits/model-config.yaml"])
        assert config["servewright"]["signature"]["inputs"] == values["signature"]["inputs"]
        assert {key: config[key] for key in own["yaml"]} == own["yaml"]
    else:
        own = values["tfserving"]
        flags = texts["flags.txt"].removesuffix("\n").split("\n")
        names = [line.partition("=")[0] for line in flags]
        assert len(names) == len(set(names))
        assert all(name.startswith("--") for name in names)
        assert f"--saved_model_tags={own['flags']['saved_model_tags']}" in flags
        config = text_format.Parse(texts["model_config.pbtxt"], protos.ModelServerConfig()).model_config_list.config
        assert [(each.name, each.base_path, dict(each.version_labels)) for each in config] == [
            ("digits", own["base_path"], values["versions"]["labels"])
        ]
        batching = text_format.Parse(texts["batching_parameters.pbtxt"], protos.BatchingParameters())
        assert batching.thread_pool_name.value == own["batching"]["thread_pool_name"]


class TestDeterminism:
    """Same spec, same bytes."""

    def test_holds_within_a_process(self, workshop: Workshop, backend: Backend) -> None:
        """Rendering twice gives the same texts, in the same order."""
        fleet = workshop.fleet(workshop.rich_values(backend))
        assert list(render(fleet, backend).items()) == list(render(fleet, backend).items())

    def test_holds_across_processes_and_machines(self, workshop: Workshop, backend: Backend) -> None:
        """Neither the order of sets nor the number of cores shows in a text."""
        many = {f"label{index}": 3 for index in range(9)}
        values = workshop.rich_values(backend, versions={"policy": "all", "labels": many})
        del values["batching"]["threads"]
        spec = workshop.write(values)
        program = (
            "import os, sys; os.cpu_count = lambda: int(sys.argv[1])\n"
            "from servewright.cli import run; sys.exit(run(sys.argv[2:]))"
        )
        outputs = {
            subprocess.run(
                [sys.executable, "-c", program, cores, "render", spec, "-b", backend.name, "--json"],
                env=os.environ | {"PYTHONHASHSEED": seed},
                capture_output=True,
                check=True,
            ).stdout
            for seed, cores in (("1", "2"), ("2", "96"), ("3", "7"))
        }
        assert len(outputs) == 1

    def test_does_not_depend_on_the_order_of_labels(self, workshop: Workshop) -> None:
        """Two spellings of one mapping are one config."""
        first, second = (
            workshop.fleet(workshop.values(TFSERVING, versions={"policy": "all", "labels": labels}))
            for labels in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
        )
        assert render(first, TFSERVING) == render(second, TFSERVING)


def test_a_template_that_says_something_else_is_caught(workshop: Workshop, backend: Backend, tmp_path: Path) -> None:
    """Every text is parsed back: a bug in a template is an error of ours, and no config that lies."""
    broken = tmp_path / "templates"
    broken.mkdir()
    for template in filter(Path.is_file, backend.templates.iterdir()):
        (broken / template.name).write_text(template.read_text().replace("model.name", "model.base_path") + "\nx=1\n")
    with pytest.raises(ParseBackError, match="please report this"):
        render(workshop.fleet(workshop.values(backend)), replace(backend, templates=broken))


class TestExplaining:
    """What becomes of each key."""

    EXPECTED = (
        # the design's table of keys that need care: key, on TF Serving, on TorchServe
        ("batching.max_delay", (Fate.APPLIED, "batch_timeout_micros"), (Fate.APPLIED, "maxBatchDelay")),
        ("batching.queue", (Fate.APPLIED, "max_enqueued_batches"), (Fate.APPLIED, "jobQueueSize")),
        ("batching.allowed_sizes", (Fate.APPLIED, "allowed_batch_sizes"), (Fate.NOT_APPLICABLE, "")),
        ("batching.threads", (Fate.APPLIED, "num_batch_threads"), (Fate.NOT_APPLICABLE, "")),
        ("workers", (Fate.NOT_APPLICABLE, ""), (Fate.APPLIED, "minWorkers = maxWorkers")),
        ("threads.intra_op", (Fate.APPLIED, "--tensorflow_intra_op_parallelism"), (Fate.APPLIED, "OMP_NUM_THREADS")),
        ("versions.labels", (Fate.APPLIED, "version_labels"), (Fate.NOT_APPLICABLE, "")),
        ("server.threads", (Fate.APPLIED, "--grpc_max_threads"), (Fate.APPLIED, "number_of_netty_threads")),
    )

    @pytest.mark.parametrize(("key", "on_tfserving", "on_torchserve"), EXPECTED, ids=[row[0] for row in EXPECTED])
    def test_covers_the_keys_that_need_care(
        self, workshop: Workshop, key: str, on_tfserving: tuple[Fate, str], on_torchserve: tuple[Fate, str]
    ) -> None:
        """Where the servers differ, the table says how, with the setting's own name."""
        for backend, (fate, setting) in ((TFSERVING, on_tfserving), (TORCHSERVE, on_torchserve)):
            rows = outcomes(workshop.fleet(workshop.rich_values(backend), threads=2000), backend)["digits"]
            found = [row for row in rows if row.key == key or row.key.startswith(f"{key}.")]
            assert [row for row in found if row.fate is fate and row.setting.startswith(setting)]
            assert fate is Fate.APPLIED or all(row.note for row in found)

    def test_is_printed_for_people_and_machines(self, workshop: Workshop, backend: Backend, cli: Cli) -> None:
        """Both forms hold the same rows."""
        spec = workshop.write(workshop.rich_values(backend))
        code, table, _ = cli("render", spec, "-b", backend.name, "--explain")
        assert code == 0
        code, text, _ = cli("render", spec, "-b", backend.name, "--explain", "--json")
        assert code == 0
        rows = json.loads(text)["keys"]
        assert len(table.splitlines()) == len(rows) + 1
        assert {"model", "key", "value", "fate", "setting", "note", "remedy"} == set(rows[0])

    def test_shows_refusals_and_fails(self, workshop: Workshop, cli: Cli) -> None:
        """A spec that would be refused is explained too, with exit code 2."""
        spec = workshop.write(workshop.values(TORCHSERVE, batching={"max_size": 4, "max_delay": "500us"}))
        code, table, err = cli("render", spec, "--explain")
        assert code == 2
        assert "refused" in table
        assert "batching.max_delay" in err
        code, text, err = cli("render", spec, "--explain", "--json")
        assert (code, json.loads(text)["ok"]) == (2, False)


class TestChecking:
    """`render --check`, for configs that lie in version control."""

    def test_passes_where_nothing_differs(self, workshop: Workshop, backend: Backend, cli: Cli) -> None:
        """What was just written is what would be written."""
        spec, out = workshop.write(workshop.rich_values(backend)), workshop.folder / "config"
        code, printed, _ = cli("render", spec, "-b", backend.name, "-o", out)
        assert code == 0
        assert {Path(line) for line in printed.splitlines()} == {path for path in out.rglob("*") if path.is_file()}
        assert cli("render", spec, "-b", backend.name, "-o", out, "--check") == (0, "", "")

    def test_shows_what_differs(self, workshop: Workshop, backend: Backend, cli: Cli) -> None:
        """A changed, a missing and a re-ended file each give a diff, exit code 1, and nothing is written."""
        spec, out = workshop.write(workshop.rich_values(backend)), workshop.folder / "config"
        cli("render", spec, "-b", backend.name, "-o", out)
        first, second, third = sorted(path for path in out.rglob("*") if path.is_file())[:3]
        first.write_text("# mine\n" + first.read_text())
        second.unlink()
        third.write_bytes(third.read_bytes().replace(b"\n", b"\r\n"))
        code, diff, err = cli("render", spec, "-b", backend.name, "-o", out, "--check")
        assert code == 1
        assert "-# mine" in diff
        assert f"{second}: No such file or directory" in diff
        assert "the lines end differently" in diff
        assert f"{out} differs from {spec}; write it with: servewright render" in err
        assert not second.exists()
        code, text, _ = cli("render", spec, "-b", backend.name, "-o", out, "--check", "--json")
        assert (code, len(json.loads(text)["differences"])) == (1, 3)

    def test_leaves_files_of_others_alone(self, workshop: Workshop, backend: Backend, cli: Cli) -> None:
        """Writing replaces what is rendered, and nothing else in the folder."""
        out = workshop.folder / "config"
        out.mkdir()
        (out / "mine.txt").write_text("mine")
        assert cli("render", workshop.write(workshop.values(backend)), "-o", out)[0] == 0
        assert (out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"signature": {"inputs": [X | {"name": "words", "dtype": "string"}], "outputs": [X]}},
            "signature.inputs: the tensor handler cannot carry 'words', which is string; give the model numbers",
        ),
        (
            {"signature": {"inputs": [X], "outputs": [X | {"name": "wave", "dtype": "complex64"}]}},
            "signature.outputs: the tensor handler cannot carry 'wave', which is complex64; give the model numbers",
        ),
        (
            {"model": {"path": "model_onnx", "format": "onnx"}, "device": "gpu"},
            "device: the tensor handler runs onnx on CPUs, and its workers would not start; remove it",
        ),
    ],
    ids=["input", "output", "onnx on a GPU"],
)
def test_what_our_handlers_cannot_do_is_refused_before_a_worker_fails(
    workshop: Workshop, changes: dict[str, Any], said: str
) -> None:
    """TorchServe would retry such a worker until it gives up; a handler of the user's own may do all of it."""
    workshop.model("onnx")
    assert said in refusal(workshop, TORCHSERVE, **changes)
    (workshop.folder / "mine.py").write_text("")
    assert render(workshop.fleet(workshop.values(TORCHSERVE, **changes, handler={"use": "mine.py"})), TORCHSERVE)


def test_refusals_of_one_key_stand_at_its_place(workshop: Workshop) -> None:
    """A backend's refusal names file, line and column like any other problem."""
    text = (
        yaml.safe_dump(workshop.values(TORCHSERVE), sort_keys=False) + "batching:\n  max_size: 4\n  max_delay: 400us\n"
    )
    with pytest.raises(SpecError) as caught:
        render(workshop.fleet(text), TORCHSERVE)
    (found,) = caught.value.problems
    assert found.line == text.splitlines().index("  max_delay: 400us") + 1
    assert found.column == 3
    assert "would round to 0, which means 100 ms there; write max_delay: 1ms" in str(found)


def test_models_of_one_server_agree_on_its_settings(workshop: Workshop) -> None:
    """A setting of the whole server that two specs give differently is refused; given alike, it is one."""
    for backend, key, one, two in (
        (TFSERVING, "tfserving", {"flags": {"num_load_threads": 1}}, {"flags": {"num_load_threads": 2}}),
        (TFSERVING, "tfserving", {"monitoring_path": "/a"}, {"monitoring_path": "/b"}),
        (
            TFSERVING,
            "tfserving",
            {"session": {"allow_soft_placement": True}},
            {"session": {"allowSoftPlacement": False, "gpu_options": {}}},
        ),
        (TORCHSERVE, "torchserve", {"properties": {"debug": True}}, {"properties": {"debug": False}}),
    ):
        first = workshop.values(backend, name="one", **{key: one})
        second = workshop.values(backend, name="two", **{key: two})
        if "session" not in one:
            with pytest.raises(SpecError, match="one server has one value: make them equal"):
                render(workshop.fleet(first, second), backend)
        assert render(workshop.fleet(first, first | {"name": "two"}), backend)
