"""A fleet: the models of one server, and the server's own settings. A single model is a fleet of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from servewright import specfile, yamltext
from servewright.errors import InputError, Problem, SpecError
from servewright.fields import AsTuple, ModelName, Part
from servewright.spec import ModelSpec, ServerSettings
from servewright.specfile import Document, problem

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What one server serves."""

    name: str
    models: tuple[Document, ...]
    server: ServerSettings = field(default_factory=ServerSettings)

    @property
    def digest(self) -> str:
        """The SHA-256 over the meaning of every spec and of the server's settings."""
        parts = [document.digest for document in self.models] + [self.server.model_dump_json()]
        return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def agreed(self, key: str, values: Callable[[ModelSpec], Mapping[str, T]]) -> dict[str, T]:
        """Return settings of the server that its specs bring along below ``key``; `SpecError` where two differ."""
        found: dict[str, T] = {}
        given_by: dict[str, str] = {}
        for document in self.models:
            for name, value in values(document.spec).items():
                if found.setdefault(name, value) != value:
                    reason = f"{value!r} here, and {found[name]!r} in the spec of {given_by[name]}"
                    raise SpecError(
                        [document.problem(f"{key}.{name}", reason, "one server has one value: make them equal")]
                    )
                given_by.setdefault(name, document.spec.name)
        return found


class _FleetFile(Part):
    servewright: Literal[1]
    fleet: ModelName
    server: ServerSettings = ServerSettings()
    models: Annotated[tuple[Any, ...], AsTuple, Field(min_length=1)]


def load(path: Path, *, backends: Collection[str]) -> Fleet:
    """Read a fleet file, or a spec as a fleet of one; every problem of every spec at once."""
    content = specfile.read_bytes(path)
    tree = yamltext.parse(content, file=str(path))
    if not (isinstance(tree.value, dict) and "fleet" in tree.value):
        document = specfile.from_mapping(
            tree.value, folder=path.absolute().parent, file=str(path), tree=tree, backends=backends
        )
        return Fleet(name=document.spec.name, models=(document,))
    problems: list[Problem] = []
    head: _FleetFile | None = None
    try:
        head = _FleetFile.model_validate(tree.value)
    except ValidationError as error:
        problems += [problem(str(path), tree, *found) for found in specfile.described(error, _FleetFile)]
    entries = tree.value.get("models")
    documents: dict[int, Document] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        try:
            documents[index] = _document(entry, index, path, tree, backends)
        except SpecError as error:
            problems += error.problems
    problems += _repeated(documents, path, tree)
    if problems or head is None:
        raise SpecError(problems)
    return Fleet(name=head.fleet, models=tuple(documents.values()), server=head.server)


def _document(entry: object, index: int, path: Path, tree: yamltext.Tree, backends: Collection[str]) -> Document:
    at: yamltext.Path_ = ("models", index)
    if isinstance(entry, dict):
        values = {"servewright": 1} | entry
        folder = path.absolute().parent
        return specfile.from_mapping(values, folder=folder, file=str(path), tree=tree, backends=backends, at=at)
    if not isinstance(entry, str):
        raise SpecError([problem(str(path), tree, at, f"{entry!r} is no model", "write a spec, or name its file")])
    try:
        return specfile.load(path.parent / entry, backends=backends)
    except SpecError:
        raise
    except InputError as error:
        raise SpecError([problem(str(path), tree, at, str(error), "")]) from error


def _repeated(documents: dict[int, Document], path: Path, tree: yamltext.Tree) -> Iterator[Problem]:
    seen: set[str] = set()
    for index, document in documents.items():
        if (name := document.spec.name) in seen:
            reason, remedy = f"the model {name!r} is listed twice", "give every model a name of its own"
            yield problem(str(path), tree, ("models", index), reason, remedy)
        seen.add(name)
