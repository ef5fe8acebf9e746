"""Configs of TensorFlow Serving as drafts of specs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from google.protobuf import json_format, text_format
from pydantic import ValidationError

from servewright.backends.tfserving import keys, protos, settings, texts
from servewright.errors import InputError, ServewrightError, SpecError
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
# How a file is told: by the words of specs, by patches over what these render, or as the text that it is.
_Way = Literal["words", "patches", "text"]
_WAYS: Final[Mapping[str, tuple[_Way, ...]]] = {
    texts.MODEL_CONFIG: ("words", "patches"),
    texts.BATCHING: ("words", "patches"),
    texts.MONITORING: ("words",),
    texts.SESSION: ("words",),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """The server's files by the names that they are rendered to, and each model's own batching by its place."""

    files: Mapping[str, Piece]
    own: Mapping[int, Piece]
    notes: tuple[str, ...] = ()


def draft(found: Sequence[Piece]) -> Draft:
    """Return the fleet that configs describe: each file as specs have words for it, else as patches, else as a text."""
    given = _given(found)
    try:
        return _proved(given, dict.fromkeys(given.files, "words"))
    except ImportFailedError:
        ways, notes = {}, []
    for target, piece in given.files.items():
        ways[target], why = _way_of(target, piece)
        notes += [_kept(piece, why)] if why else []
    try:
        return _proved(replace(given, notes=(*given.notes, *notes)), ways)
    except ImportFailedError as error:
        notes = [_kept(piece, str(error)) for piece in given.files.values()]
    try:
        return _proved(replace(given, notes=(*given.notes, *notes)), dict.fromkeys(given.files, "text"))
    except ImportFailedError as error:
        raise ImportFailedError(f"the configs do not come back: {error}; please report this") from error


def _kept(piece: Piece, why: str) -> str:
    return f"{piece.shown} is kept as its text, under {keys.NAME}.files: {why}"


def _way_of(target: str, piece: Piece) -> tuple[_Way, str]:
    """Return how a file by itself comes back, and why it does so as a text alone."""
    why = ""
    for way in _WAYS[target]:
        try:
            _proved(_Given(files={target: piece}, own={}), {target: way})
        except ImportFailedError as error:
            why = why or str(error)
        else:
            return way, ""
    return "text", why


def _proved(given: _Given, ways: Mapping[str, _Way]) -> Draft:
    """Return a draft that comes back; `ImportFailedError` names what does not."""
    with _our_errors():
        made = _drafted(given, ways)
        _prove(made)
        return made


def _prove(made: Draft) -> None:
    from servewright.rendering import site_of

    fleet = fleet_of(made, keys.NAME)
    try:
        prove(made, fleet, _backend())
    except ImportFailedError as error:
        views = texts.views(fleet, site_of(fleet, _backend()))
        pairs = ((views.get(path), texts.parse(path, piece.text)) for path, piece in made.proofs.items())
        lost = [name for view, wanted in pairs for name in _differing(view.meaning if view else None, wanted)]
        raise ImportFailedError(f"specs have no words for its {', '.join(lost)}") from error


def _differing(one: Any, other: Any) -> list[str]:
    """Return the names of the fields that two messages differ in."""
    fields = [
        {} if each is None else {field.name: value for field, value in each.ListFields()} for each in (one, other)
    ]
    return sorted(name for name in {*fields[0], *fields[1]} if fields[0].get(name) != fields[1].get(name))


@contextmanager
def _our_errors() -> Iterator[None]:
    from servewright.rendering import ParseBackError

    try:
        yield
    except SpecError as error:
        said = dict.fromkeys(map(str, error.problems))  # a default is a problem of every model
        raise ImportFailedError(", and ".join(said)) from error
    except ParseBackError as error:  # of a model without any field
        raise ImportFailedError("what is rendered would mean something else") from error
    except (InputError, ValueError) as error:
        raise ImportFailedError(str(error)) from error


def _given(found: Sequence[Piece]) -> _Given:
    """Return whose each file is; `InputError` where two are the server's, or none is."""
    files: dict[str, Piece] = {}
    loose = []
    for piece in found:
        if _TARGETS[piece.kind] == texts.BATCHING and piece.path.name == texts.PER_MODEL:
            loose.append(piece)
        else:
            _add(piece, files)
    models = _models(files)
    held: dict[int, list[Piece]] = {}
    notes: list[str] = []
    for piece in loose:
        if _is_the_servers(piece, files, models):
            _add(piece, files)
        elif owners := _owners(piece.path, models):
            for number in owners:
                held.setdefault(number, []).append(piece)
        else:
            notes.append(f"{piece.shown} is left out: the config does not tell which model's folder holds it")
    if not files and loose:
        raise InputError(f"{loose[0].shown} is one model's batching; import it together with the server's model config")
    own = {}
    for number in sorted(held):
        if (chosen := _served(models[number], held[number], notes)) is not None:
            own[number] = chosen
    given = _Given(files=files, own=own, notes=tuple(dict.fromkeys(notes)))
    return _shared(given, models) or _each_its_own(given)


def _add(piece: Piece, files: dict[str, Piece]) -> None:
    target = _TARGETS[piece.kind]
    if target in files:
        raise InputError(f"{files[target].shown} and {piece.shown} are both {target}; import one server at a time")
    files[target] = piece


def _is_the_servers(piece: Piece, files: Mapping[str, Piece], models: Sequence[Any]) -> bool:
    """Tell whether a file with the name of a model's own is one that --batching_parameters_file names."""
    if _version(piece.path) is not None:
        return False
    config = files.get(texts.MODEL_CONFIG)
    beside = config is not None and config.path.absolute().parent == piece.path.absolute().parent
    return beside or not _owners(piece.path, models)


def _models(files: Mapping[str, Piece]) -> Sequence[Any]:
    config = _message(files, texts.MODEL_CONFIG)
    return list(config.model_config_list.config) if config is not None else []


def _version(path: Path) -> int | None:
    """Return the version whose folder a file lies in, which is where the server looks for a model's own."""
    name = path.absolute().parent.name
    return int(name) if name.isascii() and name.isdigit() else None


def _owners(path: Path, models: Sequence[Any]) -> Sequence[int]:
    """Return the places of the models whose folder a file lies in, as far as one folder fits best.

    The ends of the paths are compared: on the server the same folder may hang elsewhere. As servewright itself renders
    it, a model's file lies in a folder of the model's name.
    """
    folder = path.absolute().parents[0 if _version(path) is None else 1]
    ends = [_common_end(folder.parts, PurePosixPath(model.base_path).parts) for model in models]
    best = [number for number, end in enumerate(ends) if end == max(ends) > 0]
    if best:
        return best if len({PurePosixPath(models[number].base_path) for number in best}) == 1 else []
    names = distinct([model.name for model in models])
    return [names.index(folder.name)] if folder.name in names else []


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = list(zip(reversed(one), reversed(other), strict=False))
    return next((number for number, (left, right) in enumerate(pairs) if left != right), len(pairs))


def _served(model: Any, pieces: Sequence[Piece], notes: list[str]) -> Piece | None:
    """Return a model's own batching: that of its newest version, of those that its policy serves."""
    chosen = None
    serves = set(model.model_version_policy.specific.versions)
    numbered = [(_version(piece.path), piece) for piece in pieces]
    for version, piece in sorted(numbered, key=lambda each: each[0] or 0, reverse=True):
        if serves and version is not None and version not in serves:
            notes.append(f"{piece.shown} is left out: {model.name} does not serve version {version}")
        elif chosen is None:
            chosen = piece
        elif _own_message(piece) != _own_message(chosen):
            notes.append(f"{piece.shown} is left out: a spec has one batching, and {chosen.shown} is newer")
    return chosen


def _shared(given: _Given, models: Sequence[Any]) -> _Given | None:
    """Return the one file for the server where every model's own says the same, as specs that agree are rendered."""
    read = [_own_message(piece) for piece in given.own.values()]
    if not read or len(read) < len(models) or any(message != read[0] for message in read):
        return None
    pieces = list(dict.fromkeys(given.own.values()))
    notes = [f"{_listed(pieces)}: every model has this batching, so it is rendered once, for the server"]
    message, server = read[0], given.files.get(texts.BATCHING)
    if server is not None:
        message = _with_pool_of(server, message)
        notes += _without_sizes(server)
    piece = _rewritten(pieces[0], message, comments_of=[*([server] if server is not None else []), *pieces])
    return _Given(files={**given.files, texts.BATCHING: piece}, own={}, notes=(*given.notes, *notes))


def _each_its_own(given: _Given) -> _Given:
    """Return what specs have words for of the models' own batching, with the rest left out."""
    own, notes = {}, []
    for number, piece in given.own.items():
        message = _own_message(piece)
        plain = _rewritten(piece, message, comments_of=[piece])
        entry = Entry(values={**_placeholder().values, **_own_words(message)})
        try:
            with _our_errors():
                _prove(Draft(entries=(entry,), server={"metrics": False}, proofs={texts.BATCHING: plain}))
        except ImportFailedError as error:
            notes.append(f"{piece.shown} is left out: {error}")
        else:
            own[number] = plain
    if own:
        notes.append(
            f"{_listed(dict.fromkeys(own.values()))}: rendered with --enable_per_model_batching_parameters, without "
            "which the server reads no such file; with it, models that have none are not batched"
        )
        notes += _without_sizes(given.files.get(texts.BATCHING))
    return replace(given, own=own, notes=(*given.notes, *notes))


def _without_sizes(server: Piece | None) -> Iterator[str]:
    """Yield a note where the server's own file says what the server does not read beside files of models."""
    if server is not None:
        message: Any = texts.parse(texts.BATCHING, server.text)
        if message != _with_pool_of(server, protos.BatchingParameters()):
            yield f"{server.shown}: beside files of models, the server reads {' and '.join(_POOL)} of it alone"


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


def _drafted(given: _Given, ways: Mapping[str, _Way]) -> Draft:
    proofs = given.files
    words = frozenset(target for target, way in ways.items() if way == "words")
    models = _models(proofs)
    comments, beside = _comments({target: piece for target, piece in proofs.items() if ways[target] != "text"})
    entries, own = [], {}
    for number, name in enumerate(distinct([model.name for model in models])):
        entry = _entry(name, models[number], words=texts.MODEL_CONFIG in words)
        if piece := given.own.get(number):
            own[f"{name}/{texts.PER_MODEL}"] = piece
            entry = replace(entry, values={**entry.values, **_own_words(_own_message(piece))})
            beside[number] = (*beside.get(number, ()), *(text for _, text in _comments_of(piece.text)))
        entries.append(entry)
    notes = list(given.notes)
    if not entries:
        entries = [_placeholder()]
        notes.append(f"no model is named: {PLACEHOLDER!r} stands for yours")
    defaults: dict[str, Any] = {"batching": {}, keys.NAME: {}}
    batching = _message(proofs, texts.BATCHING)
    if texts.BATCHING in words and not own:
        defaults["batching"] = _batching(batching)
    if texts.MONITORING in words:
        path = _message(proofs, texts.MONITORING).prometheus_config.path
        if re.fullmatch(r"/[!-~]*", path) and path != settings.Options().monitoring_path:
            defaults[keys.NAME]["monitoring_path"] = path
    if texts.SESSION in words:
        defaults[keys.NAME]["session"] = _fields(_message(proofs, texts.SESSION))
    if kept := {target: proofs[target].text.strip() for target, way in ways.items() if way == "text"}:
        defaults[keys.NAME]["files"] = kept
    defaults = {name: value for name, value in defaults.items() if value}
    made = Draft(
        entries=tuple(entries), server={"metrics": texts.MONITORING in proofs}, defaults=defaults, comments=comments,
        notes=tuple(notes), proofs={**proofs, **own},
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
        values = dict(entry.values)
        if patch := patch_between(_fields(rendered.model_config_list.config[number]), _fields(model)):
            values[keys.NAME] = {**values.get(keys.NAME, {}), "entry": patch}
        entries.append(Entry(values=values, comments=beside.get(number, ())))
    entries = entries or list(made.entries)
    defaults = dict(made.defaults)
    if batching is not None:
        shown: Any = views[texts.BATCHING].meaning if texts.BATCHING in views else protos.BatchingParameters()
        if patch := patch_between(_fields(shown), _fields(batching)):
            defaults[keys.NAME] = {**defaults.get(keys.NAME, {}), "batching_parameters": patch}
    return replace(made, entries=tuple(entries), defaults=defaults)


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
# The threads are the server's: the server takes these two from its own file alone.
_POOL: Final = ("num_batch_threads", "thread_pool_name")
# What the scheduler takes for a field that is not there (batching_session.cc, shared_batch_scheduler.h).
_SCHEDULED: Final = {"max_batch_size": 1000, "batch_timeout_micros": 0, "max_enqueued_batches": 10}


def _own_message(piece: Piece) -> Any:
    """Return what the server takes from a model's own file, with nothing left to be understood."""
    message: Any = texts.parse(texts.PER_MODEL, piece.text)
    for name in _POOL:
        message.ClearField(name)
    for name, value in _SCHEDULED.items():
        if not message.HasField(name):
            getattr(message, name).value = value
    if not message.enable_large_batch_splitting.value:
        message.ClearField("enable_large_batch_splitting")
        message.ClearField("max_execution_batch_size")
    elif not message.HasField("max_execution_batch_size"):
        message.max_execution_batch_size.value = message.max_batch_size.value
    return message


def _own_words(message: Any) -> dict[str, Any]:
    """Return what a model's spec says of its own batching."""
    extra: dict[str, Any] = {}
    if message.pad_variable_length_inputs:
        extra["pad_variable_length_inputs"] = True
    if message.enable_large_batch_splitting.value:
        extra["enable_large_batch_splitting"] = True
        extra["max_execution_batch_size"] = message.max_execution_batch_size.value
    return {"batching": _batching(message)} | ({keys.NAME: {"batching": extra}} if extra else {})


def _with_pool_of(server: Piece, message: Any) -> Any:
    """Return ``message`` with the threads of the server's file."""
    pool: Any = texts.parse(texts.BATCHING, server.text)
    joined = protos.BatchingParameters()
    joined.CopyFrom(message)
    for name in _POOL:
        if pool.HasField(name):
            getattr(joined, name).CopyFrom(getattr(pool, name))
    return joined


def _rewritten(piece: Piece, message: Any, *, comments_of: Sequence[Piece]) -> Piece:
    """Return a piece that says ``message``, below the comments of others."""
    comments = [f"# {text}\n" for each in comments_of for _, text in _comments_of(each.text)]
    return replace(piece, text="".join(comments) + text_format.MessageToString(message))


def _listed(pieces: Iterable[Piece]) -> str:
    return ", ".join(piece.shown for piece in pieces)


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
