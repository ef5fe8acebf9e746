"""Configs of servers that exist become a fleet file and specs, which render back to the same meaning.

A backend drafts the specs; here they are printed, read again, rendered, and compared with what was imported, before
anything is written. What no key of a spec has words for is kept in the backend's own settings, never lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from servewright import specfile, yamlprinting, yamltext
from servewright.errors import ServewrightError
from servewright.fleet import Fleet
from servewright.patches import same
from servewright.spec import ServerSettings

if TYPE_CHECKING:
    from servewright.backend import Backend

FLEET_FILE = "fleet.yaml"
PLACEHOLDER: Final = "default"  # stands for a model where a config names none
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class ImportFailedError(ServewrightError):
    """What was drafted does not render back: a mistake of ours, never the user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A config that is imported: its kind (as the linter calls it), where it lies, and its text.

    ``origin`` is the archive that holds it, where one does.
    """

    kind: str
    path: Path
    text: str
    origin: str = ""

    @property
    def shown(self) -> str:
        """The name to show."""
        return self.origin or str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model of a draft: the values of its spec, and the comments that stood beside it."""

    values: Mapping[str, Any]
    comments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A fleet as a backend drafts it; ``proofs`` are pieces by the path that they must be rendered back to."""

    entries: tuple[Entry, ...]
    server: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    comments: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    proofs: Mapping[str, Piece] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """A backend's part: the kinds of files that it takes, and how it drafts.

    ``pieces`` are the configs in a file of a kind; ``live`` drafts what a running server tells, with what was imported
    beside it.
    """

    kinds: frozenset[str]
    pieces: Callable[[Path, str], Sequence[Piece]]
    draft: Callable[[Sequence[Piece]], Draft]
    live: Callable[[Any, Sequence[Piece]], Draft]


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What to write, by path, and what to tell."""

    backend: str
    texts: Mapping[str, str]
    models: tuple[str, ...]
    notes: tuple[str, ...]


def imported(
    draft: Draft, backend: Backend, *, name: str, sources: Sequence[str], notes: Sequence[str] = ()
) -> Imported:
    """Return the texts of a draft, proved to render back to what was imported."""
    texts = dict(_texts(draft, name=name, sources=sources))
    fleet = fleet_of(draft, backend.name)
    _prove_texts(draft, texts)
    prove(draft, fleet, backend)
    models = tuple(document.spec.name for document in fleet.models)
    return Imported(backend=backend.name, texts=texts, models=models, notes=(*draft.notes, *notes))


def distinct(names: Sequence[str]) -> list[str]:
    """Return for each name one that a spec and a file may have, and no other has."""
    found: list[str] = []
    taken: set[str] = set()
    for given in names:
        plain = given if _NAME.fullmatch(given) else ""
        name = stem = plain or re.sub(r"[^A-Za-z0-9_.-]+", "-", given).strip("-_.")[:100] or "model"
        number = 2
        while name.lower() in taken:  # files of some disks differ in more than their case
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        found.append(name)
    return found


def fleet_of(draft: Draft, backend: str) -> Fleet:
    """Return the fleet that a draft means; `SpecError` where it means none."""
    documents = []
    nowhere = yamltext.Tree({}, {})
    for entry in draft.entries:
        values = _over(draft.defaults, {"servewright": 1, **entry.values})
        documents.append(
            specfile.from_mapping(values, folder=Path("/"), file="", tree=nowhere, backends=frozenset({backend}))
        )
    server = ServerSettings.model_validate(dict(draft.server))
    return Fleet(name="imported", models=tuple(documents), server=server)


def prove(draft: Draft, fleet: Fleet, backend: Backend) -> None:
    """Raise `ImportFailedError` where ``fleet`` does not render to the meaning of every piece."""
    from servewright.rendering import render

    rendered = render(fleet, backend)
    for path, piece in draft.proofs.items():
        if path not in rendered or backend.parse(path, rendered[path]) != backend.parse(path, piece.text):
            raise ImportFailedError(f"{piece.shown} does not come back as {path}; please report this")


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _over(result[key], value) if both else value
    return result


def _texts(draft: Draft, *, name: str, sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    head: dict[str, Any] = {"servewright": 1, "fleet": name}
    head |= {key: value for key, value in (("server", draft.server), ("defaults", draft.defaults)) if value}
    lines = [yamlprinting.comment(f"Imported from {', '.join(sources)}.")]
    lines += map(yamlprinting.comment, draft.comments)
    lines += [*yamlprinting.lines(head), "models:"]
    for entry in draft.entries:
        path = f"specs/{entry.values['name']}.yaml"
        lines.append(f"- {yamlprinting.scalar(path)}")
        own = [*map(yamlprinting.comment, entry.comments), *yamlprinting.lines({"servewright": 1, **entry.values})]
        yield path, "\n".join(own) + "\n"
    yield FLEET_FILE, "\n".join(lines) + "\n"


def _prove_texts(draft: Draft, texts: Mapping[str, str]) -> None:
    """Raise `ImportFailedError` where a text does not read as the values that it was printed from."""
    read = {path: yamltext.parse(text.encode(), file=path).value for path, text in texts.items()}
    head = read[FLEET_FILE]
    meant = [dict(draft.server), dict(draft.defaults), *({"servewright": 1, **entry.values} for entry in draft.entries)]
    found = [head.get("server", {}), head.get("defaults", {}), *(read[path] for path in head["models"])]
    if not same(meant, found):
        raise ImportFailedError("a spec does not read as it was meant; please report this")
