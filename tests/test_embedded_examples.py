"""What the embedded TF Serving does beside Predict: examples, warm-up, retries, batching by model, packed bodies."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

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
EXAMPLES = [{"features": {"feature": {"x": {"float_list": {"value": [1.0] * count}}}}} for count in (1, 2, 5)]
LENGTHS = [float(protos.SCHEMA["Example"](**example).ByteSize()) for example in EXAMPLES]
INPUT = {"example_list": {"examples": EXAMPLES}}
ROWS = [{"x": [1.0] * count} for count in (1, 2, 5)]
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


class TestExamples:
    """Examples are classified and regressed, one signature or several at a time."""

    @pytest.fixture
    def server(self, start: Callable[..., Server], tmp_path: Path) -> Server:
        graphs.save_lengths(tmp_path / "m" / "1")
        return start("--model_name=m", f"--model_base_path={tmp_path / 'm'}").ready()

    def test_all_ways_give_the_same(self, server: Server) -> None:
        """GRPC and REST, alone and together."""
        spec = {"name": "m", "signature_name": "classes"}
        classes = server.call(
            protos.CLASSIFY,
            protos.SCHEMA["ClassificationRequest"](model_spec=spec, input=INPUT),
            "ClassificationResponse",
        ).result
        values = server.call(
            protos.REGRESS,
            protos.SCHEMA["RegressionRequest"](model_spec={"name": "m"}, input=INPUT),
            "RegressionResponse",
        ).result
        tasks = [
            {"model_spec": spec, "method_name": CLASSIFY},
            {"model_spec": {"name": "m"}, "method_name": REGRESS},
        ]
        both = server.call(
            protos.MULTI_INFERENCE,
            protos.SCHEMA["MultiInferenceRequest"](tasks=tasks, input=INPUT),
            "MultiInferenceResponse",
        ).results
        assert [[one.score for one in found.classes] for found in classes.classifications] == [[at] for at in LENGTHS]
        assert [found.value for found in values.regressions] == LENGTHS
        assert both[0].classification_result == classes
        assert both[1].regression_result == values
        assert both[0].model_spec.signature_name == "classes"
        assert both[1].model_spec.version.value == 1
        body = {"signature_name": "classes", "examples": ROWS}
        assert server.web("/v1/models/m:classify", body) == (200, {"results": [[["", at]] for at in LENGTHS]})
        assert server.web("/v1/models/m:regress", {"examples": ROWS}) == (200, {"results": LENGTHS})

    @pytest.mark.parametrize(
        ("tasks", "details"),
        [
            ([{"model_spec": {"name": "m"}, "method_name": REGRESS}] * 2, "Duplicate evaluation of signature: "),
            ([{"model_spec": {"name": "m"}, "method_name": "other"}], "Unsupported signature method_name: other"),
            ([{"model_spec": {"name": "m", "signature_name": "z"}, "method_name": REGRESS}],
             "Requested signature not found in model graph: z"),
            ([{"model_spec": {"name": "m"}, "method_name": REGRESS}, {"model_spec": {"name": "n"}}],
             "All ModelSpecs in a MultiInferenceRequest must access the same model name."),
        ],
    )  # fmt: skip
    def test_tasks_have_to_fit_together(self, server: Server, tasks: list[Any], details: str) -> None:
        """One model, each signature once, and only the two methods."""
        request = protos.SCHEMA["MultiInferenceRequest"](tasks=tasks, input=INPUT)
        with pytest.raises(grpc.RpcError) as error:
            server.call(protos.MULTI_INFERENCE, request, "MultiInferenceResponse")
        assert str(error.value.details()).startswith(details)


class TestWarmUpOfExamples:
    """Records of every method are run."""

    def write(self, version: Path, *logs: Mapping[str, Any]) -> None:
        (version / "assets.extra").mkdir()
        records = write_records(protos.PredictionLog(**log).SerializeToString() for log in logs)
        (version / "assets.extra" / "tf_serving_warmup_requests").write_bytes(records)

    def test_each_method_is_run(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """As often as the flag says, before the first request of a client; the metrics count them."""
        graphs.save_lengths(tmp_path / "m" / "1")
        spec = {"name": "m", "signature_name": "classes"}
        tensor = {"dtype": 7, "tensor_shape": {"dim": [{"size": 1}]}, "string_val": [b"abc"]}
        self.write(
            tmp_path / "m" / "1",
            {"predict_log": {"request": {"model_spec": {"name": "m"}, "inputs": {"inputs": tensor}}}},
            {"classify_log": {"request": {"model_spec": spec, "input": INPUT}}},
            {"regress_log": {"request": {"model_spec": {"name": "m"}, "input": INPUT}}},
            {"multi_inference_log": {"request": {
                "tasks": [{"model_spec": {"name": "m"}, "method_name": REGRESS}], "input": INPUT}}},
        )  # fmt: skip
        (tmp_path / "monitoring").write_text("prometheus_config { enable: true }")
        server = start(
            "--model_name=m",
            f"--model_base_path={tmp_path / 'm'}",
            "--num_request_iterations_for_warmup=2",
            f"--monitoring_config_file={tmp_path / 'monitoring'}",
        ).ready()
        assert "Number of warmup records read: 4." in server.log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics") as answer:
            page = answer.read().decode()
        for api in ("Predict", "Classify", "Regress"):
            assert f'runtime_latency_count{{model_name="m",API="{api}",runtime="TF1"}} 2' in page

    @pytest.mark.parametrize(
        ("log", "text"),
        [
            ({"classify_log": {"request": {"model_spec": {"name": "m", "signature_name": "z"}, "input": INPUT}}},
             "No signature was found with the name: z"),
            ({"session_run_log": {}}, "Unsupported log_type for warmup: "),
        ],
    )  # fmt: skip
    def test_one_that_fails_fails_the_load(
        self, start: Callable[..., Server], tmp_path: Path, log: Mapping[str, Any], text: str
    ) -> None:
        """The record's own error is the version's; without warm-up the same version is served."""
        graphs.save_lengths(tmp_path / "m" / "1")
        self.write(tmp_path / "m" / "1", log)
        flags = (f"--model_base_path={tmp_path / 'm'}", "--max_num_load_retries=0")
        server = start(*flags)
        assert server.process.wait(20) == 255
        assert text in server.log.read_text()
        start(*flags, "--enable_model_warmup=false").ready()


class TestLoading:
    """How versions come into memory."""

    def test_a_failed_load_is_tried_again(self, start: Callable[..., Server], half: Path, tmp_path: Path) -> None:
        """Until it works, or as often as the flag says."""
        server = start(
            "--model_name=m", f"--model_base_path={half}", "--max_num_load_retries=100000",
            "--load_retry_interval_micros=50000",
        ).ready()  # fmt: skip
        (half / "2").mkdir()
        eventually(lambda: "Retrying of Loading servable: {name: m version: 2} retry: 2" in server.log.read_text())
        assert server.predict("m", [2]) == [3.0]
        graphs.save_half_plus(tmp_path / "new" / "2", 3.0)
        (tmp_path / "new" / "2" / "saved_model.pb").rename(half / "2" / "saved_model.pb")
        eventually(lambda: server.states("m") == {2: "AVAILABLE", 1: "END"})
        assert server.predict("m", [2]) == [4.0]

    def test_tries_are_counted(self, start: Callable[..., Server], half: Path) -> None:
        """One try more than retries; then the version ends with its error."""
        server = start(
            "--model_name=m", f"--model_base_path={half}", "--max_num_load_retries=2",
            "--load_retry_interval_micros=1000",
        ).ready()  # fmt: skip
        (half / "2").mkdir()
        eventually(lambda: server.states("m") == {2: "END", 1: "AVAILABLE"})
        assert server.log.read_text().count("Loading servable: {name: m version: 2} failed") == 3

    def test_batching_can_be_each_versions_own(self, start: Callable[..., Server], tmp_path: Path) -> None:
        """With the flag a version is batched by its own file, and one without a file not at all."""
        for name in ("with", "without"):
            graphs.save_with_total(tmp_path / name / "1")
        (tmp_path / "with" / "1" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
        models = [entry(name, tmp_path / name) for name in ("with", "without")]
        server = start(
            write_config(tmp_path / "models.config", *models), "--enable_batching=true",
            "--enable_per_model_batching_parameters=true",
        ).ready()  # fmt: skip
        three = {"inputs": [1, 2, 3]}
        assert server.web("/v1/models/without:predict", three)[1]["outputs"]["total"] == [6, 6, 6]
        status, answer = server.web("/v1/models/with:predict", three)
        assert (status, answer) == (400, {"error": "Task size 3 is larger than maximum input batch size 2"})


def test_a_model_may_batch_by_itself(start: Callable[..., Server], tmp_path: Path) -> None:
    """As many requests are in the graph at once as there are threads: also more than 4 for each CPU."""
    callers = 4 * (os.cpu_count() or 1) + 4
    graphs.save_batching_itself(tmp_path / "m" / "1", callers)
    server = start(
        "--model_name=m", f"--model_base_path={tmp_path / 'm'}", f"--grpc_max_threads={callers + 1}"
    ).ready()  # fmt: skip
    with ThreadPoolExecutor(callers) as pool:
        assert list(pool.map(lambda value: server.predict("m", [value]), range(callers))) == [
            [value + 1.0] for value in range(callers)
        ]


def test_rest_bodies_may_be_compressed(start: Callable[..., Server], half: Path) -> None:
    """A gzip body is unpacked; what cannot be is an empty one."""
    import http.client

    server = start("--model_name=m", f"--model_base_path={half}").ready()
    packed = gzip.compress(b'{"instances": [2.0, 4.0]}')
    for body, status, text in (
        (packed, 200, {"predictions": [3.0, 4.0]}),
        (packed[:-9], 400, {"error": "JSON Parse error: The document is empty"}),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
        connection.request("POST", "/v1/models/m:predict", body, {"Content-Encoding": "gzip"})
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())) == (status, text)
        connection.close()
