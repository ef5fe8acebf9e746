"""TensorFlow Serving's messages as we define them, held against the official packages and the published tables."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.backends.tfserving import protos
from servewright.errors import SpecError

OFFICIAL = (
    "apis.classification",
    "apis.get_model_metadata",
    "apis.get_model_status",
    "apis.inference",
    "apis.input",
    "apis.logging",
    "apis.model",
    "apis.model_management",
    "apis.predict",
    "apis.prediction_log",
    "apis.regression",
    "apis.session_service",
    "apis.status",
    "config.file_system_storage_path_source",
    "config.log_collector_config",
    "config.logging_config",
    "config.model_server_config",
    "config.platform_config",
)

# Fields of TensorFlow's own messages that nothing here reads; they stay unknown fields.
LEFT_OUT = {
    "tensorflow.MetaGraphDef": {"graph_def", "saver_def", "collection_def", "object_graph_def"},
    "tensorflow.MetaGraphDef.MetaInfoDef": {"stripped_op_list"},
    "tensorflow.TensorInfo": {"composite_tensor"},
    "tensorflow.RunOptions": {"debug_options"},
    "tensorflow.RunMetadata": {"step_stats", "cost_graph", "partition_graphs", "function_graphs"},
}

# What no official Python package has: number, name and type of every field.
TABLES = {
    "tensorflow.serving.BatchingParameters": """
        1 max_batch_size Int64Value
        2 batch_timeout_micros Int64Value
        3 max_enqueued_batches Int64Value
        4 num_batch_threads Int64Value
        5 thread_pool_name StringValue
        6 allowed_batch_sizes repeated int64
        7 pad_variable_length_inputs bool
        8 enable_large_batch_splitting BoolValue
        9 max_execution_batch_size Int64Value
    """,
    "tensorflow.serving.MonitoringConfig": "1 prometheus_config PrometheusConfig",
    "tensorflow.serving.PrometheusConfig": """
        1 enable bool
        2 path string
    """,
    "tensorflow.serving.SSLConfig": """
        1 server_key string
        2 server_cert string
        3 custom_ca string
        4 client_verify bool
    """,
    "tensorflow.serving.SavedModelBundleSourceAdapterConfig": "1000 legacy_config SessionBundleConfig",
    "tensorflow.serving.SessionBundleConfig": """
        1 session_target string
        2 session_config ConfigProto
        3 batching_parameters BatchingParameters
        4 session_run_load_threadpool_index Int32Value
        5 experimental_transient_ram_bytes_during_load uint64
        6 saved_model_tags repeated string
        7 in_graph_batching_parameters BatchingOptions
        778 experimental_fixed_input_tensors repeated NamedTensorProto
        779 enable_model_warmup bool
        780 model_warmup_options ModelWarmupOptions
        781 enable_session_metadata bool
        782 remove_unused_fields_from_bundle_metagraph bool
        783 prefer_tflite_model bool
        784 resource_estimation_uses_validation_result bool
        785 num_tflite_interpreters int32
        786 num_tflite_interpreters_per_pool int32
        787 num_tflite_pools int32
        788 wrap_session_with_no_threading_params bool
        789 enable_per_model_batching_params bool
        790 enable_saved_model_config bool
        791 mixed_precision string
    """,
    "tensorflow.serving.ModelWarmupOptions": """
        1 num_request_iterations Int32Value
        2 num_model_warmup_threads Int32Value
        3 model_name string
        4 model_version int64
        5 enable_all_batch_sizes_warmup bool
    """,
    "grpc.health.v1.HealthCheckRequest": "1 service string",
    "grpc.health.v1.HealthCheckResponse": "1 status ServingStatus",
}
ENUM_TABLES = {
    "grpc.health.v1.HealthCheckResponse.ServingStatus": {
        "UNKNOWN": 0,
        "SERVING": 1,
        "NOT_SERVING": 2,
        "SERVICE_UNKNOWN": 3,
    },
}
TYPES = {1: "double", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 13: "uint32"}


@pytest.fixture(scope="module")
def official() -> dict[str, Any]:
    """Every message and enum descriptor of tensorflow-serving-api, and of TensorFlow what it needs, by full name."""
    pytest.importorskip("tensorflow_serving")
    found: dict[str, Any] = {}
    files = [importlib.import_module(f"tensorflow_serving.{name}_pb2").DESCRIPTOR for name in OFFICIAL]
    files.append(importlib.import_module("tensorflow.core.protobuf.config_pb2").DESCRIPTOR)
    files.append(importlib.import_module("tensorflow.core.protobuf.saved_model_pb2").DESCRIPTOR)
    while files:
        file = files.pop()
        if file.name not in found:
            found[file.name] = file
            files += file.dependencies
            for descriptor in file.message_types_by_name.values():
                found |= {inner.full_name: inner for inner in with_nested(descriptor)}
            found |= {enum.full_name: enum for enum in file.enum_types_by_name.values()}
    return found


def with_nested(descriptor: Any) -> Iterator[Any]:
    """Yield ``descriptor`` and every message and enum inside it."""
    yield descriptor
    yield from descriptor.enum_types
    for nested in descriptor.nested_types:
        yield from with_nested(nested)


def fields(descriptor: Any) -> dict[str, tuple[object, ...]]:
    """Return all that decides about bytes, text and JSON of each field, by its name."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.is_packed,
            field.has_presence,
            field.json_name,
            field.containing_oneof and field.containing_oneof.name,
            field.message_type and field.message_type.full_name,
            field.enum_type and field.enum_type.full_name,
        )
        for field in descriptor.fields
    }


def table(descriptor: Any) -> str:
    """Return the fields of ``descriptor`` as the published tables are written, in order of number."""
    lines = []
    for field in sorted(descriptor.fields, key=lambda field: field.number):
        kind = (field.message_type or field.enum_type).name if field.type in (11, 14) else TYPES[field.type]
        lines.append(f"{field.number} {field.name} {'repeated ' if field.is_repeated else ''}{kind}")
    return "\n".join(lines)


class TestMessages:
    """The definitions."""

    @pytest.mark.parametrize("name", [*protos.SCHEMA])
    def test_equals_the_official_one_or_the_published_table(self, name: str, official: dict[str, Any]) -> None:
        """Each message has the official fields, but for those left out by name, and each enum the official values."""
        ours = protos.SCHEMA[name].DESCRIPTOR
        if name in TABLES:
            assert name not in official, "compare it with the official one"
            assert table(ours) == "\n".join(line.strip() for line in TABLES[name].strip().splitlines())
        elif name in ENUM_TABLES:
            assert {value.name: value.number for value in ours.values} == ENUM_TABLES[name]
        elif hasattr(ours, "values"):
            theirs = official[name]
            assert {v.name: v.number for v in ours.values} == {v.name: v.number for v in theirs.values}
        else:
            theirs = fields(official[name])
            left_out = LEFT_OUT.get(name, set())
            assert left_out <= set(theirs)
            assert fields(ours) == {key: value for key, value in theirs.items() if key not in left_out}

    def test_no_official_message_is_missing(self, official: dict[str, Any]) -> None:
        """Every message and enum of tensorflow_serving is among ours."""
        wanted = {name for name in official if name.startswith("tensorflow.serving.") and not name.endswith("Entry")}
        assert len(wanted) > 60
        assert wanted - set(protos.SCHEMA) == set()

    def test_unknown_names_are_attribute_errors(self) -> None:
        """A message that nobody defines is no attribute."""
        with pytest.raises(AttributeError, match="NoSuchMessage"):
            _ = protos.NoSuchMessage

    def test_the_bare_integer_mistake_of_batching_files_is_refused(self) -> None:
        """Batching parameters are wrapped numbers: ``max_batch_size: 32`` is an error with its line."""
        right = protos.SCHEMA.parse_text("BatchingParameters", "max_batch_size { value: 32 }")
        assert right.max_batch_size.value == 32
        with pytest.raises(SpecError, match=r"batching\.pbtxt:2:"):
            protos.SCHEMA.parse_text("BatchingParameters", "\nmax_batch_size: 32", file="batching.pbtxt")


TEXT = st.text(max_size=12)
INT64 = st.integers(-(2**63), 2**63 - 1)
ENTRIES = st.builds(
    dict,
    name=TEXT,
    base_path=TEXT,
    model_platform=TEXT,
    version_labels=st.dictionaries(TEXT, INT64, max_size=3),
    model_version_policy=st.one_of(
        st.builds(dict, specific=st.builds(dict, versions=st.lists(INT64, max_size=3))),
        st.builds(dict, latest=st.builds(dict, num_versions=st.integers(0, 2**32 - 1))),
        st.just({"all": {}}),
    ),
)


class TestBytes:
    """What goes over the wire."""

    @given(entries=st.lists(ENTRIES, max_size=3), metrics=st.lists(TEXT, max_size=2))
    def test_official_classes_read_ours_and_write_the_same(
        self, entries: list[dict[str, Any]], metrics: list[str]
    ) -> None:
        """A reload request of ours is the official one's, byte by byte, and reads back."""
        management = pytest.importorskip("tensorflow_serving.apis.model_management_pb2")
        content = {"config": {"model_config_list": {"config": entries}}, "metric_names": metrics}
        ours, theirs = protos.ReloadConfigRequest(**content), management.ReloadConfigRequest(**content)
        data = ours.SerializeToString(deterministic=True)
        assert data == theirs.SerializeToString(deterministic=True)
        assert protos.ReloadConfigRequest.FromString(data) == ours

    @given(name=TEXT, version=INT64, signature=TEXT, score=st.floats(width=32, allow_nan=False), label=TEXT)
    def test_nested_answers_read_back(self, name: str, version: int, signature: str, score: float, label: str) -> None:
        """A prediction log written by the official classes reads the same with ours."""
        log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2").PredictionLog()
        log.log_metadata.timestamp_secs = version
        request = log.classify_log.request
        request.model_spec.name, request.model_spec.signature_name = name, signature
        request.model_spec.version.value = version
        request.input.example_list.examples.add().features.feature[name].float_list.value[:] = [score, -score]
        log.classify_log.response.result.classifications.add().classes.add(label=label, score=score)
        ours = protos.PredictionLog.FromString(log.SerializeToString())
        spec = ours.classify_log.request.model_spec
        assert (spec.name, spec.signature_name, spec.version.value) == (name, signature, version)
        example = ours.classify_log.request.input.example_list.examples[0]
        assert list(example.features.feature[name].float_list.value) == [score, -score]
        assert ours.classify_log.response.result.classifications[0].classes[0].label == label
        assert ours.SerializeToString(deterministic=True) == log.SerializeToString(deterministic=True)

    def test_what_a_saved_model_holds_beside_is_kept(self) -> None:
        """Fields left out of MetaGraphDef stay as unknown bytes, so that a copy loses nothing."""
        graphs = pytest.importorskip("tensorflow.core.protobuf.saved_model_pb2").SavedModel()
        graph = graphs.meta_graphs.add()
        graph.meta_info_def.tags.append("serve")
        graph.graph_def.node.add(name="x", op="Placeholder")
        graph.signature_def["serving_default"].inputs["x"].name = "x:0"
        ours = protos.SavedModel.FromString(graphs.SerializeToString())
        assert list(ours.meta_graphs[0].meta_info_def.tags) == ["serve"]
        assert ours.meta_graphs[0].signature_def["serving_default"].inputs["x"].name == "x:0"
        again = type(graphs).FromString(ours.SerializeToString())
        assert again.meta_graphs[0].graph_def.node[0].op == "Placeholder"


OURS = "from servewright.backends.tfserving import protos; [protos.SCHEMA[name] for name in protos.SCHEMA]"
THEIRS = """
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, model_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2
from tensorflow.core.protobuf import config_pb2
"""
BOTH = """
mine = protos.PredictRequest(model_spec={"name": "m"})
assert predict_pb2.PredictRequest.FromString(mine.SerializeToString()).model_spec.name == "m"
assert type(mine) is not predict_pb2.PredictRequest
assert protos.SCHEMA.parse_text("ModelServerConfig", "model_config_list {}").HasField("model_config_list")
print("both")
"""


class TestCoexistence:
    """One process with the official packages."""

    @pytest.mark.tensorflow
    @pytest.mark.parametrize("order", [OURS + THEIRS, THEIRS + OURS], ids=["ours first", "theirs first"])
    def test_either_import_order_works(self, order: str) -> None:
        """Our messages and the official ones of the same names work in one process, whoever comes first."""
        pytest.importorskip("tensorflow_serving")
        source = str(Path(protos.__file__).parents[3])
        script = f"import sys; sys.path.insert(0, {source!r})\n{order}\n{BOTH}"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "both"

    def test_nothing_of_tensorflow_is_imported(self) -> None:
        """Using every message imports neither TensorFlow nor numpy."""
        source = str(Path(protos.__file__).parents[3])
        script = (
            f"import sys; sys.path.insert(0, {source!r})\n{OURS}\n"
            "print(sorted({'tensorflow', 'tensorflow_serving', 'numpy', 'grpc'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == "[]", done.stderr
