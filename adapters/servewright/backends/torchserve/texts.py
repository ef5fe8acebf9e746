"""TorchServe's text files: what each template shows, and the grammar that reads them back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from servewright import __version__
from servewright.backend import Site, View
from servewright.backends.torchserve import keys, properties, settings
from servewright.errors import InputError
from servewright.fleet import Fleet
from servewright.patches import patched
from servewright.spec import ModelSpec

PROPERTIES = "config.properties"
MODEL_CONFIG = "model-config.yaml"
MANIFEST = "MANIFEST.json"
REQUIREMENTS = "requirements.txt"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def yaml_text(value: object) -> str:
    """Print ``value`` as YAML: ASCII only, short collections on one line, in the order given."""
    known = repr(value)  # models of one fleet are mostly alike, and printing is what takes the time
    if known not in _PRINTED:
        if len(_PRINTED) >= _MOST_PRINTED:
            _PRINTED.clear()
        text = yaml.dump(value, Dumper=_Plain, sort_keys=False, default_flow_style=None, width=10_000)
        _PRINTED[known] = str(text).rstrip("\n")
    return _PRINTED[known]


_PRINTED: dict[str, str] = {}
_MOST_PRINTED: Final = 1024


class _Plain(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # libyaml's, where there is one
    """Writes values out that occur twice: TorchServe's reader gives up at fifty aliases."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  (PyYAML's signature)
        return True


def json_text(value: object) -> str:
    """Print ``value`` as indented JSON, keys sorted."""
    return json.dumps(value, indent=2, sort_keys=True)


def parse(path: str, text: str) -> object:
    """Read a rendered file with its true grammar: Java properties, YAML or JSON."""
    if path.endswith(PROPERTIES):
        return properties.parse(text)
    return yaml.load(text, Loader=_LOADER) if path.endswith(MODEL_CONFIG) else json.loads(text)  # noqa: S506  (safe)


def views(fleet: Fleet, site: Site) -> dict[str, View]:
    """Return what each file shows: the server's own, and two for each model's archive."""
    written = server_settings(fleet, site)
    shown = {"settings": list(written.items())}
    files = {PROPERTIES: View(template="config.properties.j2", values=shown, meaning=written)}
    for document in fleet.models:
        spec = document.spec
        config, manifest, own = model_config(spec), manifest_of(spec), keys.options(spec)
        # An archive that is deployed has its own; what is said of it is all that there is to show.
        if config or not spec.deployed:
            files[f"{spec.name}/{MODEL_CONFIG}"] = View(
                template="model-config.yaml.j2", values={"settings": config}, meaning=config
            )
        if own.manifest or not spec.deployed:
            files[f"{spec.name}/{MANIFEST}"] = View(
                template="MANIFEST.json.j2", values={"manifest": manifest}, meaning=manifest
            )
        for name, text in own.files.items():
            if name != PROPERTIES:
                files[f"{spec.name}/{name}"] = _as_it_is(name, text)
    whole = whole_properties(fleet)
    return files if whole is None else files | {PROPERTIES: _as_it_is(PROPERTIES, whole)}


def whole_properties(fleet: Fleet) -> str | None:
    """Return the text that takes the place of the whole ``config.properties``, where the specs have one."""
    files = fleet.agreed(
        f"{keys.NAME}.files",
        lambda spec: {name: text for name, text in keys.options(spec).files.items() if name == PROPERTIES},
    )
    return files.get(PROPERTIES)


def _as_it_is(name: str, text: str) -> View:
    return View(template="text.j2", values={"text": text}, meaning=parse(name, text))


def server_settings(fleet: Fleet, site: Site) -> dict[str, str]:
    """Return the keys of ``config.properties`` and their values as text."""
    specs = [document.spec for document in fleet.models]
    server = fleet.server
    written = _place(fleet, site) | {
        "disable_token_authorization": _flag(not server.tokens),
        "enable_model_api": _flag(server.model_api),
        "allowed_urls": f"file://{re.escape(site.models)}/.*",
        "enable_metrics_api": _flag(server.metrics),
        "metrics_mode": "prometheus" if server.metrics else "log",
    }
    for setting, sizes in (
        ("max_request_size", [spec.limits.request for spec in specs]),
        ("max_response_size", [spec.limits.response for spec in specs]),
    ):
        if any(sizes):  # a model that says nothing keeps the server's default
            written[setting] = str(max(size or keys.DEFAULT_MESSAGE_BYTES for size in sizes))
    if any(spec.requirements for spec in specs):
        written["install_py_dep_per_model"] = "true"
    if server.threads:
        written["number_of_netty_threads"] = str(server.threads)
    for name, value in written.items():
        if found := properties.variables(value):
            raise InputError(
                f"{name}: TorchServe would put its environment's {found[0]} into {value!r}; rename the path"
            )
    fleet.agreed("target", lambda spec: {name: release for name, release in spec.target.items() if name == keys.NAME})
    own = fleet.agreed(f"{keys.NAME}.properties", lambda spec: settings.hidden(keys.options(spec).properties))
    written |= {name: _text(value) for name, value in own.items()}
    as_they_are = fleet.agreed(
        f"{keys.NAME}.config_properties", lambda spec: settings.hidden(keys.options(spec).config_properties)
    )
    kept = _place(fleet, site) if _is_a_runs(site) else {}
    return {name: str(text) for name, text in (written | as_they_are | kept).items() if text is not None}


def disputed(fleet: Fleet, site: Site) -> tuple[str, ...]:
    """Return the keys of ``config.properties`` that have the server live elsewhere than at ``site``."""
    whole = whole_properties(fleet)
    said = server_settings(fleet, site) if whole is None else properties.parse(whole)
    differing = [name for name, value in _place(fleet, site).items() if said.get(name) != value]
    return tuple(name for name in differing if not (name == "load_models" and said.get(name) in ("all", "ALL")))


def _place(fleet: Fleet, site: Site) -> dict[str, str]:
    """Return where the server listens and what it loads, which is for whoever starts it to say."""
    ports = site.ports
    return {
        "inference_address": f"http://{site.host}:{ports['http']}",
        "management_address": f"http://{site.host}:{ports['management']}",
        "metrics_address": f"http://{site.host}:{ports['metrics']}",
        "grpc_inference_address": site.host,
        "grpc_management_address": site.host,
        "grpc_inference_port": str(ports["grpc"]),
        "grpc_management_port": str(ports["grpc_management"]),
        "model_store": site.models,
        "load_models": ",".join(_loaded(document.spec, site) for document in fleet.models),
    }


def _is_a_runs(site: Site) -> bool:
    """Tell whether ``site`` was made for a process of ours: a container lives at home, where files are rendered for."""
    from servewright.backends.torchserve import BACKEND

    return site.run != BACKEND.home.run


def _loaded(spec: ModelSpec, site: Site) -> str:
    """Return a model's entry in ``load_models``; an archive that is deployed brings its own name."""
    stored = stored_name(spec, site)
    return stored if spec.deployed and stored == f"{spec.name}.mar" else f"{spec.name}={stored}"


def served_name(spec: ModelSpec) -> str:
    """Return what the server calls the model: an imported manifest may say otherwise than the spec."""
    manifest = keys.options(spec).manifest.get("model")
    return str((isinstance(manifest, dict) and manifest.get("modelName")) or spec.name)


def stored_name(spec: ModelSpec, site: Site) -> str:
    """Return what the model is called in the model store."""
    source = spec.source(keys.NAME)
    if source is not None and source.deployed:
        return source.path
    return f"{spec.name}.mar" if site.packed else spec.name


def model_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the content of the archive's ``model-config.yaml``; keys that are absent keep the server's defaults."""
    own = keys.options(spec)
    return dict(patched(_deployed_config(spec) if spec.deployed else _packed_config(spec), own.model_yaml))


def _deployed_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what the spec says of an archive that somebody else has made, and nothing that it does not say."""
    said, batching, limits = spec.model_fields_set, spec.batching, spec.limits
    device, _, number = spec.device.partition(":")
    config: dict[str, Any] = {
        "minWorkers": spec.workers if "workers" in said else None,
        "maxWorkers": spec.workers if "workers" in said else None,
        "batchSize": batching.max_size if "max_size" in batching.model_fields_set else None,
        "maxBatchDelay": batching.max_delay // 1000 if batching.max_size > 1 else None,
        "jobQueueSize": batching.queue,
        "responseTimeout": limits.response_timeout // 1_000_000 if limits.response_timeout else None,
        "startupTimeout": limits.startup_timeout // 1_000_000 if limits.startup_timeout else None,
        "deviceType": device if "device" in said else None,
        "deviceIds": [int(number)] if number else None,
    }
    return {name: value for name, value in config.items() if value is not None} | keys.options(spec).yaml


def _packed_config(spec: ModelSpec) -> dict[str, Any]:
    """Return the settings of an archive of ours: all of them, so that no server-wide default decides."""
    config: dict[str, Any] = {
        "minWorkers": spec.workers,
        "maxWorkers": spec.workers,
        "batchSize": spec.batching.max_size,
    }
    if spec.batching.max_size > 1:
        config["maxBatchDelay"] = spec.batching.max_delay // 1000
    if spec.batching.queue:
        config["jobQueueSize"] = spec.batching.queue
    # An archive with any YAML at all ignores the server-wide default_response_timeout, so both are always written.
    config["responseTimeout"] = (spec.limits.response_timeout or keys.DEFAULT_TIMEOUT_S * 1_000_000) // 1_000_000
    config["startupTimeout"] = (spec.limits.startup_timeout or keys.DEFAULT_TIMEOUT_S * 1_000_000) // 1_000_000
    device, _, number = spec.device.partition(":")
    config["deviceType"] = device
    if number:
        config["deviceIds"] = [int(number)]
    return config | keys.options(spec).yaml | {"servewright": _handler_config(spec)}


def _handler_config(spec: ModelSpec) -> dict[str, Any]:
    """Return what our handlers read: the model's file, its signature, and the options."""
    source = spec.source(keys.NAME)
    assert source is not None  # keys.explain refuses the spec otherwise
    model: dict[str, Any] = {"file": model_file(spec), "format": source.format}
    if source.code:
        model |= {"code": source.code.partition(":")[0].rpartition("/")[2], "class": source.code.partition(":")[2]}
    handler = spec.handler
    chosen: dict[str, Any] = {"device": spec.device.partition(":")[0]}
    if handler.dtype != "float32":
        chosen["dtype"] = handler.dtype
    for name in ("compile", "script"):
        if getattr(handler, name):
            chosen[name] = True
    if spec.threads.intra_op:
        chosen["threads"] = spec.threads.intra_op
    if handler.labels:
        chosen["labels"] = handler.labels.rpartition("/")[2]
    if not handler.softmax:
        chosen["softmax"] = False
    if handler.use in ("vision", "text"):
        chosen["top_k"] = handler.top_k
    if handler.use == "vision":
        chosen["vision"] = handler.image.model_dump(mode="json", exclude_none=True) if handler.image else {}
    if handler.text:
        chosen["text"] = {
            "tokenizer": handler.text.tokenizer.rpartition("/")[2],
            "max_length": handler.text.max_length,
        }
    return {"model": model, "signature": spec.signature.model_dump(mode="json"), "options": chosen}


def model_file(spec: ModelSpec) -> str:
    """Return the model's file name inside the archive."""
    source = spec.source(keys.NAME)
    assert source is not None  # keys.explain refuses the spec otherwise
    return source.path.rpartition("/")[2]


def handler_file(spec: ModelSpec) -> str:
    """Return the handler's file name inside the archive."""
    use = spec.handler.use
    return use.rpartition("/")[2] if use.endswith(".py") else f"servewright_{use}.py"


def manifest_of(spec: ModelSpec) -> dict[str, Any]:
    """Return the content of ``MAR-INF/MANIFEST.json``; no date, so that the same spec gives the same bytes."""
    model = {
        "modelName": spec.name,
        "modelVersion": str(spec.version),
        "handler": handler_file(spec),
        "serializedFile": model_file(spec),
        "configFile": MODEL_CONFIG,
    }
    if spec.requirements:
        model["requirementsFile"] = REQUIREMENTS
    written = {"runtime": "python", "archiverVersion": f"servewright {__version__}", "model": model}
    own = keys.options(spec).manifest
    return dict(patched(written, own)) if own else written


def _flag(value: object) -> str:
    return "true" if value else "false"


def _text(value: object) -> str:
    return _flag(value) if isinstance(value, bool) else str(value)


FILTERS: Mapping[str, Any] = {
    "property_key": properties.escape_key,
    "property_value": properties.escape_value,
    "yaml": yaml_text,
    "json": json_text,
}
