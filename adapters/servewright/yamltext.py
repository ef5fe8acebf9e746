"""YAML (and so JSON) with the place of every value, and nothing that surprises.

The grammar is libyaml's; the meaning is YAML 1.2's core schema, in which ``no`` and ``1:30`` are texts. Tags are
refused, aliases are counted, keys may not repeat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from servewright.errors import Problem, SpecError

Path_ = tuple[str | int, ...]
_MAX_BYTES: Final = 16 * 2**20
_MAX_NODES: Final = 1_000_000  # a fleet of 10,000 models has about 300,000; an alias bomb has billions
_MAX_DEPTH: Final = 64

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})
_INT: Final = re.compile(r"[-+]?[0-9]{1,40}")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,4})?")
_SPECIAL: Final = {
    ".inf": float("inf"), ".Inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf"),
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
}  # fmt: skip
_PLAIN_TAGS: Final = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
)


@dataclass(frozen=True, slots=True)
class Place:
    """A line and a column, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Tree:
    """The values of a text and the place of each, by its path."""

    value: Any
    places: Mapping[Path_, Place]

    def place(self, path: Path_) -> Place:
        """Return where ``path`` stands, or the nearest place around it."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(1, 1))


def parse(content: bytes, *, file: str) -> Tree:
    """Read one document; every flaw found is a `Problem` of the `SpecError`."""
    if len(content) > _MAX_BYTES:
        raise SpecError(
            [Problem(reason=f"{len(content)} bytes is too large", remedy="a spec has a few KiB", file=file)]
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError(
            [Problem(reason="not UTF-8 text", remedy="save it as UTF-8", file=file, line=line, column=1)]
        ) from error
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(
            [Problem(reason=reason, remedy="correct the YAML", file=file, line=place.line, column=place.column)]
        ) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SpecError([Problem(reason=f"not YAML: {error}", remedy="correct it", file=file)]) from error
    if node is None:
        raise SpecError([Problem(reason="the file is empty", remedy="see: servewright init --help", file=file)])
    reader = _Reader(file)
    value = reader.read(node, (), 0)
    if reader.problems:
        raise SpecError(reader.problems)
    return Tree(value, reader.places)


class _Reader:
    """Turns nodes into values; collects places and problems on the way."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.places: dict[Path_, Place] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def read(self, node: yaml.Node, path: Path_, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            self._fail(node, path, "too many values (aliases that multiply?)", "write the values out")
        if depth > _MAX_DEPTH:
            self._fail(node, path, "nested too deeply", "a spec has a few levels")
        self.places.setdefault(path, _place(node))
        if node.tag not in _PLAIN_TAGS:
            self._note(node, path, f"the tag {node.tag!r} is not allowed", "remove it")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path_, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._note(key_node, path, "a key that is not text", "write a plain key")
                continue
            key = key_node.value
            if key in values:
                self._note(key_node, (*path, key), f"{key!r} stands twice", "remove one of the two")
                continue
            # The place of the key: the value may stand lines below it.
            self.places[*path, key] = _place(key_node)
            values[key] = self.read(value_node, (*path, key), depth + 1)
        return values

    def _scalar(self, node: yaml.Node, path: Path_) -> Any:
        text: str = node.value
        if node.style in ('"', "'", "|", ">"):
            return text
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        return _SPECIAL.get(text, text)

    def _note(self, node: yaml.Node, path: Path_, reason: str, remedy: str) -> None:
        place = _place(node)
        self.problems.append(
            Problem(
                reason=reason, remedy=remedy, path=dotted(path), file=self.file, line=place.line, column=place.column
            )
        )

    def _fail(self, node: yaml.Node, path: Path_, reason: str, remedy: str) -> None:
        self._note(node, path, reason, remedy)
        raise SpecError(self.problems)


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def dotted(path: Path_) -> str:
    """Print ``("golden", 0, "inputs")`` as ``golden[0].inputs``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
