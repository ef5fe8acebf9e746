"""Configs of TensorFlow Serving as drafts of specs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format, text_format
from pydantic import ValidationError

from servewright.backends.tfserving import keys, protos, settings, texts
from servewright.errors import InputError, ServewrightError
from servewright.importing import (
    PLACEHOLDER,
    Draft,
    Entry,
    Importer,
    ImportFailedError,
    Piece,
    distinct,
    fleet_of,
    prove,
)
from servewright.patches import patch_between
from servewright.spec import Batching

_TARGETS: Final[Mapping[str, str]] = {
    "tfs_model_config": texts.MODEL_CONFIG,
    "tfs_batching": texts.BATCHING,
    "tfs_monitoring": texts.MONITORING,
    "tfs_session": texts.SESSION,
}
# A comment begins outside of quotes; a text in quotes is stepped over.
_COMMENT: Final = re.compile(r"""#([^\n]*)|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""")


def pieces(path: Path, kind: str) -> Sequence[Piece]:
    """Return the config in a file; `InputError` where the server could not read it."""
    try:
        text = path.read_bytes().decode("utf-8")
        texts.parse(_TARGETS[kind], text)
    except text_format.ParseError as error:
        line = error.GetLine()
        raise InputError(f"{path}:{line or 1}: {error}; see: servewright lint {path}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no text that the server reads: {error}") from error
    return (Piece(kind=kind, path=path, text=text),)


def draft(found: Sequence[Piece]) -> Draft:
    """Return the fleet that configs describe: as specs have words for it, else as patches, else as whole texts."""
    proofs: dict[str, Piece] = {}
    for piece in found:
        target = _TARGETS[piece.kind]
        if target in proofs:
            raise InputError(f"{proofs[target].shown} and {piece.shown} are both {target}; import one server at a time")
        proofs[target] = piece
    for attempt in (_with_words, _with_patches, _with_texts):
        try:
            made = attempt(proofs)
            prove(made, fleet_of(made, keys.NAME), _backend())
        except (InputError, ImportFailedError, ValueError):
            continue
        return made
    raise ImportFailedError("the configs do not come back; please report this")


def _backend() -> Any:
    """Return this backend, which is made after its parts."""
    from servewright.backends.tfserving.backend import BACKEND

    return BACKEND


def live(client: Any, found: Sequence[Piece]) -> Draft:
    """Return the fleet of the given config, with the versions that the running server tells of it."""
    if not any(piece.kind == "tfs_model_config" for piece in found):
        raise InputError("TensorFlow Serving has no call that tells its config; give it too: --config models.config")
    made = draft(found)
    fleet = fleet_of(made, keys.NAME)
    entries, notes = [], list(made.notes)
    for entry, document in zip(made.entries, fleet.models, strict=True):
        name = texts.served_name(document.spec)
        try:
            versions = {each.version: each.state for each in client.status(name)}
        except ServewrightError as error:
            if not texts.is_absent(error):
                raise
            notes.append(f"{name}: the server does not serve it")
            entries.append(entry)
            continue
        ready = [version for version, state in versions.items() if state == "AVAILABLE"]
        told = ", ".join(f"{version} {state}" for version, state in sorted(versions.items())) or "none"
        values = dict(entry.values) | ({"version": max(ready)} if ready and max(ready) > 0 else {})
        entries.append(Entry(values=values, comments=(*entry.comments, f"versions when it was imported: {told}")))
        if not ready:
            notes.append(f"{name}: no version is AVAILABLE ({told})")
    return Draft(
        entries=tuple(entries), server=made.server, defaults=made.defaults, comments=made.comments,
        notes=tuple(notes), proofs=made.proofs,
    )  # fmt: skip


IMPORTER: Final = Importer(kinds=frozenset(_TARGETS), pieces=pieces, draft=draft, live=live)


def _message(proofs: Mapping[str, Piece], target: str) -> Any:
    """Return the message of a piece, or ``None`` where there is none."""
    return texts.parse(target, proofs[target].text) if target in proofs else None


def _fields(message: Any) -> dict[str, Any]:
    return dict(json_format.MessageToDict(message, preserving_proto_field_name=True))


def _with_words(proofs: Mapping[str, Piece]) -> Draft:
    return _drafted(proofs, words=True)


def _with_patches(proofs: Mapping[str, Piece]) -> Draft:
    return _drafted(proofs, words=False)


def _drafted(proofs: Mapping[str, Piece], *, words: bool) -> Draft:
    config = _message(proofs, texts.MODEL_CONFIG)
    models = list(config.model_config_list.config) if config is not None else []
    comments, beside = _comments(proofs)
    named = list(zip(distinct([model.name for model in models]), models, strict=True))
    entries = [_entry(name, model, words=words) for name, model in named]
    notes = []
    if not entries:
        entries = [_placeholder()]
        notes.append(f"no model is named: {PLACEHOLDER!r} stands for yours")
    defaults: dict[str, Any] = {"batching": {}, keys.NAME: {}}
    batching = _message(proofs, texts.BATCHING)
    if batching is not None and words:
        defaults["batching"] = _batching(batching)
    monitoring = _message(proofs, texts.MONITORING)
    if monitoring is not None:
        path = monitoring.prometheus_config.path
        if words and re.fullmatch(r"/[!-~]*", path) and path != settings.Options().monitoring_path:
            defaults[keys.NAME]["monitoring_path"] = path
    if (session := _message(proofs, texts.SESSION)) is not None and words:
        defaults[keys.NAME]["session"] = _fields(session)
    defaults = {name: value for name, value in defaults.items() if value}
    made = Draft(
        entries=tuple(entries), server={"metrics": monitoring is not None}, defaults=defaults, comments=comments,
        notes=tuple(notes), proofs=proofs,
    )  # fmt: skip
    return _patched(made, models, batching, beside)


def _patched(made: Draft, models: Sequence[Any], batching: Any, beside: Mapping[int, tuple[str, ...]]) -> Draft:
    """Return the draft with patches for all that its words do not say."""
    from servewright.rendering import site_of

    fleet = fleet_of(made, keys.NAME)
    views = texts.views(fleet, site_of(fleet, _backend()))
    rendered: Any = views[texts.MODEL_CONFIG].meaning
    entries = []
    for number, (entry, model) in enumerate(zip(made.entries, models, strict=False)):
        patch = patch_between(_fields(rendered.model_config_list.config[number]), _fields(model))
        own = {keys.NAME: {"entry": patch}} if patch else {}
        entries.append(Entry(values={**entry.values, **own}, comments=beside.get(number, ())))
    entries = entries or list(made.entries)
    defaults = dict(made.defaults)
    if batching is not None:
        shown: Any = views[texts.BATCHING].meaning if texts.BATCHING in views else protos.BatchingParameters()
        if patch := patch_between(_fields(shown), _fields(batching)):
            defaults[keys.NAME] = {**defaults.get(keys.NAME, {}), "batching_parameters": patch}
    return Draft(
        entries=tuple(entries), server=made.server, defaults=defaults, comments=made.comments, notes=made.notes,
        proofs=made.proofs,
    )  # fmt: skip


def _with_texts(proofs: Mapping[str, Piece]) -> Draft:
    """Return a draft in which every text is kept as it is."""
    config = _message(proofs, texts.MODEL_CONFIG)
    models = list(config.model_config_list.config) if config is not None else []
    entries = [
        _entry(name, model, words=False)
        for name, model in zip(distinct([model.name for model in models]), models, strict=True)
    ]
    kept = {target: piece.text.strip() for target, piece in proofs.items()}
    return Draft(
        entries=tuple(entries) or (_placeholder(),), server={"metrics": texts.MONITORING in proofs},
        defaults={keys.NAME: {"files": kept}}, proofs=proofs,
        notes=("the texts are kept as they are: specs have no words for something in them",),
    )  # fmt: skip


def _placeholder() -> Entry:
    source = {keys.NAME: {"deployed": True, "path": f"/models/{PLACEHOLDER}", "format": "saved_model"}}
    return Entry(values={"name": PLACEHOLDER, "model": source, "signature": "unknown"})


def _entry(name: str, model: Any, *, words: bool) -> Entry:
    path = model.base_path if model.base_path and model.base_path.isprintable() else f"/models/{name}"
    values: dict[str, Any] = {"name": name}
    versions = _versions(model) if words else {}
    numbers = [*versions.get("labels", {}).values()]
    policy = versions.get("policy")
    numbers += policy.get("specific", []) if isinstance(policy, dict) else []
    if numbers:
        values["version"] = max(numbers)
    values["model"] = {keys.NAME: {"deployed": True, "path": path[:4096], "format": "saved_model"}}
    values["signature"] = "unknown"
    if versions:
        values["versions"] = versions
    return Entry(values=values)


def _versions(model: Any) -> dict[str, Any]:
    """Return policy and labels as far as a spec has words for them."""
    found: dict[str, Any] = {}
    policy = model.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "latest" and 1 <= policy.latest.num_versions < 2**31:
        found["policy"] = {"latest": policy.latest.num_versions}
    elif kind == "all":
        found["policy"] = "all"
    elif kind == "specific":
        versions = list(policy.specific.versions)
        if versions and min(versions) > 0 and len(set(versions)) == len(versions):
            found["policy"] = {"specific": versions}
    labels = dict(sorted(model.version_labels.items()))
    served = found.get("policy", {}).get("specific") if isinstance(found.get("policy"), dict) else None
    plain = all(re.fullmatch(r"[^/:\s]{1,128}", name) and version > 0 for name, version in labels.items())
    if labels and plain and (served is None or set(labels.values()) <= set(served)):
        found["labels"] = labels
    return found


def _batching(message: Any) -> dict[str, Any]:
    """Return a spec's batching, or nothing where a spec would refuse it."""
    fields = {name: getattr(message, name).value for name in _NUMBERS if message.HasField(name)}
    size = fields.get("max_batch_size", 0)
    if size < 2:
        return {}
    found: dict[str, Any] = {"max_size": size}
    if delay := fields.get("batch_timeout_micros"):
        found["max_delay"] = f"{delay}us"
    if "max_enqueued_batches" in fields:
        found["queue"] = fields["max_enqueued_batches"] * size
    if "num_batch_threads" in fields:
        found["threads"] = fields["num_batch_threads"]
    if message.allowed_batch_sizes:
        found["allowed_sizes"] = list(message.allowed_batch_sizes)
    # One value that a spec refuses takes none of the others with it.
    for name in ("", "threads", "queue", "allowed_sizes", "max_delay"):
        found.pop(name, None)
        try:
            Batching.model_validate(found)
        except ValidationError:
            continue
        return found
    return {}


_NUMBERS: Final = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")


def _comments(proofs: Mapping[str, Piece]) -> tuple[tuple[str, ...], dict[int, tuple[str, ...]]]:
    """Return the comments of the server's files, and those inside or right before each model of the config."""
    head: list[str] = []
    beside: dict[int, list[str]] = {}
    for target, piece in proofs.items():
        ends = _model_ends(piece.text) if target == texts.MODEL_CONFIG else []
        for at, text in _comments_of(piece.text):
            number = next((number for number, end in enumerate(ends) if at < end), None)
            if number is None or (number == 0 and at < piece.text.find("{")):
                head.append(f"{target}: {text}")
            else:
                beside.setdefault(number, []).append(text)
    return tuple(head), {number: tuple(lines) for number, lines in beside.items()}


def _comments_of(text: str) -> Iterator[tuple[int, str]]:
    for found in _COMMENT.finditer(text):
        if found[1] is not None and found[1].strip():
            yield found.start(), found[1].strip()


def _model_ends(text: str) -> list[int]:
    """Return where each model of a config ends, with the rest of its last line."""
    from servewright.backends.tfserving.linting import pbtxt

    root, _ = pbtxt.read(text, protos.ModelServerConfig)
    ends = []
    for models in root.all("model_config_list"):
        for model in models.message.all("config"):
            end = text.find("\n", model.message.end)
            ends.append(len(text) if end < 0 else end)
    return ends
