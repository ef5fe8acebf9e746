"""Fleet files: models by name, by pattern or in place; defaults and overrides around them; environments; shards."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from servewright import garbage, specfile, yamltext
from servewright.complaints import choose, shown
from servewright.errors import InputError, Problem, SpecError
from servewright.fields import AsTuple, ModelName, Part
from servewright.fleet import Fleet, Shard
from servewright.quantities import Size
from servewright.spec import ServerSettings
from servewright.specfile import Document, Layer
from servewright.yamltext import Path_, Tree

_GLOB: Final = frozenset("*?[")
# One policy takes the place of another: its key says which it is.
_WHOLE: Final = ("versions", "policy")
_MOST_TOLD: Final = 200


class _OverridePart(Part):
    match: Annotated[str, Field(min_length=1)]
    set: Annotated[dict[str, Any], Field(min_length=1)]


class _ShardPart(Part):
    memory: Size | None = None
    models: Annotated[tuple[str, ...], AsTuple] = ()
    server: dict[str, Any] = Field(default_factory=dict)


class _Environment(Part):
    server: dict[str, Any] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)
    overrides: Annotated[tuple[_OverridePart, ...], AsTuple] = ()
    shards: dict[ModelName, _ShardPart] = Field(default_factory=dict)
    only: Annotated[tuple[str, ...], AsTuple] = ()


class _FleetFile(_Environment):
    servewright: Literal[1]
    fleet: ModelName
    models: Annotated[tuple[Any, ...], AsTuple, Field(min_length=1)]
    environments: dict[ModelName, _Environment] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Override:
    """Values for the models whose name matches."""

    layer: Layer
    match: Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surroundings:
    """What is laid under (``defaults``) and over (``overrides``) every spec, the weakest first.

    ``below`` is what the defaults come to, ``used`` the numbers of the overrides that matched.
    """

    defaults: tuple[Layer, ...] = ()
    overrides: tuple[_Override, ...] = ()
    used: set[int] = field(default_factory=set)
    below: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        below: dict[str, Any] = {}
        for layer in self.defaults:
            below = _laid_over(below, layer.values)
        self.below.update(below)

    def known(self) -> specfile.Known:
        """Return what specs have in common before any is read: the values that lie around them."""
        known = specfile.Known()
        for values in (self.below, *(override.layer.values for override in self.overrides)):
            known.share(values)
        return known

    def around(self, own: Layer) -> tuple[dict[str, Any], tuple[Layer, ...]]:
        """Return the values of a spec with what lies around it, and the layers, the strongest first."""
        layers = [*self.defaults, own]
        values = _laid_over(self.below, own.values)
        name = str(values.get("name"))
        for number, override in enumerate(self.overrides):
            if override.match(name):
                self.used.add(number)
                values = _laid_over(values, override.layer.values)
                layers.append(override.layer)
        return values, tuple(reversed(layers))


def _laid_over(lower: Mapping[str, Any], upper: Mapping[str, Any], at: Path_ = ()) -> dict[str, Any]:
    """Return ``upper`` over ``lower``: mappings are merged, null takes away what lies below it.

    What is not merged stays the very same object: it is checked once for all the specs that share it.
    """
    result = dict(lower)
    for key, value in upper.items():
        below = result.get(key)
        if value is None and key in result:
            del result[key]
        elif isinstance(value, dict) and isinstance(below, dict) and (*at, key) != _WHOLE:
            result[key] = _laid_over(below, value, (*at, key))
        else:
            result[key] = value
    return result


def load(path: Path, *, backends: Collection[str], environment: str | None = None) -> Fleet:
    """Read a fleet file, or a spec as a fleet of one; every problem of every spec at once.

    ``environment`` names one of those that the fleet file tells of; what it says is laid over the rest.
    """
    content = specfile.read_bytes(path)
    with garbage.collected_seldom():
        tree = yamltext.parse(content, file=str(path))
        if isinstance(tree.value, dict) and "fleet" in tree.value:
            return _Reader(path, tree, backends).fleet(environment)
    if environment is not None:
        raise InputError(f"{path} is one spec, and only fleet files have environments; leave out --env {environment}")
    folder = path.absolute().parent
    document = specfile.from_mapping(tree.value, folder=folder, file=str(path), tree=tree, backends=backends)
    return Fleet(name=document.spec.name, models=(document,))


class _Reader:
    """Reads one fleet file and the specs that it names, and gathers the problems of all."""

    def __init__(self, path: Path, tree: Tree, backends: Collection[str]) -> None:
        self._path = path
        self._folder = path.absolute().parent
        self._tree = tree
        self._backends = backends
        self._problems: list[Problem] = []

    def fleet(self, environment: str | None) -> Fleet:
        """Return the fleet as it is in ``environment``."""
        head: _FleetFile | None = None
        try:
            head = _FleetFile.model_validate(self._tree.value)
        except ValidationError as error:
            self._refuse(specfile.described(error, _FleetFile))
        parts = self._parts(head, environment)
        server = self._server([self._layer((*at, "server")) for at, _ in parts], ServerSettings())
        around = _Surroundings(
            defaults=tuple(self._layer((*at, "defaults")) for at, _ in parts),
            overrides=tuple(override for at, part in parts for override in self._overrides(at, part)),
        )
        entries = self._tree.value.get("models")
        documents = self._documents(entries if isinstance(entries, list) else [], around)
        if not self._problems:
            for number, override in enumerate(around.overrides):
                if number not in around.used:
                    self._refuse([((*override.layer.at[:-1], "match"), "matches no model", "correct the pattern")])
        for at, part in parts:
            documents = self._only(documents, (*at, "only"), part.only)
        shards = self._shards(parts, server)
        if self._problems or head is None:
            raise SpecError(list(dict.fromkeys(self._problems))[:_MOST_TOLD])
        return Fleet(name=head.fleet, models=tuple(documents), server=server, shards=shards)

    def _parts(self, head: _FleetFile | None, environment: str | None) -> list[tuple[Path_, _Environment]]:
        """Return the file itself and the environment that was asked for, each with its place."""
        if head is None:
            return []
        if environment is None:
            return [((), head)]
        if environment not in head.environments:
            remedy = choose(environment, head.environments) if head.environments else "leave out --env"
            self._refuse([(("environments",), f"no environment {shown(environment)}", remedy)])
            return [((), head)]
        return [((), head), (("environments", environment), head.environments[environment])]

    def _refuse(self, found: Iterable[tuple[Path_, str, str]]) -> None:
        self._problems += [specfile.problem(str(self._path), self._tree, *each) for each in found]

    def _layer(self, at: Path_) -> Layer:
        value: Any = self._tree.value
        for part in at:
            value = value.get(part) if isinstance(value, dict) else value[part] if isinstance(part, int) else None
        return Layer(values=value or {}, file=str(self._path), tree=self._tree, at=at)

    def _overrides(self, at: Path_, part: _Environment) -> Iterator[_Override]:
        for number, override in enumerate(part.overrides):
            layer = self._layer((*at, "overrides", number, "set"))
            if "name" in layer.values:
                self._refuse([((*layer.at, "name"), "a name cannot be overridden", "write it in the model's own spec")])
            yield _Override(layer=layer, match=re.compile(fnmatch.translate(override.match)).match)

    def _server(self, layers: Sequence[Layer], default: ServerSettings) -> ServerSettings:
        values: dict[str, Any] = default.model_dump(exclude_unset=True)
        for layer in layers:
            values = _laid_over(values, layer.values)
        try:
            return ServerSettings.model_validate(values)
        except ValidationError as error:
            for path, reason, remedy in specfile.described(error, ServerSettings):
                layer = next((each for each in reversed(layers) if (*each.at, *path) in each.tree.places), layers[0])
                self._problems.append(layer.problem(path, reason, remedy))
        return default

    def _documents(self, entries: Sequence[object], around: _Surroundings) -> list[Document]:
        """Return every model of the fleet; what is wrong with one does not hide what is wrong with the next."""
        found: list[Document] = []
        seen: set[str] = set()
        known = around.known()
        for at, entry in self._entries(entries):
            try:
                document = self._document(entry, at, around, known)
            except SpecError as error:
                self._problems += error.problems
                continue
            except InputError as error:
                self._refuse([(at, str(error), "")])
                continue
            name = document.spec.name
            if name in seen:
                self._refuse([(at, f"the model {name!r} is listed twice", "give every model a name of its own")])
            seen.add(name)
            found.append(document)
        return found

    def _entries(self, entries: Sequence[object]) -> Iterator[tuple[Path_, object]]:
        """Yield what each model is written in: a mapping, or a file; patterns become the files that match."""
        named = {entry for entry in entries if isinstance(entry, str)} | {self._path.name}
        for index, entry in enumerate(entries):
            at: Path_ = ("models", index)
            if not isinstance(entry, str) or _GLOB.isdisjoint(entry) or (self._folder / entry).exists():
                yield at, entry
                continue
            files = sorted(set(self._matching(entry)) - named)
            if not files:
                self._refuse([(at, f"{shown(entry)} matches no file", f"looked in {self._folder}")])
            named |= set(files)
            yield from ((at, file) for file in files)

    def _matching(self, pattern: str) -> Iterator[str]:
        """Yield the files that ``pattern`` matches, relative to the fleet file's folder where the pattern is."""
        anchor = Path(pattern).anchor
        try:
            for path in (Path(anchor) if anchor else self._folder).glob(pattern.removeprefix(anchor)):
                if path.is_file():
                    yield path.as_posix() if anchor else path.relative_to(self._folder).as_posix()
        except ValueError:  # such as "**" with something beside it
            return

    def _document(self, entry: object, at: Path_, around: _Surroundings, known: specfile.Known) -> Document:
        if isinstance(entry, str):
            path = self._path.parent / entry
            tree = yamltext.parse(specfile.read_bytes(path), file=str(path))
            own = Layer(values=tree.value, file=str(path), tree=tree)
        elif isinstance(entry, dict):
            known.share(entry)  # models that say the same have one value for it: see `yamltext.Tree`
            own = Layer(values={"servewright": 1} | entry, file=str(self._path), tree=self._tree, at=at)
        else:
            reason, remedy = f"{shown(entry)} is no model", "write a spec, or name its file"
            raise SpecError([specfile.problem(str(self._path), self._tree, at, reason, remedy)])
        folder = Path(own.file).absolute().parent if isinstance(entry, str) else self._folder
        values, layers = around.around(own) if isinstance(own.values, dict) else (own.values, ())
        return specfile.from_mapping(
            values, folder=folder, file=own.file, tree=own.tree, at=own.at, layers=layers, backends=self._backends,
            known=known,
        )  # fmt: skip

    def _only(self, documents: list[Document], at: Path_, patterns: Sequence[str]) -> list[Document]:
        """Return the models that one of ``patterns`` matches; all where there are none."""
        if not patterns or self._problems:
            return documents
        match = re.compile("|".join(map(fnmatch.translate, patterns))).match
        kept = [document for document in documents if match(document.spec.name)]
        if not kept:
            self._refuse([(at, "no model is left", "correct the patterns")])
        return kept

    def _shards(self, parts: Sequence[tuple[Path_, _Environment]], server: ServerSettings) -> tuple[Shard, ...]:
        """Return the shards: those of the environment, where it has its own."""
        found = [((*at, "shards"), part.shards) for at, part in parts if part.shards]
        if not found:
            return ()
        at, shards = found[-1]
        return tuple(
            Shard(
                name=name, memory=shard.memory, models=shard.models,
                server=self._server([self._layer((*at, name, "server"))], server),
            )
            for name, shard in shards.items()
        )  # fmt: skip
