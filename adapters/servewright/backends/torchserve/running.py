"""Starting TorchServe, and reading back what a running one has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.backend import Identity, LaunchPlan, Program, Reading, Site
from servewright.backends.torchserve import keys, settings, texts
from servewright.errors import InputError, ServerAnswerError
from servewright.fleet import Fleet
from servewright.server import RunningServer
from servewright.spec import ModelSpec, Signature

if TYPE_CHECKING:
    from servewright.backends.torchserve.client import Client
    from servewright.backends.torchserve.descriptions import ModelDescription

# The lines in which the server prints its settings when it starts (ConfigManager.dumpConfigurations), by our keys.
_PRINTED = {
    "max_request_size": "Maximum Request Size",
    "max_response_size": "Maximum Response Size",
    "number_of_netty_threads": "Netty threads",
    "inference_address": "Inference address",
    "management_address": "Management address",
    "metrics_address": "Metrics address",
    "model_store": "Model Store",
    "load_models": "Initial Models",
    "allowed_urls": "Allowed Urls",
    "install_py_dep_per_model": "Custom python dependency for model allowed",
    "enable_metrics_api": "Enable metrics API",
    "metrics_mode": "Metrics mode",
    "enable_model_api": "Model API enabled",
    "default_workers_per_model": "Default workers per model",
    "blacklist_env_vars": "Blacklist Regex",
    "prefer_direct_buffer": "Prefer direct buffer",
    "limit_max_image_pixels": "Limit Maximum Image Pixels",
    "disable_system_metrics": "Disable system metrics",
}
# What the management API tells by the names of model-config.yaml, beyond what a spec has words for.
_TOLD = (
    "maxRetryTimeoutInSec", "clientTimeoutInMills", "parallelType", "parallelLevel", "useJobTicket", "useVenv",
    "continuousBatching", "sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxNumSequence", "maxSequenceJobQueueSize",
)  # fmt: skip
_PRINTED_AT_START = "printed by the server at its start"
_GRPC_LISTENERS = {
    "grpc_inference_address": "grpc",
    "grpc_inference_port": "grpc",
    "grpc_management_address": "grpc_management",
    "grpc_management_port": "grpc_management",
}


def plan(fleet: Fleet, site: Site) -> LaunchPlan:
    """Return how to start the server for ``fleet`` at ``site``."""
    from servewright.backends.torchserve import process

    _check_reachable(fleet, site)
    specs = [document.spec for document in fleet.models]
    config = f"{site.config}/{texts.PROPERTIES}"
    environment = process.environment(run=site.run, config=config)
    if threads := shared_threads(fleet):
        environment["OMP_NUM_THREADS"] = str(threads)
    own = fleet.agreed(f"{keys.NAME}.environment", _variables)
    environment |= {name: str(value) for name, value in own.items()}
    startup_s = max((spec.limits.startup_timeout or keys.DEFAULT_TIMEOUT_S * 1_000_000) / 1e6 for spec in specs)
    gpu = any(spec.device != "cpu" for spec in specs)
    return LaunchPlan(
        backend=keys.NAME,
        image=f"pytorch/torchserve:{keys.release(specs[0])}-{'gpu' if gpu else 'cpu'}",
        # Models and tokens are in the config: a flag would beat it, and the two could differ.
        argv=process.arguments(config=config, store=site.models, models={}, tokens=True),
        site=site,
        environment=environment,
        folders=(process.TEMPORARY, process.LOGS),
        memory=sum(spec.limits.memory or 0 for spec in specs) or None,
        cpus=sum(spec.limits.cpus or 0 for spec in specs) or None,
        gpu=gpu,
        # The JVM's own start comes on top of the model's.
        ready_within_s=startup_s + 60,
    )


def _variables(spec: ModelSpec) -> dict[str, str]:
    given = keys.options(spec).environment
    return settings.hidden(given, given)


def _check_reachable(fleet: Fleet, site: Site) -> None:
    """Refuse a config that has the server live elsewhere than where whoever starts it waits for it."""
    from servewright.backends.torchserve import BACKEND

    if site is BACKEND.home:
        return  # nobody starts there: who asks wants the image's name, or makes an image
    if names := texts.disputed(fleet, site):
        if texts.whole_properties(fleet) is None:
            where, remedy = "config_properties", "remove these keys there, or start it with --runtime process"
        else:
            where, remedy = f"files.{texts.PROPERTIES}", "keep what you need of it below torchserve.properties instead"
        reason = f"{keys.NAME}.{where} does not leave {', '.join(names)} to whoever starts the server"
        raise InputError(f"{reason}, who would not find it or its models; {remedy}")


def program(runtime: str) -> Program:
    """Return how the server is started here, whatever the ``runtime``: there is no stand-in for it."""
    del runtime
    from servewright.backends.torchserve import process

    return process.find_program()


def connect(server: RunningServer) -> Client:
    """Return a client of ``server``, with the tokens of its run folder."""
    from servewright.backends.torchserve.client import Client
    from servewright.backends.torchserve.process import KEY_FILE

    endpoints = dict(server.endpoints)
    if named := endpoints.pop("key_file", None):
        return Client(endpoints, key_file=Path(named))
    # Only a server that wants tokens writes the file, and it does so while it starts.
    return Client(endpoints, key_file=server.handle.file(KEY_FILE) if server.handle else None, guessed=True)


def ready(server: RunningServer, client: Client, fleet: Fleet) -> bool:
    """Tell whether every model has its workers and answers; `LaunchError` where the log says that it never will."""
    from servewright.backends.torchserve import process

    specs = {document.spec.name: document.spec for document in fleet.models}
    process.check_alive(server.log_tail(400))
    models: dict[str, str | None] = {name: str(spec.version) for name, spec in specs.items()}
    return process.ready(client, models, predict=lambda name: _answers(client, specs[name]))


def _answers(client: Client, spec: ModelSpec) -> None:
    """Send one real request. A refusal is an answer too, and the checks will show it; no worker at all is not."""
    from servewright.samples import made_up

    try:
        client.predict(spec.name, made_up(spec.signature, 1, seed=0))
    except ServerAnswerError as error:
        if error.status == 503 and "no worker" in error.message:
            raise


def identity(client: Client) -> Identity:
    """Return what the server says that it is."""
    return Identity(name="TorchServe", version=client.server_version(), stand_in=False)


def signature(client: Any, spec: ModelSpec) -> Signature | str:
    """Say why the signature cannot be read: no call of the server tells one."""
    del client, spec
    return "TorchServe tells no signature; the outputs are checked against the spec's instead"


def read_back(server: RunningServer, client: Client, fleet: Fleet) -> Iterator[Reading]:
    """Yield every rendered setting as it was wanted and as the server has it."""
    many = len(fleet.models) > 1
    for document in fleet.models:
        spec = document.spec
        prefix = f"{spec.name}: " if many else ""
        described = _described(client, spec)
        if described is None:
            wanted = f"version {spec.version}" if _tells_version(spec) else "registered"
            yield Reading(setting=f"{prefix}model", wanted=wanted, found="absent", source="management API")
            continue
        yield from (_prefixed(reading, prefix) for reading in _model_settings(spec, described))
        yield from (_prefixed(reading, prefix) for reading in _worker_threads(server, fleet, spec, described))
    yield from _server_settings(server, fleet)


def _tells_version(spec: ModelSpec) -> bool:
    return not spec.deployed or "version" in spec.model_fields_set


def _described(client: Client, spec: ModelSpec) -> ModelDescription | None:
    """Return what the server has of a model: the spec's version, or the default one where the spec tells none."""
    try:
        return client.describe(texts.served_name(spec), str(spec.version) if _tells_version(spec) else None)[0]
    except ServerAnswerError as error:
        if error.status != 404:
            raise
        return None


def survey(client: Client, fleet: Fleet) -> Iterator[Reading]:
    """Yield what is registered and in no spec: models, and versions of models."""
    named: dict[str, set[str] | None] = {}
    for document in fleet.models:
        spec = document.spec
        versions = named.setdefault(texts.served_name(spec), set())
        if versions is not None and _tells_version(spec):
            versions.add(str(spec.version))
        else:
            named[texts.served_name(spec)] = None
    source = "management API"
    for name, url in sorted(client.models().items()):
        if name not in named:
            yield Reading(setting=f"{name}: model", wanted="absent", found=f"registered from {url}", source=source)
            continue
        wanted = named[name]
        found = sorted(each.version for each in client.describe(name))
        if wanted is not None and set(found) - wanted:
            yield Reading(setting=f"{name}: versions", wanted=sorted(wanted), found=found, source=source)


def _prefixed(reading: Reading, prefix: str) -> Reading:
    return Reading(setting=prefix + reading.setting, wanted=reading.wanted, found=reading.found, source=reading.source)


def _model_settings(spec: ModelSpec, found: ModelDescription) -> Iterator[Reading]:
    config = texts.model_config(spec)
    source = "management API"
    pairs: dict[str, tuple[object, object]] = {
        "version": (str(spec.version), found.version),
        "minWorkers": (config.get("minWorkers"), found.min_workers),
        "maxWorkers": (config.get("maxWorkers"), found.max_workers),
        "workers READY": (config.get("minWorkers"), found.ready_workers),
        "batchSize": (config.get("batchSize"), found.batch_size),
        "responseTimeout": (config.get("responseTimeout"), found.response_timeout_s),
        "startupTimeout": (config.get("startupTimeout"), found.startup_timeout_s),
        "deviceType": (config.get("deviceType"), found.device_type),
        "jobQueueSize": (keys.queue(spec), found.queue_size),
        "maxBatchDelay": (config.get("maxBatchDelay"), found.max_batch_delay_ms),
        "deviceIds": (tuple(config.get("deviceIds", ())) or None, found.device_ids),
    }
    if spec.batching.queue is None and (spec.deployed or "job_queue_size" in keys.options(spec).properties):
        pairs["jobQueueSize"] = (config.get("jobQueueSize"), found.queue_size)
    if not _tells_version(spec):
        del pairs["version"]
    if spec.deployed:
        pairs |= {name: (config.get(name), found.raw[name]) for name in _TOLD if name in found.raw}
    pairs = {setting: pair for setting, pair in pairs.items() if pair[0] is not None}
    for setting, (wanted, value) in pairs.items():
        yield Reading(setting=setting, wanted=wanted, found=value, source=source)


def _worker_threads(server: RunningServer, fleet: Fleet, spec: ModelSpec, found: ModelDescription) -> Iterator[Reading]:
    """Yield the threads of the workers' processes, as far as these can be looked into."""
    if not spec.threads.intra_op:
        return
    setting, wanted = "OMP_NUM_THREADS", str(spec.threads.intra_op)
    if shared_threads(fleet) is None:
        reason = (
            "the models differ, and the variable is the server's; each worker sets its own with torch.set_num_threads"
        )
        yield Reading(setting=setting, wanted=wanted, found=None, source=reason)
        return
    environments = [server.handle.environment(worker.pid) if server.handle else {} for worker in found.workers]
    values = {environment.get(setting, "unset") if environment else "" for environment in environments}
    value = values.pop() or None if len(values) == 1 else None
    source = "environment of the workers" if value else "the workers' processes cannot be looked into from here"
    yield Reading(setting=setting, wanted=wanted, found=value, source=source)


def shared_threads(fleet: Fleet) -> int | None:
    """Return the threads per operation that every model asks for, or ``None``: the environment is one for all."""
    threads = {document.spec.threads.intra_op for document in fleet.models}
    return threads.pop() if len(threads) == 1 else None


def _server_settings(server: RunningServer, fleet: Fleet) -> Iterator[Reading]:
    """Yield the server's own settings, which no call tells: it prints them when it starts."""
    if server.site is None:
        return
    printed = dict(_printed(server))
    listening = dict(server.handle.listeners()) if server.handle else {}
    for name, wanted in texts.server_settings(fleet, server.site).items():
        label = _PRINTED.get(name)
        found = printed.get(label) if label else None
        if name == "disable_token_authorization":
            yield _tokens(server, wanted)
        elif name in _GRPC_LISTENERS:
            yield _grpc_listener(name, wanted, server.site.ports[_GRPC_LISTENERS[name]], listening)
        elif name == "metrics_mode" and found is not None:
            # The server prints the name of its enumeration's constant.
            yield Reading(setting=name, wanted=wanted, found=found.lower(), source=_PRINTED_AT_START)
        elif found is None:
            source = "no call tells it, and the server does not print it"
            yield Reading(setting=name, wanted=settings.shown(name, wanted), found=None, source=source)
        else:
            yield Reading(setting=name, wanted=wanted, found=_as_written(found), source=_PRINTED_AT_START)


def _grpc_listener(name: str, wanted: str, port: int, listening: dict[int, str]) -> Reading:
    if not listening:
        return Reading(setting=name, wanted=wanted, found=None, source="the server's sockets are not ours to look at")
    found = (
        listening.get(port, "nobody listens")
        if name.endswith("address")
        else str(port)
        if port in listening
        else "closed"
    )
    return Reading(setting=name, wanted=wanted, found=found, source="a socket of the server")


def _as_written(text: str) -> str:
    """Return a printed value as the config file has it: lists come in brackets."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def _printed(server: RunningServer) -> Iterator[tuple[str, str]]:
    for line in server.log_head():
        label, sign, value = line.partition(": ")
        if sign:
            yield label, value


def _tokens(server: RunningServer, wanted: str) -> Reading:
    """Ask without a token: only a server that wants one refuses."""
    from servewright.http import HttpConnection

    with HttpConnection(f"http://{server.endpoints['http']}") as connection:
        refused = connection.get("/ping").status == 400
    return Reading(
        setting="disable_token_authorization", wanted=wanted, found="false" if refused else "true",
        source="a request without a token was " + ("refused" if refused else "answered"),
    )  # fmt: skip
