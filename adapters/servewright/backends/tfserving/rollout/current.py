"""The state that a server is in before anything is touched; no call tells a config, so it is found and held against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.rollout.config_file import read
from servewright.backends.tfserving.rollout.served import available, listed, served_versions, version_of_label
from servewright.backends.tfserving.rollout.state import CONFIG, State, models_of, text_of
from servewright.errors import InputError, ServerAnswerError
from servewright.rollout.plan import Aim

if TYPE_CHECKING:
    from servewright.backends.tfserving.client import Client


def current_state(aim: Aim, client: Client, file: Path | None) -> State:
    """Return the config that the server has: of its file, or as our last reload left it; it must agree with both."""
    refused = []
    for source, text in _known_configs(aim, file):
        config = _parsed(source, text)
        if complaint := next(_disagreements(config, client), ""):
            refused.append(f"{source} is not what the server has: {complaint}")
            continue
        names = {document.spec.name for document in aim.fleet.models}
        return State(config=text, serves={name: served_versions(client, name) for name in sorted(names)})
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
        yield str(file), read(file)
    if aim.earlier is not None and earlier and not polled:
        state = earlier[-1].values["after"] if aim.earlier.promoted else earlier[0].values["before"]
        yield "our last reload", state["config"]
    if file is not None and "config" not in aim.options and not polled:
        yield str(file), read(file)


def _parsed(source: str, text: str) -> Any:
    config = protos.SCHEMA.parse_text("ModelServerConfig", text, file=source)
    if config.WhichOneof("config") != "model_config_list":
        raise InputError(f"{source} lists no models; name the server's model config file")
    return config


def _disagreements(config: Any, client: Client) -> Iterator[str]:
    """Yield each way in which a server does not have ``config``, as far as it tells."""
    for model in models_of(config):
        try:
            served = available(client.status(model.name))
        except ServerAnswerError as error:
            yield f"it does not serve {model.name} ({error.message})"
            continue
        wanted = set(model.model_version_policy.specific.versions)
        if wanted and not set(served) <= wanted:
            yield f"{model.name} is pinned to {listed(wanted)}, and {listed(served)} are served"
        for label, version in model.version_labels.items():
            found = version_of_label(client, model.name, label)
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
        served = served_versions(client, name)
        if not served:
            continue  # `change_of` says so
        serves[name] = served
        model = config.model_config_list.config.add(name=name, base_path=f"{store}/{name}", model_platform="tensorflow")
        model.model_version_policy.specific.versions.extend(served)
        for label in document.spec.versions.labels:
            if version := version_of_label(client, name, label):
                model.version_labels[label] = version
    return State(config=text_of(config), serves=serves)
