"""Starting TensorFlow Serving, and reading back what a running one has."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from servewright.backend import Identity, LaunchPlan, Program, Reading, Site
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
        image=f"tensorflow/serving:{keys.target(specs[0])}" + ("-gpu" if gpu else ""),
        argv=(BINARY, *words),
        site=site,
        memory=max((spec.limits.memory or 0 for spec in specs), default=0) or None,
        cpus=max((spec.limits.cpus or 0 for spec in specs), default=0) or None,
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
        versions = {version.version: version for version in client.status(spec.name)}
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
        return client.metadata(spec.name, signature=spec.signature.name)  # type: ignore[no-any-return]
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
    setting = f"{prefix}signature {spec.signature.name}"
    wanted = _tensors(spec.signature)
    try:
        found: object = _tensors(client.metadata(name, signature=spec.signature.name))
    except ServerAnswerError as error:
        yield Reading(setting=setting, wanted=wanted, found="absent", source=str(error))
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
    wanted = _wanted(fleet, server.site or _site_of(server, given))
    if not argv:
        for setting, value in wanted.items():
            yield Reading(
                setting=setting,
                wanted=value,
                found=None,
                source="the server has no call for it, and its process is not ours",
            )
        return
    source = "flag of the process"
    for setting, value in wanted.items():
        if setting.startswith("--"):
            yield Reading(setting=setting, wanted=value, found=given.get(setting[2:], "absent"), source=source)
    for name in sorted(set(given) - _PLANNED - {setting.removeprefix("--") for setting in wanted}):
        yield Reading(setting=f"--{name}", wanted="absent", found=given[name], source=source)
    for kind, flag, prefix in _FILES:
        expected = {setting: value for setting, value in wanted.items() if setting.startswith(prefix + " ")}
        if not expected:
            continue
        found = _file_fields(server, given.get(flag, ""), kind)
        for setting, value in expected.items():
            field = setting.removeprefix(prefix + " ")
            yield Reading(
                setting=setting, wanted=value, found=found.get(field, "absent"), source=f"the file that --{flag} names"
            )
    if "batching max_batch_size" in wanted:
        yield from _metrics(client, wanted["batching max_batch_size"])


def _site_of(server: RunningServer, given: Mapping[str, str]) -> Site:
    """Return where a server lives that somebody else started, as its own command line and config say."""
    config = given.get("model_config_file", "/config/model_config.pbtxt")
    listed = getattr(_message(server, config, texts.MODEL_CONFIG), "model_config_list", None)
    models = listed.config[0].base_path.rpartition("/")[0] if listed and listed.config else "/models"
    ports = {name: int(address.rpartition(":")[2]) for name, address in server.endpoints.items() if name in _PORTS}
    return Site(models=models, config=config.rpartition("/")[0], run="", host="127.0.0.1", ports=_PORTS | ports)


def _wanted(fleet: Fleet, site: Site) -> dict[str, object]:
    """Return every flag and every field of the files that the process should have been given."""
    found: dict[str, object] = {}
    views = texts.views(fleet, site)
    for word in texts.flag_words(fleet, site, present=set(views)):
        name, _, value = word.partition("=")
        found[name] = value
    for file, _, prefix in _FILES:
        if file in views:
            fields = message_fields(views[file].meaning)
            found |= {f"{prefix} {field}": wanted for field, wanted in fields.items()}
    return found


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


def _file_fields(server: RunningServer, path: str, kind: str) -> Mapping[str, object]:
    message = _message(server, path, kind)
    return {} if message is None else message_fields(message)


def _message(server: RunningServer, path: str, kind: str) -> Any:
    """Return the message in a config file of the server, whatever its name; ``None`` where it cannot be read."""
    from google.protobuf.text_format import ParseError

    if server.handle is None:
        return None
    try:
        return texts.parse(kind, server.handle.file(path).read_bytes().decode())
    except (OSError, ValueError, ParseError):
        return None


def _metrics(client: Any, most: object) -> Iterator[Reading]:
    """Yield whether the server batches at all: its own metric appears with the first batch."""
    text = client.metrics()
    batched = ":tensorflow:serving:batching_session:" in text
    yield Reading(
        setting=f"batching on (up to {most})", wanted=True, found=True if batched else None,
        source="batching_session metrics" if batched else "its metrics appear with the first request",
    )  # fmt: skip
