"""The client of TensorFlow Serving, against a running server, and against servers that answer nonsense."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from servewright import __version__, registry
from servewright.backends.tfserving import json_tensors, predictions, protos
from servewright.backends.tfserving.client import Client, ModelVersion, Transport
from servewright.backends.tfserving.dtypes import TensorError
from servewright.backends.tfserving.metadata import NoSignatureError
from servewright.errors import InputError, ProbeError, ProbeTimeoutError, ServerAnswerError, SpecError
from servewright.http import HttpConnection
from servewright.processes import ProcessPlan, free_ports, start, wait_until
from servewright.server import RunningServer
from servewright.spec import Signature, TensorSpec

if TYPE_CHECKING:
    from conftest import Workshop
    from servewright.fleet import Fleet

grpc = pytest.importorskip("grpc")

BOTH: tuple[Transport, ...] = ("http", "grpc")
ROWS = np.array([[1, 2], [-3, 4.5]], np.float32)


def text_config(model: Path, *names: str, label: str = "") -> str:
    """Return the text of a config that serves ``model`` under each of ``names``."""
    labels = f'version_labels {{ key: "{label}" value: 1 }}' if label else ""
    models = (
        f'config {{ name: "{name}" base_path: "{model}" model_platform: "tensorflow" {labels} }}' for name in names
    )
    return f"model_config_list {{ {' '.join(models)} }}"


@pytest.fixture(scope="module")
def repository(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model's folder with one version, of a network with several signatures."""
    folder = tmp_path_factory.mktemp("served") / "m"
    folder.mkdir()
    (folder / "1").symlink_to(models["tensorflow"] / "saved_model")
    return folder


@pytest.fixture(scope="module")
def addresses(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run the embedded server and give its addresses."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "models.config").write_text(text_config(repository, "m", "odd name/é", label="stable"))
    (folder / "monitoring.config").write_text("prometheus_config { enable: true }")
    grpc_port, http_port = free_ports(2)
    flags = {
        "port": grpc_port,
        "rest_api_port": http_port,
        "model_config_file": folder / "models.config",
        "monitoring_config_file": folder / "monitoring.config",
        "allow_version_labels_for_unavailable_models": "true",
        "grpc_max_threads": 64,
        "rest_api_num_threads": 64,
    }
    argv = (sys.executable, "-m", "servewright.backends.tfserving.embedded")
    plan = ProcessPlan((*argv, *(f"--{key}={value}" for key, value in flags.items())), {}, folder, folder / "log")
    found = {"grpc": f"127.0.0.1:{grpc_port}", "http": f"http://127.0.0.1:{http_port}"}
    with start(plan) as server, Client(**found) as client:

        def ready() -> bool:
            assert server.alive, server.log_tail()
            return client.status("m")[0].state == "AVAILABLE"

        wait_until(ready, within_s=120, what="the server")
        yield found


@pytest.fixture
def client(addresses: dict[str, str]) -> Iterator[Client]:
    """Give a client of the running server."""
    with Client(**addresses) as made:
        yield made


@pytest.fixture(params=BOTH)
def single(addresses: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Client]:
    """Give a client that knows one of the server's addresses, each in turn."""
    with Client(**{request.param: addresses[request.param]}) as made:
        yield made


@pytest.mark.tensorflow
class TestARunningServer:
    """What a server serves."""

    @pytest.mark.parametrize("transport", BOTH)
    def test_predicts_with_the_models_own_dtypes(self, client: Client, transport: Transport) -> None:
        """Outputs have the values, dtypes and shapes that the model gives, over either transport."""
        found = client.predict("m", {"x": ROWS}, transport=transport)
        assert found["scores"].tolist() == [[2.0, 4.0], [-0.75, 9.0]]
        assert found["scores"].dtype == np.float32
        assert found["best"].tolist() == [1, 1]
        assert found["best"].dtype == np.int64

    @pytest.mark.parametrize("transport", BOTH)
    @pytest.mark.parametrize("values", [5, [[2**62], [-(2**63)]], []], ids=["scalar", "large", "none"])
    def test_predicts_with_any_rank_and_size(self, client: Client, transport: Transport, values: Any) -> None:
        """Scalars, whole numbers beyond a float's precision and empty arrays arrive and come back."""
        inputs = {"any": np.array(values, np.int64), "b": np.array([True, False, True])}
        found = client.predict("m", inputs, signature="odd", transport=transport)
        assert found["any"].tolist() == (inputs["any"] + 1).tolist()
        assert found["any"].dtype == np.int64
        assert found["not"].tolist() == [False, True, False]

    def test_numbers_that_json_does_not_have_are_the_same_over_both(self, client: Client) -> None:
        """NaN and infinities go in and come out over HTTP as over gRPC."""
        rows = np.array([[np.nan, 1], [np.inf, 0], [-np.inf, 0]], np.float32)
        over = [client.predict("m", {"x": rows}, transport=each)["scores"] for each in BOTH]
        np.testing.assert_array_equal(*over)
        assert np.isnan(over[0]).any()

    def test_empty_batches_keep_their_shape(self, client: Client) -> None:
        """An answer without rows has the signature's other axes over gRPC; JSON cannot carry such a request."""
        found = client.predict("m", {"x": ROWS[:0]}, transport="grpc")
        assert found["scores"].shape == (0, 2)

    def test_strings_and_types_that_only_grpc_has(self, client: Client) -> None:
        """Strings and bfloat16 work over gRPC; over HTTP the server refuses bfloat16 in its own words."""
        inputs = {"text": np.array([b"ABC", "É".encode()], object)}
        found = client.predict("m", inputs, signature="lower", transport="grpc")
        assert found["text"].tolist()[0] == b"abc"
        assert found["half"].astype(np.float32).tolist() == [3.0, 2.0]
        with pytest.raises(ServerAnswerError) as caught:
            client.predict("m", inputs, signature="lower")
        assert caught.value.message == "Failed to write JSON value for tensor type: bfloat16"

    def test_a_version_or_a_label_is_asked_for(self, client: Client) -> None:
        """A version by number or label is served; both at once are refused before anything is sent."""
        for transport in BOTH:
            for choice in ({"version": 1}, {"label": "stable"}):
                found = client.predict("m", {"x": ROWS}, transport=transport, **choice)
                assert found["best"].tolist() == [1, 1]
        with pytest.raises(InputError, match="names a version"):
            client.predict("m", {"x": ROWS}, version=1, label="stable")

    @pytest.mark.parametrize("transport", BOTH)
    @pytest.mark.parametrize(
        ("model", "options", "reason"),
        [
            ("nope", {}, "Servable not found for request: Latest(nope)"),
            ("m", {"version": 7}, "Servable not found for request: Specific(m, 7)"),
            ("m", {"label": "nope"}, "Unrecognized servable version label: nope"),
            ("m", {"signature": "nope"}, "not found"),
        ],
    )
    def test_what_the_server_refuses_is_told_in_its_words(
        self, client: Client, transport: Transport, model: str, options: dict[str, Any], reason: str
    ) -> None:
        """A refusal is a ServerAnswerError with the server's text."""
        with pytest.raises(ServerAnswerError) as caught:
            client.predict(model, {"x": ROWS}, transport=transport, **options)
        assert reason in caught.value.message

    def test_status_is_told_over_either_transport(self, single: Client) -> None:
        """Every version has its state; an unknown model is the server's error."""
        assert single.status("m") == (ModelVersion(version=1, state="AVAILABLE"),)
        with pytest.raises(ServerAnswerError, match="Could not find any versions of model nope"):
            single.status("nope")

    def test_names_are_quoted(self, client: Client) -> None:
        """A model's name may have blanks, slashes and letters of any script."""
        for transport in BOTH:
            assert client.predict("odd name/é", {"x": ROWS}, transport=transport)["best"].tolist() == [1, 1]

    def test_metadata_is_the_models_signature(self, single: Client) -> None:
        """Signatures are told with dtypes and shapes, unknown ranks and sizes among them."""
        assert single.metadata("m") == Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 2)),),
            outputs=(
                TensorSpec(name="best", dtype="int64", shape=(None,)),
                TensorSpec(name="scores", dtype="float32", shape=(None, 2)),
            ),
        )
        assert [tensor.shape for tensor in single.metadata("m", signature="odd").inputs] == [None, (3,)]
        with pytest.raises(NoSignatureError, match=r"has no signature 'nope'; it has .*lower, odd, serving_default"):
            single.metadata("m", signature="nope")

    def test_labels_are_resolved(self, single: Client) -> None:
        """A label's version is told, and an unknown label has none; an unknown model is an error."""
        assert single.version_of_label("m", "stable") == 1
        assert single.version_of_label("m", "nope") is None

    def test_metrics_come_as_text(self, client: Client) -> None:
        """The Prometheus page is returned as it is."""
        client.predict("m", {"x": ROWS})
        assert ":tensorflow:serving:request_count" in client.metrics()

    def test_the_stand_in_says_so(self, single: Client) -> None:
        """The embedded server tells its version over either transport."""
        assert single.stand_in() == __version__

    def test_a_reload_replaces_what_is_served(self, client: Client, repository: Path) -> None:
        """A config as text takes effect at once; a broken one is refused here, an impossible one by the server."""
        names = ("m", "odd name/é")
        client.reload(text_config(repository, *names, "second", label="stable"), timeout_s=60)
        try:
            assert client.predict("second", {"x": ROWS})["best"].tolist() == [1, 1]
            with pytest.raises(SpecError, match="no field named"):
                client.reload("model { }")
            with pytest.raises(ServerAnswerError, match="multiple times in config list"):
                client.reload(text_config(repository, "m", "m"))
        finally:
            client.reload(text_config(repository, *names, label="stable"), timeout_s=60)

    @pytest.mark.parametrize("transport", BOTH)
    def test_threads_share_a_client(self, client: Client, transport: Transport) -> None:
        """Many threads at once each get the answer to their own question."""
        questions = [np.full((1, 2), number, np.float32) for number in range(64)]
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda x: client.predict("m", {"x": x}, transport=transport)["scores"], questions)
            assert [answer.tolist() for answer in answers] == [[[1.5 * n, 2.0 * n]] for n in range(64)]


@pytest.mark.tensorflow
class TestAModelThatTheServerCallsOtherwise:
    """A spec whose entry gives the model the server's own name, which no spec may have."""

    @pytest.fixture
    def fleet(self, workshop: Workshop) -> Fleet:
        spec = {
            "name": "odd-name",
            "version": 1,
            "signature": {
                "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 2]}],
                "outputs": [
                    {"name": "best", "dtype": "int64", "shape": [None]},
                    {"name": "scores", "dtype": "float32", "shape": [None, 2]},
                ],
            },
            "tfserving": {"entry": {"name": "odd name/é"}},
        }
        return workshop.fleet(workshop.values(registry.get("tfserving"), **spec))

    def test_is_ready_when_that_is_served(self, client: Client, addresses: dict[str, str], fleet: Fleet) -> None:
        """The server is asked for the name that it knows."""
        endpoints = {name: address.removeprefix("http://") for name, address in addresses.items()}
        server = RunningServer(backend="tfserving", runtime="embedded", endpoints=endpoints)
        assert registry.get("tfserving").ready(server, client, fleet)

    def test_has_the_signature_of_that_one(self, single: Client, fleet: Fleet) -> None:
        """What the server tells is the spec's, over either transport."""
        spec = fleet.models[0].spec
        assert registry.get("tfserving").signature(single, spec) == spec.signature

    def test_is_loaded_by_that_name(self, addresses: dict[str, str], fleet: Fleet) -> None:
        """Requests in their final bytes are answered over either transport."""
        payloads = registry.get("tfserving").payloads
        assert payloads is not None
        (over_http,) = payloads(fleet.models[0].spec, [{"x": ROWS}], "http")
        with HttpConnection(addresses["http"]) as connection:
            answer = connection.request("POST", over_http.target, body=over_http.body, headers=over_http.headers)
        assert (answer.status, answer.json()["outputs"]["best"]) == (200, [1, 1])
        (over_grpc,) = payloads(fleet.models[0].spec, [{"x": ROWS}], "grpc")
        with grpc.insecure_channel(addresses["grpc"]) as channel:
            data = channel.unary_unary(over_grpc.target)(over_grpc.body, timeout=20)
        assert list(protos.PredictResponse.FromString(data).outputs["best"].int64_val) == [1, 1]


Answers = dict[str, Callable[[bytes], tuple[int, bytes]]]
NAN = b'{"outputs": {"y": [NaN, -Infinity], "n": [1, 2]}}'


def definitions(**outputs: int) -> bytes:
    """Return the JSON of a metadata answer whose signature has ``outputs``, by DataType number."""
    named = {name: {"dtype": dtype, "tensor_shape": {"dim": [{"size": "-1"}]}} for name, dtype in outputs.items()}
    signature = {"serving_default": {"inputs": {"x": {"dtype": "DT_FLOAT"}}, "outputs": named}}
    metadata = {"signature_def": {"signature_def": signature}}
    return json.dumps({"model_spec": {"name": "m", "version": "1"}, "metadata": metadata}).encode()


class Told:
    """An HTTP and a gRPC server that answer what they are told, and remember what they were asked."""

    def __init__(self) -> None:
        self.answers: Answers = {}
        self.asked: list[tuple[str, bytes]] = []
        told = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                told.asked.append((self.path, body := self.rfile.read(int(self.headers.get("Content-Length", 0)))))
                status, answer = told.answers[self.path](body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_GET  # noqa: N815  (the name that http.server calls)

            def log_message(self, *_: object) -> None:
                pass

        class Generic(grpc.GenericRpcHandler):
            def service(self, details: Any) -> Any:
                def answer(request: bytes, context: Any) -> bytes:
                    told.asked.append((details.method, request))
                    status, data = told.answers[details.method](request)
                    if status:
                        context.abort(next(c for c in grpc.StatusCode if c.value[0] == status), data.decode())
                    return data

                return grpc.unary_unary_rpc_method_handler(answer, None, None)

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Say nothing of clients that went away."""

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self._grpc = grpc.server(ThreadPoolExecutor(4), handlers=(Generic(),))
        self.grpc = f"127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self.http = f"127.0.0.1:{self._http.server_port}"
        self._grpc.start()

    def tell(self, path: str, status: int, answer: bytes) -> None:
        """Answer ``path``, or a gRPC method, in this way from now on."""
        self.answers[path] = lambda _: (status, answer)

    def predicts(self, answer: bytes, **outputs: int) -> None:
        """Answer Predict over HTTP with ``answer``, of a signature with ``outputs``."""
        self.tell("/v1/models/m:predict", 200, answer)
        self.tell("/v1/models/m/metadata", 200, definitions(**outputs))

    def close(self) -> None:
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def told() -> Iterator[Told]:
    """Run a server that answers what it is told."""
    server = Told()
    yield server
    server.close()


@pytest.fixture
def of_told(told: Told) -> Iterator[Client]:
    """Give a client of that server."""
    with Client(told.grpc, told.http) as made:
        yield made


X = {"x": np.zeros((2,), np.float32)}


class TestAnswersOverHttp:
    """How JSON is read."""

    def test_the_body_is_in_column_form(self, told: Told, of_told: Client) -> None:
        """Inputs go by name, the signature beside them only when named."""
        told.predicts(b'{"outputs": [1.5]}', y=1)
        of_told.predict("m", X)
        of_told.predict("m", X, signature="serving_default")
        bodies = [json.loads(body) for path, body in told.asked if path.endswith(":predict")]
        assert bodies == [
            {"inputs": {"x": [0.0, 0.0]}},
            {"signature_name": "serving_default", "inputs": {"x": [0.0, 0.0]}},
        ]

    def test_dtypes_are_asked_once(self, told: Told, of_told: Client) -> None:
        """The metadata is fetched with the first answer alone."""
        told.predicts(NAN, y=1, n=9)
        for _ in range(3):
            found = of_told.predict("m", X)
        assert (found["y"].dtype, found["n"].dtype) == (np.float32, np.int64)
        assert [path for path, _ in told.asked].count("/v1/models/m/metadata") == 1

    def test_a_new_signature_is_noticed(self, told: Told, of_told: Client) -> None:
        """An answer that no longer fits what is known makes the metadata be asked again."""
        told.predicts(b'{"outputs": [1.5]}', y=1)
        of_told.predict("m", X)
        told.predicts(b'{"outputs": {"a": [1], "b": ["x"]}}', a=3, b=7)
        found = of_told.predict("m", X)
        assert (found["a"].dtype, found["b"].tolist()) == (np.int32, [b"x"])

    @pytest.mark.parametrize(
        ("answer", "outputs", "wanted"),
        [
            (b'{"outputs": [NaN, Infinity, -Infinity, 1e+07]}', {"y": 2}, [np.nan, np.inf, -np.inf, 1e7]),
            (b'{"outputs": [0.333333343]}', {"y": 1}, [np.float32(1 / 3).item()]),
            (b'{"outputs": [9223372036854775807]}', {"y": 9}, [2**63 - 1]),
            (b'{"outputs": [18446744073709551615, 1]}', {"y": 23}, [2**64 - 1, 1]),
            (b'{"outputs": [[true], [false]]}', {"y": 10}, [[True], [False]]),
            (b'{"outputs": 5}', {"y": 1}, 5.0),
            (b'{"outputs": []}', {"y": 3}, []),
            (b'{"outputs": ["\xff\xfe", "\xc3\xa9", "a\\u0000b"]}', {"y": 7}, [b"\xff\xfe", "é".encode(), b"a\0b"]),
            (b'{"outputs": [{"b64": "/w=="}, {"b64": ""}]}', {"y": 7}, [b"\xff", b""]),
            (b'{"outputs": {"b64": "aGk="}}', {"y": 7}, b"hi"),
        ],
    )
    def test_values_are_exact(
        self, told: Told, of_told: Client, answer: bytes, outputs: dict[str, int], wanted: Any
    ) -> None:
        """Bare NaN and Infinity, 64-bit numbers, and strings of any bytes come out as they are."""
        told.predicts(answer, **outputs)
        np.testing.assert_array_equal(
            of_told.predict("m", X)["y"], np.array(wanted, of_told.predict("m", X)["y"].dtype)
        )

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"", "expected JSON"),
            (b"<html>", "expected JSON"),
            (b"[" * 100_000, "expected JSON"),
            (b"[]", "no 'outputs'"),
            (b'{"predictions": [1]}', "no 'outputs'"),
            (b'{"outputs": {"y": [1], "z": [1]}}', r"the answer has \['y', 'z'\], the signature \['n', 'y'\]"),
            (b'{"outputs": [1]}', "the answer has list"),
            (b'{"outputs": {"y": [[1], [1, 2]], "n": [1]}}', "tensor 'y'"),
            (b'{"outputs": {"y": ["1"], "n": [1]}}', "tensor 'y': not float32"),
            (b'{"outputs": {"y": [null], "n": [1]}}', "tensor 'y': not float32"),
            (b'{"outputs": {"y": [true], "n": [1]}}', "tensor 'y': not float32"),
            (b'{"outputs": {"y": [1], "n": [1.5]}}', "tensor 'n': not int64"),
            (b'{"outputs": {"y": [1], "n": [9223372036854775808]}}', "tensor 'n': beyond int64"),
        ],
    )
    def test_nonsense_is_a_probe_error(self, told: Told, of_told: Client, answer: bytes, reason: str) -> None:
        """An answer that is not what the signature promises is a ProbeError that says where."""
        told.predicts(answer, y=1, n=9)
        with pytest.raises(ProbeError, match=reason) as caught:
            of_told.predict("m", X)
        assert not isinstance(caught.value, ServerAnswerError)

    @pytest.mark.parametrize("text", [
        b"", b"{}", b"[1]", b"null", b'{"metadata": {}, "model_spec": {}}',
        b'{"metadata": {"signature_def": {"signature_def": []}}, "model_spec": {"version": "1"}}',
        b'{"metadata": {"signature_def": {"signature_def": {"s": {"inputs": 3}}}}, "model_spec": {"version": "1"}}',
        b'{"metadata": {"signature_def": 3}, "model_spec": {"version": "1"}}',
        b'{"metadata": {"signature_def": {}}, "model_spec": {"version": "x"}}',
    ])  # fmt: skip
    def test_metadata_that_is_none_is_a_probe_error(self, told: Told, of_told: Client, text: bytes) -> None:
        """Metadata of another form is a ProbeError."""
        told.tell("/v1/models/m/metadata", 200, text)
        with pytest.raises(ProbeError):
            of_told.metadata("m")

    @pytest.mark.parametrize(
        "text", [b"", b"[]", b"3", b'{"model_version_status": [{}]}', b'{"model_version_status": 3}']
    )
    def test_a_status_that_is_none_is_a_probe_error(self, told: Told, of_told: Client, text: bytes) -> None:
        """A status of another form is a ProbeError."""
        told.tell("/v1/models/m", 200, text)
        with pytest.raises(ProbeError):
            of_told.status("m")

    @pytest.mark.parametrize(
        ("status", "body", "message"),
        [
            (404, b'{ "error": "Servable not found" }', "Servable not found"),
            (501, b"<HTML>Not Implemented</HTML>\n", "<HTML>Not Implemented</HTML>"),
            (400, b"", "(no text)"),
            (400, b'{ "error": "quotes \xff" }', "quotes \udcff"),
        ],
    )
    def test_refusals_have_the_servers_text(
        self, told: Told, of_told: Client, status: int, body: bytes, message: str
    ) -> None:
        """The error member of JSON, or whatever text there is, is the message."""
        told.tell("/v1/models/m:predict", status, body)
        with pytest.raises(ServerAnswerError) as caught:
            of_told.predict("m", X)
        assert (caught.value.status, caught.value.message) == (status, message)


class TestAnswersOverGrpc:
    """How messages are read."""

    def test_the_request_is_a_predict_request(self, told: Told, of_told: Client) -> None:
        """Model, version, signature and inputs are where the server looks for them."""
        told.tell(protos.PREDICT, 0, predictions.encode_answer({"y": np.float32(3)}))
        assert of_told.predict("m", X, version=0, signature="s", transport="grpc")["y"] == 3
        request = protos.PredictRequest.FromString(told.asked[-1][1])
        assert (request.model_spec.name, request.model_spec.signature_name) == ("m", "s")
        assert request.model_spec.HasField("version")
        assert list(request.inputs) == ["x"]

    @pytest.mark.parametrize("method", [protos.PREDICT, protos.GET_MODEL_METADATA, protos.GET_MODEL_STATUS])
    def test_bytes_that_are_no_answer_are_a_probe_error(self, told: Told, method: str) -> None:
        """Garbage is a ProbeError, whatever was asked."""
        told.tell(method, 0, b"\xff\xff")
        with Client(grpc=told.grpc) as client, pytest.raises(ProbeError):
            {
                protos.PREDICT: lambda: client.predict("m", X, transport="grpc"),
                protos.GET_MODEL_METADATA: lambda: client.metadata("m"),
                protos.GET_MODEL_STATUS: lambda: client.status("m"),
            }[method]()

    def test_metadata_of_another_kind_is_a_probe_error(self, told: Told) -> None:
        """An answer without signatures is told."""
        told.tell(protos.GET_MODEL_METADATA, 0, b"")
        with Client(grpc=told.grpc) as client, pytest.raises(ProbeError, match="SignatureDefMap"):
            client.metadata("m")

    def test_a_status_message_that_is_not_text_is_still_told(self, told: Told) -> None:
        """After a bad warm-up record the server quotes it; the state is read all the same."""
        status = protos.ModelVersionStatus(version=-1, state="END", status={"error_code": 3, "error_message": "bad ?"})
        data = status.SerializeToString().replace(b"?", b"\xff")
        told.tell(protos.GET_MODEL_STATUS, 0, b"\x0a" + bytes([len(data)]) + data)
        with Client(grpc=told.grpc) as client:
            assert client.status("m") == (
                ModelVersion(version=-1, state="END", error_code="INVALID_ARGUMENT", error_message="bad \ufffd"),
            )

    def test_states_of_newer_servers_are_numbers(self, told: Told) -> None:
        """A state without a name is told by its number."""
        told.tell(protos.GET_MODEL_STATUS, 0, b"\x0a\x02\x10\x3d")
        with Client(grpc=told.grpc) as client:
            assert client.status("m")[0].state == "61"

    def test_a_reload_that_fails_in_its_answer_is_an_error(self, told: Told, of_told: Client) -> None:
        """A status inside an OK answer counts."""
        answer = protos.ReloadConfigResponse(status={"error_code": 9, "error_message": "cannot"})
        told.tell(protos.RELOAD_CONFIG, 0, answer.SerializeToString())
        with pytest.raises(ServerAnswerError, match="FAILED_PRECONDITION: cannot"):
            of_told.reload(protos.ModelServerConfig())

    def test_a_servers_own_deadline_is_its_answer(self, told: Told, of_told: Client) -> None:
        """DEADLINE_EXCEEDED that the server sends is its answer, with its text."""
        told.tell(protos.PREDICT, 4, b"Timed out waiting for notification")
        with pytest.raises(ServerAnswerError, match="DEADLINE_EXCEEDED: Timed out waiting"):
            of_told.predict("m", X, transport="grpc")

    def test_another_server_is_no_stand_in(self, told: Told, of_told: Client) -> None:
        """A server that does not say that it stands in does not."""
        told.tell(protos.GET_MODEL_STATUS, 3, b"Missing ModelSpec")
        told.tell("/v1/models", 400, b"")
        assert of_told.stand_in() == ""
        with Client(grpc=told.grpc) as client:
            assert client.stand_in() == ""


class TestConnections:
    """Servers that are not there, and clients that are used wrongly."""

    @pytest.mark.parametrize("transport", BOTH)
    def test_nobody_listens(self, transport: Transport) -> None:
        """A port where nobody listens is a ProbeError, and not an answer of a server."""
        with Client(**{transport: f"127.0.0.1:{free_ports(1)[0]}"}) as client:
            with pytest.raises(ProbeError) as caught:
                client.predict("m", X, transport=transport)
            assert not isinstance(caught.value, ServerAnswerError)

    @pytest.mark.parametrize("transport", BOTH)
    def test_no_answer_in_time(self, told: Told, of_told: Client, transport: Transport) -> None:
        """A server that takes too long is a ProbeTimeoutError."""
        go_on = threading.Event()
        for method in ("/v1/models/m:predict", protos.PREDICT):
            told.answers[method] = lambda _: (go_on.wait(30), (500, b""))[1]
        try:
            with pytest.raises(ProbeTimeoutError):
                of_told.predict("m", X, transport=transport, timeout_s=0.2)
        finally:
            go_on.set()

    def test_addresses_are_needed(self, told: Told) -> None:
        """A client says which address it lacks."""
        with pytest.raises(InputError, match="needs a gRPC or an HTTP address"):
            Client()
        with Client(grpc=told.grpc) as client, pytest.raises(InputError, match="no HTTP address"):
            client.metrics()
        with Client(http=told.http) as client, pytest.raises(InputError, match="no gRPC address"):
            client.predict("m", X, transport="grpc")

    @pytest.mark.parametrize("transport", BOTH)
    def test_a_closed_client_says_so(self, told: Told, transport: Transport) -> None:
        """A client that was closed raises one of our errors."""
        client = Client(told.grpc, told.http)
        client.close()
        with pytest.raises(ProbeError):
            client.predict("m", X, transport=transport)

    def test_importing_it_imports_no_framework(self) -> None:
        """The client is light: neither TensorFlow nor grpcio comes with it."""
        script = (
            "import sys, servewright.backends.tfserving.client\n"
            "print(sorted({'tensorflow', 'grpc', 'torch', 'google.protobuf.descriptor_pb2'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "[]", done.stderr


class TestJson:
    """Arrays as JSON."""

    @given(
        array=hnp.arrays(
            st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "uint64", "bool"]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=1, max_side=4),
        )
    )
    def test_every_array_comes_back(self, array: np.ndarray) -> None:
        """Numbers of any dtype and rank come back exactly, NaN as NaN."""
        text = json_tensors.encode_array(array)
        found = json_tensors.decode_array(json_tensors.parse(text), array.dtype.name)
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)

    @given(st.lists(st.lists(st.binary(max_size=6), min_size=2, max_size=2), max_size=3))
    def test_every_string_comes_back(self, rows: list[list[bytes]]) -> None:
        """Strings of any bytes come back through base64."""
        array = np.empty((len(rows), 2), object)
        array[:] = rows or np.empty((0, 2), object)
        found = json_tensors.decode_array(json_tensors.parse(json_tensors.encode_array(array)), "string")
        assert found.tolist() == rows

    @pytest.mark.parametrize("array", [np.arange(6, dtype=">f4").reshape(2, 3).T, np.arange(9, dtype=np.int32)[::2]])
    def test_memory_layout_does_not_matter(self, array: np.ndarray) -> None:
        """Strides and byte order change nothing."""
        assert json.loads(json_tensors.encode_array(array)) == array.tolist()

    def test_what_json_cannot_say_is_told(self) -> None:
        """Complex numbers and foreign objects are a TensorError with the tensor's name."""
        for array in (np.zeros(2, np.complex64), np.array([1, None], object), np.array(["2020"], "datetime64[D]")):
            with pytest.raises(TensorError, match="tensor 'x'"):
                json_tensors.encode_predict({"x": array})

    @pytest.mark.parametrize("value", [{"b64": "a"}, {"b64": 3}, {"c": "a"}, 3, None, [["a"], "b"]])
    def test_strings_that_are_none_are_told(self, value: Any) -> None:
        """What is neither a string nor base64 is a TensorError."""
        with pytest.raises((TensorError, ValueError)):
            json_tensors.decode_array([value], "string")
