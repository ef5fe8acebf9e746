"""Rolling a running TensorFlow Serving from one version to the next.

A step of the server's is a pair of states, each a whole config and what it serves: the server takes nothing smaller.
Facts that shape the order of the states:

- Requests that name neither version nor label get the highest version that is AVAILABLE. So a canary is by default a
  model of its own name; as a label it is for fleets of which every client names a label or a version.
- A version that lies in a base path is loaded at once where the policy is ``latest`` or ``all``. So the policy is
  pinned to the versions that are served before a new one is put there, and set free last.
- A label may be put on a version that is AVAILABLE, and on no other. So versions come before labels, and labels go
  before versions.
- A reload waits for models that are new in it, and further reloads wait for that one. So the canary's model first
  serves the old version, which is known to load: a version that fails never blocks the way back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.backends.tfserving import protos, texts
from servewright.errors import CheckFailedError, InputError, ProbeError, ServerAnswerError
from servewright.processes import wait_until
from servewright.rollout.plan import PROBE, PUBLISH, Aim, Phase, Place, Rolling, Step
from servewright.rollout.publishing import check_writable, same
from servewright.spec import Latest, Specific
from servewright.staging import staged_file

if TYPE_CHECKING:
    from servewright.backends.tfserving.client import Client
    from servewright.backends.tfserving.versions import ModelVersion
    from servewright.server import RunningServer
    from servewright.spec import ModelSpec
    from servewright.specfile import Document

CONFIG = "config"
OPTIONS = {
    "store": "the folder of this machine that holds the models' base paths, as the server sees it or mounted elsewhere",
    "config": "the server's model config file",
    "via": "grpc (a reload request, the default) or file (the config file, which the server polls)",
}
_VIAS = ("grpc", "file")
_AVAILABLE, _END = "AVAILABLE", "END"
_EVERY_S = 0.1
_MOST_STATES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A whole config, as the text that the server gets, and which versions of our models it serves.

    ``unknown`` names labels that must not resolve: how it is seen that a polled file was read.
    """

    config: str
    serves: Mapping[str, Sequence[int]]
    unknown: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"config": self.config, "serves": self.serves, "unknown": self.unknown}

    @property
    def message(self) -> Any:
        """The config as a ``ModelServerConfig``."""
        return protos.SCHEMA.parse_text("ModelServerConfig", self.config)

    def labels(self, model: str) -> dict[str, int]:
        """Return the labels of a model."""
        return next((dict(each.version_labels) for each in _models(self.message) if each.name == model), {})


def rolling() -> Rolling:
    """Return how live servers are moved."""
    return Rolling(
        options=OPTIONS, prepare=prepare, carry_out=carry_out, undo=undo, observe=observe, canary=canary,
    )  # fmt: skip


def prepare(aim: Aim, server: RunningServer, client: Client) -> tuple[Step, ...]:
    """Return the steps for one server; `InputError` names what it lacks."""
    via = aim.options.get("via", "grpc")
    if via not in _VIAS:
        raise InputError(f"via={via} is no way to a server; choose from {', '.join(_VIAS)}")
    if via == "grpc":
        _check_reloads(server, client)
    file = _config_file(aim, server, via)
    current = _current(aim, client, file)
    changes = [change for document in aim.fleet.models if (change := _change(aim, client, current, document.spec))]
    if not changes:
        return ()
    for change in changes:
        check_writable(change.folder)
    plan = _Plan(aim=aim, changes=changes, way={"via": via, "file": str(file) if via == "file" else ""})
    return tuple(plan.steps(current))


def _check_reloads(server: RunningServer, client: Client) -> None:
    """Ask for a reload that every server refuses by itself: whether it gets that far is what must be known."""
    if "grpc" not in server.endpoints:
        raise InputError("a reload goes over gRPC: say grpc=host:port, or via=file where the server polls its config")
    try:
        client.reload("", timeout_s=10.0)
    except ServerAnswerError as error:
        if "HandleReloadConfigRequest" not in error.message:
            raise InputError(
                f"the server takes no reload: {error}; allow ModelService.HandleReloadConfigRequest there, or use "
                "via=file where the server polls its config"
            ) from error


def _config_file(aim: Aim, server: RunningServer, via: str) -> Path | None:
    """Return the file that holds the server's config, as far as it is known."""
    named = aim.options.get("config")
    if named is None and server.site is not None and server.runtime != "docker":
        named = f"{server.site.config}/{texts.MODEL_CONFIG}"
    if via == "grpc":
        return Path(named) if named else None
    if named is None:
        raise InputError("via=file needs the file that the server polls: say config=FILE")
    path = Path(named)
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be replaced; via=file needs a config file that may be written, and its folder")
    return path


def _current(aim: Aim, client: Client, file: Path | None) -> State:
    """Return the config that the server has: of its file, or as our last reload left it; it must agree with both."""
    refused = []
    for source, text in _known_configs(aim, file):
        config = _parsed(source, text)
        if complaint := next(_disagreements(config, client), ""):
            refused.append(f"{source} is not what the server has: {complaint}")
            continue
        names = {document.spec.name for document in aim.fleet.models}
        return State(config=text, serves={name: _served(client, name) for name in sorted(names)})
    if not aim.replace_all:
        because = "; ".join(refused) or "no file holds it, and no rollout of ours went there"
        raise InputError(
            f"the server's config is not known ({because}); a reload replaces all of it: say config=FILE, or "
            "--replace-all if the server shall serve the spec's models and nothing else"
        )
    return _made_up(aim, client)


def _known_configs(aim: Aim, file: Path | None) -> Iterator[tuple[str, str]]:
    """Yield what may be the server's config: the file that was named, our last reload, the file of its start."""
    earlier = [step for step in aim.earlier.steps if step.kind == CONFIG] if aim.earlier else []
    polled = aim.options.get("via") == "file"
    if file is not None and ("config" in aim.options or polled):
        yield str(file), _read(file)
    if aim.earlier is not None and earlier and not polled:
        state = earlier[-1].values["after"] if aim.earlier.promoted else earlier[0].values["before"]
        yield "our last reload", state["config"]
    if file is not None and "config" not in aim.options and not polled:
        yield str(file), _read(file)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}; name the server's model config file") from error


def _parsed(source: str, text: str) -> Any:
    config = protos.SCHEMA.parse_text("ModelServerConfig", text, file=source)
    if config.WhichOneof("config") != "model_config_list":
        raise InputError(f"{source} lists no models; name the server's model config file")
    return config


def _disagreements(config: Any, client: Client) -> Iterator[str]:
    """Yield each way in which a server does not have ``config``, as far as it tells."""
    for model in _models(config):
        try:
            served = _available(client.status(model.name))
        except ServerAnswerError as error:
            yield f"it does not serve {model.name} ({error.message})"
            continue
        wanted = set(model.model_version_policy.specific.versions)
        if wanted and not set(served) <= wanted:
            yield f"{model.name} is pinned to {_listed(wanted)}, and {_listed(served)} are served"
        for label, version in model.version_labels.items():
            found = _version_of_label(client, model.name, label)
            if found != version:
                yield f"label {label} of {model.name} is on {version}, and the server says {found or 'unknown'}"


def _made_up(aim: Aim, client: Client) -> State:
    """Return the config of a server of which nothing is known but the models of the spec."""
    store = aim.options.get("store")
    if store is None:
        raise InputError("--replace-all needs store=FOLDER: the models' base paths lie there, as the server sees it")
    config = protos.ModelServerConfig()
    config.model_config_list.SetInParent()
    serves = {}
    for document in aim.fleet.models:
        name = document.spec.name
        served = _served(client, name)
        if not served:
            continue  # `_change` says so
        serves[name] = served
        model = config.model_config_list.config.add(name=name, base_path=f"{store}/{name}", model_platform="tensorflow")
        model.model_version_policy.specific.versions.extend(served)
        for label in document.spec.versions.labels:
            if version := _version_of_label(client, name, label):
                model.version_labels[label] = version
    return State(config=_text(config), serves=serves)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What becomes of one model: the versions that are served before and after, and how they are called."""

    name: str
    version: int
    old: tuple[int, ...]
    final: tuple[int, ...]
    policy: Any
    labels: Mapping[str, int]
    base_path: str
    folder: Path


def _change(aim: Aim, client: Client, current: State, spec: ModelSpec) -> _Change | None:
    """Return what becomes of a model, or ``None`` where it is as the spec says already."""
    version = int(spec.version)
    model = next((each for each in _models(current.message) if each.name == spec.name), None)
    old = _served(client, spec.name)
    if model is None or not old:
        raise InputError(
            f"the server serves no version of {spec.name}; a rollout goes from one version to the next: put the first "
            "one into its config"
        )
    folder = _folder(aim, model.base_path)
    if "://" not in model.base_path and (lacking := set(old) - _on_disk(folder)):
        raise InputError(
            f"{folder} does not hold version {_listed(lacking)} of {spec.name}, which the server serves; name the "
            "folder that the server looks into, as this machine sees it: store=FOLDER"
        )
    policy = _final_policy(spec, model, old, version)
    final = _versions_of(policy, _on_disk(folder) | {version})
    if version not in final:
        raise InputError(
            f"the policy serves {_listed(final)} and not {version}; change versions.policy, or the version"
        )
    if lacking := set(final) - _on_disk(folder) - {version}:
        raise InputError(f"versions.policy names {_listed(lacking)}, which {folder} does not hold")
    labels = dict(model.version_labels) | dict(spec.versions.labels)
    for label, named in labels.items():
        if named not in final and label in spec.versions.labels:
            raise InputError(f"label {label} names version {named}, which the policy does not serve")
        labels[label] = named if named in final else version
    if version in old:
        if set(old) == set(final) and labels == dict(model.version_labels):
            return None
        raise InputError(f"{spec.name} version {version} is served already; give the spec a new version")
    return _Change(
        name=spec.name, version=version, old=old, final=final, policy=policy, labels=labels,
        base_path=model.base_path, folder=folder,
    )  # fmt: skip


def _folder(aim: Aim, base_path: str) -> Path:
    """Return the folder of this machine that the server sees as ``base_path``."""
    if "://" in base_path:
        raise InputError(f"{base_path} is no folder of this machine; a version can be put into local folders only")
    store = aim.options.get("store")
    folder = Path(store) / Path(base_path).name if store else Path(base_path)
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder of this machine, and the new version has to be put there; say where the base "
            "paths lie with store=FOLDER"
        )
    return folder


def _final_policy(spec: ModelSpec, model: Any, old: Sequence[int], version: int) -> Any:
    """Return the policy to end with: the spec's where it says one, else that of the server's config.

    Pinned versions move: the one that requests without a version get makes room for the new one.
    """
    found = protos.SCHEMA["FileSystemStoragePathSourceConfig.ServableVersionPolicy"]()
    wanted = spec.versions.policy
    if "policy" not in spec.versions.model_fields_set:
        found.CopyFrom(model.model_version_policy)
        if found.HasField("specific"):
            pinned = sorted({*old, version} - {max(old)})
            found.specific.versions[:] = pinned
    elif isinstance(wanted, Latest):
        found.latest.num_versions = wanted.latest
    elif isinstance(wanted, Specific):
        found.specific.versions.extend(wanted.specific)
    else:
        found.all.SetInParent()
    return found


def _versions_of(policy: Any, on_disk: Iterable[int]) -> tuple[int, ...]:
    """Return the versions that a policy serves of those on disk."""
    match policy.WhichOneof("policy_choice"):
        case "all":
            return tuple(sorted(on_disk))
        case "specific":
            return tuple(sorted(set(policy.specific.versions)))
        case _:
            return tuple(sorted(on_disk)[-max(1, policy.latest.num_versions) :])


def _on_disk(folder: Path) -> set[int]:
    return {int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Lays the states of one server out."""

    aim: Aim
    changes: Sequence[_Change]
    way: Mapping[str, str]

    def steps(self, current: State) -> Iterator[Step]:
        """Yield every step, from the config that is there to the one that shall be."""
        if self.aim.naming == "model":
            unused = {self._canary(change): () for change in self.changes}
            current = replace(current, serves={**current.serves, **unused})
        states = [(Phase.PREPARE, "", self._seen(current, None))]
        for phase, title, state in self._states(current):
            states.append((phase, title, self._seen(state, len(states) if phase is not Phase.RETIRE else None)))
        published = probed = False
        for (_, _, before), (phase, title, after) in pairwise(states):
            if phase is not Phase.PREPARE and not published:
                yield from self._publishing(before)
                published = True
            if phase in (Phase.PROMOTE, Phase.RETIRE) and not probed:
                yield from self._probing(before)
                probed = True
            yield self._config_step(phase, title, before, after)

    def _states(self, current: State) -> Iterator[tuple[Phase, str, State]]:
        """Yield each state after the current one, with its phase and title."""
        state = current
        everyone = {change.name: change for change in self.changes}
        pinned = self._with(state, {name: {"versions": change.old} for name, change in everyone.items()})
        if pinned.message != state.message:
            state = replace(pinned, serves=state.serves)
            yield Phase.PREPARE, f"pin {self._named(lambda change: change.old)}", state
        both = {name: (*change.old, change.version) for name, change in everyone.items()}
        naming = self.aim.naming
        if naming == "model":
            state = self._with_canaries(state, {name: max(change.old) for name, change in everyone.items()})
            yield Phase.CANARY, f"add {self._canaries()}, with the old version first", state
            state = self._with_canaries(state, {name: change.version for name, change in everyone.items()})
            yield Phase.CANARY, f"serve the new version as {self._canaries()}", state
            state = self._with(state, {name: {"versions": versions} for name, versions in both.items()})
            yield Phase.PROMOTE, f"load {self._named(lambda change: (change.version,))} beside the old", state
        else:
            state = self._with(state, {name: {"versions": versions} for name, versions in both.items()})
            yield Phase.CANARY, f"load {self._named(lambda change: (change.version,))} beside the old", state
            labelled = {name: {self.aim.label: change.version} for name, change in everyone.items()}
            state = self._with(state, {name: {"labels": labels} for name, labels in labelled.items()})
            yield Phase.CANARY, f"put label {self.aim.label} on the new version", state
        moved = {name: {"labels": dict(change.labels)} for name, change in everyone.items()}
        if naming == "label":
            for name, change in everyone.items():
                moved[name]["labels"].setdefault(self.aim.label, change.version)
        labelled_state = self._with(state, moved)
        if labelled_state.message != state.message:
            state = labelled_state
            yield Phase.PROMOTE, "move the labels to the new version", state
        yield (
            Phase.RETIRE,
            "retire the old version" + (" and the canary" if naming == "model" else ""),
            self._final(state),
        )

    def _final(self, state: State) -> State:
        config = state.message
        canaries = set(map(self._canary, self.changes)) if self.aim.naming == "model" else set()
        kept = [model for model in _models(config) if model.name not in canaries]
        by_name = {change.name: change for change in self.changes}
        final = protos.ModelServerConfig()
        final.model_config_list.SetInParent()
        for model in kept:
            entry = final.model_config_list.config.add()
            entry.CopyFrom(model)
            if change := by_name.get(model.name):
                entry.model_version_policy.CopyFrom(change.policy)
                entry.version_labels.clear()
                entry.version_labels.update(change.labels)
        served = {change.name: change.final for change in self.changes}
        return State(config=_text(final), serves={**state.serves, **dict.fromkeys(canaries, ()), **served})

    def _with(self, state: State, changed: Mapping[str, Mapping[str, Any]]) -> State:
        """Return ``state`` with other versions served, or labels added, of some models."""
        config, serves = state.message, dict(state.serves)
        for model in _models(config):
            change = changed.get(model.name, {})
            if versions := change.get("versions"):
                model.model_version_policy.Clear()
                model.model_version_policy.specific.versions.extend(sorted(versions))
                serves[model.name] = tuple(sorted(versions))
            for label, version in change.get("labels", {}).items():
                model.version_labels[label] = version
        return State(config=_text(config), serves=serves)

    def _with_canaries(self, state: State, versions: Mapping[str, int]) -> State:
        config, serves = state.message, dict(state.serves)
        for change in self.changes:
            name = self._canary(change)
            model = next((each for each in _models(config) if each.name == name), None)
            if model is None:
                model = config.model_config_list.config.add()
                model.CopyFrom(next(each for each in _models(config) if each.name == change.name))
                model.name = name
                model.version_labels.clear()
                model.model_version_policy.Clear()
            elif not serves[name]:
                raise InputError(f"the server serves a model called {name} already; choose another --canary-name")
            model.model_version_policy.specific.versions[:] = [versions[change.name]]
            serves[name] = (versions[change.name],)
        return State(config=_text(config), serves=serves)

    def _canary(self, change: _Change) -> str:
        return f"{change.name}-{self.aim.label}"

    def _canaries(self) -> str:
        return ", ".join(map(self._canary, self.changes))

    def _named(self, versions: Any) -> str:
        return ", ".join(f"{change.name} {_listed(versions(change))}" for change in self.changes)

    def _seen(self, state: State, number: int | None) -> State:
        """Return ``state`` with what shows, in a polled file, that the server has read it.

        That is a label of its own: it can only resolve where the server has taken the whole config. A policy alone
        would not show. The first and the last config have none: all of them are gone then.
        """
        if self.way["via"] != "file":
            return state
        first = self.changes[0]
        everyone = [_marker(each) for each in range(1, _MOST_STATES)]
        if number is None:
            return replace(state, unknown={first.name: everyone})
        config = state.message
        model = next(each for each in _models(config) if each.name == first.name)
        model.version_labels[_marker(number)] = max(first.old)
        return replace(state, config=_text(config))

    def _publishing(self, state: State) -> Iterator[Step]:
        for change in self.changes:
            source, target = self.aim.artifact / "models" / change.name / str(change.version), change.folder
            target = target / str(change.version)
            if target.exists():
                if not same(source, target):
                    raise InputError(
                        f"{target} holds another model; give the spec a new version, or move that folder away"
                    )
                continue
            alone = "pin its version (model_version_policy: specific) on all of them, or roll them out one at a time"
            pinned = change.policy.HasField("specific")
            yield Step(
                phase=Phase.PREPARE, kind=PUBLISH, title=f"put {change.name} {change.version} into {change.folder}",
                model=change.name,
                values={"source": str(source), "target": str(target), **({} if pinned else {"alone": (
                    f"with the policy of {change.name} they would load version {change.version} before their turn: "
                    + alone)})},
                answers=self._answers(state, state),
            )  # fmt: skip

    def _probing(self, state: State) -> Iterator[Step]:
        for change in self.changes:
            how = (
                {"model": self._canary(change)}
                if self.aim.naming == "model"
                else {"model": change.name, "label": self.aim.label}
            )
            yield Step(
                phase=Phase.PROBE, kind=PROBE, title=f"probe {' label '.join(how.values())}", model=change.name,
                values=how, answers=self._answers(state, state),
            )  # fmt: skip

    def _config_step(self, phase: Phase, title: str, before: State, after: State) -> Step:
        return Step(
            phase=phase, kind=CONFIG, title=title, model=self.changes[0].name,
            values={"way": dict(self.way), "before": before.as_json(), "after": after.as_json()},
            answers=self._answers(before, after),
        )  # fmt: skip

    def _answers(self, before: State, after: State) -> dict[str, tuple[str, ...]]:
        """Return which versions may answer while a server goes from one state to the other, by the way of asking."""
        found: dict[str, set[int]] = {}
        for state in (before, after):
            for model in {*(change.name for change in self.changes), *map(self._canary, self.changes)}:
                if served := state.serves.get(model):
                    found.setdefault(model, set()).add(max(served))
                    for version in served:
                        found.setdefault(f"{model} version {version}", set()).add(version)
                for label, version in state.labels(model).items():
                    if not _is_marker(label):
                        found.setdefault(f"{model} label {label}", set()).add(version)
        return {asked: tuple(map(str, sorted(versions))) for asked, versions in sorted(found.items())}


def _marker(number: int) -> str:
    return f"servewright-step-{number}"


def _is_marker(label: str) -> bool:
    return label.startswith("servewright-step-")


def carry_out(step: Step, client: Client, patience_s: float) -> None:
    """Give the server the config of a step, and wait until it shows."""
    _reach(step, State(**step.values["after"]), client, patience_s)


def undo(step: Step, client: Client, patience_s: float) -> None:
    """Give the server the config from before a step, and wait until it shows."""
    _reach(step, State(**step.values["before"]), client, patience_s)


def observe(step: Step, client: Client) -> Place:
    """Tell which of a step's two configs the server shows; the first where they look the same, as a pin does."""
    for which, place in (("before", Place.BEFORE), ("after", Place.AFTER)):
        with suppress(CheckFailedError):  # a version that does not load: neither
            if not any(_lacking(State(**step.values[which]), client, set())):
                return place
    return Place.BETWEEN


def _reach(step: Step, state: State, client: Client, patience_s: float) -> None:
    failed_before = {
        (model, entry.version) for model in state.serves for entry in _status(client, model) if entry.state == _END
    }
    if step.values["way"]["via"] == "file":
        _replace(Path(step.values["way"]["file"]), state.config)
    else:
        client.reload(state.config, timeout_s=patience_s)

    def settled() -> bool:
        if lacking := next(_lacking(state, client, failed_before), ""):
            raise ProbeError(lacking)
        return True

    what = f"{step.title} shows"
    if step.values["way"]["via"] == "file":
        what += f" (does the server poll {step.values['way']['file']}: --model_config_file_poll_wait_seconds?)"
    wait_until(settled, within_s=patience_s, every_s=_EVERY_S, what=what)


def _lacking(state: State, client: Client, failed_before: set[tuple[str, int]]) -> Iterator[str]:
    """Yield each way in which the server does not show ``state`` yet; a version that failed is a `CheckFailedError`.

    ``failed_before``: the server remembers the failures of earlier attempts until it tries again.
    """
    for model, versions in state.serves.items():
        entries = {entry.version: entry for entry in _status(client, model)}
        for version in versions:
            found = entries.get(version)
            if found is None or found.state != _AVAILABLE:
                if found and found.state != _END:
                    failed_before.discard((model, version))
                elif found and found.error_message and (model, version) not in failed_before:
                    raise CheckFailedError(f"{model} version {version} does not load: {found.error_message}")
                yield f"{model} {version} is {found.state if found else 'not known'}"
        for version, entry in entries.items():
            if entry.state == _AVAILABLE and version not in versions:
                yield f"{model} {version} is still served"
    for model in _models(state.message):
        if model.name not in state.serves:
            continue
        for label, wanted in model.version_labels.items():
            if (label_is := _version_of_label(client, model.name, label)) != wanted:
                yield f"label {label} of {model.name} is on {label_is or 'nothing'} and not on {wanted}"
    for name, labels in state.unknown.items():
        for label in labels:
            if _version_of_label(client, name, label) is not None:
                yield f"label {label} of {name} is still there"


def canary(step: Step, client: Client, document: Document) -> tuple[Any, Document]:
    """Return a client and a spec that ask the canary of a probe step."""
    name = step.values["model"]
    named = replace(document, spec=document.spec.model_copy(update={"name": name}))
    return Canary(client, step.values.get("label")), named


class Canary:
    """A client that asks for one label; for the usual version where that is ``None``."""

    def __init__(self, client: Client, label: str | None) -> None:
        self._client, self._label = client, label

    def predict(self, model: str, inputs: Mapping[str, Any], **how: Any) -> Mapping[str, Any]:
        """Return the outputs by name."""
        return self._client.predict(model, inputs, label=self._label, **how)

    def metadata(self, model: str, **which: Any) -> Any:
        """Return a signature of the model."""
        return self._client.metadata(model, label=self._label, **which)


def _replace(path: Path, text: str) -> None:
    """Put ``text`` in the place of a file, in one step, readable for those who could read it before."""
    with staged_file(path) as descriptor:
        if path.exists():
            os.fchmod(descriptor, path.stat().st_mode & 0o777)
        data = memoryview(text.encode())
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)


def _models(config: Any) -> Iterable[Any]:
    models: Iterable[Any] = config.model_config_list.config
    return models


def _text(config: Any) -> str:
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def _status(client: Client, model: str) -> tuple[ModelVersion, ...]:
    """Return what the server tells of a model's versions: nothing of one that it does not know."""
    try:
        return client.status(model)
    except ServerAnswerError as error:
        if error.status in (404, "NOT_FOUND"):
            return ()
        raise


def _served(client: Client, model: str) -> tuple[int, ...]:
    return _available(_status(client, model))


def _available(entries: Iterable[ModelVersion]) -> tuple[int, ...]:
    return tuple(sorted(entry.version for entry in entries if entry.state == _AVAILABLE))


def _version_of_label(client: Client, model: str, label: str) -> int | None:
    """Return what a label resolves to; ``None`` for a label, or a model, that the server does not know."""
    try:
        return client.version_of_label(model, label)
    except ServerAnswerError as error:
        if error.status in (404, "NOT_FOUND"):
            return None
        raise


def _listed(versions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(versions))) or "none"
