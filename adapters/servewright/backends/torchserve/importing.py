"""Configs of TorchServe, and what its management API tells, as drafts of specs."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from servewright.archive_check import check_archive
from servewright.backends.torchserve import keys, properties, settings, texts
from servewright.backends.torchserve.archive import MANIFEST as MANIFEST_MEMBER
from servewright.errors import InputError
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
from servewright.patches import holdable, patch_between
from servewright.yamlprinting import printable

_PROPERTIES, _YAML, _MANIFEST, _MAR = "ts_config_properties", "ts_model_config", "ts_manifest", "mar"
_TARGETS: Final[Mapping[str, str]] = {
    _PROPERTIES: texts.PROPERTIES, _YAML: texts.MODEL_CONFIG, _MANIFEST: texts.MANIFEST,
}  # fmt: skip
_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LARGEST_TEXT: Final = 4 << 20
_FLAGS: Final = {
    "disable_token_authorization": ("tokens", {"true": False, "false": True}),
    "enable_model_api": ("model_api", {"true": True, "false": False}),
    "enable_metrics_api": ("metrics", {"true": True, "false": False}),
}
# What the management API tells of a model beyond what a spec has words for, by the names of model-config.yaml.
_TOLD: Final = (
    "maxRetryTimeoutInSec", "clientTimeoutInMills", "parallelType", "parallelLevel", "useJobTicket", "useVenv",
    "continuousBatching", "sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxNumSequence", "maxSequenceJobQueueSize",
)  # fmt: skip


def pieces(path: Path, kind: str) -> Sequence[Piece]:
    """Return the configs in a file, or in an archive, which is proved safe first; `InputError` for a broken one."""
    if kind == _MAR:
        return tuple(_members(path))
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return (_checked(Piece(kind=kind, path=path, text=text)),)


def _checked(piece: Piece) -> Piece:
    try:
        found = texts.parse(_TARGETS[piece.kind], piece.text)
    except (InputError, ValueError, yaml.YAMLError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"{piece.shown} cannot be read: {what}; see: servewright lint {piece.path}") from error
    if not isinstance(found, dict):
        raise InputError(f"{piece.shown} holds no keys; see: servewright lint {piece.path}")
    return piece


def _members(path: Path) -> Iterator[Piece]:
    """Yield an archive's manifest and its model-config.yaml; nothing is unpacked."""
    if found := check_archive(path):
        raise InputError(f"{path} is not safe: {found[0]}; see: servewright verify-archive {path}")
    with zipfile.ZipFile(path) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}

        def text(member: str) -> str | None:
            if sizes.get(member, _LARGEST_TEXT + 1) > _LARGEST_TEXT:
                return None
            return archive.read(member).decode("utf-8", "replace")

        manifest = text(MANIFEST_MEMBER)
        if manifest is None:
            raise InputError(f"{path} holds no {MANIFEST_MEMBER}; see: servewright lint {path}")
        yield _checked(Piece(kind=_MANIFEST, path=path, text=manifest, origin=f"{path}!/{MANIFEST_MEMBER}"))
        config = _model_of(json.loads(manifest)).get("configFile")
        if isinstance(config, str) and (content := text(config)) is not None:
            yield _checked(Piece(kind=_YAML, path=path, text=content, origin=f"{path}!/{config}"))


def _model_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    model = manifest.get("model")
    return model if isinstance(model, dict) else {}


class _Model:
    """One model as it comes together from several texts."""

    def __init__(self, name: str, stored: str) -> None:
        self.name = name
        self.stored = stored
        self.version: str | None = None
        self.settings: dict[str, Any] = {}
        self.yaml: Piece | None = None
        self.manifest: Piece | None = None
        self.comments: list[str] = []


def draft(found: Sequence[Piece]) -> Draft:
    """Return the fleet that configs describe: as specs have words for it, else as patches, else as whole texts."""
    server = [piece for piece in found if piece.kind == _PROPERTIES]
    if len(server) > 1:
        raise InputError(f"{server[0].shown} and {server[1].shown} are both {texts.PROPERTIES}; import one at a time")
    given = properties.parse(server[0].text) if server else None
    models = _models(found, given or {})
    for attempt in (_with_words, _with_patches, _with_texts):
        try:
            made = attempt(models, server[0] if server else None)
            prove(made, fleet_of(made, keys.NAME), _backend())
        except (InputError, ImportFailedError, ValueError):
            continue
        return made
    raise ImportFailedError("the configs do not come back; please report this")


def _backend() -> Any:
    from servewright.backends.torchserve import BACKEND

    return BACKEND


def _models(found: Sequence[Piece], given: Mapping[str, str]) -> list[_Model]:
    """Return the models that any of the texts tells of; what belongs together lies in one folder or one archive."""
    models: dict[str, _Model] = {}
    for item in filter(None, (item.strip() for item in given.get("load_models", "").split(","))):
        name, sign, stored = item.partition("=")
        if item.lower() != "all":
            stem = re.sub(r"\.(mar|tar\.gz)$", "", item)
            models.setdefault(name if sign else stem, _Model(name if sign else stem, stored if sign else item))
    for name, version, own in _listed(given):
        model = models.setdefault(name, _Model(name, str(own.get("marName") or f"{name}.mar")))
        model.version, model.settings = version, dict(own)
    beside: dict[Path, _Model] = {}
    for piece in sorted((piece for piece in found if piece.kind == _MANIFEST), key=lambda piece: str(piece.path)):
        told = _model_of(json.loads(piece.text))
        name = str(told.get("modelName") or piece.path.stem)
        stored = piece.path.name if piece.path.suffix == ".mar" else f"{name}.mar"
        known = next((model for model in models.values() if model.stored == stored or model.name == name), None)
        model = known if known is not None and known.manifest is None else _Model(name, stored)
        models.setdefault(model.name if model is known else f"{name} of {piece.shown}", model)
        model.manifest = piece
        if (number := told.get("modelVersion")) is not None:
            model.version = str(number)
        beside[piece.path if piece.origin else piece.path.parent] = model
    for piece in (piece for piece in found if piece.kind == _YAML):
        model_of_it = beside.get(piece.path if piece.origin else piece.path.parent)
        if model_of_it is None or model_of_it.yaml is not None:
            name = piece.path.absolute().parent.name if piece.path.stem.startswith("model-config") else piece.path.stem
            model_of_it = models.setdefault(f"of {piece.shown}", _Model(name, f"{name}.mar"))
        model_of_it.yaml = piece
    return list(models.values())


def _listed(given: Mapping[str, str]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the models in ``models`` and ``model_snapshot``: of several versions the default, else the last."""
    for key in ("models", "model_snapshot"):
        try:
            value = json.loads(given.get(key, "{}"))
        except (ValueError, RecursionError):
            continue  # the server does not read it either; the text is kept
        value = value.get("models") if key == "model_snapshot" and isinstance(value, dict) else value
        for name, versions in value.items() if isinstance(value, dict) else ():
            own = [(version, each) for version, each in versions.items() if isinstance(each, dict)] if isinstance(
                versions, dict
            ) else []  # fmt: skip
            own.sort(key=lambda item: bool(item[1].get("defaultVersion")))
            if own:
                yield name, *own[-1]


def _with_words(models: Sequence[_Model], server: Piece | None) -> Draft:
    return _drafted(models, server, words=True)


def _with_patches(models: Sequence[_Model], server: Piece | None) -> Draft:
    return _drafted(models, server, words=False)


def _with_texts(models: Sequence[_Model], server: Piece | None) -> Draft:
    """Return a draft in which every text is kept as it is."""
    names = distinct([model.name for model in models])
    entries, proofs = [], {}
    for name, model in zip(names, models, strict=True):
        own = {}
        for target, piece in ((texts.MODEL_CONFIG, model.yaml), (texts.MANIFEST, model.manifest)):
            if piece is not None:
                own[target] = piece.text.rstrip()
                proofs[f"{name}/{target}"] = piece
        values = _values(name, model, {}, words=False)
        entries.append(Entry(values={**values, keys.NAME: {"files": own}} if own else values))
    defaults: dict[str, Any] = {}
    if server is not None:
        proofs[texts.PROPERTIES] = server
        defaults = {keys.NAME: {"files": {texts.PROPERTIES: server.text}}}
    return Draft(
        entries=tuple(entries) or (_placeholder(),), defaults=defaults, proofs=proofs,
        notes=("the texts are kept as they are: specs have no words for something in them",),
    )  # fmt: skip


def _drafted(models: Sequence[_Model], server: Piece | None, *, words: bool) -> Draft:
    proofs: dict[str, Piece] = {}
    entries, notes = [], []
    for name, model in zip(distinct([model.name for model in models]), models, strict=True):
        config = texts.parse(texts.MODEL_CONFIG, model.yaml.text) if model.yaml else {}
        assert isinstance(config, dict)  # `pieces` let nothing else through
        values = _values(name, model, config, words=words)
        comments = [*model.comments]
        for target, piece in ((texts.MODEL_CONFIG, model.yaml), (texts.MANIFEST, model.manifest)):
            if piece is not None:
                proofs[f"{name}/{target}"] = piece
                comments += [f"{target}: {text}" for text in _yaml_comments(piece.text)]
        entries.append(Entry(values=values, comments=tuple(comments)))
    if not entries:
        entries = [_placeholder()]
        notes.append(f"no model is named: {PLACEHOLDER!r} stands for yours")
    settings_of_server: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    comments_of_server: tuple[str, ...] = ()
    if server is not None:
        proofs[texts.PROPERTIES] = server
        given = properties.parse(server.text)
        settings_of_server, defaults = _server(given) if words else ({}, {})
        notes += _notes(server, given)
        comments_of_server = tuple(f"{texts.PROPERTIES}: {text}" for text in _property_comments(server.text))
    made = Draft(
        entries=tuple(entries), server=settings_of_server, defaults=defaults, comments=comments_of_server,
        notes=tuple(notes), proofs=proofs,
    )  # fmt: skip
    return _patched(made)


def _notes(server: Piece, given: Mapping[str, str]) -> Iterator[str]:
    for key in ("models", "model_snapshot"):
        if key in given:
            yield f"{key} of {server.shown} is kept as text, and wins over the specs until it is removed there"
    if "keystore_pass" in given:
        yield f"keystore_pass of {server.shown} is a secret, and fleet.yaml has it now too"


def _patched(made: Draft) -> Draft:
    """Return the draft with patches for all that its words do not say."""
    from servewright.rendering import site_of

    fleet = fleet_of(made, keys.NAME)
    entries = []
    for entry, document in zip(made.entries, fleet.models, strict=True):
        spec, own = document.spec, dict(entry.values.get(keys.NAME, {}))
        for target, option, shown in (
            (texts.MODEL_CONFIG, "model_yaml", texts.model_config(spec)),
            (texts.MANIFEST, "manifest", texts.manifest_of(spec)),
        ):
            piece = made.proofs.get(f"{spec.name}/{target}")
            if piece is None:
                continue
            wanted = texts.parse(target, piece.text)
            assert isinstance(wanted, dict)
            if not (holdable(wanted) and printable(wanted)):
                own["files"] = {**own.get("files", {}), target: piece.text.rstrip()}
            elif patch := patch_between(shown, wanted):
                own[option] = patch
        entries.append(Entry(values={**entry.values, **({keys.NAME: own} if own else {})}, comments=entry.comments))
    defaults = dict(made.defaults)
    if texts.PROPERTIES in made.proofs:
        given = properties.parse(made.proofs[texts.PROPERTIES].text)
        rendered = texts.server_settings(fleet, site_of(fleet, _backend()))
        if patch := patch_between(rendered, given):
            defaults[keys.NAME] = {**defaults.get(keys.NAME, {}), "config_properties": patch}
    return Draft(
        entries=tuple(entries), server=made.server, defaults=defaults, comments=made.comments, notes=made.notes,
        proofs=made.proofs,
    )  # fmt: skip


def _placeholder() -> Entry:
    source = {keys.NAME: {"deployed": True, "path": f"{PLACEHOLDER}.mar", "format": "archive"}}
    return Entry(values={"name": PLACEHOLDER, "model": source, "signature": "unknown"})


def _values(name: str, model: _Model, config: Mapping[str, Any], *, words: bool) -> dict[str, Any]:
    """Return the spec of a model; ``config`` is its model-config.yaml, which beats what the server's config says."""
    plain = bool(model.stored) and model.stored.isprintable() and not properties.variables(model.stored)
    stored = model.stored if plain else f"{name}.mar"
    values: dict[str, Any] = {"name": name}
    if model.version is not None and _VERSION.fullmatch(model.version):
        whole = model.version.isdigit() and 0 < int(model.version) < 2**63 and str(int(model.version)) == model.version
        values["version"] = int(model.version) if whole else model.version
    values["model"] = {keys.NAME: {"deployed": True, "path": stored[:4096], "format": "archive"}}
    values["signature"] = "unknown"
    if words:
        values |= _serving({**model.settings, **config} if model.yaml or model.settings else {})
        for option in [key for key in config if key not in _OWN_KEYS and _is_plain(key, config[key])]:
            values.setdefault(keys.NAME, {}).setdefault("yaml", {})[option] = config[option]
    return values


_OWN_KEYS: Final = frozenset(
    {"minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "jobQueueSize", "responseTimeout", "startupTimeout",
     "deviceType", "deviceIds", "servewright"}
)  # fmt: skip


def _is_plain(key: object, value: object) -> bool:
    """Tell whether a key of model-config.yaml may stand below ``torchserve.yaml``."""
    return isinstance(key, str) and holdable(value) and printable(value) and settings.accepts_yaml(key, value)


def _serving(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return workers, batching, limits and device as a spec has them; what it would refuse is left to the patch."""

    def number(key: str, least: int = 1, most: int = 2**20) -> int | None:
        value = told.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most else None

    found: dict[str, Any] = {}
    low, high = number("minWorkers", most=1024), number("maxWorkers", most=1024)
    if low is not None and low == high:
        found["workers"] = low
    size, delay, queue = number("batchSize"), number("maxBatchDelay", most=86_400_000), number("jobQueueSize")
    batching: dict[str, Any] = {"max_size": size} if size is not None else {}
    if size is not None and size > 1:
        batching["max_delay"] = f"{delay or 100}ms"
    if queue is not None and queue >= (size or 1):
        batching["queue"] = queue
    if batching and not (size is not None and size > keys.DEFAULT_QUEUE and "queue" not in batching):
        found["batching"] = batching
    seconds = {"response_timeout": "responseTimeout", "startup_timeout": "startupTimeout"}
    limits = {limit: f"{value}s" for limit, key in seconds.items() if (value := number(key, most=86_400)) is not None}
    if limits:
        found["limits"] = limits
    device, ids = told.get("deviceType"), told.get("deviceIds")
    if device in ("cpu", "gpu"):
        one = isinstance(ids, list) and len(ids) == 1 and type(ids[0]) is int and 0 <= ids[0] <= 999
        found["device"] = f"gpu:{ids[0]}" if device == "gpu" and one and isinstance(ids, list) else device
    return found


def _server(given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fleet's settings for the server, and defaults of its specs."""
    server: dict[str, Any] = {}
    for key, (name, values) in _FLAGS.items():
        if given.get(key) in values:
            server[name] = values[given[key]]
    threads = given.get("number_of_netty_threads", "")
    if re.fullmatch(r"[1-9][0-9]{0,4}", threads) and 2 <= int(threads) <= 65536:
        server["threads"] = int(threads)
    ports = {}
    if (port := _port(given.get("inference_address", ""))) is not None:
        ports["http"] = port
    if re.fullmatch(r"[1-9][0-9]{0,4}", given.get("grpc_inference_port", "")):
        ports["grpc"] = min(int(given["grpc_inference_port"]), 65535)
    if ports:
        server["ports"] = ports
    defaults: dict[str, Any] = {}
    for key, limit in (("max_request_size", "request"), ("max_response_size", "response")):
        if re.fullmatch(r"[1-9][0-9]{0,9}", given.get(key, "")) and int(given[key]) < 2**31:
            defaults.setdefault("limits", {})[limit] = f"{given[key]}B"
    typed = {key: value for key, text in given.items() if (value := _typed(key, text)) is not None}
    if typed:
        defaults[keys.NAME] = {"properties": typed}
    return server, defaults


def _port(address: str) -> int | None:
    try:
        port = urlsplit(address).port
    except ValueError:
        return None
    return port if port else None


def _typed(key: str, text: str) -> object:
    """Return a value of ``config.properties`` as ``torchserve.properties`` has it; ``None`` where it cannot."""
    kind = settings.PROPERTIES.get(key)
    if kind is None or properties.variables(text) or not printable(text):
        return None
    readers: Mapping[str, Callable[[str], object]] = {
        "text": lambda text: text,
        "boolean": lambda text: {"true": True, "false": False}.get(text),
        "whole number": lambda text: int(text) if re.fullmatch(r"-?(0|[1-9][0-9]{0,8})", text) else None,
        "number": lambda text: int(text) if re.fullmatch(r"0|[1-9][0-9]{0,8}", text) else None,
    }
    return readers[kind](text)


def live(client: Any, found: Sequence[Piece]) -> Draft:
    """Return the fleet that the management API tells: every version of every model, with all of its settings.

    ``found`` are configs beside it: the server's own settings, which no call tells, come from them alone.
    """
    models: list[_Model] = []
    notes = []
    for name, url in sorted(client.models().items()):
        for told in client.describe(name):
            model = _Model(told.name, str(told.url or url).rpartition("/")[2] or f"{name}.mar")
            model.version = str(told.version)
            model.settings = {
                "minWorkers": told.min_workers, "maxWorkers": told.max_workers, "batchSize": told.batch_size,
                "maxBatchDelay": told.max_batch_delay_ms, "jobQueueSize": told.queue_size,
                "responseTimeout": told.response_timeout_s, "startupTimeout": told.startup_timeout_s,
                "deviceType": told.device_type, "deviceIds": list(told.device_ids),
            }  # fmt: skip
            model.settings = {key: value for key, value in model.settings.items() if value not in ("", [], None)}
            extra = {key: told.raw[key] for key in _TOLD if told.raw.get(key) not in (None, "", 0, False)}
            model.yaml = Piece(
                kind=_YAML, path=Path(f"{name}-{told.version}.yaml"), origin=f"what the server tells of {name}",
                text=json.dumps({**model.settings, **extra}),
            )  # fmt: skip
            manifest = {"runtime": told.runtime, "model": {"modelName": told.name, "modelVersion": str(told.version)}}
            model.manifest = Piece(
                kind=_MANIFEST, path=Path(f"{name}-{told.version}.json"), origin=f"what the server tells of {name}",
                text=json.dumps(manifest),
            )  # fmt: skip
            ready, of = told.ready_workers, len(told.workers)
            model.comments.append(f"when it was imported, {ready} of {of} workers were ready; from {told.url}")
            if ready < told.min_workers:
                notes.append(f"{name} {told.version}: {ready} of {told.min_workers} workers are ready")
            models.append(model)
    server = next((piece for piece in found if piece.kind == _PROPERTIES), None)
    made = _with_words(models, server)
    if not models:
        notes.append("the server serves no model")
    return Draft(
        entries=made.entries, server=made.server, defaults=made.defaults, comments=made.comments,
        notes=(*made.notes, *notes), proofs=made.proofs,
    )  # fmt: skip


IMPORTER: Final = Importer(kinds=frozenset({*_TARGETS, _MAR}), pieces=pieces, draft=draft, live=live)


def _property_comments(text: str) -> Iterator[str]:
    for line in text.splitlines():
        stripped = line.strip()
        if stripped[:1] in ("#", "!") and stripped[1:].strip():
            yield stripped[1:].strip()


def _yaml_comments(text: str) -> Iterator[str]:
    """Yield comments on lines of their own, and those behind values that have no quotes."""
    for line in text.splitlines():
        before, sign, after = line.partition("#")
        if sign and after.strip() and (not before.strip() or before.endswith(" ")) and not set("\"'|>") & set(before):
            value = before.strip()
            yield f"{value} # {after.strip()}" if value else after.strip()
