"""Starting TensorFlow Serving, and reading back what a running one has."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from servewright.backend import Identity, LaunchPlan, Program, Reading, Site, View
from servewright.backends.tfserving import flags, keys, texts
from servewright.errors import LaunchError, MissingExtraError, ServerAnswerError, ServewrightError, UnavailableError
from servewright.fleet import Fleet
from servewright.server import RunningServer
from servewright.spec import Latest, ModelSpec, Signature, Specific

if TYPE_CHECKING:
    from servewright.backends.tfserving.client import Client

BINARY = "tensorflow_model_server"
VARIABLE = "SERVEWRIGHT_TENSORFLOW_MODEL_SERVER"
EMBEDDED = "servewright.backends.tfserving.embedded"
_PORTS = {"grpc": 8500, "http": 8501}
# Each config file, the flag that names it, and what its settings are called in reports.
_FILES = (
    (texts.MODEL_CONFIG, "model_config_file", "model config"),
    (texts.BATCHING, "batching_parameters_file", "batching"),
    (texts.MONITORING, "monitoring_config_file", "monitoring"),
    (texts.SESSION, "tensorflow_session_config_file", "session"),
)
# Flags of the launch plan, which no spec sets.
_PLANNED = frozenset({"max_num_load_retries"})
_DEFAULT_STARTUP_US = 120_000_000
# What the server takes where BatchingParameters lack a field: the scheduler's own (session_bundle_config.proto).
_DEFAULTS: Mapping[str, object] = {
    "max_batch_size": 1000,
    "batch_timeout_micros": 0,
    "max_enqueued_batches": 10,
    "thread_pool_name": "batch_threads",
    "enable_large_batch_splitting": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A config file of the server: where it is, ``None`` where no flag names it, and the fields that it should have.

    In reports ``prefix`` stands before a field's name; ``source`` says which file it is.
    """

    kind: str
    path: str | None
    prefix: str
    wanted: Mapping[str, Any]
    source: str


def plan(fleet: Fleet, site: Site) -> LaunchPlan:
    """Return how to start the server for ``fleet`` at ``site``."""
    specs = [document.spec for document in fleet.models]
    gpu = any(spec.device != "cpu" for spec in specs)
    present = set(texts.views(fleet, site))
    words = texts.flag_words(fleet, site, present=present)
    if "max_num_load_retries" not in flags.read(words):
        # A load that fails stays failed: five retries, a minute apart, would only hide the cause.
        words.append("--max_num_load_retries=0")
    return LaunchPlan(
        backend=keys.NAME,
        image=f"tensorflow/serving:{keys.release(specs[0])}" + ("-gpu" if gpu else ""),
        argv=(BINARY, *words),
        site=site,
        memory=sum(spec.limits.memory or 0 for spec in specs) or None,
        cpus=sum(spec.limits.cpus or 0 for spec in specs) or None,
        gpu=gpu,
        ready_within_s=max(spec.limits.startup_timeout or _DEFAULT_STARTUP_US for spec in specs) / 1e6,
    )


def program(runtime: str) -> Program:
    """Return how ``runtime`` starts the server here."""
    if runtime == "embedded":
        if find_spec("tensorflow") is None:
            raise MissingExtraError("tensorflow", "tensorflow", "the embedded TF Serving")
        return Program(
            argv=(sys.executable, "-m", EMBEDDED), note="the embedded server stands in for tensorflow_model_server"
        )
    named = os.environ.get(VARIABLE)
    found = shutil.which(named or BINARY)
    if found is None:
        what = f"{VARIABLE} names {named}, which is not a program" if named else f"{BINARY} is not on PATH"
        raise UnavailableError(f"{what}; install it, name it with {VARIABLE}, or use --runtime embedded")
    return Program(argv=(found,), note="it listens on all addresses of this machine: it has no flag for fewer")


class Asking:
    """A client that asks for one signature."""

    def __init__(self, client: Any, signature: str) -> None:
        self._client, self._signature = client, signature

    def predict(self, model: str, inputs: Mapping[str, Any], **how: Any) -> Mapping[str, Any]:
        """Return the outputs by name."""
        found: Mapping[str, Any] = self._client.predict(model, inputs, signature=self._signature, **how)
        return found


def asking(client: Any, signature: str) -> Any:
    """Return a client that asks for ``signature``; the usual one needs no name."""
    from servewright.backends.tfserving.metadata import DEFAULT_SIGNATURE  # and numpy, which rendering does without

    return client if signature == DEFAULT_SIGNATURE else Asking(client, signature)


def connect(server: RunningServer) -> Client:
    """Return a client of ``server``."""
    from servewright.backends.tfserving.client import Client

    http = server.endpoints.get("http")
    return Client(grpc=server.endpoints.get("grpc"), http=f"http://{http}" if http else None)


def ready(server: RunningServer, client: Any, fleet: Fleet) -> bool:
    """Tell whether every version that the fleet packages is AVAILABLE; one that ended is a `LaunchError`."""
    for document in fleet.models:
        spec = document.spec
        versions = {version.version: version for version in client.status(texts.served_name(spec))}
        own = versions.get(spec.version)
        if own is not None and own.state == "END":
            raise LaunchError(
                f"{spec.name} version {spec.version} did not load: {own.error_message or own.error_code}",
                log_tail=server.log_tail(),
            )
        if own is None or own.state != "AVAILABLE":
            return False
    return True


def identity(client: Any) -> Identity:
    """Return what the server says that it is; the real one tells no version over the wire."""
    stand_in = client.stand_in()
    if stand_in:
        return Identity(name="servewright embedded TF Serving", version=stand_in, stand_in=True)
    return Identity(name="TensorFlow Serving", version="(not told by the server)", stand_in=False)


def signature(client: Any, spec: ModelSpec) -> Signature | str:
    """Return the signature that the server tells for the spec's."""
    try:
        return client.metadata(texts.served_name(spec), signature=spec.signature.name)  # type: ignore[no-any-return]
    except ServewrightError as error:
        return f"the server does not tell it: {error}"


def read_back(server: RunningServer, client: Any, fleet: Fleet) -> Iterator[Reading]:
    """Yield every rendered setting as it was wanted and as the server has it.

    Versions and labels are asked over the API. The server has no call for anything else, so the rest is read from the
    command line of its process and from the files that this names.
    """
    many = len(fleet.models) > 1
    for document in fleet.models:
        spec = document.spec
        prefix = f"{spec.name}: " if many else ""
        name = texts.served_name(spec)
        states = _states(client, name)
        if states is None:
            yield Reading(setting=f"{prefix}model", wanted="served", found="absent", source="GetModelStatus")
            continue
        if spec.deployed and "version" not in spec.model_fields_set:
            ready = "AVAILABLE" in states.values()
            shown = "a version AVAILABLE" if ready else f"versions {states}"
            yield Reading(
                setting=f"{prefix}version", wanted="a version AVAILABLE", found=shown, source="GetModelStatus"
            )
        else:
            state = states.get(int(spec.version), "absent")
            yield Reading(
                setting=f"{prefix}version", wanted=f"{spec.version} AVAILABLE", found=f"{spec.version} {state}",
                source="GetModelStatus",
            )  # fmt: skip
        for label, version in spec.versions.labels.items():
            found = client.version_of_label(name, label)
            yield Reading(
                setting=f"{prefix}label {label}", wanted=version, found="absent" if found is None else found,
                source="GetModelMetadata by label",
            )  # fmt: skip
    yield from _process_settings(server, client, fleet, tuple(server.handle.command_line()) if server.handle else ())


def survey(client: Any, fleet: Fleet) -> Iterator[Reading]:
    """Yield which versions are served, where a policy names them, and the signature, where the spec tells one.

    The server has no call that lists its models: those that no spec names stay unknown.
    """
    many = len(fleet.models) > 1
    for document in fleet.models:
        spec = document.spec
        prefix, name = f"{spec.name}: " if many else "", texts.served_name(spec)
        states = _states(client, name)
        if states is None:
            continue  # `read_back` says so
        served = sorted(version for version, state in states.items() if state == "AVAILABLE")
        policy, source = spec.versions.policy, "GetModelStatus"
        if isinstance(policy, Specific):
            wanted = sorted(policy.specific)
            yield Reading(setting=f"{prefix}versions served", wanted=wanted, found=served, source=source)
        elif isinstance(policy, Latest) and len(served) > policy.latest and "policy" in spec.versions.model_fields_set:
            wanted_of_them = served[-policy.latest :]
            yield Reading(setting=f"{prefix}versions served", wanted=wanted_of_them, found=served, source=source)
        if spec.signature.inputs and served:
            yield from _signature_reading(prefix, name, client, spec)


def _signature_reading(prefix: str, name: str, client: Any, spec: ModelSpec) -> Iterator[Reading]:
    from servewright.backends.tfserving.metadata import NoArraysError, NoSignatureError  # and numpy, as in `asking`

    setting = f"{prefix}signature {spec.signature.name}"
    wanted = _tensors(spec.signature)
    try:
        found: object = _tensors(client.metadata(name, signature=spec.signature.name))
    except (ServerAnswerError, NoSignatureError) as error:
        yield Reading(setting=setting, wanted=wanted, found="absent", source=str(error))
        return
    except NoArraysError as error:
        yield Reading(setting=setting, wanted=wanted, found="not one of arrays", source=str(error))
        return
    yield Reading(setting=setting, wanted=wanted, found=found, source="GetModelMetadata")


def _tensors(signature: Signature) -> dict[str, dict[str, str]]:
    """Return dtype and shape of every tensor as text: their order is not told."""
    return {
        key: {each.name: f"{each.dtype} {'any' if each.shape is None else list(each.shape)}" for each in tensors}
        for key, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs))
    }


def _states(client: Any, name: str) -> dict[int, str] | None:
    """Return the state of every version of a model, or ``None`` where the server does not know it."""
    try:
        return {version.version: version.state for version in client.status(name)}
    except ServerAnswerError as error:
        if not texts.is_absent(error):
            raise
        return None


def _process_settings(server: RunningServer, client: Any, fleet: Fleet, argv: tuple[str, ...]) -> Iterator[Reading]:
    given = flags.read(argv)
    site = server.site or _site_of(server, given)
    views = texts.views(fleet, site)
    words = (word.partition("=") for word in texts.flag_words(fleet, site, present=set(views)))
    wanted = {name: value for name, _, value in words}
    files = [*_server_files(views, given), *_model_files(client, fleet, site, views)]
    if not argv:
        source = "the server has no call for it, and its process is not ours"
        for setting, value in wanted.items():
            yield Reading(setting=setting, wanted=value, found=None, source=source)
        for file in files:
            yield from _unread(file, source)
        return
    yield from _flag_readings(wanted, given)
    for file in files:
        yield from _file_readings(server, file)
    sizes = [file.wanted["max_batch_size"] for file in files if "max_batch_size" in file.wanted]
    if sizes:
        yield from _metrics(server, views.get(texts.MONITORING), max(sizes))


def _flag_readings(wanted: Mapping[str, str], given: Mapping[str, str]) -> Iterator[Reading]:
    source = "flag of the process"
    for setting, value in wanted.items():
        yield Reading(setting=setting, wanted=value, found=given.get(setting[2:], "absent"), source=source)
    for name in sorted(set(given) - _PLANNED - {setting.removeprefix("--") for setting in wanted}):
        yield Reading(setting=f"--{name}", wanted="absent", found=given[name], source=source)


def _server_files(views: Mapping[str, View], given: Mapping[str, str]) -> Iterator[_File]:
    """Yield the files that flags name."""
    for kind, flag, prefix in _FILES:
        if kind in views:
            yield _File(
                kind=kind, path=given.get(flag), prefix=prefix, wanted=message_fields(views[kind].meaning),
                source=f"the file that --{flag} names",
            )  # fmt: skip


def _model_files(client: Any, fleet: Fleet, site: Site, views: Mapping[str, View]) -> Iterator[_File]:
    """Yield the file beside each model that tells its batching, where any model has one; the others should not."""
    if not any(name.endswith("/" + texts.PER_MODEL) for name in views):
        return
    for document in fleet.models:
        spec = document.spec
        view, version = views.get(f"{spec.name}/{texts.PER_MODEL}"), _version(client, spec)
        yield _File(
            kind=texts.PER_MODEL, path=f"{texts.base_path(spec, site)}/{version}/{texts.PER_MODEL}",
            prefix=f"{spec.name}: batching", wanted=message_fields(view.meaning) if view else {},
            source=f"{texts.PER_MODEL} of version {version}",
        )  # fmt: skip


def _version(client: Any, spec: ModelSpec) -> int | str:
    """Return the version that the spec is about: of a deployed model that tells none, the newest that is served."""
    if not spec.deployed or "version" in spec.model_fields_set:
        return spec.version
    states = _states(client, texts.served_name(spec)) or {}
    return max((version for version, state in states.items() if state == "AVAILABLE"), default=spec.version)


def _file_readings(server: RunningServer, file: _File) -> Iterator[Reading]:
    """Yield every field that is wanted or there; one that says what the server does anyway is as good as absent."""
    message = None if file.path is None else _message(server, file.path, file.kind)
    if message is None and file.path is not None:
        yield from _unread(file, f"{file.source} cannot be read")
        return
    found = {} if message is None else message_fields(message)
    for field, value in file.wanted.items():
        default = value if message is not None and _is_default(field, value) else "absent"
        yield Reading(
            setting=f"{file.prefix} {field}", wanted=value, found=found.get(field, default), source=file.source
        )
    for field, value in found.items():
        if field not in file.wanted and not _is_default(field, value):
            yield Reading(setting=f"{file.prefix} {field}", wanted="absent", found=value, source=file.source)


def _unread(file: _File, source: str) -> Iterator[Reading]:
    for field, value in file.wanted.items():
        yield Reading(setting=f"{file.prefix} {field}", wanted=value, found=None, source=source)


def _is_default(field: str, value: object) -> bool:
    return value in ("", _DEFAULTS.get(field))


def _site_of(server: RunningServer, given: Mapping[str, str]) -> Site:
    """Return where a server lives that somebody else started, as its own command line and config say."""
    config = given.get("model_config_file", "/config/model_config.pbtxt")
    listed = getattr(_message(server, config, texts.MODEL_CONFIG), "model_config_list", None)
    models = listed.config[0].base_path.rpartition("/")[0] if listed and listed.config else "/models"
    ports = {name: int(address.rpartition(":")[2]) for name, address in server.endpoints.items() if name in _PORTS}
    return Site(models=models, config=config.rpartition("/")[0], run="", host="127.0.0.1", ports=_PORTS | ports)


def message_fields(message: Any) -> dict[str, object]:
    """Return the set top-level fields of a message, wrapped values bare and the rest as text."""
    found: dict[str, object] = {}
    for field, value in message.ListFields():
        if hasattr(value, "DESCRIPTOR") and value.DESCRIPTOR.file.name == "google/protobuf/wrappers.proto":
            found[field.name] = value.value
        elif isinstance(value, bool | int | float | str):
            found[field.name] = value
        elif hasattr(value, "ListFields"):
            found[field.name] = " ".join(str(value).split())
        else:
            found[field.name] = [item if isinstance(item, int) else " ".join(str(item).split()) for item in value]
    return found


def _message(server: RunningServer, path: str, kind: str) -> Any:
    """Return the message in a config file of the server, whatever its name; ``None`` where it cannot be read."""
    from google.protobuf.text_format import ParseError

    if server.handle is None:
        return None
    try:
        return texts.parse(kind, server.handle.file(path).read_bytes().decode())
    except (OSError, ValueError, ParseError):
        return None


def _metrics(server: RunningServer, monitoring: View | None, most: Any) -> Iterator[Reading]:
    """Yield whether the server batches at all, where it should have metrics: its own appears with the first batch."""
    meaning: Any = monitoring.meaning if monitoring else None
    if meaning is None or not meaning.prometheus_config.enable:
        return
    found, source = None, "its metrics appear with the first request"
    try:
        if ":tensorflow:serving:batching_session:" in _metrics_at(server, meaning.prometheus_config.path):
            found, source = True, "batching_session metrics"
    except ServerAnswerError as error:
        source = f"the server has no metrics there: {error}"
    yield Reading(setting=f"batching on (up to {most})", wanted=True, found=found, source=source)


def _metrics_at(server: RunningServer, path: str) -> str:
    from servewright.backends.tfserving.client import METRICS, Client

    with Client(http=server.endpoints.get("http"), metrics_path=path or METRICS) as asking:
        return asking.metrics()
