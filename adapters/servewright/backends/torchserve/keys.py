"""What becomes of each key of a spec on TorchServe, and which keys its two config files know.

Source: ``ConfigManager.java`` and ``ModelConfig.java`` of pytorch/serve 0.12. TorchServe ignores keys that it does
not know and replaces values that it cannot use by defaults, so both have to be checked here.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import ValidationError

from servewright import specfile, units
from servewright.backend import Fate, Outcome
from servewright.backends.torchserve.settings import Options
from servewright.spec import Latest, ModelSpec, ServerSettings
from servewright.specfile import Document

NAME: Final = "torchserve"
TARGETS: Final = ("0.11", "0.12")
DEFAULT_TARGET: Final = "0.12"
DEFAULT_QUEUE: Final = 100
DEFAULT_TIMEOUT_S: Final = 120
DEFAULT_MESSAGE_BYTES: Final = 6_553_500

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
}
PROPERTIES: Final = frozenset(_OWN_PROPERTIES) | {
    "grpc_inference_max_connection_age_ms", "grpc_inference_max_connection_age_grace_ms",
    "grpc_management_max_connection_age_ms", "grpc_management_max_connection_age_grace_ms",
    "enable_grpc_ssl", "keystore", "keystore_pass", "keystore_type", "certificate_file", "private_key_file",
    "workflow_store", "default_workers_per_model", "default_response_timeout", "default_startup_timeout",
    "unregister_model_timeout", "job_queue_size", "netty_client_threads", "number_of_gpu", "blacklist_env_vars",
    "default_service_handler", "service_envelope", "decode_input_request", "limit_max_image_pixels",
    "metrics_config", "model_metrics_auto_detect", "disable_system_metrics", "metric_time_interval",
    "system_metrics_cmd", "token_expiration_min", "allowed_urls", "use_env_allowed_urls", "enable_envvars_config",
    "ts_open_inference_protocol", "ts_header_key_sequence_id", "ts_header_key_sequence_start",
    "ts_header_key_sequence_end", "cors_allowed_origin", "cors_allowed_methods", "cors_allowed_headers",
    "async_logging", "prefer_direct_buffer", "use_native_io", "io_ratio", "initial_worker_port",
    "initial_distribution_port", "cpu_launcher_enable", "cpu_launcher_args", "ipex_enable", "ipex_gpu_enable",
    "cpp_log_config", "debug", "model_server_home", "vmargs", "plugins_path",
}  # fmt: skip
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


def options(spec: ModelSpec) -> Options:
    """Return the spec's settings for this server; they were checked when the spec was read."""
    return Options.model_validate(spec.options.get(NAME, {}))


def queue(spec: ModelSpec) -> int:
    """Return how many requests may wait for the model."""
    return spec.batching.queue or DEFAULT_QUEUE


def in_flight(spec: ModelSpec) -> int:
    """Return how many requests the queue and the workers hold at once."""
    return queue(spec) + spec.workers * spec.batching.max_size


def explain(document: Document, server: ServerSettings) -> Iterator[Outcome]:
    """Yield what becomes of every key, refusals included."""
    spec = document.spec
    yield from _model(spec)
    yield from _own(spec)
    yield from _batching(spec)
    yield from _workers(spec, server)
    yield from _versions(spec)
    yield from _limits(spec)
    if spec.requirements:
        yield _outcome(
            spec, "requirements", Fate.APPLIED, "requirementsFile, install_py_dep_per_model",
            note="installed at each load, from the network; bake them into an image for production",
        )  # fmt: skip
    if spec.files:
        yield _outcome(spec, "files", Fate.APPLIED, "extra files of the archive")
    for key in ("golden", "slo"):
        if key in spec.model_fields_set:
            yield _outcome(spec, key, Fate.NOT_APPLICABLE, note="no setting of the server; servewright checks it")


def _outcome(
    spec: ModelSpec,
    key: str,
    fate: Fate,
    setting: str = "",
    *,
    note: str = "",
    remedy: str = "",
    value: str | None = None,
) -> Outcome:
    return Outcome(
        key=key, value=spec_value(spec, key) if value is None else value, fate=fate, setting=setting, note=note,
        remedy=remedy,
    )  # fmt: skip


def spec_value(spec: ModelSpec, key: str) -> str:
    """Return the value at a dotted ``key`` as short text."""
    node: object = spec.model_dump(mode="json")
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    text = str(node)
    return text if len(text) <= 40 else text[:37] + "..."


def _model(spec: ModelSpec) -> Iterator[Outcome]:
    yield _outcome(spec, "name", Fate.APPLIED, "modelName")
    yield _outcome(spec, "version", Fate.APPLIED, "modelVersion")
    source = spec.source(NAME)
    key = f"model.{NAME}" if isinstance(spec.model, dict) else "model"
    if source is None:
        yield _outcome(
            spec, "model", Fate.REFUSED, note="the spec has no model for torchserve",
            remedy="add model.torchserve: {path: model.pt, format: torchscript}", value="",
        )  # fmt: skip
    elif source.format not in ("torchscript", "state_dict", "exported_program", "onnx") and spec.handler.use in (
        "tensor", "vision", "text",
    ):  # fmt: skip
        yield _outcome(
            spec, key, Fate.REFUSED, note=f"the {spec.handler.use} handler cannot load {source.format}",
            remedy="export torchscript, exported_program or onnx, or name a handler of your own", value=source.format,
        )  # fmt: skip
    else:
        yield _outcome(spec, key, Fate.APPLIED, "serializedFile", value=source.path)
    yield _outcome(spec, "handler.use", Fate.APPLIED, "handler")
    for name in ("dtype", "compile", "script", "labels", "top_k", "softmax", "image", "text"):
        if name in spec.handler.model_fields_set:
            yield _outcome(spec, f"handler.{name}", Fate.APPLIED, f"servewright.options.{name}")
    release = spec.target.get(NAME, DEFAULT_TARGET)
    if release not in TARGETS and not release.startswith(tuple(f"{known}." for known in TARGETS)):
        yield _outcome(
            spec, f"target.{NAME}", Fate.REFUSED, note=f"release {release} is not known", value=release,
            remedy=f"choose {TARGETS[0]} or {TARGETS[-1]}",
        )  # fmt: skip


def _own(spec: ModelSpec) -> Iterator[Outcome]:
    try:
        own = Options.model_validate(spec.options.get(NAME, {}))
    except ValidationError as error:
        for path, reason, remedy in specfile.described(error, Options):
            key = ".".join((NAME, *map(str, path)))
            yield Outcome(key=key, value="", fate=Fate.REFUSED, note=reason, remedy=remedy)
        return
    for section, values, ours in (("properties", own.properties, _OWN_PROPERTIES), ("yaml", own.yaml, _OWN_YAML)):
        for name, value in values.items():
            key = f"{NAME}.{section}.{name}"
            if name in ours:
                yield Outcome(
                    key=key, value=str(value), fate=Fate.REFUSED, note=f"{name} is set by {ours[name]}",
                    remedy=f"use {ours[name]} instead",
                )  # fmt: skip
            elif section == "properties" and name not in PROPERTIES:
                close = difflib.get_close_matches(name, PROPERTIES, n=1)
                yield Outcome(
                    key=key, value=str(value), fate=Fate.REFUSED, note=f"TorchServe would silently ignore {name!r}",
                    remedy=f"did you mean {close[0]!r}?" if close else "remove it",
                )  # fmt: skip
            else:
                file = "config.properties" if section == "properties" else "model-config.yaml"
                yield Outcome(key=key, value=str(value), fate=Fate.APPLIED, setting=f"{name} in {file}")


def _batching(spec: ModelSpec) -> Iterator[Outcome]:
    batching = spec.batching
    yield _outcome(spec, "batching.max_size", Fate.APPLIED, "batchSize")
    if batching.max_size > 1:
        delay = batching.max_delay
        if delay == 0:
            yield _outcome(
                spec, "batching.max_delay", Fate.REFUSED, note="TorchServe takes a delay of 0 for 100 ms",
                remedy="write max_delay: 1ms, the shortest that it knows",
            )  # fmt: skip
        elif delay % 1000:
            yield _outcome(
                spec, "batching.max_delay", Fate.REFUSED,
                note=f"TorchServe counts whole milliseconds; {units.format_duration(delay)} "
                + ("would round to 0, which means 100 ms there" if delay < 1000 else "cannot be kept"),
                remedy=f"write max_delay: {max(1, round(delay / 1000))}ms",
            )  # fmt: skip
        else:
            yield _outcome(spec, "batching.max_delay", Fate.APPLIED, "maxBatchDelay")
    if batching.queue:
        yield _outcome(spec, "batching.queue", Fate.APPLIED, "jobQueueSize")
    elif batching.max_size > DEFAULT_QUEUE:
        yield _outcome(
            spec, "batching.queue", Fate.REFUSED, value="", note=f"a batch of {batching.max_size} never fills from the "
            f"default queue of {DEFAULT_QUEUE}", remedy=f"write queue: {4 * batching.max_size}",
        )  # fmt: skip
    if batching.allowed_sizes:
        yield _outcome(
            spec,
            "batching.allowed_sizes",
            Fate.NOT_APPLICABLE,
            note="TorchServe runs batches of any size, without padding",
        )
    if batching.threads:
        yield _outcome(
            spec, "batching.threads", Fate.NOT_APPLICABLE, note="every worker is a thread of its own: see workers"
        )


def _workers(spec: ModelSpec, server: ServerSettings) -> Iterator[Outcome]:
    yield _outcome(
        spec, "workers", Fate.APPLIED, "minWorkers = maxWorkers", note="no load moves the number between the two"
    )
    if spec.threads.intra_op:
        yield _outcome(spec, "threads.intra_op", Fate.APPLIED, "OMP_NUM_THREADS and torch.set_num_threads")
        if spec.threads.intra_op * spec.workers > 4 * (os.cpu_count() or 1) and "threads" in spec.model_fields_set:
            yield _outcome(
                spec, "threads.intra_op", Fate.APPLIED, "OMP_NUM_THREADS",
                note=f"{spec.workers} workers of {spec.threads.intra_op} threads are many for this machine's cores",
            )  # fmt: skip
    if spec.threads.inter_op:
        yield _outcome(spec, "threads.inter_op", Fate.NOT_APPLICABLE, note="one forward runs at a time in a worker")
    if "device" in spec.model_fields_set:
        setting = "deviceType" + (", deviceIds" if ":" in spec.device else "")
        yield _outcome(spec, "device", Fate.APPLIED, setting)
    if server.threads:
        yield Outcome(
            key="server.threads", value=str(server.threads), fate=Fate.APPLIED, setting="number_of_netty_threads"
        )


def _versions(spec: ModelSpec) -> Iterator[Outcome]:
    if spec.versions.labels:
        yield _outcome(
            spec,
            "versions.labels",
            Fate.NOT_APPLICABLE,
            note="TorchServe has no labels; its default version takes their place",
        )
    if "policy" in spec.versions.model_fields_set and spec.versions.policy != Latest(latest=1):
        yield _outcome(spec, "versions.policy", Fate.NOT_APPLICABLE, note="every version that is registered is served")


def _limits(spec: ModelSpec) -> Iterator[Outcome]:
    limits = spec.limits
    for key in ("memory", "cpus"):
        if getattr(limits, key):
            yield _outcome(spec, f"limits.{key}", Fate.APPLIED, f"the container's {key}", note="not in runtime process")
    for key, setting in (("request", "max_request_size"), ("response", "max_response_size")):
        size = getattr(limits, key)
        if size and size > 2**31 - 1:
            yield _outcome(
                spec, f"limits.{key}", Fate.REFUSED, note=f"{setting} is a 32-bit number: TorchServe would not start",
                remedy="write at most 2047MiB",
            )  # fmt: skip
        elif size:
            yield _outcome(spec, f"limits.{key}", Fate.APPLIED, setting, note="one value for all models: the largest")
    for key, setting in (("response_timeout", "responseTimeout"), ("startup_timeout", "startupTimeout")):
        timeout = getattr(limits, key)
        if timeout and timeout % 1_000_000:
            yield _outcome(
                spec, f"limits.{key}", Fate.REFUSED,
                note=f"TorchServe counts whole seconds, and takes 0 for {DEFAULT_TIMEOUT_S}",
                remedy=f"write {-(-timeout // 1_000_000)}s",
            )  # fmt: skip
        elif timeout:
            yield _outcome(spec, f"limits.{key}", Fate.APPLIED, setting)
