"""Spec files: read, checked, with the place of every problem; all problems at once."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from servewright import yamltext
from servewright.errors import InputError, Problem, SpecError
from servewright.spec import Handler, ModelSpec
from servewright.yamltext import Path_, Tree

_TAGS = frozenset({"one", "each", "all", "latest", "specific"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A spec, the folder that its paths start from, and the place of each of its values."""

    spec: ModelSpec
    folder: Path
    file: str = ""
    tree: Tree = field(default_factory=lambda: Tree({}, {}), repr=False, compare=False)

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
        parts: Path_ = tuple(path.split(".")) if isinstance(path, str) else path
        place = self.tree.place(parts)
        at = (
            {"file": self.file, "line": place.line, "column": place.column} if self.tree.places else {"file": self.file}
        )
        return Problem(reason=reason, remedy=remedy, path=yamltext.dotted(parts), **at)  # type: ignore[arg-type]


def load(path: Path, *, backends: Collection[str]) -> Document:
    """Read the spec at ``path``; keys named after one of ``backends`` are that backend's own settings."""
    return parse(read_bytes(path), folder=path.absolute().parent, file=str(path), backends=backends)


def read_bytes(path: Path) -> bytes:
    """Return the content of a spec file, or say why it cannot be read."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name the spec file in it, such as {path / 'spec.yaml'}")
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
    if not isinstance(tree.value, dict):
        raise SpecError(
            [Problem(reason="a spec is a mapping", remedy="start with: servewright: 1", file=file, line=1, column=1)]
        )
    return from_mapping(tree.value, folder=folder, file=file, tree=tree, backends=backends)


def from_mapping(
    values: Mapping[str, Any], *, folder: Path, file: str, tree: Tree, backends: Collection[str], at: Path_ = ()
) -> Document:
    """Check ``values``, found at ``at`` of ``tree``, and every file that they name."""
    values = dict(values)
    own = {name: values.pop(name) for name in sorted(backends) if name in values}
    keys = sorted({*ModelSpec.model_fields, *backends} - {"options"})
    problems = []
    if "options" in values:
        del values["options"]
        problems.append(
            (("options",), "unknown key 'options'", "name the backend itself: " + ", ".join(sorted(backends)))
        )
    if "servewright" not in values:
        problems.append((("servewright",), "is missing", "say which version of the spec this is: servewright: 1"))
    for name, options in own.items():
        if options is not None and not isinstance(options, dict):
            problems.append(((name,), f"{options!r} is not a mapping", "write key: value pairs"))
            own[name] = {}
    for key in ("model", "target"):
        each = values.get(key)
        if isinstance(each, dict) and "path" not in each:
            problems += [
                ((key, name), f"no backend {name!r}", _choose(str(name), backends))
                for name in each
                if name not in backends and not (key == "model" and name == "format")
            ]
    try:
        spec = ModelSpec.model_validate(values | {"options": {name: options or {} for name, options in own.items()}})
    except ValidationError as error:
        problems += described(error, ModelSpec, keys)
        spec = None
    if spec is not None and not problems:
        document = Document(spec=spec, folder=folder, file=file, tree=_below(tree, at))
        found = list(_missing_files(document))
        if found:
            raise SpecError(found)
        return document
    raise SpecError(
        [
            Problem(
                reason=reason,
                remedy=remedy,
                path=yamltext.dotted((*at, *path)),
                file=file,
                line=tree.place((*at, *path)).line,
                column=tree.place((*at, *path)).column,
            )
            for path, reason, remedy in problems
        ]  # fmt: skip
    )


def _below(tree: Tree, at: Path_) -> Tree:
    if not at:
        return tree
    return Tree(tree.value, {path[len(at) :]: place for path, place in tree.places.items() if path[: len(at)] == at})


def described(
    error: ValidationError, model: type[BaseModel], keys: Collection[str] = ()
) -> list[tuple[Path_, str, str]]:
    """Return (path, reason, remedy) for each complaint of pydantic about ``model``."""
    found = []
    for complaint in error.errors(include_url=False):
        path = tuple(part for part in complaint["loc"] if part not in _TAGS or not isinstance(part, str))
        kind, context = complaint["type"], complaint.get("ctx", {})
        if kind == "extra_forbidden":
            siblings = keys if len(path) == 1 and keys else _keys_at(model, path[:-1])
            found.append((path, f"unknown key {str(path[-1])!r}", _choose(str(path[-1]), siblings)))
        elif kind == "missing":
            found.append((path, "is missing", "add it"))
        elif kind == "servewright":
            found.append((path, str(context["reason"]), str(context["remedy"])))
        elif kind == "literal_error":
            wanted = str(context["expected"])
            found.append((path, f"{_short(complaint['input'])} is not allowed", f"choose {wanted}"))
        else:
            message = complaint["msg"][0].lower() + complaint["msg"][1:]
            found.append((path, f"{_short(complaint['input'])}: {message}", "correct the value"))
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _choose(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}" if names else "remove it"


def _keys_at(model: Any, path: Sequence[str | int]) -> list[str]:
    """Return the keys that are allowed at ``path`` below ``model``."""
    kinds = [model]
    for part in path:
        kinds = [inner for kind in kinds for inner in _step(kind, part)]
    return sorted({key for kind in kinds for key in _fields(kind)})


def _step(kind: Any, part: str | int) -> list[Any]:
    if get_origin(kind) in (Annotated, Union, UnionType):
        choices = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
        return [inner for choice in choices if choice is not NoneType for inner in _step(choice, part)]
    if get_origin(kind) in (dict, tuple):
        return [get_args(kind)[1] if get_origin(kind) is dict else get_args(kind)[0]]
    if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
        annotation = kind.model_fields[str(part)].annotation
        return [annotation]
    return []


def _fields(kind: Any) -> list[str]:
    if get_origin(kind) in (Annotated, Union, UnionType):
        choices = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
        return [key for choice in choices for key in _fields(choice)]
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _missing_files(document: Document) -> Iterable[Problem]:
    """Yield a problem for each file that the spec names and that cannot be read."""
    for path, text, folder_allowed in _named_files(document.spec):
        target = document.resolve(text)
        try:
            if not target.exists():
                yield document.problem(path, f"{text!r} does not exist", f"looked for {target}; correct the path")
            elif target.is_dir() and not folder_allowed:
                yield document.problem(path, f"{text!r} is a folder", "name a file")
            elif target.is_file() and target.stat().st_size == 0 and path[0] == "model":
                yield document.problem(path, f"{text!r} is empty", "write the model again")
            elif target.is_file():
                with target.open("rb"):
                    pass
        except OSError as error:
            reason = f"{text!r} cannot be read: {error.strerror or error}"
            yield document.problem(path, reason, "check its permissions and name")


def _named_files(spec: ModelSpec) -> Iterable[tuple[Path_, str, bool]]:
    sources: list[tuple[Path_, Any]] = (
        [(("model", name), source) for name, source in spec.model.items()]
        if isinstance(spec.model, dict)
        else [(("model",), spec.model)]
    )
    for path, source in sources:
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
