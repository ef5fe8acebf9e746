"""What becomes of each key of a spec on TensorFlow Serving."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import ValidationError

from servewright import specfile, units
from servewright.backend import Fate, Outcome
from servewright.backends.tfserving import flags
from servewright.backends.tfserving.settings import Options
from servewright.spec import Batching, Latest, ModelSpec, ServerSettings, Specific
from servewright.specfile import Document

NAME: Final = "tfserving"
# Flags that the spec's own keys or the launch plan set.
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
    "tensorflow_intra_op_parallelism": "threads.intra_op",
    "tensorflow_inter_op_parallelism": "threads.inter_op",
    "rest_api_timeout_in_ms": "limits.response_timeout",
    "allow_version_labels_for_unavailable_models": "versions.labels",
}
# The scheduler's own default, per queue (BatchingParameters in session_bundle_config.proto).
DEFAULT_ENQUEUED_BATCHES: Final = 10
_MOST_SERVER_THREADS: Final = 2048


def options(spec: ModelSpec) -> Options:
    """Return the spec's settings for this server; they were checked when the spec was read."""
    return Options.model_validate(spec.options.get(NAME, {}))


def target(spec: ModelSpec) -> str:
    """Return the release that the spec is for."""
    return spec.target.get(NAME, flags.DEFAULT_TARGET)


def enqueued_batches(batching: Batching) -> int:
    """Return how many full batches may wait: the server counts batches where the spec counts requests."""
    return -(-batching.queue // batching.max_size) if batching.queue else DEFAULT_ENQUEUED_BATCHES


def in_flight(spec: ModelSpec) -> int:
    """Return how many single-row requests the queue and the batch threads hold at once."""
    threads = spec.batching.threads or os.cpu_count() or 1
    return spec.batching.max_size * (enqueued_batches(spec.batching) + threads)


def server_threads(spec: ModelSpec) -> int | None:
    """Return the server threads that let the batches fill: each waiting request holds one.

    gRPC turned requests away one short of the flag's value, and REST spends one thread on its event loop, so some
    are to spare. ``None``: the server's default does.
    """
    if spec.batching.max_size == 1:
        return None
    return min(_MOST_SERVER_THREADS, max(64, in_flight(spec) + 16))


def explain(document: Document, server: ServerSettings) -> Iterator[Outcome]:
    """Yield what becomes of every key, refusals included."""
    spec = document.spec
    if server.threads and server.threads < spec.batching.max_size + 2 and spec.batching.max_size > 1:
        yield _outcome(
            spec, "batching.max_size", Fate.REFUSED,
            note=f"the fleet's {server.threads} server threads can never fill a batch of {spec.batching.max_size}",
            remedy="remove server.threads from the fleet file: the renderer raises them far enough",
        )  # fmt: skip
    yield from _model(spec)
    own, complaints = _checked_options(spec)
    yield from complaints
    yield from _batching(spec, own)
    yield from _versions(spec)
    yield from _compute(spec)
    yield from _limits(spec)
    for key in ("handler", "requirements", "files"):
        if key in spec.model_fields_set:
            yield _outcome(spec, key, Fate.NOT_APPLICABLE, note="the model's graph is all that this server runs")
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
    shown = value if value is not None else _value(spec, key)
    return Outcome(key=key, value=shown, fate=fate, setting=setting, note=note, remedy=remedy)


def _value(spec: ModelSpec, key: str) -> str:
    node: object = spec.model_dump(mode="json")
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    text = str(node)
    return text if len(text) <= 40 else text[:37] + "..."


def _model(spec: ModelSpec) -> Iterator[Outcome]:
    yield _outcome(spec, "name", Fate.APPLIED, "model_config: name")
    if isinstance(spec.version, str):
        yield _outcome(
            spec, "version", Fate.REFUSED, note=f"{spec.version!r} is not a number: versions are folders here",
            remedy=f"write a whole number above 0{_number_hint(spec.version)}",
        )  # fmt: skip
    else:
        yield _outcome(spec, "version", Fate.APPLIED, "the version's folder")
    source = spec.source(NAME)
    key = f"model.{NAME}" if isinstance(spec.model, dict) else "model"
    if source is None:
        yield _outcome(
            spec, "model", Fate.REFUSED, note="the spec has no model for tfserving",
            remedy="add model.tfserving: {path: saved_model, format: saved_model}", value="",
        )  # fmt: skip
    elif source.format not in ("saved_model", "keras"):
        yield _outcome(
            spec, key, Fate.REFUSED, note=f"TensorFlow Serving cannot load {source.format}", value=source.format,
            remedy="export a SavedModel and name it under model.tfserving",
        )  # fmt: skip
    elif source.format == "keras":
        yield _outcome(spec, key, Fate.EMULATED, "base_path", note="exported as a SavedModel", value=source.path)
    else:
        yield _outcome(spec, key, Fate.APPLIED, "base_path", value=source.path)
    unknown = [release for release in [target(spec)] if release not in flags.TARGETS]
    if unknown:
        yield _outcome(
            spec, f"target.{NAME}", Fate.REFUSED, note=f"release {unknown[0]} is not known", value=unknown[0],
            remedy=f"choose {flags.TARGETS[0]} to {flags.TARGETS[-1]}",
        )  # fmt: skip


def _number_hint(version: str) -> str:
    head = version.partition(".")[0]
    return f": {head}" if head.isdigit() and int(head) > 0 else ""


def _checked_options(spec: ModelSpec) -> tuple[Options, list[Outcome]]:
    """Return the settings for this server, and what is wrong with them."""
    try:
        own = Options.model_validate(spec.options.get(NAME, {}))
    except ValidationError as error:
        return Options(), [
            Outcome(key=".".join((NAME, *map(str, path))), value="", fate=Fate.REFUSED, note=reason, remedy=remedy)
            for path, reason, remedy in specfile.described(error, Options)
        ]
    found: list[Outcome] = []
    for name, value in own.flags.items():
        key = f"{NAME}.flags.{name}"
        if name in _OURS:
            found.append(
                Outcome(
                    key=key, value=str(value), fate=Fate.REFUSED, note=f"--{name} is set by {_OURS[name]}",
                    remedy=f"use {_OURS[name]} instead",
                )
            )  # fmt: skip
        elif complaint := flags.complaint(name, value, target=target(spec)):
            found.append(Outcome(key=key, value=str(value), fate=Fate.REFUSED, note=complaint[0], remedy=complaint[1]))
        elif name in ("grpc_max_threads", "rest_api_num_threads") and int(value) < spec.batching.max_size + 2:
            found.append(
                Outcome(
                    key=key, value=str(value), fate=Fate.REFUSED,
                    note=f"{value} server threads can never fill a batch of {spec.batching.max_size}",
                    remedy="remove the flag: the renderer raises it far enough",
                )
            )  # fmt: skip
        else:
            found.append(Outcome(key=key, value=str(value), fate=Fate.APPLIED, setting=f"--{name}"))
    if own.session:
        found += _session(own)
    return own, found


def _session(own: Options) -> Iterator[Outcome]:
    from servewright.backends.tfserving.texts import session_text

    for name, flag in (("intra_op_parallelism_threads", "intra_op"), ("inter_op_parallelism_threads", "inter_op")):
        if name in own.session:
            yield Outcome(
                key=f"{NAME}.session.{name}", value=str(own.session[name]), fate=Fate.REFUSED,
                note="the server overwrites it from its flags, even with 0", remedy=f"use threads.{flag}",
            )  # fmt: skip
            return
    try:
        session_text(own.session)
    except ValueError as error:
        yield Outcome(
            key=f"{NAME}.session", value="", fate=Fate.REFUSED, note=f"not a tensorflow.ConfigProto: {error}",
            remedy="write its fields as a mapping",
        )  # fmt: skip
    else:
        yield Outcome(
            key=f"{NAME}.session",
            value="",
            fate=Fate.APPLIED,
            setting="session.pbtxt, --tensorflow_session_config_file",
        )


def _batching(spec: ModelSpec, own: Options) -> Iterator[Outcome]:
    batching, extra = spec.batching, own.batching
    if batching.max_size == 1:
        yield _outcome(spec, "batching", Fate.APPLIED, "no --enable_batching", value="off")
        if extra != extra.__class__():
            yield Outcome(
                key=f"{NAME}.batching", value="", fate=Fate.REFUSED,
                note="batching is off: splitting without a max_size makes a broken queue", remedy="set batching.max_size",
            )  # fmt: skip
        return
    yield _outcome(spec, "batching.max_size", Fate.APPLIED, "max_batch_size")
    yield _outcome(spec, "batching.max_delay", Fate.APPLIED, "batch_timeout_micros")
    if batching.allowed_sizes:
        yield _outcome(spec, "batching.allowed_sizes", Fate.APPLIED, "allowed_batch_sizes")
    if batching.queue:
        count = enqueued_batches(batching)
        yield _outcome(
            spec, "batching.queue", Fate.APPLIED, "max_enqueued_batches",
            note=f"{batching.queue} requests are {count} batches of {batching.max_size}",
        )  # fmt: skip
    if batching.threads:
        yield _outcome(spec, "batching.threads", Fate.APPLIED, "num_batch_threads", note="one pool for all models")
    yield Outcome(
        key="batching.max_size", value=str(batching.max_size), fate=Fate.APPLIED,
        setting="--grpc_max_threads, --rest_api_num_threads",
        note=f"raised to {server_threads(spec)}: every waiting request holds a server thread",
    )  # fmt: skip
    if extra.max_execution_batch_size and not extra.enable_large_batch_splitting:
        yield Outcome(
            key=f"{NAME}.batching.max_execution_batch_size", value=str(extra.max_execution_batch_size), fate=Fate.REFUSED,
            note="the server reads it only with splitting on", remedy="set enable_large_batch_splitting: true",
        )  # fmt: skip
    elif extra.max_execution_batch_size and extra.max_execution_batch_size > batching.max_size:
        yield Outcome(
            key=f"{NAME}.batching.max_execution_batch_size", value=str(extra.max_execution_batch_size), fate=Fate.REFUSED,
            note=f"it is above max_size {batching.max_size}; the real server dies of it with signal 11",
            remedy="lower it, or raise batching.max_size",
        )  # fmt: skip
    elif "batching" in spec.options.get(NAME, {}):
        yield Outcome(key=f"{NAME}.batching", value="", fate=Fate.APPLIED, setting="batching_parameters.pbtxt")


def _versions(spec: ModelSpec) -> Iterator[Outcome]:
    policy, number = spec.versions.policy, spec.version
    if isinstance(policy, Specific) and number not in policy.specific:
        yield _outcome(
            spec, "versions.policy", Fate.REFUSED,
            note=f"version {number} is packaged but the policy serves only {list(policy.specific)}",
            remedy=f"add {number} to specific, or use latest",
        )  # fmt: skip
    else:
        yield _outcome(spec, "versions.policy", Fate.APPLIED, "model_version_policy")
    for label, version in spec.versions.labels.items():
        reason = ""
        if isinstance(number, int) and version > number:
            reason = f"label {label!r} names version {version}, and the newest is {number}"
        elif isinstance(policy, Latest) and policy.latest == 1 and version != number:
            reason = f"label {label!r} names version {version}, but latest: 1 serves only {number}"
        if reason:
            yield _outcome(
                spec, f"versions.labels.{label}", Fate.REFUSED, value=str(version), note=reason,
                remedy="point the label at a served version, or serve more versions",
            )  # fmt: skip
        else:
            yield _outcome(
                spec, f"versions.labels.{label}", Fate.APPLIED, "version_labels", value=str(version),
                note="with --allow_version_labels_for_unavailable_models: the first config fails without it",
            )  # fmt: skip


def _compute(spec: ModelSpec) -> Iterator[Outcome]:
    if "workers" in spec.model_fields_set:
        yield _outcome(
            spec, "workers", Fate.NOT_APPLICABLE, note="one process; batching.threads run batches in parallel"
        )
    for key, flag in (
        ("intra_op", "--tensorflow_intra_op_parallelism"),
        ("inter_op", "--tensorflow_inter_op_parallelism"),
    ):
        if getattr(spec.threads, key):
            yield _outcome(spec, f"threads.{key}", Fate.APPLIED, flag)
    if "device" in spec.model_fields_set:
        note = "" if spec.device == "cpu" else "visible_device_list in session.pbtxt; the image must be a -gpu one"
        yield _outcome(spec, "device", Fate.APPLIED, "session.pbtxt" if note else "no GPU request", note=note)


def _limits(spec: ModelSpec) -> Iterator[Outcome]:
    limits = spec.limits
    for key in ("memory", "cpus"):
        if getattr(limits, key):
            yield _outcome(spec, f"limits.{key}", Fate.APPLIED, f"the container's {key}", note="not in runtime process")
    for key in ("request", "response"):
        if getattr(limits, key):
            yield _outcome(
                spec, f"limits.{key}", Fate.NOT_APPLICABLE, note="the server takes messages of up to 2 GiB, always"
            )
    if limits.response_timeout:
        if limits.response_timeout % 1000:
            yield _outcome(
                spec, "limits.response_timeout", Fate.REFUSED, note="the server counts whole milliseconds",
                remedy=f"write {units.format_duration(-(-limits.response_timeout // 1000) * 1000)}",
            )  # fmt: skip
        else:
            yield _outcome(
                spec, "limits.response_timeout", Fate.APPLIED, "--rest_api_timeout_in_ms",
                note="over gRPC the client's deadline decides",
            )  # fmt: skip
    if limits.startup_timeout:
        yield _outcome(spec, "limits.startup_timeout", Fate.EMULATED, note="servewright waits no longer for readiness")
