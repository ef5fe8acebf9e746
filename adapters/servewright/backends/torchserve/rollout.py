"""Rolling a running TorchServe from one version to the next, by its management API.

Every version of a model is registered by itself, and one of them is the default: it answers requests that name none.
Facts that shape the steps:

- A registration that fails leaves the version there, without workers; it has to be taken away. One whose client died
  goes on in the server: taken away and registered again meanwhile, the first one's end would meet the second one.
- The default version cannot be unregistered. So the default moves first, and moves back first.
- Unregistering ends the workers, whatever they hold. So a version that was the default goes when it has had nothing to
  do for a while.
- An archive's own ``model-config.yaml`` beats what a registration says of workers. So they are scaled afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.errors import CheckFailedError, InputError, ProbeTimeoutError, ServerAnswerError
from servewright.processes import SYSTEM_CLOCK, wait_until
from servewright.rollout.plan import PROBE, PUBLISH, Aim, Phase, Place, Rolling, Step
from servewright.rollout.publishing import check_writable, same

if TYPE_CHECKING:
    from servewright.backends.torchserve.client import Client
    from servewright.backends.torchserve.descriptions import ModelDescription
    from servewright.server import RunningServer
    from servewright.specfile import Document

REGISTER, SCALE, DEFAULT, RETIRE = "register", "scale", "set default", "unregister"
OPTIONS = {
    "store": "the server's model store, as a folder of this machine",
    "key_file": "the server's key_file.json; needed unless it was started without tokens",
}
_EVERY_S = 0.1
# A request may be in no queue and not answered yet: while its batch fills, for instance.
_DELAYS = 3
_SETTLES_S = 2.0


def rolling() -> Rolling:
    """Return how live servers are moved."""
    return Rolling(
        options=OPTIONS, prepare=prepare, carry_out=carry_out, undo=undo, observe=observe, canary=canary,
    )  # fmt: skip


def prepare(aim: Aim, server: RunningServer, client: Client) -> tuple[Step, ...]:
    """Return the steps for one server; `InputError` names what it lacks."""
    _check_allowed(server, client)
    store = _store(aim, server)
    phases: dict[Phase, list[Step]] = {phase: [] for phase in Phase}
    for document in aim.fleet.models:
        for step in _model_steps(aim, client, document, store):
            phases[step.phase].append(step)
    return tuple(step for steps in phases.values() for step in steps)


def _check_allowed(server: RunningServer, client: Client) -> None:
    if "management" not in server.endpoints:
        raise InputError("models are registered over the management API: say management=host:port (8081 as a rule)")
    try:
        allowed = client.takes_models()
    except ServerAnswerError as error:
        raise InputError(
            f"the server does not let us in: {error}; name its key_file.json with key_file=FILE (it lies in the "
            "server's working folder)"
        ) from error
    if not allowed:
        raise InputError(
            "the server's model API is off, and nothing can be registered; start it with enable_model_api=true in "
            "config.properties (server: {model_api: true} in a fleet file), or --enable-model-api"
        )


def _store(aim: Aim, server: RunningServer) -> Path:
    named = aim.options.get("store")
    if named is None and server.site is not None and server.runtime != "docker":
        named = server.site.models
    if named is None:
        raise InputError("the new archive has to be put into the server's model store; say where that is: store=FOLDER")
    check_writable(Path(named))
    return Path(named)


def _model_steps(aim: Aim, client: Client, document: Document, store: Path) -> Sequence[Step]:
    spec = document.spec
    name, version = spec.name, str(spec.version)
    try:
        described = {each.version: each for each in client.describe(name)}
        old = client.describe(name, None)[0]
    except ServerAnswerError as error:
        raise InputError(
            f"the server has no {name} ({error.message}); a rollout goes from one version to the next: register the "
            "first one, or start the server with it"
        ) from error
    if version == old.version:
        return ()
    if version in described:
        raise InputError(f"{name} version {version} is registered already; unregister it, or give the spec another one")
    if "://" not in old.url and not (store / old.url).exists():
        raise InputError(
            f"{store} does not hold {old.url}, from which the server loaded {name}; name the server's own model store, "
            "as this machine sees it: store=FOLDER"
        )
    source, target = aim.artifact / "models" / f"{name}.mar", store / f"{name}-{version}.mar"
    before = {name: (old.version,), **{f"{name} version {each}": (each,) for each in described}}
    beside = before | {f"{name} version {version}": (version,)}
    after = {asked: versions for asked, versions in beside.items() if asked != f"{name} version {old.version}"}
    workers = {"model": name, "version": version, "min": spec.workers, "max": spec.workers}
    steps = [
        Step(
            phase=Phase.CANARY, kind=REGISTER, title=f"register {name} {version} beside {old.version}", model=name,
            values={"model": name, "version": version, "url": target.name, "workers": spec.workers,
                    "drain_s": aim.drain_s}, answers=beside,
        ),
        Step(phase=Phase.CANARY, kind=SCALE, title=f"scale it to {spec.workers}", model=name, values=workers,
             answers=beside),
        Step(phase=Phase.PROBE, kind=PROBE, title=f"probe {name} version {version}", model=name,
             values={"version": version}, answers=beside),
        Step(
            phase=Phase.PROMOTE, kind=DEFAULT, title=f"make {version} the default", model=name,
            values={"model": name, "version": version, "old": old.version},
            answers=beside | {name: (old.version, version)},
        ),
        Step(
            phase=Phase.RETIRE, kind=RETIRE, title=f"unregister {name} {old.version} once it is idle", model=name,
            # Its workers may answer until the last moment.
            values={"model": name, "drain_s": aim.drain_s, "old": _as_registered(old)},
            answers=after | {name: (version,), f"{name} version {old.version}": (old.version,)},
        ),
    ]  # fmt: skip
    if target.exists():
        if not same(source, target):
            raise InputError(f"{target} holds another model; give the spec a new version, or move that file away")
        return steps
    published = Step(
        phase=Phase.PREPARE, kind=PUBLISH, title=f"put {target.name} into {store}", model=name,
        values={"source": str(source), "target": str(target)}, answers=before,
    )  # fmt: skip
    return [published, *steps]


def _as_registered(old: ModelDescription) -> dict[str, Any]:
    """Return what is needed to register a version again as it is."""
    return {
        "version": old.version,
        "url": old.url,
        "min": old.min_workers,
        "max": old.max_workers,
        "batch_size": old.batch_size,
        "max_batch_delay_ms": old.max_batch_delay_ms,
        "response_timeout_s": old.response_timeout_s,
        "startup_timeout_s": old.startup_timeout_s,
    }


def carry_out(step: Step, client: Client, patience_s: float) -> None:
    """Do a step and wait until it shows."""
    values, model = step.values, step.values["model"]
    if step.kind == REGISTER:
        _register(client, values, patience_s)
    elif step.kind == SCALE:
        _scale(client, model, values["version"], values["min"], values["max"], patience_s)
    elif step.kind == DEFAULT:
        client.set_default(model, values["version"], timeout_s=patience_s)
    else:
        _unregister(client, model, values["old"]["version"], values["drain_s"], patience_s)


def undo(step: Step, client: Client, patience_s: float) -> None:
    """Take a step back, whether it was done, half done, or never begun."""
    values, model = step.values, step.values["model"]
    if step.kind == REGISTER:
        _unregister(client, model, values["version"], values["drain_s"], patience_s)
    elif step.kind == DEFAULT:
        client.set_default(model, values["old"], timeout_s=patience_s)
    elif step.kind == RETIRE:
        _register_again(client, model, values["old"], patience_s)
    # Workers that were added go with their version.


def _register(client: Client, values: Mapping[str, Any], patience_s: float) -> None:
    model, version = values["model"], values["version"]
    if _described(client, model, version):
        if _comes_up(client, model, version, patience_s):
            return
        client.unregister(model, version, timeout_s=patience_s)  # what an attempt that failed has left
    try:
        client.register(values["url"], workers=values["workers"], timeout_s=patience_s)
    except ServerAnswerError as error:
        if error.status == 404:
            raise InputError(
                f"the server does not find {values['url']} in its model store ({error.message}); name that folder, as "
                "this machine sees it: store=FOLDER"
            ) from error
        raise CheckFailedError(f"{model} version {version} does not load: {error.message}") from error


def _comes_up(client: Client, model: str, version: str, patience_s: float) -> bool:
    """Tell whether a version that is there gets workers, as one does that was just registered by somebody else."""
    since = SYSTEM_CLOCK.now()

    def outcome() -> str:
        nonlocal since
        found = client.describe(model, version)[0]
        if found.workers:
            since = SYSTEM_CLOCK.now()
        if found.ready_workers:
            return "up"
        # Between a registration and its first worker lies a moment.
        return "failed" if SYSTEM_CLOCK.now() - since > _SETTLES_S else ""

    what = f"{model} {version}, which is being registered, is READY"
    return wait_until(lambda: outcome() or None, within_s=patience_s, every_s=_EVERY_S, what=what) == "up"


def _register_again(client: Client, model: str, old: Mapping[str, Any], patience_s: float) -> None:
    version = old["version"]
    found = _described(client, model, version)
    if found and old["min"] and not found.ready_workers and not _comes_up(client, model, version, patience_s):
        client.unregister(model, version, timeout_s=patience_s)
        found = None
    if found is None:
        client.register(
            old["url"], name=model, workers=old["min"], batch_size=old["batch_size"],
            max_batch_delay_ms=old["max_batch_delay_ms"], response_timeout_s=old["response_timeout_s"],
            startup_timeout_s=old["startup_timeout_s"], timeout_s=patience_s,
        )  # fmt: skip
    _scale(client, model, old["version"], old["min"], old["max"], patience_s)


def _scale(client: Client, model: str, version: str, least: int, most: int, patience_s: float) -> None:
    found = client.describe(model, version)[0]
    if (found.min_workers, found.max_workers) != (least, most):
        client.scale(model, version=version, min_workers=least, max_workers=most, timeout_s=patience_s)
    else:
        client.await_workers(model, least, version=version, within_s=patience_s)


def _unregister(client: Client, model: str, version: str, drain_s: float, patience_s: float) -> None:
    """Unregister a version when it has had nothing to do for a while; one that never is idle goes all the same."""
    found = _described(client, model, version)
    if found is None:
        return
    if found.ready_workers:
        quiet_s = max(drain_s, _DELAYS * found.max_batch_delay_ms / 1000)
        since = SYSTEM_CLOCK.now()

        def idle() -> bool:
            nonlocal since
            if any(each.queue_pending for each in client.describe(model, version)):
                since = SYSTEM_CLOCK.now()
            return SYSTEM_CLOCK.now() - since >= quiet_s

        with suppress(ProbeTimeoutError):
            wait_until(idle, within_s=patience_s, every_s=_EVERY_S, what=f"{model} {version} is idle")
    try:
        client.unregister(model, version, timeout_s=patience_s)
    except ServerAnswerError as error:
        if error.status != 404:
            raise


def observe(step: Step, client: Client) -> Place:
    """Tell where the server is with respect to a step."""
    values, model = step.values, step.values["model"]
    if step.kind == RETIRE:
        return Place.BEFORE if _described(client, model, values["old"]["version"]) else Place.AFTER
    if step.kind == DEFAULT:
        default = client.describe(model, None)[0].version
        return {values["version"]: Place.AFTER, values["old"]: Place.BEFORE}.get(default, Place.BETWEEN)
    found = _described(client, model, values["version"])
    if found is None:
        return Place.BEFORE
    return Place.AFTER if found.ready_workers >= values.get("min", 1) else Place.BETWEEN


def canary(step: Step, client: Client, document: Document) -> tuple[Any, Document]:
    """Return a client and a spec that ask the canary of a probe step."""
    return Canary(client, step.values["version"]), document


class Canary:
    """A client that asks for one version."""

    def __init__(self, client: Client, version: str) -> None:
        self._client, self._version = client, version

    def predict(self, model: str, inputs: Mapping[str, Any], **how: Any) -> Mapping[str, Any]:
        """Return the outputs by name."""
        return self._client.predict(model, inputs, version=self._version, **how)


def _described(client: Client, model: str, version: str) -> ModelDescription | None:
    """Return what the server tells of a version, or ``None`` where it has no such version."""
    try:
        return client.describe(model, version)[0]
    except ServerAnswerError as error:
        if error.status == 404:
            return None
        raise
