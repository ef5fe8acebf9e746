"""The embedded TF Serving, started as a program: what it serves, how it changes, and how it ends."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from servewright import __version__
from servewright.backends.tfserving import protos
from servewright.backends.tfserving.warmup import write_records

sys.path.insert(0, str(Path(__file__).parent))
import embedded_graphs as graphs
from embedded_running import Server, entry, eventually, half, start, write_config

__all__ = ["half", "start"]  # pytest finds the fixtures by their names

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow's library"),
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for tests that change nothing: model ``m``, ``y = x / 2 + 2``."""
    folder = tmp_path_factory.mktemp("shared")
    graphs.save_half_plus(folder / "m" / "1", 2.0)
    server = Server(
        folder, ["--model_name=m", f"--model_base_path={folder / 'm'}", "--enable_grpc_healthcheck_service=true"]
    )
    yield server.ready()
    server.stop()


class TestServing:
    """Requests are answered over gRPC and REST."""

    def test_both_ways_give_the_same(self, shared: Server) -> None:
        """Predict, status and metadata agree between gRPC and REST."""
        server = shared
        assert server.predict("m", [1, 2, 5]) == [2.5, 3.0, 4.5]
        assert server.web("/v1/models/m:predict", {"instances": [1, 2, 5]}) == (200, {"predictions": [2.5, 3.0, 4.5]})
        assert server.states("m") == {1: "AVAILABLE"}
        status, answer = server.web("/v1/models/m")
        assert (status, answer["model_version_status"][0]["state"]) == (200, "AVAILABLE")
        request = protos.GetModelMetadataRequest(model_spec={"name": "m"}, metadata_field=["signature_def"])
        metadata = server.call(protos.GET_MODEL_METADATA, request, "GetModelMetadataResponse")
        signatures = protos.SignatureDefMap()
        metadata.metadata["signature_def"].Unpack(signatures)
        assert signatures.signature_def["serving_default"].inputs["x"].name == "x:0"
        assert server.web("/v1/models/m/metadata")[1]["model_spec"]["version"] == "1"

    def test_says_that_it_is_a_stand_in(self, shared: Server) -> None:
        """In its log, in every HTTP answer, and ahead of the status answer of gRPC."""
        server = shared
        assert "servewright embedded TF Serving stand-in" in server.log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/v1/models/m") as answer:
            assert answer.headers["Server"] == f"servewright-embedded/{__version__}"
        request = protos.GetModelStatusRequest(model_spec={"name": "m"}).SerializeToString()
        _, call = server.channel.unary_unary(protos.GET_MODEL_STATUS).with_call(request)
        assert ("servewright-stand-in", __version__) in call.initial_metadata()

    def test_strings_pass_through(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """Bytes of any length and value come back as they went."""
        graphs.save_texts(tmp_path / "texts" / "1")
        server = start("--model_name=t", f"--model_base_path={tmp_path / 'texts'}").ready()
        values = [b"", b"a\0b", bytes(range(256)), b"x" * 22, b"y" * 23]
        tensor = {"dtype": 7, "tensor_shape": {"dim": [{"size": len(values)}]}, "string_val": values}
        request = protos.PredictRequest(model_spec={"name": "t"}, inputs={"s": tensor})
        assert list(server.call(protos.PREDICT, request, "PredictResponse").outputs["text"].string_val) == values

    @pytest.mark.parametrize(
        ("spec", "inputs", "code", "details"),
        [
            ({"name": "no"}, {}, "NOT_FOUND", "Servable not found for request: Latest(no)"),
            ({"name": "m", "version": {"value": 7}}, {}, "NOT_FOUND", "Servable not found for request: Specific(m, 7)"),
            ({"name": "m", "version_label": "a"}, {}, "INVALID_ARGUMENT", "Unrecognized servable version label: a"),
            ({"name": ""}, {}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
            ({"name": "m", "signature_name": "s"}, {}, "FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
            (
                {"name": "m"},
                {"x": {"dtype": 9, "int64_val": [1]}},
                "INVALID_ARGUMENT",
                "Expects arg[0] to be float but int64 is provided",
            ),
            (
                {"name": "m"},
                {"z": {"dtype": 1}},
                "INVALID_ARGUMENT",
                "Signature input alias: x(feed name: x:0) not found in request",
            ),
        ],
    )
    def test_mistakes_are_told(self, shared: Server, spec: Any, inputs: Any, code: str, details: str) -> None:
        """Each kind of wrong request has its code and its text."""
        with pytest.raises(grpc.RpcError) as error:
            shared.call(protos.PREDICT, protos.PredictRequest(model_spec=spec, inputs=inputs), "PredictResponse")
        assert error.value.code().name == code
        assert str(error.value.details()).startswith(details)

    def test_counts_what_it_answers(self, start: Callable[..., Server], half: Path, tmp_path: Path) -> None:
        """The metrics page counts requests by model and status."""
        (tmp_path / "monitoring").write_text("prometheus_config { enable: true }")
        server = start(
            "--model_name=m", f"--model_base_path={half}", f"--monitoring_config_file={tmp_path / 'monitoring'}"
        )
        server.ready().predict("m", [1])
        server.web("/v1/models/m:predict", {"instances": ["a"]})
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics") as answer:
            page = answer.read().decode()
        assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 1' in page
        assert ':tensorflow:serving:request_count{model_name="m",status="INVALID_ARGUMENT"} 1' in page

    def test_health_is_told_on_request(self, shared: Server) -> None:
        """With the flag, the health service knows the server and its services."""
        server = shared
        check = server.channel.unary_unary(protos.HEALTH_CHECK)
        assert check(b"") == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as error:
            check(protos.HealthCheckRequest(service="x").SerializeToString())
        assert error.value.details() == "service name unknown"
        watched = server.channel.unary_stream(protos.HEALTH_CHECK.replace("Check", "Watch"))(b"", timeout=20)
        assert next(watched) == b"\x08\x01"
        watched.cancel()

    def test_a_socket_file_serves_grpc(self, start: Callable[..., Server], half: Path) -> None:
        """Beside the port, or instead of it."""
        path = half.parent / "s"
        server = start("--model_name=m", f"--model_base_path={half}", f"--grpc_socket_path={path}", "--port=0")
        eventually(lambda: "Running gRPC ModelServer at UNIX socket" in server.log.read_text())
        server.channel = grpc.insecure_channel(f"unix:{path}")
        assert server.predict("m", [2]) == [3.0]
        server.process.terminate()
        assert server.process.wait(3) == 0
        assert not path.exists()

    def test_cross_origin_requests_are_allowed_on_request(self, start: Callable[..., Server], half: Path) -> None:
        """With the flag every answer has the headers, and a preflight with an origin is answered."""
        server = start("--model_name=m", f"--model_base_path={half}", "--rest_api_enable_cors_support=true").ready()
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/m"
        request = urllib.request.Request(url, method="OPTIONS", headers={"Origin": "http://example.com"})
        for asked in (url, request):
            with urllib.request.urlopen(asked) as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == "*"


class TestBatching:
    """Requests that come together are computed together, and each gets its own rows."""

    FLAGS = ("--enable_batching=true", "--grpc_max_threads=64", "--rest_api_num_threads=64")

    def server(self, start: Callable[..., Server], tmp_path: Path, parameters: str) -> Server:
        graphs.save_with_total(tmp_path / "total" / "1")
        (tmp_path / "batching").write_text(parameters)
        file = f"--batching_parameters_file={tmp_path / 'batching'}"
        return start("--model_name=t", f"--model_base_path={tmp_path / 'total'}", file, *self.FLAGS).ready()

    def ask(self, server: Server, values: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return ``y`` and the totals of the batches that the values were in."""
        tensor = {"dtype": 9, "tensor_shape": {"dim": [{"size": len(values)}]}, "int64_val": values}
        request = protos.PredictRequest(model_spec={"name": "t"}, inputs={"x": tensor})
        outputs = server.call(protos.PREDICT, request, "PredictResponse").outputs
        return list(outputs["y"].int64_val), list(outputs["total"].int64_val)

    def test_a_full_batch_does_not_wait(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """Eight requests fill a batch of eight long before its timeout of a minute."""
        server = self.server(
            start,
            tmp_path,
            "max_batch_size { value: 8 } batch_timeout_micros { value: 60000000 } num_batch_threads { value: 1 }",
        )
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda value: self.ask(server, [value]), range(1, 9)))
        assert answers == [([value + 1], [36]) for value in range(1, 9)]

    def test_splitting_puts_a_request_together_again(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """A request of six rows is computed in two batches, and answered in order."""
        server = self.server(
            start,
            tmp_path,
            "max_batch_size { value: 16 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 4 } num_batch_threads { value: 1 }",
        )
        assert self.ask(server, [1, 2, 3, 4, 5, 6]) == ([2, 3, 4, 5, 6, 7], [10, 10, 10, 10, 11, 11])

    def test_padding_repeats_a_row_and_is_not_answered(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """Three rows rounded up to four are computed with the first one twice."""
        server = self.server(
            start, tmp_path, "max_batch_size { value: 4 } allowed_batch_sizes: 4 num_batch_threads { value: 1 }"
        )
        assert self.ask(server, [1, 2, 3]) == ([2, 3, 4], [7, 7, 7])

    def test_rest_and_grpc_share_batches(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """A batch does not care how its requests came."""
        server = self.server(
            start,
            tmp_path,
            "max_batch_size { value: 2 } batch_timeout_micros { value: 60000000 } num_batch_threads { value: 1 }",
        )
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(self.ask, server, [1])
            other = pool.submit(server.web, "/v1/models/t:predict", {"inputs": [2]})
            assert one.result() == ([2], [3])
            assert other.result()[1] == {"outputs": {"y": [3], "total": [3]}}

    def test_parameters_in_force_are_in_the_log(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """So that they can be read back."""
        server = self.server(start, tmp_path, "max_batch_size { value: 3 } num_batch_threads { value: 2 }")
        assert (
            "Batching parameters in force: max_batch_size { value: 3 } num_batch_threads { value: 2 }; threads: 2"
            in (server.log.read_text())
        )


class TestChanges:
    """Versions and configs change while the server runs."""

    def test_requests_never_fail_while_versions_change(
        self, start: Callable[..., Server], half: Path, tmp_path: Path
    ) -> None:
        """The new version answers before the old one goes."""
        server = start("--model_name=m", f"--model_base_path={half}", "--file_system_poll_wait_seconds=1").ready()
        answers: set[float] = set()
        failures: list[BaseException] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                try:
                    answers.update(server.predict("m", [2]))
                except grpc.RpcError as error:
                    failures.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        for version, addend in ((2, 3.0), (3, 4.0)):
            graphs.save_half_plus(tmp_path / "new", addend).rename(half / str(version))
            eventually(lambda addend=addend: addend + 1 in answers)
        eventually(lambda: server.states("m") == {3: "AVAILABLE", 2: "END", 1: "END"})
        done.set()
        asking.join()
        assert failures == []
        assert answers == {3.0, 4.0, 5.0}

    def test_a_broken_version_ends_and_the_old_one_stays(self, start: Callable[..., Server], half: Path) -> None:
        """Its error is in its status, and the next good version replaces both."""
        server = start("--model_name=m", f"--model_base_path={half}", "--max_num_load_retries=0").ready()
        (half / "2").mkdir()
        eventually(lambda: server.states("m") == {2: "END", 1: "AVAILABLE"})
        status = server.web("/v1/models/m/versions/2")[1]["model_version_status"][0]["status"]
        assert status["error_code"] == "NOT_FOUND"
        assert "does not appear to contain a SavedModel bundle" in status["error_message"]
        assert server.predict("m", [2]) == [3.0]

    def test_a_removed_model_ends(self, start: Callable[..., Server], half: Path) -> None:
        """No version on disk is none in memory; one that comes back is served again."""
        server = start("--model_name=m", f"--model_base_path={half}").ready()
        shutil.move(half / "1", half / "away")
        eventually(lambda: server.states("m") == {1: "END"})
        with pytest.raises(grpc.RpcError, match="Servable not found for request: Latest"):
            server.predict("m", [1])
        shutil.move(half / "away", half / "1")
        eventually(lambda: server.states("m") == {1: "AVAILABLE"})

    def test_reloading_adds_and_removes_models(self, start: Callable[..., Server], half: Path, tmp_path: Path) -> None:
        """A new config replaces the old one, and new models are there when it has been answered."""
        server = start("--model_name=a", f"--model_base_path={half}", "--max_num_load_retries=0").ready()
        server.reload(entry("a", half), entry("b", half))
        assert server.predict("b", [2]) == [3.0]
        server.reload(entry("b", half))
        eventually(lambda: server.states("a") == {1: "END"})
        (tmp_path / "broken" / "1").mkdir(parents=True)
        with pytest.raises(grpc.RpcError, match="1 model\\(s\\) did not become available"):
            server.reload(entry("b", half), entry("c", tmp_path / "broken"))
        with pytest.raises(grpc.RpcError, match="Illegal to list model b multiple times"):
            server.reload(entry("b", half), entry("b", half))
        assert server.predict("b", [2]) == [3.0]

    @pytest.mark.parametrize("way", ["call", "file"])
    def test_a_bad_config_leaves_what_is_served(
        self, start: Callable[..., Server], half: Path, tmp_path: Path, way: str
    ) -> None:
        """Whatever is wrong: all versions answer as before, nothing is loaded, and the next good one is taken."""
        config, other = tmp_path / "models.config", half.parent / "other"
        graphs.save_half_plus(half / "2", 3.0)
        graphs.save_half_plus(other / "5", 9.0)
        both = {"model_version_policy": {"all": {}}}
        flag = write_config(config, entry("m", half, **both))
        server = start(flag, "--model_config_file_poll_wait_seconds=1", "--max_num_load_retries=0").ready()
        eventually(lambda: server.states("m") == {2: "AVAILABLE", 1: "AVAILABLE"})
        bad: list[list[dict[str, Any]]] = [
            [entry("m", half), entry("n", other), entry("n", other)],
            [entry("m", other), {**entry("n", half), "base_path": "relative"}],
            [entry("m", other), {**entry("n", other), "model_platform": "pytorch"}],
            [entry("m", other), {"name": "n", "base_path": str(other)}],
            [entry("m", half, version_labels={"stable": 7}), entry("n", other)],
        ]
        for models in bad if way == "call" else bad[-1:]:
            if way == "call":
                with pytest.raises(grpc.RpcError):
                    server.reload(*models)
            else:
                write_config(config, *models)
                eventually(lambda: "PollFilesystemAndReloadConfig failed to ReloadConfig" in server.log.read_text())
            assert server.states("m") == {2: "AVAILABLE", 1: "AVAILABLE"}
            assert server.predict("m", [2]) == [4.0]
            assert server.predict("m", [2], version={"value": 1}) == [3.0]
            with pytest.raises(grpc.RpcError, match="Servable not found for request: Latest\\(n\\)"):
                server.predict("n", [2])
        write_config(config, entry("n", other))
        if way == "call":
            server.reload(entry("n", other))
        eventually(lambda: "Successfully loaded servable version {name: n version: 5}" in server.log.read_text())
        assert server.predict("n", [2]) == [10.0]
        eventually(lambda: server.states("m") == {2: "END", 1: "END"})

    def test_labels_point_to_versions_that_are_there(
        self, start: Callable[..., Server], half: Path, tmp_path: Path
    ) -> None:
        """A label moves only to a version that can answer, and a refused reload changes nothing."""
        graphs.save_half_plus(half / "2", 3.0)
        both = {"model_version_policy": {"specific": {"versions": [1, 2]}}}
        server = start(write_config(tmp_path / "models.config", entry("m", half, **both))).ready()
        eventually(lambda: server.states("m") == {1: "AVAILABLE", 2: "AVAILABLE"})
        server.reload(entry("m", half, **both, version_labels={"stable": 1, "canary": 2}))
        assert server.predict("m", [2], version_label="stable") == [3.0]
        assert server.web("/v1/models/m/labels/canary:predict", {"instances": [2]})[1] == {"predictions": [4.0]}
        with pytest.raises(
            grpc.RpcError, match="assign label to version 9 of model m, which is not currently available"
        ):
            server.reload(entry("m", half, **both, version_labels={"stable": 9}))
        assert server.predict("m", [2], version_label="canary") == [4.0]

    def test_the_config_file_is_watched(self, start: Callable[..., Server], half: Path, tmp_path: Path) -> None:
        """A changed file is applied; one that cannot be read leaves everything as it was."""
        config = tmp_path / "models.config"
        server = start(write_config(config, entry("a", half)), "--model_config_file_poll_wait_seconds=1").ready()
        config.write_text("nonsense")
        eventually(lambda: "Failed to read ModelServerConfig file" in server.log.read_text())
        assert server.predict("a", [2]) == [3.0]
        write_config(config, entry("a", half), entry("b", half))
        eventually(lambda: "Successfully loaded servable version {name: b version: 1}" in server.log.read_text())
        assert server.predict("b", [2]) == [3.0]

    def test_a_late_version_is_waited_for(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """The ports stay closed, and the log names the cause, until the model has a version."""
        (tmp_path / "m").mkdir()
        server = start("--model_name=m", f"--model_base_path={tmp_path / 'm'}")
        eventually(lambda: "No versions of servable m found under base path" in server.log.read_text())
        assert not server.listens(server.grpc_port)
        graphs.save_half_plus(tmp_path / "new", 2.0).rename(tmp_path / "m" / "1")
        assert server.ready().predict("m", [2]) == [3.0]


class TestWarmUp:
    """Recorded requests run before a version is served."""

    def write(self, version: Path, *logs: Any) -> None:
        (version / "assets.extra").mkdir()
        records = write_records(log.SerializeToString() for log in logs)
        (version / "assets.extra" / "tf_serving_warmup_requests").write_bytes(records)

    def test_good_records_are_counted(self, start: Callable[..., Server], half: Path) -> None:
        """The log says how many there were."""
        request = {"inputs": {"x": {"dtype": 1, "tensor_shape": {"dim": [{"size": 1}]}, "float_val": [1]}}}
        self.write(half / "1", *[protos.PredictionLog(predict_log={"request": request})] * 3)
        server = start(f"--model_base_path={half}").ready()
        assert "Number of warmup records read: 3." in server.log.read_text()

    def test_a_bad_record_fails_the_load(self, start: Callable[..., Server], half: Path) -> None:
        """The server ends with the reason when nothing else is there to serve."""
        self.write(half / "1", protos.PredictionLog(predict_log={"request": {"inputs": {"z": {"dtype": 1}}}}))
        server = start(f"--model_base_path={half}", "--max_num_load_retries=0")
        assert server.process.wait(20) == 255
        assert "Signature input alias: x(feed name: x:0) not found in request" in server.log.read_text()


class TestStarting:
    """A server that cannot serve says why and ends."""

    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            (
                ["--model_base_path=relative"],
                "Expected model default to have an absolute path or URI; got base_path()=relative",
            ),
            (
                ["--model_base_path={}", "--saved_model_tags=nope"],
                "Could not find meta graph def matching supplied tags: { nope }.",
            ),
            (["--model_base_path={}", "--port=abc"], "usage: tensorflow_model_server"),
            (["--model_base_path={}", "--ssl_config_file=/no"], "/no; No such file or directory"),
            (["--model_base_path={}", "--grpc_channel_arguments=x"], "which is no key=value"),
            (
                ["--model_base_path={}", "--enable_batching", "--batching_parameters_file={}/zero"],
                "input_batch_size_limit must be positive",
            ),
        ],
    )
    def test_failures(self, start: Callable[..., Server], half: Path, flags: list[str], text: str) -> None:
        """Exit code 255, the reason on stdout, no port open."""
        (half / "zero").write_text("max_batch_size { value: 0 }")
        server = start(*[flag.replace("{}", str(half)) for flag in flags], "--max_num_load_retries=0")
        assert server.process.wait(20) == 255
        assert text in server.log.read_text()

    def test_unknown_words_are_told_and_ignored(self, start: Callable[..., Server], half: Path) -> None:
        """As on the real server."""
        server = start(f"--model_base_path={half}", "--no_such=1").ready()
        assert "unknown argument: --no_such=1\nusage: tensorflow_model_server" in server.log.read_text()

    def test_version(self) -> None:
        """Tells whose place it takes, and what it is."""
        done = subprocess.run(
            [sys.executable, "-m", "servewright.backends.tfserving.embedded", "--version"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "stand-in" in done.stdout

    def test_a_port_that_is_taken_is_told(self, start: Callable[..., Server], half: Path) -> None:
        """A second server on the gRPC port ends; one on the REST port serves gRPC alone."""
        first = start(f"--model_base_path={half}").ready()
        second = start(f"--model_base_path={half}", f"--port={first.grpc_port}")
        assert second.process.wait(20) == 255
        assert "Failed to BuildAndStart gRPC server" in second.log.read_text()
        third = start(f"--model_base_path={half}", f"--rest_api_port={first.rest_port}")
        eventually(lambda: "Failed to start HTTP Server at localhost" in third.log.read_text())
        assert third.predict("default", [2]) == [3.0]

    def test_it_binds_where_it_is_told(self, start: Callable[..., Server], half: Path) -> None:
        """Loopback unless the environment names another address."""
        server = start(f"--model_base_path={half}", env={"SERVEWRIGHT_EMBEDDED_BIND": "127.0.0.2"})
        eventually(lambda: "Running gRPC ModelServer at 127.0.0.2:" in server.log.read_text())
        assert not server.listens(server.grpc_port)


def test_the_library_leaves_pythons_own_alone() -> None:
    """What Python loads after TensorFlow's library, such as its OpenSSL, still finds its own symbols."""
    program = (
        "from servewright.backends.tfserving.embedded import capi; capi.library();"
        "import hashlib, ssl; ssl.create_default_context(); print(hashlib.sha256(b'a').hexdigest()[:8])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ca978112")


class TestTls:
    """gRPC over TLS, with keys and certificates as text in the config file."""

    @pytest.fixture
    def pair(self, tmp_path: Path) -> tuple[bytes, bytes]:
        """Make a key and its certificate for localhost."""
        if shutil.which("openssl") is None:
            pytest.skip("needs openssl")
        words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        subprocess.run(
            ["openssl", *words.split(), "-keyout", "key", "-out", "cert", "-addext", "subjectAltName=DNS:localhost"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        return (tmp_path / "key").read_bytes(), (tmp_path / "cert").read_bytes()

    def start(self, start: Callable[..., Server], half: Path, pair: tuple[bytes, bytes], *, verify: bool) -> Server:
        key, cert = (part.decode() for part in pair)
        config = protos.SSLConfig(server_key=key, server_cert=cert, custom_ca=cert, client_verify=verify)
        (half.parent / "ssl").write_text(str(config))
        return start("--model_name=m", f"--model_base_path={half}", f"--ssl_config_file={half.parent / 'ssl'}").ready()

    @pytest.mark.parametrize("verify", [False, True])
    def test_clients_are_taken_at_their_word(
        self, start: Callable[..., Server], half: Path, pair: tuple[bytes, bytes], verify: bool
    ) -> None:
        """A client with the right root, and where it is asked for its own certificate, is answered; others are not."""
        server = self.start(start, half, pair, verify=verify)
        key, cert = pair
        own = grpc.ssl_channel_credentials(cert, key, cert) if verify else grpc.ssl_channel_credentials(cert)
        server.channel = grpc.secure_channel(f"localhost:{server.grpc_port}", own)
        assert server.predict("m", [2]) == [3.0]
        assert server.web("/v1/models/m:predict", {"instances": [2]})[0] == 200
        if verify:
            server.channel = grpc.secure_channel(f"localhost:{server.grpc_port}", grpc.ssl_channel_credentials(cert))
            with pytest.raises(grpc.RpcError):
                server.predict("m", [2], timeout=5)


class TestEnding:
    """A server that is told to end does so soon and cleanly."""

    def batching(self, start: Callable[..., Server], tmp_path: Path, *, timeout_us: int) -> Server:
        """Start a server whose requests wait for others."""
        graphs.save_half_plus(tmp_path / "m" / "1", 2.0)
        rules = f"max_batch_size {{ value: 9 }} batch_timeout_micros {{ value: {timeout_us} }}"
        (tmp_path / "batching").write_text(rules)
        return start(
            "--model_name=m",
            f"--model_base_path={tmp_path / 'm'}",
            "--enable_batching=true",
            f"--batching_parameters_file={tmp_path / 'batching'}",
        ).ready()

    def waiting(self, server: Server, pool: ThreadPoolExecutor) -> tuple[Future[list[float]], Future[tuple[int, Any]]]:
        """Send a request over gRPC and one over HTTP."""
        one = pool.submit(server.predict, "m", [2])
        other = pool.submit(server.web, "/v1/models/m:predict", {"instances": [2]})
        page = protos.GetModelStatusRequest(model_spec={"name": "m"})
        for _ in range(20):  # both are on their way by the time these are answered
            server.call(protos.GET_MODEL_STATUS, page, "GetModelStatusResponse")
        return one, other

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_requests_under_way_finish(self, start: Callable[..., Server], tmp_path: Path, number: int) -> None:
        """A request that waits for its batch is answered, then the process ends with 0."""
        server = self.batching(start, tmp_path, timeout_us=500_000)
        with ThreadPoolExecutor(2) as pool:
            one, other = self.waiting(server, pool)
            server.process.send_signal(number)
            assert server.process.wait(20) == 0
            assert one.result() == [3.0]
            assert other.result()[0] == 200
        assert not server.listens(server.grpc_port)

    def test_a_server_that_waits_for_a_model_ends_too(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """Also before it serves."""
        (tmp_path / "m").mkdir()
        server = start(f"--model_base_path={tmp_path / 'm'}")
        eventually(lambda: "No versions of servable" in server.log.read_text())
        server.process.terminate()
        assert server.process.wait(20) == 0

    def test_who_waits_for_long_is_not_waited_for(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """A request whose batch would come in an hour does not keep the server; its client is told."""
        server = self.batching(start, tmp_path, timeout_us=3_600_000_000)
        with ThreadPoolExecutor(2) as pool:
            one, other = self.waiting(server, pool)
            server.process.terminate()
            assert server.process.wait(20) == 0
            with pytest.raises(grpc.RpcError):
                one.result(20)
            with pytest.raises(OSError, match=r"."):
                other.result(20)

    def test_a_killed_server_leaves_nothing_but_its_port(
        self, start: Callable[..., Server], half: Path, tmp_path: Path
    ) -> None:
        """No file and no process; and the next server has the port and the socket file at once."""
        place = tmp_path / "temporary"
        place.mkdir()
        flags = ["--model_name=m", f"--model_base_path={half}", f"--grpc_socket_path={tmp_path / 's'}"]
        first = start(*flags, env={"TMPDIR": str(place)}).ready()
        assert first.predict("m", [2]) == [3.0]
        first.process.kill()
        first.process.wait()
        assert list(place.iterdir()) == []
        ports = [f"--port={first.grpc_port}", f"--rest_api_port={first.rest_port}"]
        second = start(*flags, *ports)
        second.grpc_port, second.rest_port = first.grpc_port, first.rest_port
        second.ready()
        eventually(lambda: "Running gRPC ModelServer at UNIX socket" in second.log.read_text())
        assert first.predict("m", [2]) == [3.0]
