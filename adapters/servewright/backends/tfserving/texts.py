"""TF Serving's text files: what each template shows, and the grammar that reads them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from google.protobuf import json_format, text_format

from servewright.backend import Site, View
from servewright.backends.tfserving import flags, keys, protos, settings
from servewright.backends.tfserving.settings import Options
from servewright.errors import ServerAnswerError, ServewrightError
from servewright.fleet import Fleet
from servewright.patches import patched
from servewright.spec import Batching, Latest, ModelSpec, Specific

MODEL_CONFIG = "model_config.pbtxt"
BATCHING = "batching_parameters.pbtxt"
MONITORING = "monitoring.pbtxt"
SESSION = "session.pbtxt"
FLAGS = "flags.txt"
_DEFAULT_TIMEOUT_US: Final = 30_000_000  # of the HTTP API
PER_MODEL = "batching_params.pbtxt"  # the name that the server looks for in a version's folder

_MESSAGES = {
    MODEL_CONFIG: "ModelServerConfig",
    BATCHING: "BatchingParameters",
    PER_MODEL: "BatchingParameters",
    MONITORING: "MonitoringConfig",
    SESSION: "ConfigProto",
}


def pbtxt_string(text: str) -> str:
    """Quote ``text`` as a protobuf text-format string: plain ASCII as it is, every other byte of its UTF-8 in octal."""
    plain = {0x22: '\\"', 0x5C: "\\\\"}
    return '"' + "".join(plain.get(b, chr(b) if 0x20 <= b < 0x7F else f"\\{b:03o}") for b in text.encode()) + '"'


def parse(path: str, text: str) -> object:
    """Read a rendered file with its true grammar: protobuf text format, or one flag a line."""
    name = path.rpartition("/")[2]
    if name == FLAGS:
        return tuple(text.removesuffix("\n").split("\n"))
    return text_format.Parse(text, getattr(protos, _MESSAGES[name])())


def views(fleet: Fleet, site: Site) -> dict[str, View]:
    """Return what each file shows; a file absent here is not written."""
    specs = [document.spec for document in fleet.models]
    fleet.agreed("target", lambda spec: {name: release for name, release in spec.target.items() if name == keys.NAME})
    files = {MODEL_CONFIG: _model_config(specs, site)}
    shared = shared_batching(specs)
    if shared:
        files[BATCHING] = _batching_view(shared, keys.options(next(s for s in specs if s.batching == shared)))
    elif any(spec.batching.max_size > 1 for spec in specs):
        files[BATCHING] = _pool_view(specs)
        for spec in specs:
            if spec.batching.max_size > 1:
                files[f"{spec.name}/{PER_MODEL}"] = _batching_view(spec.batching, keys.options(spec), pool=False)
    if fleet.server.metrics:
        path = own_value(fleet, "monitoring_path")
        meaning = protos.MonitoringConfig(prometheus_config={"enable": True, "path": path})
        files[MONITORING] = View(template="monitoring.pbtxt.j2", values={"path": path}, meaning=meaning)
    if fields := session_fields(fleet):
        session = settings.session_message(fields)
        files[SESSION] = View(
            template="session.pbtxt.j2", values={"text": settings.session_text(session)}, meaning=session
        )
    if patch := own_value(fleet, "batching_parameters"):
        files[BATCHING] = _patched_batching(files.get(BATCHING), patch)
    for name, text in own_value(fleet, "files").items():
        files[name] = _as_it_is(text, parse(name, text))
    words = tuple(flag_words(fleet, site, present=set(files)))
    files[FLAGS] = View(template="flags.txt.j2", values={"flags": words}, meaning=words)
    return files


def shared_batching(specs: list[ModelSpec]) -> Batching | None:
    """Return the batching that every model has, or ``None`` where they differ or none has any."""
    kinds = {(spec.batching, keys.options(spec).batching) for spec in specs}
    batching = specs[0].batching
    return batching if len(kinds) == 1 and batching.max_size > 1 else None


def served_name(spec: ModelSpec) -> str:
    """Return what the server calls the model: an entry may say otherwise than the spec."""
    return str(keys.options(spec).entry.get("name") or spec.name)


def is_absent(error: ServewrightError) -> bool:
    """Tell whether ``error`` is the server's answer that it does not know a model."""
    return isinstance(error, ServerAnswerError) and error.status in (404, "NOT_FOUND")


def base_path(spec: ModelSpec, site: Site) -> str:
    """Return the folder above the model's versions, as the server sees it."""
    source = spec.source(keys.NAME)
    deployed = source.path if source is not None and source.deployed else ""
    return keys.options(spec).base_path or deployed or f"{site.models}/{spec.name}"


def _model_config(specs: list[ModelSpec], site: Site) -> View:
    shown, meaning = [], protos.ModelServerConfig()
    meaning.model_config_list.SetInParent()
    for spec in specs:
        # Who deployed the model may have left its policy to the server.
        policy = spec.versions.policy if not spec.deployed or "policy" in spec.versions.model_fields_set else None
        model: dict[str, object] = {
            "text": "",
            "policy": "",
            "name": spec.name,
            "base_path": base_path(spec, site),
            "labels": sorted(spec.versions.labels.items()),
        }
        config = meaning.model_config_list.config.add(
            name=spec.name,
            base_path=base_path(spec, site),
            model_platform="tensorflow",
            version_labels=spec.versions.labels,
        )
        if isinstance(policy, Latest):
            model |= {"policy": "latest", "versions": policy.latest}
            config.model_version_policy.latest.num_versions = policy.latest
        elif isinstance(policy, Specific):
            model |= {"policy": "specific", "versions": policy.specific}
            config.model_version_policy.specific.versions.extend(policy.specific)
        elif policy is not None:
            model |= {"policy": "all", "versions": ()}
            config.model_version_policy.all.SetInParent()
        if entry := keys.options(spec).entry:
            fields = patched(json_format.MessageToDict(config, preserving_proto_field_name=True), entry)
            config.Clear()
            json_format.ParseDict(fields, config)
            model["text"] = settings.session_text(config)
        shown.append(model)
    return View(template="model_config.pbtxt.j2", values={"models": shown}, meaning=meaning)


def batching_scalars(batching: Batching, own: Options, *, pool: bool = True) -> dict[str, Any]:
    """Return the wrapped fields of BatchingParameters by name; ``pool`` adds those of the one shared thread pool."""
    extra = own.batching
    scalars: dict[str, Any] = {
        "max_batch_size": batching.max_size,
        "batch_timeout_micros": batching.max_delay,
        "max_enqueued_batches": keys.enqueued_batches(batching),
    }
    if pool and batching.threads:
        scalars["num_batch_threads"] = batching.threads
    if pool and extra.thread_pool_name:
        scalars["thread_pool_name"] = extra.thread_pool_name
    if extra.enable_large_batch_splitting:
        scalars["enable_large_batch_splitting"] = True
        scalars["max_execution_batch_size"] = extra.max_execution_batch_size or batching.max_size
    return scalars


def _batching_view(batching: Batching, own: Options, *, pool: bool = True) -> View:
    scalars = batching_scalars(batching, own, pool=pool)
    meaning = protos.BatchingParameters(
        allowed_batch_sizes=batching.allowed_sizes,
        pad_variable_length_inputs=own.batching.pad_variable_length_inputs,
        **{name: {"value": value} for name, value in scalars.items()},
    )
    values = {
        "scalars": [(name, _literal(value)) for name, value in scalars.items()],
        "allowed_batch_sizes": batching.allowed_sizes,
        "pad_variable_length_inputs": own.batching.pad_variable_length_inputs,
    }
    return View(template="batching_parameters.pbtxt.j2", values=values, meaning=meaning)


def _pool_view(specs: list[ModelSpec]) -> View:
    """Show the one thread pool: with per-model files, the global one gives nothing else."""
    threads = max((spec.batching.threads or 0 for spec in specs), default=0)
    scalars = {"num_batch_threads": threads} if threads else {}
    return View(
        template="batching_parameters.pbtxt.j2",
        values={"scalars": list(scalars.items()), "allowed_batch_sizes": (), "pad_variable_length_inputs": False},
        meaning=protos.BatchingParameters(**{name: {"value": value} for name, value in scalars.items()}),
    )


def _patched_batching(view: View | None, patch: Mapping[str, Any]) -> View:
    """Show the batching with ``patch`` laid over its fields."""
    rendered: Any = view.meaning if view else protos.BatchingParameters()
    before = json_format.MessageToDict(rendered, preserving_proto_field_name=True)
    meaning = json_format.ParseDict(patched(before, patch), protos.BatchingParameters())
    return _as_it_is(settings.session_text(meaning), meaning)


def _as_it_is(text: str, meaning: object) -> View:
    return View(template="text.j2", values={"text": text}, meaning=meaning)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return pbtxt_string(value) if isinstance(value, str) else str(value)


def own_value(fleet: Fleet, name: str) -> Any:
    """Return the one value of a setting below ``tfserving:`` that belongs to the whole server."""

    def own(spec: ModelSpec) -> dict[str, Any]:
        options = keys.options(spec)
        return {name: getattr(options, name)} if name in options.model_fields_set else {}

    given = fleet.agreed(keys.NAME, own)
    return given.get(name, getattr(Options(), name))


def session_fields(fleet: Fleet) -> dict[str, Any]:
    """Return the fields of the one session config: every model's own, and the GPU that is asked for."""
    fields = fleet.agreed(f"{keys.NAME}.session", _session_fields)
    one = fleet.agreed("device", lambda spec: {"number": spec.device.partition(":")[2]} if ":" in spec.device else {})
    if one:
        fields["gpu_options"] = {"visible_device_list": one["number"]} | fields.get("gpu_options", {})
    return fields


def _session_fields(spec: ModelSpec) -> dict[str, Any]:
    """Return a spec's session fields by the names of the definition, whichever way they are written."""
    fields = keys.options(spec).session
    if not fields:
        return {}
    message = settings.session_message(fields)
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _timeouts_ms(specs: Sequence[ModelSpec]) -> list[int]:
    """Return how long each model's answers may take: a model that says nothing keeps the server's default."""
    given = [spec.limits.response_timeout for spec in specs]
    return [(each or _DEFAULT_TIMEOUT_US) // 1000 for each in given] if any(given) else [0]


def _labelled(fleet: Fleet) -> bool:
    """Tell whether any model of the rendered config has labels: the spec's, its entry's, or those of a whole text."""
    if (whole := own_value(fleet, "files").get(MODEL_CONFIG)) is not None:
        config: Any = parse(MODEL_CONFIG, whole)
        return any(model.version_labels for model in config.model_config_list.config)
    return any(_has_labels(document.spec) for document in fleet.models)


def _has_labels(spec: ModelSpec) -> bool:
    # The field may be spelt in either way of JSON, and a patch may take the spec's own labels away.
    own = {
        name: value for name, value in keys.options(spec).entry.items() if name in ("version_labels", "versionLabels")
    }
    if not own:
        return bool(spec.versions.labels)
    fields = patched({"version_labels": dict(spec.versions.labels)}, own)
    return bool(json_format.ParseDict(fields, protos.ModelConfig()).version_labels)


def flag_words(fleet: Fleet, site: Site, *, present: set[str]) -> list[str]:
    """Return the command line's flags, ``--name=value`` each; ``present`` names the files that will exist."""
    specs = [document.spec for document in fleet.models]
    chosen: dict[str, object] = {
        "port": site.ports["grpc"],
        "rest_api_port": site.ports["http"],
        "model_config_file": f"{site.config}/{MODEL_CONFIG}",
    }
    if BATCHING in present:
        chosen["enable_batching"] = True
        chosen["batching_parameters_file"] = f"{site.config}/{BATCHING}"
    if any(name.endswith("/" + PER_MODEL) for name in present):
        chosen["enable_per_model_batching_parameters"] = True
    if MONITORING in present:
        chosen["monitoring_config_file"] = f"{site.config}/{MONITORING}"
    if SESSION in present:
        chosen["tensorflow_session_config_file"] = f"{site.config}/{SESSION}"
    if _labelled(fleet):
        chosen["allow_version_labels_for_unavailable_models"] = True
    threads = fleet.server.threads or max((keys.server_threads(spec) or 0 for spec in specs), default=0)
    if threads:
        chosen["grpc_max_threads"] = chosen["rest_api_num_threads"] = threads
    for flag, values in (
        ("tensorflow_intra_op_parallelism", [spec.threads.intra_op for spec in specs]),
        ("tensorflow_inter_op_parallelism", [spec.threads.inter_op for spec in specs]),
        ("rest_api_timeout_in_ms", _timeouts_ms(specs)),
    ):
        most = max(value or 0 for value in values)
        if most:
            chosen[flag] = most
    if fleet.server.poll is not None:  # 0: the server looks for versions once
        chosen["file_system_poll_wait_seconds"] = fleet.server.poll // 1_000_000
    chosen |= fleet.agreed(f"{keys.NAME}.flags", lambda spec: keys.options(spec).flags)
    return [flags.word(name, value) for name, value in chosen.items()]
