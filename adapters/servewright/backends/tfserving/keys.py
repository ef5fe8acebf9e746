"""What becomes of each key of a spec on TensorFlow Serving."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from servewright import units
from servewright.backend import Fate, Outcome, Transport, outcome
from servewright.backends.tfserving import flags, settings
from servewright.backends.tfserving.settings import NAME, options
from servewright.spec import Batching, Latest, ModelSpec, ServerSettings, Specific, VersionPolicy
from servewright.specfile import Document

__all__ = ["NAME", "enqueued_batches", "explain", "in_flight", "options", "release", "server_threads", "target"]

# The scheduler's own default, per queue (BatchingParameters in session_bundle_config.proto).
DEFAULT_ENQUEUED_BATCHES: Final = 10
_MOST_SERVER_THREADS: Final = 2048
# tensorflow_serving/util/json_tensor.cc converts none of them.
_NOT_OVER_REST: Final = frozenset({"float16", "bfloat16", "uint16", "complex64", "complex128"})


def target(spec: ModelSpec) -> str:
    """Return the release that the spec is for, or the series."""
    return spec.target.get(NAME, flags.DEFAULT_TARGET)


def release(spec: ModelSpec) -> str:
    """Return the release that the spec is for, in full; of a series, the last one."""
    return flags.LAST.get(target(spec), target(spec))


def enqueued_batches(batching: Batching) -> int:
    """Return how many full batches may wait: the server counts batches where the spec counts requests."""
    return -(-batching.queue // batching.max_size) if batching.queue else DEFAULT_ENQUEUED_BATCHES


def in_flight(spec: ModelSpec) -> int:
    """Return how many single-row requests the queue and the batch threads hold at once, at least.

    Where the spec leaves the threads open, the server has as many as its machine has cores. One is counted: what is
    rendered may not depend on the machine that renders it.
    """
    return spec.batching.max_size * (enqueued_batches(spec.batching) + (spec.batching.threads or 1))


def unable(spec: ModelSpec, transport: Transport) -> str:
    """Return why the model's tensors cannot go over a transport: the REST API answers 501 for what JSON has not."""
    if transport != "http":
        return ""
    kinds = {tensor.dtype for tensor in (*spec.signature.inputs, *spec.signature.outputs)} & _NOT_OVER_REST
    return f"the server's REST API takes and gives no {', '.join(sorted(kinds))}" if kinds else ""


def most_rows(spec: ModelSpec) -> int | None:
    """Return how many rows a request may have: a batch's, also where large batches are split."""
    return spec.batching.max_size if spec.batching.max_size > 1 else None


def server_threads(spec: ModelSpec) -> int | None:
    """Return the server threads that let the batches fill: each waiting request holds one.

    gRPC turned requests away one short of the flag's value, and REST spends one thread on its event loop, so some
    are to spare. ``None``: the server's default does.
    """
    if spec.batching.max_size == 1:
        return None
    enough = max(64, spec.batching.max_size + 16)
    return max(enough, min(_MOST_SERVER_THREADS, in_flight(spec) + 16))


def explain(document: Document, server: ServerSettings) -> Iterator[Outcome]:
    """Yield what becomes of every key, refusals included."""
    spec = document.spec
    yield from _model(spec)
    yield from settings.explain(spec, target(spec))
    yield from _batching(spec, server)
    yield from _versions(spec)
    yield from _compute(spec)
    yield from _limits(spec)
    for key in ("handler", "requirements", "files"):
        if key in spec.model_fields_set:
            yield outcome(spec, key, Fate.NOT_APPLICABLE, note="the model's graph is all that this server runs")
    for key in ("golden", "slo"):
        if key in spec.model_fields_set:
            yield outcome(spec, key, Fate.NOT_APPLICABLE, note="no setting of the server; servewright checks it")
    yield from _server(server)


def _model(spec: ModelSpec) -> Iterator[Outcome]:
    yield outcome(spec, "name", Fate.APPLIED, "model_config: name")
    if isinstance(spec.version, str):
        note = f"{spec.version!r} is not a number: versions are folders here"
        remedy = f"write a whole number above 0{_number_hint(spec.version)}"
        yield outcome(spec, "version", Fate.REFUSED, note=note, remedy=remedy)
    else:
        yield outcome(spec, "version", Fate.APPLIED, "the version's folder")
    yield _source(spec)
    note = "the model's own; servewright checks that they are the same"
    yield outcome(spec, "signature", Fate.NOT_APPLICABLE, note=note, value=spec.signature.name)
    asked = target(spec)
    if ".".join(asked.split(".")[:2]) not in flags.TARGETS:
        note, remedy = f"release {asked} is not known", f"choose {flags.TARGETS[0]} to {flags.TARGETS[-1]}"
        yield outcome(spec, f"target.{NAME}", Fate.REFUSED, note=note, value=asked, remedy=remedy)
    elif NAME in spec.target:
        yield outcome(spec, f"target.{NAME}", Fate.APPLIED, "the image, and which flags there are", value=asked)


def _number_hint(version: str) -> str:
    head = version.partition(".")[0]
    return f": {head}" if head.isdigit() and int(head) > 0 else ""


def _source(spec: ModelSpec) -> Outcome:
    source = spec.source(NAME)
    key = f"model.{NAME}" if isinstance(spec.model, dict) else "model"
    if source is None:
        remedy = "add model.tfserving: {path: saved_model, format: saved_model}"
        return outcome(spec, "model", Fate.REFUSED, note="the spec has no model for tfserving", remedy=remedy, value="")
    if source.format == "saved_model":
        return outcome(spec, key, Fate.APPLIED, "base_path", value=source.path)
    if source.format == "keras":
        return outcome(spec, key, Fate.EMULATED, "base_path", note="exported as a SavedModel", value=source.path)
    note = f"TensorFlow Serving cannot load {source.format}"
    remedy = "export a SavedModel and name it under model.tfserving"
    return outcome(spec, key, Fate.REFUSED, note=note, value=source.format, remedy=remedy)


def _batching(spec: ModelSpec, server: ServerSettings) -> Iterator[Outcome]:
    batching = spec.batching
    if batching.max_size == 1:
        yield outcome(spec, "batching", Fate.APPLIED, "no --enable_batching", value="off")
        return
    yield outcome(spec, "batching.max_size", Fate.APPLIED, "max_batch_size")
    yield outcome(spec, "batching.max_delay", Fate.APPLIED, "batch_timeout_micros")
    if batching.allowed_sizes:
        yield outcome(spec, "batching.allowed_sizes", Fate.APPLIED, "allowed_batch_sizes")
    if batching.queue:
        note = f"{batching.queue} requests are {enqueued_batches(batching)} batches of {batching.max_size}"
        yield outcome(spec, "batching.queue", Fate.APPLIED, "max_enqueued_batches", note=note)
    if batching.threads:
        yield outcome(spec, "batching.threads", Fate.APPLIED, "num_batch_threads", note="one pool for all models")
    if not server.threads:
        note = f"raised to {server_threads(spec)}: every waiting request holds a server thread"
        yield outcome(spec, "batching.max_size", Fate.EMULATED, "--grpc_max_threads, --rest_api_num_threads", note=note)
    elif server.threads < batching.max_size + 2:
        note = f"the fleet's {server.threads} server threads can never fill a batch of {batching.max_size}"
        remedy = "remove server.threads from the fleet file: the renderer raises them far enough"
        yield outcome(spec, "batching.max_size", Fate.REFUSED, note=note, remedy=remedy)


def _versions(spec: ModelSpec) -> Iterator[Outcome]:
    policy: VersionPolicy = spec.versions.policy
    number: int | str | None = spec.version
    if spec.deployed:
        number = None  # what versions there are is the server's to know
    if isinstance(policy, Specific) and number is not None and number not in policy.specific:
        note = f"version {number} is packaged but the policy serves only {list(policy.specific)}"
        remedy = f"add {number} to specific, or use latest"
        yield outcome(spec, "versions.policy", Fate.REFUSED, note=note, remedy=remedy)
    else:
        yield outcome(spec, "versions.policy", Fate.APPLIED, "model_version_policy")
    for label, version in spec.versions.labels.items():
        key, reason = f"versions.labels.{label}", ""
        if isinstance(number, int) and version > number:
            reason = f"label {label!r} names version {version}, and the newest is {number}"
        elif isinstance(policy, Latest) and policy.latest == 1 and number is not None and version != number:
            reason = f"label {label!r} names version {version}, but latest: 1 serves only {number}"
        if reason:
            remedy = "point the label at a served version, or serve more versions"
            yield outcome(spec, key, Fate.REFUSED, value=str(version), note=reason, remedy=remedy)
        else:
            note = "with --allow_version_labels_for_unavailable_models: the first config fails without it"
            yield outcome(spec, key, Fate.APPLIED, "version_labels", value=str(version), note=note)


def _compute(spec: ModelSpec) -> Iterator[Outcome]:
    if "workers" in spec.model_fields_set:
        note = "one process; batching.threads run batches in parallel"
        yield outcome(spec, "workers", Fate.NOT_APPLICABLE, note=note)
    for key in ("intra_op", "inter_op"):
        if getattr(spec.threads, key):
            yield outcome(spec, f"threads.{key}", Fate.APPLIED, f"--tensorflow_{key}_parallelism")
    if spec.device != "cpu":
        note = "the image must be a -gpu one"
        setting = "visible_device_list in session.pbtxt" if ":" in spec.device else "the container's GPU request"
        yield outcome(spec, "device", Fate.APPLIED, setting, note=note)
    elif "device" in spec.model_fields_set:
        yield outcome(spec, "device", Fate.APPLIED, "no GPU request")


def _limits(spec: ModelSpec) -> Iterator[Outcome]:
    limits = spec.limits
    for key in ("memory", "cpus"):
        if getattr(limits, key):
            yield outcome(spec, f"limits.{key}", Fate.APPLIED, f"the container's {key}", note="not in runtime process")
    for key in ("request", "response"):
        if getattr(limits, key):
            note = "the server takes messages of up to 2 GiB, always"
            yield outcome(spec, f"limits.{key}", Fate.NOT_APPLICABLE, note=note)
    if timeout := limits.response_timeout:
        key = "limits.response_timeout"
        if timeout % 1000:
            remedy = f"write {units.format_duration(-(-timeout // 1000) * 1000)}"
            yield outcome(spec, key, Fate.REFUSED, note="the server counts whole milliseconds", remedy=remedy)
        else:
            note = "over gRPC the client's deadline decides"
            yield outcome(spec, key, Fate.APPLIED, "--rest_api_timeout_in_ms", note=note)
    if limits.startup_timeout:
        note = "servewright waits no longer for readiness"
        yield outcome(spec, "limits.startup_timeout", Fate.EMULATED, note=note)


def _server(server: ServerSettings) -> Iterator[Outcome]:
    """Yield what becomes of the fleet's settings for the server."""
    fates = {
        "threads": (Fate.APPLIED, "--grpc_max_threads, --rest_api_num_threads", ""),
        "metrics": (Fate.APPLIED, "monitoring.pbtxt, --monitoring_config_file", ""),
        "ports": (Fate.APPLIED, "--port, --rest_api_port", ""),
        "poll": (Fate.APPLIED, "--file_system_poll_wait_seconds", ""),
        "tokens": (Fate.NOT_APPLICABLE, "", "the server knows no tokens: keep it behind something that does"),
        "model_api": (Fate.NOT_APPLICABLE, "", "models change with the config file, or over ReloadConfig"),
        "bind": (Fate.NOT_APPLICABLE, "", "the server binds every address, and has no flag for it"),
    }
    for name in sorted(server.model_fields_set):
        value = getattr(server, name)
        fate, setting, note = fates[name]
        remedy = ""
        if name == "poll" and value and value % 1_000_000:
            fate, setting, note, remedy = Fate.REFUSED, "", "the server counts whole seconds", "write at least 1s"
        elif name == "poll" and value is not None:
            value = units.format_duration(value)
        yield Outcome(key=f"server.{name}", value=str(value), fate=fate, setting=setting, note=note, remedy=remedy)
