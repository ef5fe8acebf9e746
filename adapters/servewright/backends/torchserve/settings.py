"""What only TorchServe understands, the spec's ``torchserve:`` key: its schema, and what becomes of it.

Source: ``ConfigManager.java`` and ``ModelConfig.java`` of pytorch/serve 0.12. TorchServe ignores keys that it does
not know and replaces values that it cannot use by defaults, so names and kinds have to be checked here.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from servewright import specfile
from servewright.backend import Fate, Outcome
from servewright.backends.torchserve import properties
from servewright.errors import SpecError
from servewright.fields import Part
from servewright.spec import ModelSpec

NAME: Final = "torchserve"
T = TypeVar("T")
Kind = Literal["whole number", "number", "boolean", "text"]

# Keys that something else in a spec or a fleet sets, and what.
_OWN_PROPERTIES: Final[Mapping[str, str]] = {
    "inference_address": "the fleet's server.ports",
    "management_address": "the fleet's server.ports",
    "metrics_address": "the fleet's server.ports",
    "grpc_inference_address": "the fleet's server.bind",
    "grpc_management_address": "the fleet's server.bind",
    "grpc_inference_port": "the fleet's server.ports",
    "grpc_management_port": "the fleet's server.ports",
    "model_store": "the runtime",
    "load_models": "the fleet's models",
    "disable_token_authorization": "the fleet's server.tokens",
    "enable_model_api": "the fleet's server.model_api",
    "enable_metrics_api": "the fleet's server.metrics",
    "metrics_mode": "the fleet's server.metrics",
    "max_request_size": "limits.request",
    "max_response_size": "limits.response",
    "install_py_dep_per_model": "requirements",
    "number_of_netty_threads": "the fleet's server.threads",
    "models": "batching and workers",
    "model_snapshot": "batching and workers",
    # An archive with any YAML at all, as ours have, ignores the next three.
    "default_response_timeout": "limits.response_timeout",
    "default_startup_timeout": "limits.startup_timeout",
    "default_workers_per_model": "workers",
}
_OWN_YAML: Final[Mapping[str, str]] = {
    "minWorkers": "workers",
    "maxWorkers": "workers",
    "batchSize": "batching.max_size",
    "maxBatchDelay": "batching.max_delay",
    "responseTimeout": "limits.response_timeout",
    "startupTimeout": "limits.startup_timeout",
    "jobQueueSize": "batching.queue",
    "deviceType": "device",
    "deviceIds": "device",
    "servewright": "handler and signature",
}
_OWN_ENVIRONMENT: Final[Mapping[str, str]] = {
    "TMPDIR": "the runtime",
    "TEMP": "the runtime",
    "LOG_LOCATION": "the runtime",
    "METRICS_LOCATION": "the runtime",
    "TS_CONFIG_FILE": "the runtime",
    "JAVA_HOME": "the runtime",
    "OMP_NUM_THREADS": "threads.intra_op",
}
PROPERTIES: Final[Mapping[str, Kind]] = {
    **dict.fromkeys(
        (
            "grpc_inference_max_connection_age_ms", "grpc_inference_max_connection_age_grace_ms",
            "grpc_management_max_connection_age_ms", "grpc_management_max_connection_age_grace_ms",
            "unregister_model_timeout", "job_queue_size", "netty_client_threads", "number_of_gpu",
            "metric_time_interval", "io_ratio", "initial_worker_port", "initial_distribution_port",
        ),
        "whole number",
    ),
    "token_expiration_min": "number",
    **dict.fromkeys(
        (
            "enable_grpc_ssl", "decode_input_request", "limit_max_image_pixels", "model_metrics_auto_detect",
            "disable_system_metrics", "use_env_allowed_urls", "enable_envvars_config", "ts_open_inference_protocol",
            "async_logging", "prefer_direct_buffer", "use_native_io", "cpu_launcher_enable", "ipex_enable",
            "ipex_gpu_enable", "debug",
        ),
        "boolean",
    ),
    **dict.fromkeys(
        (
            "keystore", "keystore_pass", "keystore_type", "certificate_file", "private_key_file", "workflow_store",
            "blacklist_env_vars", "default_service_handler", "service_envelope", "metrics_config",
            "system_metrics_cmd", "allowed_urls", "ts_header_key_sequence_id", "ts_header_key_sequence_start",
            "ts_header_key_sequence_end", "cors_allowed_origin", "cors_allowed_methods", "cors_allowed_headers",
            "cpu_launcher_args", "cpp_log_config", "model_server_home", "vmargs", "plugins_path",
        ),
        "text",
    ),
}  # fmt: skip
# Keys of model-config.yaml that the server itself reads; any other is for the handler.
_YAML: Final[Mapping[str, Kind]] = {
    "parallelType": "text",
    **dict.fromkeys(
        (
            "parallelLevel", "maxRetryTimeoutInSec", "clientTimeoutInMills", "sequenceMaxIdleMSec",
            "sequenceTimeoutMSec", "maxSequenceJobQueueSize", "maxNumSequence",
        ),
        "whole number",
    ),
    **dict.fromkeys(
        ("useJobTicket", "continuousBatching", "sequenceBatching", "asyncCommunication", "useVenv"), "boolean"
    ),
}  # fmt: skip
_LARGEST: Final = 2**31 - 1
# The files that a spec may hold as they are, and how each is read.
TEXT_FILES: Final[Mapping[str, Callable[[str], object]]] = {
    "config.properties": properties.parse,
    "model-config.yaml": yaml.safe_load,
    "MANIFEST.json": json.loads,
}
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Options(Part):
    """Settings of a TorchServe fleet beyond the spec's own keys.

    ``properties`` go to ``config.properties``, ``yaml`` to the archive's ``model-config.yaml``,
    ``environment`` to the server's processes. What no key has words for: ``config_properties`` are laid over the keys
    of ``config.properties`` as texts, ``model_yaml`` over the model's ``model-config.yaml`` and ``manifest`` over its
    ``MANIFEST.json`` (null leaves a key out), and ``files`` are whole texts by the names that they are rendered to.
    """

    properties: dict[str, Any] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": {"type": ["boolean", "number", "string"]}}
    )
    yaml: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
    config_properties: dict[str, str | None] = Field(default_factory=dict)
    model_yaml: dict[str, Any] = Field(default_factory=dict)
    manifest: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)


_NONE: Final = Options()
_HIDDEN: Final = "***"
_SECRETS: Final = ("keystore_pass",)


class _Secret(str):
    """A text that no message of ours quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _HIDDEN


def options(spec: ModelSpec) -> Options:
    """Return the spec's settings for this server; rendering checked them."""
    given = spec.options.get(NAME)
    return Options.model_validate(given) if given else _NONE


def shown(name: str, value: object) -> object:
    """Return what a report may say of a key of ``config.properties``."""
    return _HIDDEN if name in _SECRETS else value


def hidden(values: Mapping[str, T], names: Collection[str] = _SECRETS) -> dict[str, T | str]:
    """Return ``values``, of which no error quotes those that ``names`` has."""
    return {
        name: _Secret(value) if name in names and isinstance(value, str) else value for name, value in values.items()
    }


def explain(spec: ModelSpec) -> Iterator[Outcome]:
    """Yield what becomes of every key below ``torchserve:``, refusals included."""
    try:
        own = options(spec)
    except ValidationError as error:
        for path, reason, remedy in specfile.described(error, Options):
            if path[0] == "environment" and len(path) > 1:
                reason, remedy = "it is no text", "put the value in quotes"  # pydantic's words would quote it
            yield _refused(".".join(map(str, path)), "", reason, remedy)
        return
    for name, value in own.properties.items():
        yield _property(name, value)
    for name, value in own.yaml.items():
        yield _yaml(name, value)
    for name, value in own.environment.items():
        yield _environment(name, value)
    for name in ("config_properties", "model_yaml", "manifest"):
        if getattr(own, name):
            yield _applied(name, "", "keys, as they are")
    for name, text in own.files.items():
        yield _file(name, text)


def _applied(key: str, value: object, setting: str, note: str = "") -> Outcome:
    return Outcome(key=f"{NAME}.{key}", value=str(value), fate=Fate.APPLIED, setting=setting, note=note)


def _refused(key: str, value: object, note: str, remedy: str) -> Outcome:
    return Outcome(key=f"{NAME}.{key}", value=str(value), fate=Fate.REFUSED, note=note, remedy=remedy)


def _property(name: str, value: object) -> Outcome:
    key = f"properties.{name}"
    if name in _SECRETS:
        return _secret(key, name, value)
    if name in _OWN_PROPERTIES:
        return _refused(key, value, f"{name} is set by {_OWN_PROPERTIES[name]}", f"use {_OWN_PROPERTIES[name]} instead")
    if name not in PROPERTIES:
        note = f"TorchServe would silently ignore {name!r}"
        return _refused(key, value, note, _nearest(name, [*PROPERTIES, *_OWN_PROPERTIES], 0.6) or "remove it")
    if not _is(PROPERTIES[name], value):
        kind = PROPERTIES[name]
        return _refused(
            key, value, f"{name} takes a {kind}, not {value!r}; TorchServe would not say so", f"write a {kind}"
        )
    if isinstance(value, str) and (found := properties.variables(value)):
        note = f"TorchServe would put its environment's {found[0]} into {value!r}"
        return _refused(key, value, note, "write the value itself")
    return _applied(key, value, f"{name} in config.properties")


def _secret(key: str, name: str, value: object) -> Outcome:
    """Return what becomes of a property that no report shows."""
    setting = f"{name} in config.properties"
    if not isinstance(value, str):
        note = f"{name} takes a text; TorchServe would not say so"
        return _refused(key, _HIDDEN, note, "put the value in quotes")
    if variable := properties.whole_variable(value):
        return _applied(key, _HIDDEN, setting, f"its environment's {variable}; it ends where there is no such variable")
    if properties.variables(value):
        note = "TorchServe would put a variable of its environment into the middle of it"
        return _refused(key, _HIDDEN, note, "write $$NAME$$ alone, or the value itself")
    return _applied(key, _HIDDEN, setting)


def _yaml(name: str, value: object) -> Outcome:
    key = f"yaml.{name}"
    if name in _OWN_YAML:
        return _refused(key, value, f"{name} is set by {_OWN_YAML[name]}", f"use {_OWN_YAML[name]} instead")
    if name in _YAML and not _is(_YAML[name], value):
        note = f"{name} takes a {_YAML[name]}; TorchServe would silently take its default for {value!r}"
        return _refused(key, value, note, f"write a {_YAML[name]}")
    if name not in _YAML and (near := _nearest(name, [*_YAML, *_OWN_YAML], 0.85)):
        return _refused(key, value, f"TorchServe would silently ignore {name!r}", near)
    reader = "" if name in _YAML else ", for the handler"
    return _applied(key, value, f"{name} in model-config.yaml{reader}")


def accepts_yaml(name: str, value: object) -> bool:
    """Tell whether ``value`` may stand as ``yaml.NAME``."""
    return _yaml(name, value).fate is Fate.APPLIED


def _environment(name: str, value: str) -> Outcome:
    key = f"environment.{name}"
    if name in _OWN_ENVIRONMENT:
        owner = _OWN_ENVIRONMENT[name]
        remedy = "remove it" if "." not in owner else f"use {owner}"
        return _refused(key, _HIDDEN, f"{name} is set by {owner}", remedy)
    if not _VARIABLE.fullmatch(name):
        return _refused(key, _HIDDEN, f"{name!r} is no name of a variable", "use letters, digits and '_'")
    if "\0" in value:
        return _refused(key, _HIDDEN, "a variable holds no NUL byte", "remove it")
    return _applied(key, _HIDDEN, "environment of the server's processes")


def _file(name: str, text: str) -> Outcome:
    key = f"files.{name}"
    if name not in TEXT_FILES:
        return _refused(key, "", f"{name!r} is no file of the server's", f"name one of {', '.join(TEXT_FILES)}")
    try:
        TEXT_FILES[name](text)
    except (SpecError, ValueError, yaml.YAMLError, RecursionError) as error:
        return _refused(key, "", f"it cannot be read: {error}", "correct the text")
    return _applied(key, "", f"{name}, as it is")


def _nearest(name: str, known: Collection[str], cutoff: float) -> str:
    folded = {each.replace("_", "").lower(): each for each in known}
    close = difflib.get_close_matches(name.replace("_", "").lower(), folded, n=1, cutoff=cutoff)
    return f"did you mean {folded[close[0]]!r}?" if close else ""


def _is(kind: Kind, value: object) -> bool:
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "text":
        return isinstance(value, str)
    number = int if kind == "whole number" else int | float
    return isinstance(value, number) and not isinstance(value, bool) and abs(value) <= _LARGEST
