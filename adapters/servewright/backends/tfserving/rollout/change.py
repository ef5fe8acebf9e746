"""What becomes of one model: its versions, its labels, and the folder that its new version is put into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.rollout.served import listed, served_versions
from servewright.backends.tfserving.rollout.state import State, models_of
from servewright.errors import InputError
from servewright.rollout.plan import Aim
from servewright.spec import Latest, Specific

if TYPE_CHECKING:
    from servewright.backends.tfserving.client import Client
    from servewright.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What becomes of one model: the versions that are served before and after, and how they are called."""

    name: str
    version: int
    old: tuple[int, ...]
    final: tuple[int, ...]
    policy: Any
    labels: Mapping[str, int]
    base_path: str
    folder: Path


def change_of(aim: Aim, client: Client, current: State, spec: ModelSpec) -> Change | None:
    """Return what becomes of a model, or ``None`` where it is as the spec says already."""
    version = int(spec.version)
    model = next((each for each in models_of(current.message) if each.name == spec.name), None)
    old = served_versions(client, spec.name)
    if model is None or not old:
        raise InputError(
            f"the server serves no version of {spec.name}; a rollout goes from one version to the next: put the first "
            "one into its config"
        )
    folder = _folder(aim, model.base_path)
    if "://" not in model.base_path and (lacking := set(old) - _on_disk(folder)):
        raise InputError(
            f"{folder} does not hold version {listed(lacking)} of {spec.name}, which the server serves; name the "
            "folder that the server looks into, as this machine sees it: store=FOLDER"
        )
    policy = _final_policy(spec, model, old, version)
    final = _versions_of(policy, _on_disk(folder) | {version})
    if version not in final:
        raise InputError(f"the policy serves {listed(final)} and not {version}; change versions.policy, or the version")
    if lacking := set(final) - _on_disk(folder) - {version}:
        raise InputError(f"versions.policy names {listed(lacking)}, which {folder} does not hold")
    labels = dict(model.version_labels) | dict(spec.versions.labels)
    for label, named in labels.items():
        if named not in final and label in spec.versions.labels:
            raise InputError(f"label {label} names version {named}, which the policy does not serve")
        labels[label] = named if named in final else version
    if version in old:
        if set(old) == set(final) and labels == dict(model.version_labels):
            return None
        raise InputError(f"{spec.name} version {version} is served already; give the spec a new version")
    return Change(
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
