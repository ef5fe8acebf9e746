"""What can be wrong in TensorFlow Serving's files; sources are its C++ code and recorded starts of a real 2.17.1."""

from __future__ import annotations

from typing import Final

from servewright.linting.finding import Severity
from servewright.linting.rule import Rule

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def _rule(number: int, severity: Severity, title: str, happens: str, do: str, reference: str = "") -> Rule:
    return Rule(id=f"TFS{number:03}", severity=severity, title=title, happens=happens, do=do, reference=reference)


SYNTAX: Final = _rule(
    1, _ERROR, "Not protobuf text format", "the server refuses the file and exits",
    "correct the text at this place", "recorded: startup/config/not-text-proto",
)  # fmt: skip
UNKNOWN_FIELD: Final = _rule(
    2, _ERROR, "A field that does not exist", "the server refuses the whole file and exits",
    "remove it", "recorded: startup/config/unknown-field",
)  # fmt: skip
WRONG_VALUE: Final = _rule(
    3, _ERROR, "A value of the wrong kind", "the server refuses the whole file and exits",
    "write a value of the field's kind", "recorded: startup/batching/bare-value",
)  # fmt: skip
TWICE: Final = _rule(
    4, _ERROR, "A field that may stand once stands twice", "the server refuses the whole file and exits",
    "remove one of the two", "recorded: startup/config/two-names",
)  # fmt: skip
ONEOF: Final = _rule(
    5, _ERROR, "Two fields that exclude each other", "the server refuses the whole file and exits",
    "keep one of the two", "tensorflow_serving/config/file_system_storage_path_source.proto",
)  # fmt: skip
PLACEHOLDER: Final = _rule(
    6, _ERROR, "A placeholder that nothing filled in", "the server does not expand variables and refuses the file",
    "write the value, or fill the template in before the server starts", "text_format.cc",
)  # fmt: skip
EMPTY: Final = _rule(
    7, _ERROR, "An empty file", "the server exits with 255: a file of no bytes is an error",
    "write the configuration, or remove the flag that names the file", "recorded: startup/config",
)  # fmt: skip
DUPLICATE_MODEL: Final = _rule(
    10, _ERROR, "Two models of one name", "the server refuses the config: Illegal to list model multiple times",
    "rename one, or serve both as versions of one model", "model_servers/server_core.cc",
)  # fmt: skip
NO_BASE_PATH: Final = _rule(
    11, _ERROR, "A model without a base_path", "the server refuses the config: an absolute path or URI is expected",
    'add base_path: "/models/NAME", the folder above the versions', "model_servers/server_core.cc",
)  # fmt: skip
RELATIVE_BASE_PATH: Final = _rule(
    12, _ERROR, "A base_path that is not absolute", "the server refuses the config: an absolute path or URI is expected",
    "write the path from the root on, as the server sees it", "model_servers/server_core.cc",
)  # fmt: skip
NO_PLATFORM: Final = _rule(
    13, _ERROR, "A model without a platform",
    "the server refuses the config: Illegal setting neither model_type nor model_platform",
    'add model_platform: "tensorflow"', "tensorflow/serving#1249",
)  # fmt: skip
BOTH_PLATFORMS: Final = _rule(
    14, _ERROR, "Both model_type and model_platform", "the server refuses the config: Illegal setting both",
    "remove model_type", "model_servers/server_core.cc",
)  # fmt: skip
UNKNOWN_PLATFORM: Final = _rule(
    15, _ERROR, "A platform that the server does not have",
    "the server refuses the config: the model requests an unsupported platform",
    'write model_platform: "tensorflow"', "model_servers/server_core.cc",
)  # fmt: skip
MODEL_TYPE: Final = _rule(
    16, _NOTE, "model_type is deprecated", "the server still reads it, as a platform",
    'write model_platform: "tensorflow" instead', "tensorflow_serving/config/model_server_config.proto",
)  # fmt: skip
LOGGING: Final = _rule(
    17, _ERROR, "Request logging", "the official server refuses it: No request-logger-creator provided",
    "remove logging_config; it needs a server built with a logger", "core/server_request_logger.cc",
)  # fmt: skip
CUSTOM: Final = _rule(
    18, _ERROR, "custom_model_config", "the official server aborts: it does not yet support custom model config",
    "write a model_config_list", "model_servers/server.cc",
)  # fmt: skip
NO_MODELS: Final = _rule(
    19, _WARNING, "A config without models", "the server starts and serves nothing",
    "add a config { ... } for each model to model_config_list", "model_servers/server_core.cc",
)  # fmt: skip
EMPTY_NAME: Final = _rule(
    20, _WARNING, "A model without a name", "no request can name the model",
    'add name: "NAME"', "model_servers/http_rest_api_handler.cc",
)  # fmt: skip
UNREACHABLE_NAME: Final = _rule(
    21, _WARNING, "A name that REST cannot address", "the model can be called over gRPC only: REST paths end at / and :",
    "use letters, digits, - and _", "model_servers/http_rest_api_handler.cc",
)  # fmt: skip
VERSION_NUMBER: Final = _rule(
    22, _WARNING, "A version that no folder can have", "a version is a folder's name, a number without a sign; this one is never found",
    "write the number of a version's folder", "sources/storage_path/file_system_storage_path_source.cc",
)  # fmt: skip
NO_VERSIONS: Final = _rule(
    23, _WARNING, "A specific policy without versions", "the server serves no version of the model",
    "add versions: N, or remove the policy to serve the latest",
    "sources/storage_path/file_system_storage_path_source.cc",
)  # fmt: skip
ALL_VERSIONS: Final = _rule(
    24, _NOTE, "Every version is loaded", "memory grows with each version that is added",
    "use latest { num_versions: 2 } and let old versions go", "tensorflow_serving/g3doc/serving_config.md",
)  # fmt: skip
LABEL_NOT_SERVED: Final = _rule(
    25, _WARNING, "A label on a version that the policy does not serve",
    "the server refuses to assign it: the version is not available for inference",
    "add the version to the policy, or move the label", "tensorflow/serving#1608",
)  # fmt: skip
LABELS_AT_START: Final = _rule(
    26, _NOTE, "Labels in a first config",
    "a server that starts with it fails unless --allow_version_labels_for_unavailable_models is set",
    "start with that flag, or add the labels by a reload once the versions are loaded", "tensorflow/serving#1230",
)  # fmt: skip
LABEL_TWICE: Final = _rule(
    27, _WARNING, "A label given twice", "the last one wins, without a word",
    "remove one of the two", "protobuf map semantics",
)  # fmt: skip
VERSION_IN_PATH: Final = _rule(
    28, _WARNING, "base_path ends in a version",
    "the server looks for versions below it and finds none; it then waits without opening a port",
    "name the folder above the version's", "tensorflow/serving#1419",
)  # fmt: skip
WORKSTATION_PATH: Final = _rule(
    29, _NOTE, "base_path lies in somebody's home or a temporary folder",
    "it exists on one machine, and in no container",
    "name a folder that every server has, such as /models/NAME", "tensorflow/serving#1419",
)  # fmt: skip
ZERO_LATEST: Final = _rule(
    30, _NOTE, "latest without a number of versions", "zero counts as one",
    "write num_versions: 1, or remove the policy", "sources/storage_path/file_system_storage_path_source.cc",
)  # fmt: skip
NOTHING_THERE: Final = _rule(
    31, _WARNING, "No version below base_path",
    "the server waits for one without opening a port, for all models",
    "export the model to a folder whose name is a number", "tensorflow/serving#1448",
)  # fmt: skip
NO_SAVED_MODEL: Final = _rule(
    32, _WARNING, "A version without saved_model.pb", "loading fails, and is tried again five times, a minute apart",
    "export a SavedModel into the version's folder", "tensorflow/serving#1723",
)  # fmt: skip
SAME_VERSION: Final = _rule(
    33, _WARNING, "Two folders of one version number", "the server takes one of them and ignores the other",
    "remove one", "recorded on 2.17.1",
)  # fmt: skip
NO_BATCH_SIZE: Final = _rule(
    40, _WARNING, "Batching without max_batch_size", "batches grow up to 1000 rows",
    "add max_batch_size { value: N }", "shared_batch_scheduler.h",
)  # fmt: skip
ZERO_BATCH: Final = _rule(
    41, _ERROR, "max_batch_size 0", "the server ends with signal 11 when it loads a model",
    "write at least 1", "recorded on 2.17.1",
)  # fmt: skip
NEGATIVE_BATCH: Final = _rule(
    42, _WARNING, "A negative size", "it wraps to a huge number: there is no limit",
    "write at least 1", "servables/tensorflow/bundle_factory_util.cc",
)  # fmt: skip
NEGATIVE_TIMEOUT: Final = _rule(
    43, _ERROR, "A negative batch_timeout_micros", "the server ends with signal 11 when it loads a model",
    "write 0 or more microseconds", "recorded on 2.17.1",
)  # fmt: skip
NO_QUEUE: Final = _rule(
    44, _WARNING, "max_enqueued_batches below 1", "the queue holds one batch: most requests are turned away",
    "write at least 1; 0 does not mean unlimited", "recorded on 2.17.1",
)  # fmt: skip
NO_THREADS: Final = _rule(
    45, _ERROR, "num_batch_threads below 1", "the server exits: num_batch_threads must be positive",
    "write at least 1, or remove it for one per CPU", "model_servers/platform_config_util.cc",
)  # fmt: skip
LAST_SIZE: Final = _rule(
    46, _ERROR, "allowed_batch_sizes does not end with max_batch_size",
    "no model loads: Last entry in allowed_batch_sizes must match max_batch_size",
    "make the last entry equal to max_batch_size", "servables/tensorflow/bundle_factory_util.cc",
)  # fmt: skip
SIZES_ORDER: Final = _rule(
    47, _WARNING, "allowed_batch_sizes is not increasing", "the first entry that is large enough is taken: too much padding",
    "sort it", "servables/tensorflow/bundle_factory_util.cc",
)  # fmt: skip
SPLIT_SIZES: Final = _rule(
    48, _ERROR, "max_execution_batch_size above max_batch_size", "the server ends with signal 11 when it loads a model",
    "lower it, or raise max_batch_size", "recorded on 2.17.1",
)  # fmt: skip
NO_SPLIT: Final = _rule(
    49, _WARNING, "max_execution_batch_size without splitting", "it is not read",
    "add enable_large_batch_splitting { value: true }, or remove it", "servables/tensorflow/session_bundle_config.proto",
)  # fmt: skip
SPLIT_UNSIZED: Final = _rule(
    50, _WARNING, "Splitting without max_batch_size", "the size of an executed batch becomes 0: the queue is broken",
    "add max_batch_size and max_execution_batch_size", "servables/tensorflow/bundle_factory_util.cc",
)  # fmt: skip
LONG_TIMEOUT: Final = _rule(
    51, _NOTE, "A long batch_timeout_micros", "every batch that does not fill waits that long",
    "write 0 to 10000 (10 ms) for requests that somebody waits for", "tensorflow/serving#1312",
)  # fmt: skip
ENDLESS_QUEUE: Final = _rule(
    52, _NOTE, "A queue without end", "an overloaded server answers late and fills its memory instead of turning away",
    "write how many batches may wait, such as 100", "tensorflow/serving#10",
)  # fmt: skip
NO_METRICS: Final = _rule(
    60, _WARNING, "Monitoring without enable: true", "the server exports no metrics",
    "write prometheus_config { enable: true }", "tensorflow/serving#1624",
)  # fmt: skip
METRICS_PATH: Final = _rule(
    61, _WARNING, "A metrics path without a leading slash", "no request can have that path: answers are 404",
    'write path: "/monitoring/prometheus/metrics"', "recorded on 2.17.1",
)  # fmt: skip
OVERWRITTEN_THREADS: Final = _rule(
    65, _WARNING, "Threads in a session config", "the server overwrites them from its flags, even with 0",
    "use --tensorflow_intra_op_parallelism and --tensorflow_inter_op_parallelism", "servables/tensorflow/session_bundle_util.cc",
)  # fmt: skip
OVERWRITTEN_MEMORY: Final = _rule(
    66, _WARNING, "A GPU memory fraction in a session config", "the server overwrites it from its flag, even with 0",
    "use --per_process_gpu_memory_fraction", "servables/tensorflow/session_bundle_util.cc",
)  # fmt: skip
NOT_PEM: Final = _rule(
    68, _ERROR, "A path where PEM text belongs", "the server takes the value itself for the key and aborts",
    'write the PEM text: server_key: "-----BEGIN ...\\n"', "tensorflow_serving/config/ssl_config.proto",
)  # fmt: skip

RULES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
