"""What only TF Serving understands, the spec's ``tfserving:`` key: its schema, and what becomes of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final

from google.protobuf import json_format, text_format
from pydantic import Field, ValidationError

from servewright import specfile
from servewright.backend import Fate, Outcome
from servewright.backends.tfserving import flags, protos
from servewright.fields import Part, Positive
from servewright.patches import patched
from servewright.spec import ModelSpec

NAME: Final = "tfserving"
# Flags that something else in a spec or a fleet sets, and what.
_OURS: Final[Mapping[str, str]] = {
    "port": "the fleet's server.ports",
    "rest_api_port": "the fleet's server.ports",
    "model_config_file": "name and versions",
    "model_name": "name",
    "model_base_path": "tfserving.base_path",
    "enable_batching": "batching",
    "batching_parameters_file": "batching",
    "enable_per_model_batching_parameters": "batching",
    "monitoring_config_file": "the fleet's server.metrics",
    "tensorflow_session_config_file": "tfserving.session",
    "tensorflow_session_parallelism": "threads",
    "tensorflow_intra_op_parallelism": "threads.intra_op",
    "tensorflow_inter_op_parallelism": "threads.inter_op",
    "rest_api_timeout_in_ms": "limits.response_timeout",
    "file_system_poll_wait_seconds": "the fleet's server.poll",
    "allow_version_labels_for_unavailable_models": "versions.labels",
}
# The files that a spec may hold as they are, and the message in each.
TEXT_FILES: Final[Mapping[str, str]] = {
    "model_config.pbtxt": "ModelServerConfig",
    "batching_parameters.pbtxt": "BatchingParameters",
    "monitoring.pbtxt": "MonitoringConfig",
    "session.pbtxt": "ConfigProto",
}
_HARMFUL: Final[Mapping[str, str]] = {
    "version": "the server would print its version and end",
    "platform_config_file": "the server would then ignore batching, session and warm-up",
}
_THREAD_FLAGS: Final = frozenset({"grpc_max_threads", "rest_api_num_threads"})
# Fields of ConfigProto that the server overwrites from its flags, even with 0, and what sets them instead.
_OVERWRITTEN: Final[Mapping[str, str]] = {
    "intra_op_parallelism_threads": "threads.intra_op",
    "inter_op_parallelism_threads": "threads.inter_op",
    "gpu_options.per_process_gpu_memory_fraction": "tfserving.flags.per_process_gpu_memory_fraction",
}


class BatchingOptions(Part):
    """Fields of BatchingParameters that no other server has."""

    enable_large_batch_splitting: bool = False
    max_execution_batch_size: Positive | None = None
    pad_variable_length_inputs: bool = False
    thread_pool_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Options(Part):
    """Settings of a TF Serving fleet beyond the spec's own keys.

    ``session`` holds fields of tensorflow.ConfigProto; ``flags`` further command-line flags by name. What no key has
    words for: ``entry`` is laid over the model's ModelConfig and ``batching_parameters`` over the server's
    BatchingParameters (null leaves a field out), and ``files`` are whole texts by the names that they are rendered to.
    """

    batching: BatchingOptions = BatchingOptions()
    flags: dict[str, Any] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": {"type": ["boolean", "number", "string"]}}
    )
    session: dict[str, Any] = Field(default_factory=dict)
    base_path: Annotated[str, Field(pattern=r"^(/|[a-z0-9]+://)[^\x00-\x1f\x7f]+$")] | None = None
    monitoring_path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/monitoring/prometheus/metrics"
    warmup: bool = True
    entry: dict[str, Any] = Field(default_factory=dict)
    batching_parameters: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


_NONE: Final = Options()


def options(spec: ModelSpec) -> Options:
    """Return the spec's settings for this server; rendering checked them."""
    given = spec.options.get(NAME)
    return Options.model_validate(given) if given else _NONE


def session_message(fields: Mapping[str, Any]) -> Any:
    """Return a tensorflow.ConfigProto of ``fields``; `ValueError` says what does not fit."""
    try:
        return json_format.ParseDict(dict(fields), protos.ConfigProto())
    except (json_format.ParseError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def session_text(message: Any) -> str:
    """Return a message as text format."""
    # ASCII alone: what indents this in a template breaks lines at U+2028 and its like, in the middle of a string.
    return str(text_format.MessageToString(message, as_utf8=False)).rstrip("\n")


def explain(spec: ModelSpec, release: str) -> Iterator[Outcome]:
    """Yield what becomes of every key below ``tfserving:``, refusals included."""
    try:
        own = options(spec)
    except ValidationError as error:
        for path, reason, remedy in specfile.described(error, Options):
            yield _refused(".".join(map(str, path)), "", reason, remedy)
        return
    for name, value in own.flags.items():
        yield _flag(name, value, spec, release)
    if own.session:
        yield from _session(own.session)
    yield from _batching(spec, own.batching)
    for name, setting in (
        ("base_path", "base_path"),
        ("monitoring_path", "prometheus_config: path"),
        ("warmup", "assets.extra/tf_serving_warmup_requests"),
    ):
        if name in own.model_fields_set:
            yield _applied(name, getattr(own, name), setting)
    yield from _as_they_are(own)


def _as_they_are(own: Options) -> Iterator[Outcome]:
    """Yield what becomes of the texts and fields that are taken as they are; of these the grammar alone is checked."""
    for name, kind in (("entry", "ModelConfig"), ("batching_parameters", "BatchingParameters")):
        fields = getattr(own, name)
        if not fields:
            continue
        try:
            json_format.ParseDict(patched({}, fields), getattr(protos, kind)())
        except (json_format.ParseError, TypeError, ValueError, AttributeError, RecursionError) as error:
            yield _refused(name, "", f"not fields of {kind}: {error}", "correct them")
        else:
            yield _applied(name, "", f"fields of {kind}, as they are")
    for name, text in own.files.items():
        if name not in TEXT_FILES:
            yield _refused(
                f"files.{name}", "", f"{name!r} is no file of the server's", f"name one of {', '.join(TEXT_FILES)}"
            )
            continue
        try:
            text_format.Parse(text, getattr(protos, TEXT_FILES[name])())
        except text_format.ParseError as error:
            yield _refused(f"files.{name}", "", f"not {TEXT_FILES[name]}: {error}", "correct the text")
        else:
            yield _applied(f"files.{name}", "", f"{name}, as it is")


def _applied(key: str, value: object, setting: str) -> Outcome:
    return Outcome(key=f"{NAME}.{key}", value=str(value), fate=Fate.APPLIED, setting=setting)


def _refused(key: str, value: object, note: str, remedy: str) -> Outcome:
    return Outcome(key=f"{NAME}.{key}", value=str(value), fate=Fate.REFUSED, note=note, remedy=remedy)


def _flag(name: str, value: object, spec: ModelSpec, release: str) -> Outcome:
    key, most = f"flags.{name}", spec.batching.max_size
    if name in _OURS:
        return _refused(key, value, f"--{name} is set by {_OURS[name]}", f"use {_OURS[name]} instead")
    if name in _HARMFUL:
        return _refused(key, value, _HARMFUL[name], "remove it")
    if wrong := flags.complaint(name, value, target=release):
        return _refused(key, value, *wrong)
    if isinstance(value, str) and any(unicodedata.category(each) in ("Cc", "Zl", "Zp") for each in value):
        return _refused(key, repr(value), "a flag is one line", "remove the control characters")
    if name in _THREAD_FLAGS and isinstance(value, int) and value < most + 2:
        note = f"{value} server threads can never fill a batch of {most}"
        return _refused(key, value, note, "remove the flag: the renderer raises it far enough")
    return _applied(key, value, f"--{name}")


def _session(fields: Mapping[str, Any]) -> Iterator[Outcome]:
    try:
        message = session_message(fields)
    except ValueError as error:
        yield _refused("session", "", f"not a tensorflow.ConfigProto: {error}", "write its fields as a mapping")
        return
    for path, instead in _OVERWRITTEN.items():
        holder, _, name = path.rpartition(".")
        if getattr(getattr(message, holder) if holder else message, name):
            yield _refused(f"session.{path}", "", "the server overwrites it from its flags", f"use {instead}")
    yield _applied("session", "", "session.pbtxt, --tensorflow_session_config_file")


def _batching(spec: ModelSpec, extra: BatchingOptions) -> Iterator[Outcome]:
    most, key = spec.batching.max_size, "batching.max_execution_batch_size"
    execution = extra.max_execution_batch_size
    if extra is _NONE.batching or extra == _NONE.batching:
        return
    if most == 1:
        note = "batching is off: splitting without a max_size makes a broken queue"
        yield _refused("batching", "", note, "set batching.max_size")
    elif execution and not extra.enable_large_batch_splitting:
        note = "the server reads it only with splitting on"
        yield _refused(key, execution, note, "set enable_large_batch_splitting: true")
    elif execution and execution > most:
        note = f"it is above max_size {most}; the real server dies of it with signal 11"
        yield _refused(key, execution, note, "lower it, or raise batching.max_size")
    else:
        for name in sorted(extra.model_fields_set):
            yield _applied(f"batching.{name}", getattr(extra, name), name)
