"""A fleet: the models of one server, and the server's own settings. A single model is a fleet of one."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from servewright import specfile, yamltext
from servewright.errors import Problem, SpecError
from servewright.spec import FilePath, ModelName, Part, ServerSettings
from servewright.specfile import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What one server serves."""

    name: str
    models: tuple[Document, ...]
    server: ServerSettings = ServerSettings()

    @property
    def digest(self) -> str:
        """The SHA-256 over the meaning of every spec and of the server's settings."""
        parts = [document.digest for document in self.models] + [self.server.model_dump_json()]
        return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()


class _FleetFile(Part):
    servewright: int = Field(ge=1, le=1)
    fleet: ModelName
    server: ServerSettings = ServerSettings()
    models: tuple[FilePath | dict[str, Any], ...] = Field(min_length=1)


def load(path: Path, *, backends: Collection[str]) -> Fleet:
    """Read a fleet file, or a spec as a fleet of one; every problem of every spec at once."""
    content = specfile.read_bytes(path)
    tree = yamltext.parse(content, file=str(path))
    if not (isinstance(tree.value, dict) and "fleet" in tree.value):
        document = specfile.parse(content, folder=path.absolute().parent, file=str(path), backends=backends)
        return Fleet(name=document.spec.name, models=(document,))
    values = dict(tree.value)
    if isinstance(values.get("models"), list):
        values["models"] = tuple(values["models"])
    try:
        head = _FleetFile.model_validate(values)
    except ValidationError as error:
        raise SpecError(
            [_problem(path, tree, at, reason, remedy) for at, reason, remedy in specfile.described(error, _FleetFile)]
        ) from error
    documents: list[Document] = []
    problems: list[Problem] = []
    for index, entry in enumerate(head.models):
        try:
            if isinstance(entry, str):
                documents.append(specfile.load(path.parent / entry, backends=backends))
            else:
                documents.append(
                    specfile.from_mapping(
                        {"servewright": 1} | entry,
                        folder=path.absolute().parent, file=str(path), tree=tree, backends=backends,
                        at=("models", index),
                    )
                )  # fmt: skip
        except SpecError as error:
            problems += error.problems
    names = [document.spec.name for document in documents]
    problems += [
        _problem(path, tree, ("models", index), f"{name!r} is listed twice", "give every model a name of its own")
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    if problems:
        raise SpecError(problems)
    return Fleet(name=head.fleet, models=tuple(documents), server=head.server)


def _problem(path: Path, tree: yamltext.Tree, at: yamltext.Path_, reason: str, remedy: str) -> Problem:
    place = tree.place(at)
    return Problem(
        reason=reason, remedy=remedy, path=yamltext.dotted(at), file=str(path), line=place.line, column=place.column
    )
