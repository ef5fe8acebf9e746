"""Spec files: read, checked, with the place of every problem; all problems at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from servewright import yamltext
from servewright.complaints import choose, described, shown
from servewright.errors import InputError, Problem, SpecError
from servewright.spec import Handler, ModelSource, ModelSpec
from servewright.yamltext import Path_, Tree

__all__ = ["Document", "Known", "Layer", "described", "from_mapping", "load", "parse", "problem", "read_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Values that become part of a spec, found at ``at`` of the text ``tree`` of ``file``."""

    values: Any
    file: str
    tree: Tree
    at: Path_ = ()

    def problem(self, path: Path_, reason: str, remedy: str = "") -> Problem:
        """Return a problem at ``path`` below this layer."""
        return problem(self.file, self.tree, (*self.at, *path), reason, remedy)


@dataclass(frozen=True, slots=True)
class Known:
    """What the specs of one fleet have in common, so that it is checked once.

    ``parts`` holds, by a spec's key and the identity of the value that was written for it, what that value became;
    `share` says which values outlive the reading, so that their identities do too. ``files`` holds what is wrong, if
    anything, with the files that specs name.
    """

    parts: dict[tuple[str, int], object] = field(default_factory=dict)
    files: dict[tuple[Path, str, bool, bool], tuple[str, str] | None] = field(default_factory=dict)

    def share(self, values: Mapping[str, Any]) -> None:
        """Let specs share what is written in ``values``, which somebody holds as long as this."""
        for key, value in values.items():
            if isinstance(value, dict | list):
                self.parts.setdefault((key, id(value)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A spec, the folder that its paths start from, and the place of each of its values.

    ``layers``, the strongest first, are what a fleet file lays over and under the spec's own text, and that text; none
    where the text is all.
    """

    spec: ModelSpec
    folder: Path
    file: str = ""
    tree: Tree = field(default_factory=lambda: Tree({}, {}), repr=False, compare=False)
    at: Path_ = ()
    layers: tuple[Layer, ...] = field(default=(), repr=False, compare=False)

    @property
    def digest(self) -> str:
        """The SHA-256 of the spec's meaning: comments and spelling do not change it."""
        canonical = json.dumps(self.spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()

    def resolve(self, path: str) -> Path:
        """Return the file that ``path`` names in the spec."""
        return self.folder / path

    def problem(self, path: Path_ | str, reason: str, remedy: str = "") -> Problem:
        """Return a problem at ``path``, such as ``batching.max_delay``, with its place in the file."""
        parts = self._parts(path) if isinstance(path, str) else path
        own = Layer(values=None, file=self.file, tree=self.tree, at=self.at)
        return _layer_of(parts, own, self.layers).problem(parts, reason, remedy)

    def _parts(self, path: str) -> Path_:
        """Split a dotted path; a key of the file may hold dots itself."""
        parts: Path_ = ()
        rest = path.split(".")
        while rest:
            sizes = range(len(rest), 0, -1)
            known = (size for size in sizes if (*self.at, *parts, ".".join(rest[:size])) in self.tree.places)
            size = next(known, 1)
            parts, rest = (*parts, ".".join(rest[:size])), rest[size:]
        return parts


def load(path: Path, *, backends: Collection[str]) -> Document:
    """Read the spec at ``path``; keys named after one of ``backends`` are that backend's own settings."""
    return parse(read_bytes(path), folder=path.absolute().parent, file=str(path), backends=backends)


def read_bytes(path: Path) -> bytes:
    """Return the content of a spec file, or say why it cannot be read."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name the spec file in it, such as {path / 'spec.yaml'}")
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file; name a spec file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; write one with: servewright init MODEL -o {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error
    except ValueError as error:  # an embedded NUL
        raise InputError(f"{str(path)!r} is not a path: {error}; name a file") from error


def parse(content: bytes, *, folder: Path, file: str = "<spec>", backends: Collection[str]) -> Document:
    """Read a spec from its text."""
    tree = yamltext.parse(content, file=file)
    return from_mapping(tree.value, folder=folder, file=file, tree=tree, backends=backends)


def from_mapping(
    values: Any,
    *,
    folder: Path,
    file: str,
    tree: Tree,
    backends: Collection[str],
    at: Path_ = (),
    layers: tuple[Layer, ...] = (),
    known: Known | None = None,
) -> Document:
    """Check ``values``, found at ``at`` of ``tree`` and in ``layers`` (see `Document`), and every file that they name.

    ``known`` is what other specs of the same fleet have told already.
    """
    known = known or Known()
    if not isinstance(values, dict):
        raise SpecError([problem(file, tree, at, "a spec is a mapping", "start with: servewright: 1")])
    values = dict(values)
    own = {name: values.pop(name) for name in sorted(backends) if name in values}
    found = list(_beyond_the_model(values, own, backends))
    values.pop("options", None)
    options = {name: value for name, value in own.items() if isinstance(value, dict)}
    shared = {key: at_id for key, raw in values.items() if (at_id := (key, id(raw))) in known.parts}
    checked = {key: made for key, at_id in shared.items() if (made := known.parts[at_id]) is not None}
    try:
        spec = ModelSpec.model_validate(values | checked | {"options": options})
    except ValidationError as error:
        found += described(error, ModelSpec, sorted({*ModelSpec.model_fields, *backends} - {"options"}))
    else:
        if not found:
            if len(checked) < len(shared):
                known.parts.update({at_id: getattr(spec, key) for key, at_id in shared.items()})
            document = Document(spec=spec, folder=folder, file=file, tree=tree, at=at, layers=layers)
            if problems := list(_missing_files(document, known)):
                raise SpecError(problems)
            return document
    text = Layer(values=None, file=file, tree=tree, at=at)
    problems = [_layer_of(path, text, layers).problem(path, reason, remedy) for path, reason, remedy in found]
    raise SpecError(sorted(problems, key=lambda each: (each.line, each.column)))


def _layer_of(path: Path_, own: Layer, layers: tuple[Layer, ...]) -> Layer:
    """Return the strongest layer in which ``path`` stands, or else the spec's own text."""
    return next((layer for layer in layers if (*layer.at, *path) in layer.tree.places), own)


def problem(file: str, tree: Tree, path: Path_, reason: str, remedy: str) -> Problem:
    """Return a problem at ``path``, with its place where the text of ``tree`` is known."""
    place = tree.place(path)
    line, column = (place.line, place.column) if tree.places else (0, 0)
    return Problem(reason=reason, remedy=remedy, path=yamltext.dotted(path), file=file, line=line, column=column)


def _beyond_the_model(
    values: Mapping[str, Any], own: Mapping[str, Any], backends: Collection[str]
) -> Iterator[tuple[Path_, str, str]]:
    """Yield what is wrong and what `ModelSpec`, which knows no backend, cannot see."""
    if "options" in values:
        yield ("options",), "unknown key 'options'", f"name the backend itself: {', '.join(sorted(backends))}"
    if "servewright" not in values:
        yield ("servewright",), "is missing", "say which version of the spec this is: servewright: 1"
    for name, options in own.items():
        if options is not None and not isinstance(options, dict):
            yield (name,), f"{shown(options)} is not a mapping", "write key: value pairs"
    for key in ("model", "target"):
        each = values.get(key)
        if not isinstance(each, dict) or (key == "model" and not ModelSource.model_fields.keys().isdisjoint(each)):
            continue
        for name in each:
            if name not in backends:
                yield (key, name), f"no backend {shown(name)}", choose(str(name), sorted(backends))


def _missing_files(document: Document, known: Known) -> Iterator[Problem]:
    """Yield a problem for each file that the spec names and that cannot be read."""
    for path, text, folder_allowed in _named_files(document.spec):
        asked = document.folder, text, folder_allowed, path[0] == "model"
        if asked not in known.files:
            known.files[asked] = _unreadable(*asked)
        if complaint := known.files[asked]:
            yield document.problem(path, *complaint)


def _unreadable(folder: Path, text: str, folder_allowed: bool, model: bool) -> tuple[str, str] | None:  # noqa: FBT001
    try:
        return _complaint(folder / text, text, folder_allowed=folder_allowed, model=model)
    except OSError as error:
        return f"{shown(text)} cannot be read: {error.strerror or error}", "check its permissions and name"


def _complaint(target: Path, text: str, *, folder_allowed: bool, model: bool) -> tuple[str, str] | None:
    if not target.exists():
        return f"{shown(text)} does not exist", f"looked for {target}; correct the path"
    if target.is_dir():
        if not folder_allowed:
            return f"{shown(text)} is a folder", "name a file"
        os.listdir(target)  # noqa: PTH208  (for its OSError alone)
        return None
    if not target.is_file():  # opening a named pipe would wait for ever
        return f"{shown(text)} is neither a file nor a folder", "name a file"
    with target.open("rb") as file:
        empty = not file.read(1)
    return (f"{shown(text)} is empty: zero bytes", "write or download the model again") if model and empty else None


def _named_files(spec: ModelSpec) -> Iterable[tuple[Path_, str, bool]]:
    if spec.deployed:
        return
    sources: list[tuple[Path_, ModelSource]] = (
        [(("model", name), source) for name, source in spec.model.items()]
        if isinstance(spec.model, dict)
        else [(("model",), spec.model)]
    )
    for path, source in sources:
        if source.deployed:
            continue
        yield (*path, "path"), source.path, source.format == "saved_model"
        if source.code:
            yield (*path, "code"), source.code.partition(":")[0], False
    yield from _handler_files(spec.handler)
    if spec.requirements:
        yield ("requirements",), spec.requirements, False
    for index, file in enumerate(spec.files):
        yield ("files", index), file, True
    for index, golden in enumerate(spec.golden):
        yield ("golden", index, "inputs"), golden.inputs, False
        yield ("golden", index, "outputs"), golden.outputs, False


def _handler_files(handler: Handler) -> Iterable[tuple[Path_, str, bool]]:
    if handler.use.endswith(".py"):
        yield ("handler", "use"), handler.use, False
    if handler.labels:
        yield ("handler", "labels"), handler.labels, False
    if handler.text:
        yield ("handler", "text", "tokenizer"), handler.text.tokenizer, False
