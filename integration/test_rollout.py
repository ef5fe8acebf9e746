"""Rollouts on servers that run, under load: who may answer when, and that nothing fails but a canary that fails."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration.test_torchserve_process import archive, torchserve
from integration.traffic import Timeline, Traffic
from servewright import pipeline, registry
from servewright.backends.tfserving.client import Client as TfClient
from servewright.backends.torchserve.client import Client as TsClient
from servewright.backends.torchserve.descriptions import ModelDescription
from servewright.backends.torchserve.process import KEY_FILE
from servewright.errors import CheckFailedError, InputError, ProbeTimeoutError, ServerAnswerError
from servewright.processes import ProcessPlan, free_ports, start, wait_until
from servewright.rollout import carrying, journal
from servewright.rollout.live import Live, parse
from servewright.rollout.plan import Aim, Phase, Step

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import embedded_graphs as graphs

RATE = 200.0
ONE = np.ones(1, np.float32)
needs_tensorflow = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow")


def save_times(folder: Path, version: float, *, op: str = "Mul") -> Path:
    """Write the model ``y = x * version``: for x = 1, the answer names its version."""
    nodes = [
        graphs.placeholder("x", graphs.FLOAT),
        graphs.constant("version", graphs.FLOAT, (), struct.pack("<f", version)),
        graphs.binary("y", op, "x", "version", graphs.FLOAT),
    ]
    return graphs.save(folder, nodes, {"x": graphs.FLOAT}, {"y": graphs.FLOAT})


def write_spec(folder: Path, version: int, model: str, *, more: str = "") -> Path:
    """Write a spec of model ``times`` with golden data: its answers shall be its version times what it is given."""
    inputs, outputs = folder / f"in-{version}.npz", folder / f"out-{version}.npz"
    rows = np.arange(1, 9, dtype=np.float32)
    np.savez(inputs, x=rows)
    np.savez(outputs, y=rows * version)
    spec = folder / f"times-{version}.yaml"
    spec.write_text(
        f"servewright: 1\nname: times\nversion: {version}\nmodel: {model}\n"
        "signature: {inputs: [{name: x, dtype: float32, shape: [null]}],"
        " outputs: [{name: y, dtype: float32, shape: [null]}]}\n"
        f"golden: [{{inputs: {inputs.name}, outputs: {outputs.name}}}]\n{more}"
    )
    return spec


@dataclass
class Rolled:
    """A rollout made by the library, and what was heard of it."""

    found: journal.Journal
    timeline: Timeline = field(default_factory=Timeline)
    error: BaseException | None = None


def plan(spec: Path, backend_name: str, *lives: Live, **wishes: Any) -> tuple[tuple[Live, tuple[Step, ...]], ...]:
    """Package a spec, and lay a rollout of it out."""
    fleet, backend = pipeline.load(spec), registry.get(backend_name)
    artifact = pipeline.package(fleet, backend, spec.parent / f"artifact-{spec.stem}").root
    aims = [
        (live, Aim(fleet=fleet, artifact=artifact, options=live.options, earlier=journal.earlier_at(live), **wishes))
        for live in lives
    ]
    return carrying.prepare(backend, aims)


def roll(
    spec: Path,
    backend_name: str,
    *lives: Live,
    stop: Callable[[Step], None] = lambda _: None,
    patience_s: float = 30.0,
    **wishes: Any,
) -> Rolled:
    """Carry a rollout out; an error of ours is kept. ``stop`` is called when a step begins."""
    fleet, backend = pipeline.load(spec), registry.get(backend_name)
    servers = plan(spec, backend_name, *lives, **wishes)
    found = journal.create(
        fleet.name, backend.name, servers, spec=str(spec), digest=fleet.digest, run=str(spec.parent), open="-"
    )
    rolled = Rolled(found)

    def on_step(server: int, step: Step, word: journal.Word) -> None:
        rolled.timeline.on_step(server, step, word)
        if word is journal.Word.BEGIN:
            stop(step)

    listener = carrying.Listener(on_step=on_step)
    try:
        carrying.Carrier(found, backend, patience_s=patience_s, listener=listener).forward(fleet)
    except (CheckFailedError, KeyboardInterrupt) as error:
        rolled.error = error
    return rolled


def take_back(rolled: Rolled) -> Timeline:
    """Take a rollout back, as another process would: from its journal alone."""
    timeline = Timeline()
    again = journal.load(rolled.found.path)
    listener = carrying.Listener(on_step=timeline.on_step)
    carrying.Carrier(again, registry.get(again.backend), patience_s=30.0, listener=listener).back()
    assert again.state == "as before"
    return timeline


def shown(rolled: Rolled) -> str:
    """Return where the server itself shows that it is."""
    found = rolled.found
    return carrying.Carrier(found, registry.get(found.backend), patience_s=30.0, listener=carrying.Listener()).where(0)


@pytest.fixture(autouse=True)
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep journals and servers' records among the test's own files."""
    monkeypatch.setenv("SERVEWRIGHT_ROLLOUTS", str(tmp_path / "rollouts"))
    monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))


CONFIG = """# by hand
model_config_list {{
  config {{ name: "times" base_path: "{base}" model_platform: "tensorflow"
           model_version_policy {{ latest {{ num_versions: 1 }} }} {labels} }}
  config {{ name: "other" base_path: "{other}" model_platform: "tensorflow" }}
}}
"""
STABLE = 'version_labels { key: "stable" value: 1 }'


@dataclass
class TfServer:
    """An embedded TF Serving that serves ``times`` 1 and ``other`` 7, and what belongs to it."""

    folder: Path
    models: Path
    config: Path
    client: TfClient
    live: Live

    def asks(self, **ways: Mapping[str, Any]) -> dict[str, list[Callable[[], float]]]:
        """Return callers by the way of asking, each over both transports."""

        def ask(transport: Any, how: Mapping[str, Any]) -> Callable[[], float]:
            return lambda: float(
                self.client.predict("times", {"x": ONE}, transport=transport, timeout_s=20, **how)["y"][0]
            )

        named = {f"times {name.replace('_', ' ')}".strip(): how for name, how in ways.items()}
        return {asked: [ask("http", how), ask("grpc", how)] for asked, how in named.items()}

    def serves(self, model: str = "times") -> list[int]:
        """Return the versions that are AVAILABLE."""
        try:
            found = self.client.status(model)
        except ServerAnswerError:
            return []
        return sorted(each.version for each in found if each.state == "AVAILABLE")


@contextmanager
def tf_server(
    folder: Path, *flags: str, options: str = "", labels: str = STABLE, number: int = 0
) -> Iterator[TfServer]:
    """Start a server; ``labels`` is text for its config, ``options`` goes into its ``--live``."""
    models = folder / f"models-{number}"
    save_times(models / "times" / "1", 1)
    save_times(models / "other" / "7", 7)
    config = folder / f"models-{number}.pbtxt"
    config.write_text(CONFIG.format(base=models / "times", other=models / "other", labels=labels))
    grpc, http = free_ports(2)
    argv = (
        sys.executable, "-m", "servewright.backends.tfserving.embedded", f"--port={grpc}", f"--rest_api_port={http}",
        f"--model_config_file={config}", "--max_num_load_retries=0", "--file_system_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models=true", *flags,
    )  # fmt: skip
    plan = ProcessPlan(argv, {"TF_CPP_MIN_LOG_LEVEL": "3"}, folder, folder / f"server-{number}.log")
    said = f"http://127.0.0.1:{http},grpc=127.0.0.1:{grpc}{options.format(config=config, models=models)}"
    live = parse(said, ("store", "config", "via"))
    with start(plan), TfClient(grpc=f"127.0.0.1:{grpc}", http=f"127.0.0.1:{http}") as client:
        wait_until(lambda: client.predict("times", {"x": ONE}), within_s=60, what="the server answers")
        yield TfServer(folder, models, config, client, live)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TfServer]:
    """One server for the tests that leave it as it was."""
    with tf_server(tmp_path_factory.mktemp("tf"), options=",config={config}") as server:
        yield server


def tf_spec(server: TfServer, version: int, *, computes: float | None = None, **more: Any) -> Path:
    """Write a spec for a version that multiplies by it, or by something else."""
    saved = server.folder / f"saved-{version}-{computes}"
    if not saved.exists():
        save_times(saved, version if computes is None else computes)
    return write_spec(server.folder, version, f"{{path: {saved.name}, format: saved_model}}", **more)


def assert_as_before(server: TfServer) -> None:
    """Assert that version 1 is served and nothing else, by its label too, and the base path holds nothing new."""
    assert server.serves() == [1]
    assert server.serves("times-canary") == []
    assert server.serves("other") == [7]
    assert server.client.version_of_label("times", "stable") == 1
    assert server.client.version_of_label("times", "canary") is None
    assert [path.name for path in (server.models / "times").iterdir()] == ["1"]


def assert_promoted(server: TfServer, version: int = 2) -> None:
    """Assert that the new version is served and nothing else, that its label has moved, and no canary is left."""
    assert server.serves() == [version]
    assert server.serves("times-canary") == []
    assert server.serves("other") == [7]
    assert server.client.version_of_label("times", "stable") == version


@needs_tensorflow
class TestTfServing:
    """On the embedded TF Serving."""

    def upgrade_and_back(self, server: TfServer, naming: str, **ways: Mapping[str, Any]) -> None:
        before = server.config.read_bytes()
        with Traffic(server.asks(**ways), RATE) as traffic:
            rolled = roll(tf_spec(server, 2), "tfserving", server.live, naming=naming)
            assert rolled.error is None
            assert rolled.found.state == "promoted"
            assert_promoted(server)
            assert shown(rolled) == "promoted"
            back = take_back(rolled)
            assert shown(rolled) == "as before"
        assert_as_before(server)
        assert server.config.read_bytes() == before
        assert traffic.failures == []
        assert Timeline(rolled.timeline.moments + back.moments).strangers(traffic.sent) == []
        assert traffic.versions("times label stable") == ["1", "2"]

    def test_upgrades_and_goes_back_by_reloads(self, served: TfServer) -> None:
        """A canary of its own name: nobody meets the new version before it is promoted, named or not."""
        self.upgrade_and_back(served, "model", **{"": {}, "label_stable": {"label": "stable"}})

    def test_upgrades_and_goes_back_by_a_polled_file(self, tmp_path: Path) -> None:
        """A canary label, and the server's own file: replaced in whole, and in the end what it was, byte by byte."""
        with tf_server(
            tmp_path, "--model_config_file_poll_wait_seconds=1", options=",via=file,config={config}"
        ) as server:
            # Nor does it need gRPC, which a server may keep to itself.
            server.live = replace(server.live, endpoints={"http": server.live.endpoints["http"]})
            self.upgrade_and_back(server, "label", label_stable={"label": "stable"})

    @pytest.mark.parametrize("naming", ["model", "label"])
    def test_a_canary_that_answers_wrongly_goes(self, served: TfServer, naming: str) -> None:
        """Golden data tell; who did not ask for the canary never met it."""
        ways = {"label_stable": {"label": "stable"}} | ({"": {}} if naming == "model" else {})
        with Traffic(served.asks(**ways), RATE) as traffic:
            rolled = roll(tf_spec(served, 3, computes=9), "tfserving", served.live, naming=naming)
        assert isinstance(rolled.error, CheckFailedError)
        assert "golden[0] over http" in str(rolled.error)
        assert rolled.found.state == "as before"
        assert_as_before(served)
        assert traffic.failures == []
        assert {each.version for each in traffic.sent} == {"1"}

    def test_a_version_that_does_not_load_goes(self, served: TfServer) -> None:
        """The server's own reason is told, and a second try with a good file succeeds."""
        spec = tf_spec(served, 4)
        saved = served.folder / "saved-4-None"
        good = saved.rename(served.folder / "good")
        save_times(saved, 4, op="NoSuchOperation")
        with Traffic(served.asks(**{"": {}}), RATE) as traffic:
            broken = roll(spec, "tfserving", served.live)
            shutil.rmtree(saved)
            good.rename(saved)
            mended = roll(spec, "tfserving", served.live)
            take_back(mended)
        assert "times-canary version 4 does not load" in str(broken.error)
        assert "NoSuchOperation" in str(broken.error)
        assert broken.found.state == "as before"
        assert (mended.error, mended.found.state) == (None, "promoted")
        assert_as_before(served)
        assert traffic.failures == []

    @pytest.mark.parametrize("phase", [Phase.CANARY, Phase.PROMOTE, Phase.RETIRE])
    def test_ctrl_c_takes_back(self, served: TfServer, phase: Phase) -> None:
        """Whenever it comes, the server is what it was when the command has ended."""

        def press(step: Step) -> None:
            if step.phase is phase:
                raise KeyboardInterrupt

        rolled = roll(tf_spec(served, 2), "tfserving", served.live, stop=press)
        assert isinstance(rolled.error, KeyboardInterrupt)
        assert rolled.found.state == "as before"
        assert_as_before(served)

    def test_a_step_that_takes_too_long_takes_back(self, served: TfServer) -> None:
        """A server that does not poll never shows what was written to its file; that is put back, byte by byte."""
        before = served.config.read_bytes()
        polled = replace(served.live, options={"via": "file", "config": str(served.config)})
        with pytest.raises(ProbeTimeoutError, match="does the server poll") as caught:
            roll(tf_spec(served, 2), "tfserving", polled, patience_s=1.0)
        assert any("is as it was before" in note for note in caught.value.__notes__)
        assert served.config.read_bytes() == before
        assert_as_before(served)

    def test_halts_at_the_first_server_that_fails(self, served: TfServer, tmp_path: Path) -> None:
        """The first one is promoted, the second as before, the third untouched; a rollback takes the first back."""
        with tf_server(tmp_path, options=",config={config}", number=1) as second:
            # The second server's store cannot take the version: something else bears its name by then.
            def spoil(step: Step) -> None:
                if step.phase is Phase.RETIRE:
                    save_times(second.models / "times" / "2", 5)

            with pytest.raises(InputError, match="holds another model") as caught:
                roll(tf_spec(served, 2), "tfserving", served.live, second.live, stop=spoil)
            assert any("1 promoted, 1 as before" in note for note in caught.value.__notes__)
            assert_promoted(served)
            assert second.serves() == [1]
            found = journal.find("times", to_resume=False)
            assert [str(server.condition) for server in found.servers] == ["promoted", "as before"]
            take_back(Rolled(found))
            assert_as_before(served)

    def test_a_config_that_is_not_known_is_not_replaced(self, served: TfServer, tmp_path: Path) -> None:
        """A reload replaces all models: it is refused without the config, or with a stale one, unless asked for."""
        options = dict(served.live.options)
        del options["config"]
        nothing = replace(served.live, options=options)
        with pytest.raises(InputError, match=r"no file holds it.*--replace-all"):
            roll(tf_spec(served, 2), "tfserving", nothing)
        stale = tmp_path / "stale.pbtxt"
        stale.write_text(served.config.read_text().replace("value: 1", "value: 3"))
        with pytest.raises(InputError, match=r"stale\.pbtxt is not what the server has: label stable of times is on 3"):
            roll(tf_spec(served, 2), "tfserving", replace(served.live, options={"config": str(stale)}))
        assert_as_before(served)
        assert list(journal.journals()) == []

    def test_our_own_last_reload_is_known(self, served: TfServer) -> None:
        """A second rollout needs no file: what the first one left is in its journal."""
        first = roll(tf_spec(served, 2), "tfserving", served.live)
        planned = plan(tf_spec(served, 3), "tfserving", replace(served.live, options={}))
        pinned = planned[0][1][0].values["before"]
        assert (pinned["config"], pinned["serves"]["times"]) == (
            first.found.servers[0].steps[-1].values["after"]["config"],
            (2,),
        )
        take_back(first)
        assert_as_before(served)

    def test_what_the_server_must_allow_is_named(self, served: TfServer, tmp_path: Path) -> None:
        """Before anything is touched, each thing that lacks is said with its remedy."""
        for options, complaint in (
            ({"config": str(served.config), "store": str(tmp_path)}, "times is not a folder of this machine"),
            ({"via": "file"}, "say config=FILE"),
            ({"via": "file", "config": str(tmp_path / "absent.pbtxt")}, "cannot be replaced"),
        ):
            with pytest.raises(InputError, match=complaint):
                roll(tf_spec(served, 2), "tfserving", replace(served.live, options=options))
        no_grpc = replace(served.live, endpoints={"http": served.live.endpoints["http"]})
        with pytest.raises(InputError, match="say grpc=host:port"):
            roll(tf_spec(served, 2), "tfserving", no_grpc)
        with pytest.raises(InputError, match="served already"):
            roll(tf_spec(served, 1, more="versions: {labels: {fresh: 1}}\n"), "tfserving", served.live)
        assert_as_before(served)


# Multiplies its one float32 input by its version, in the payload forms of servewright's handlers.
HANDLER = """
import json
import struct

import numpy as np

VERSION = {version}


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, item in enumerate(data):
        product = np.float32(VERSION) * np.frombuffer(bytes(item.get("body") or item["data"]), np.float32)
        if "data" in item:
            header = {{"y": {{"dtype": "F32", "shape": product.shape, "data_offsets": [0, product.nbytes]}}}}
            text = json.dumps(header).encode()
            answers.append(struct.pack("<Q", len(text)) + text + product.tobytes())
            continue
        headers = {{"X-Tensor-Name": "y", "X-Tensor-Dtype": "float32", "X-Tensor-Shape": str(product.size)}}
        for name, value in headers.items():
            context.set_response_header(index, name, value)
        context.set_response_content_type(index, "application/octet-stream")
        answers.append(product.tobytes())
    return answers
"""


@dataclass
class TsServer:
    """A TorchServe that serves ``times`` 1, and what belongs to it."""

    folder: Path
    store: Path
    client: TsClient
    live: Live

    def asks(self, *versions: str | None) -> dict[str, list[Callable[[], float]]]:
        """Return callers by the way of asking, each over both transports."""

        def ask(transport: str, version: str | None) -> Callable[[], float]:
            return lambda: float(
                self.client.predict("times", {"x": ONE}, transport=transport, version=version, timeout_s=20)["y"][0]
            )

        named = {"times" if version is None else f"times version {version}": version for version in versions}
        # One worker answers one after another: who waits for its turn cannot ask again.
        return {asked: [ask("http", version), ask("grpc", version)] * 3 for asked, version in named.items()}

    def default(self) -> ModelDescription:
        """Return the version that answers whoever names none."""
        return self.client.describe("times", None)[0]

    def assert_serves(self, version: str) -> None:
        """Assert that one version is registered and no other, and that it has its worker."""
        assert [(each.version, each.ready_workers) for each in self.client.describe("times")] == [(version, 1)]
        assert self.default().version == version


@contextmanager
def torch_server(folder: Path) -> Iterator[TsServer]:
    """Start a TorchServe that serves ``times`` 1."""
    store = folder / "store"
    store.mkdir()
    archive(store, "times", HANDLER.format(version=1), version="1")
    with torchserve(store, "times", model_api=True) as started:
        started.wait_ready("times")
        parts = [f"{name}={started.endpoints[name]}" for name in ("http", "grpc", "management")]
        said = ",".join([*parts, f"store={store}", f"key_file={started.run / KEY_FILE}"])
        yield TsServer(folder, store, started.client, parse(said, ("store", "key_file")))


@pytest.fixture(scope="module")
def torch_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TsServer]:
    """One TorchServe for the tests that leave it as it was."""
    with torch_server(tmp_path_factory.mktemp("ts")) as server:
        yield server


def ts_spec(server: TsServer, version: int, *, computes: str | None = None, **more: Any) -> Path:
    """Write a spec for a version that multiplies by it, or by something else."""
    (server.folder / "model.onnx").write_bytes(b"\x08\x08\x3a\x00")  # the handler does not look at it
    handler = server.folder / f"times_{version}.py"
    handler.write_text(HANDLER.format(version=version if computes is None else computes))
    extra = f"handler: {{use: {handler.name}}}\n"
    return write_spec(server.folder, version, "{path: model.onnx, format: onnx}", more=extra)


class TestTorchServe:
    """On a real TorchServe."""

    def test_upgrades_and_goes_back(self, torch_served: TsServer) -> None:
        """Nobody is left without an answer; whoever names no version meets the new one from its promotion on."""
        before = dict(torch_served.default().raw)
        with Traffic(torch_served.asks(None), RATE) as traffic:
            rolled = roll(ts_spec(torch_served, 2), "torchserve", torch_served.live)
            assert rolled.error is None
            assert rolled.found.state == "promoted"
            torch_served.assert_serves("2")
            assert shown(rolled) == "promoted"
            back = take_back(rolled)
            assert shown(rolled) == "as before"
        torch_served.assert_serves("1")
        assert [path.name for path in torch_served.store.iterdir()] == ["times.mar"]
        changing = {"workers", "jobQueueStatus", "loadedAtStartup"}
        after = torch_served.default().raw
        assert {key: after[key] for key in after.keys() - changing} == {
            key: before[key] for key in before.keys() - changing
        }
        assert traffic.failures == []
        assert Timeline(rolled.timeline.moments + back.moments).strangers(traffic.sent) == []
        assert {each.version for each in traffic.sent} == {"1", "2"}

    @pytest.mark.parametrize(("computes", "complaint"), [("9", "golden[0] over grpc"), ("1 / 0", "does not load")])
    def test_a_version_that_fails_goes(self, torch_served: TsServer, computes: str, complaint: str) -> None:
        """Whether its answers are wrong or its code does not even load: nobody else met it, and nothing is left."""
        spec = ts_spec(torch_served, 3, computes=computes)
        with Traffic(torch_served.asks(None, "1"), RATE) as traffic:
            rolled = roll(spec, "torchserve", torch_served.live)
        assert complaint in str(rolled.error)
        assert rolled.found.state == "as before"
        torch_served.assert_serves("1")
        assert [path.name for path in torch_served.store.iterdir()] == ["times.mar"]
        assert traffic.failures == []
        assert {each.version for each in traffic.sent} == {"1"}

    @pytest.mark.parametrize("phase", [Phase.CANARY, Phase.RETIRE])
    def test_ctrl_c_takes_back(self, torch_served: TsServer, phase: Phase) -> None:
        """Whenever it comes, the server is what it was when the command has ended."""

        def press(step: Step) -> None:
            if step.phase is phase:
                raise KeyboardInterrupt

        rolled = roll(ts_spec(torch_served, 2), "torchserve", torch_served.live, stop=press)
        assert isinstance(rolled.error, KeyboardInterrupt)
        assert rolled.found.state == "as before"
        torch_served.assert_serves("1")

    def test_what_the_server_must_allow_is_named(self, torch_served: TsServer, tmp_path: Path) -> None:
        """The key, the store, the management API: before anything is touched."""
        live, spec = torch_served.live, ts_spec(torch_served, 2)
        nobody = replace(live, options={"store": str(torch_served.store)})
        elsewhere = replace(live, options={**live.options, "store": str(tmp_path)})
        no_store = replace(live, options={"key_file": live.options["key_file"]})
        blind = replace(live, endpoints={"http": live.endpoints["http"]})
        for wrong, complaint in (
            (nobody, "key_file=FILE"),
            (elsewhere, r"does not hold times\.mar"),
            (no_store, "say where that is: store=FOLDER"),
            (blind, "management=host:port"),
        ):
            with pytest.raises(InputError, match=complaint):
                roll(spec, "torchserve", wrong)
        torch_served.assert_serves("1")
        assert list(journal.journals()) == []

    def test_a_server_whose_model_api_is_off_is_said_so(self, torch_served: TsServer) -> None:
        """Nothing could be registered there; the setting is named."""
        with torchserve(torch_served.store, "times") as started:
            wait_until(started.client.ping, within_s=60, what="the server answers")
            options = {"store": str(torch_served.store), "key_file": str(started.run / KEY_FILE)}
            live = Live(said="off", endpoints=started.endpoints, options=options)
            with pytest.raises(InputError, match="enable_model_api=true"):
                roll(ts_spec(torch_served, 2), "torchserve", live)
