"""YAML (and so JSON) with the place of every value, and nothing that surprises.

The grammar is libyaml's; the meaning is YAML 1.2's core schema, in which ``no`` and ``1:30`` are texts. Tags are
refused, aliases are counted, keys may not repeat, and a number is a number: neither infinite nor NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import yaml

from servewright.errors import Problem, SpecError

Path_ = tuple[str | int, ...]
_MAX_BYTES: Final = 32 * 2**20
_MAX_VALUES: Final = 4_000_000  # a fleet of 50,000 models has up to 2,500,000; an alias bomb has billions
_MAX_DEPTH: Final = 64
_MAX_DIGITS: Final = 40

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})
_INT: Final = re.compile(r"[-+]?[0-9]+")
_OTHER_INT: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_A_NUMBER: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# What YAML's own reader refuses too, but without a line and a column.
_NOT_PRINTABLE: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_REMEDIES: Final = (
    ("another document", "write one file for each"),
    ("escape code", "write the character itself"),
    ("could not find expected ':'", "write key: value, with a blank after the colon"),
    ("mapping values are not allowed", "put the value in quotes, or correct the indentation"),
)


class Place(NamedTuple):
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

    def below(self, path: Path_) -> Tree:
        """Return the part at ``path`` as a tree of its own, with its places in the whole text."""
        value = self.value
        for part in path:
            value = value[part]
        size = len(path)
        return Tree(value, {at[size:]: place for at, place in self.places.items() if at[:size] == path})


def parse(content: bytes, *, file: str) -> Tree:
    """Read one document; every flaw found is a `Problem` of the `SpecError`."""
    if len(content) > _MAX_BYTES:
        reason = f"{len(content)} bytes is too large"
        raise SpecError([Problem(reason=reason, remedy="a spec has a few KiB", file=file)])
    reader = _Reader(file, _text(content, file))
    try:
        value = reader.document()
    except yaml.MarkedYAMLError as error:
        reader.refuse_syntax(error)
    if reader.problems:
        raise SpecError(reader.problems)
    return Tree(value, reader.places)


def _text(content: bytes, file: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = Place(content.count(b"\n", 0, error.start) + 1, error.start - content.rfind(b"\n", 0, error.start))
        raise SpecError(
            [Problem(reason="not UTF-8 text", remedy="save it as UTF-8", file=file, line=at.line, column=at.column)]
        ) from error
    if found := _NOT_PRINTABLE.search(text):
        line, column = text.count("\n", 0, found.start()) + 1, found.start() - text.rfind("\n", 0, found.start())
        reason = f"the character U+{ord(found[0]):04X} cannot stand in YAML"
        remedy = 'remove it, or write it in double quotes, as "\\x1b"'
        raise SpecError([Problem(reason=reason, remedy=remedy, file=file, line=line, column=column)])
    return text


class _Reader:
    """Turns the parser's events into values; collects places and problems on the way.

    Events rather than nodes: libyaml's composer recurses in C as deep as the text says, and takes the process with it.
    """

    def __init__(self, file: str, text: str) -> None:
        self.places: dict[Path_, Place] = {}
        self.problems: list[Problem] = []
        self._file = file
        self._text = text
        self._events: Iterator[Any] = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        self._anchors: dict[str, tuple[Any, int]] = {}  # the value and how many values are in it
        self._count = 0

    def document(self) -> Any:
        """Return the value of the only document."""
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            self._fail(Place(1, 1), (), "the file is empty", "see: servewright init --help")
        value = self._value(next(self._events), ())
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            self._fail(_place(after), (), "a second document begins here", "write one file for each")
        return value

    def refuse_syntax(self, error: yaml.MarkedYAMLError) -> NoReturn:
        """Raise the parser's complaint as one of ours."""
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        remedy = next((remedy for words, remedy in _REMEDIES if words in reason), "correct the YAML")
        if "cannot start any token" in reason:
            line = self._text.splitlines()[place.line - 1]
            tab = line[place.column - 1 : place.column] == "\t"
            remedy = "indent with spaces: YAML takes no tabs" if tab else "put the value in quotes"
        found = Problem(reason=reason, remedy=remedy, file=self._file, line=place.line, column=place.column)
        raise SpecError([*self.problems, found]) from error

    def _value(self, event: Any, path: Path_) -> Any:
        place = _place(event)
        self.places.setdefault(path, place)
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event.anchor, place, path)
        before = self._count
        self._counted(1, place, path)
        if len(path) > _MAX_DEPTH:
            self._fail(place, path[:3], "nested too deeply", "a spec has a few levels")
        if event.tag is not None:
            self._note(place, path, f"the tag {event.tag!r} is not allowed", "remove it")
        if isinstance(event, yaml.MappingStartEvent):
            value: Any = self._mapping(path)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self._sequence(path)
        else:
            value = event.value if event.style else self._plain(event.value, place, path)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._count - before
        return value

    def _aliased(self, anchor: Any, place: Place, path: Path_) -> Any:
        if anchor not in self._anchors:
            self._fail(place, path, f"the alias *{anchor} stands before its anchor, or in it", "write the value out")
        value, size = self._anchors[anchor]
        self._counted(size, place, path)
        return value

    def _counted(self, size: int, place: Place, path: Path_) -> None:
        self._count += size
        if self._count > _MAX_VALUES:
            self._fail(place, path, "too many values (aliases that multiply?)", "write fewer")

    def _sequence(self, path: Path_) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, (*path, len(values))))
        return values

    def _mapping(self, path: Path_) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            place = _place(event)
            if not isinstance(event, yaml.ScalarEvent):
                self._note(place, path, "a key that is not text", "write a plain key")
                self._value(event, (*path, "?"))
                self._value(next(self._events), (*path, "?"))
                continue
            key: str = event.value
            inner = (*path, key)
            if twice := key in values:
                self._note(place, inner, f"{_short(key)} stands twice", "remove one of the two")
            # The place of the key: the value may stand lines below it.
            self.places.setdefault(inner, place)
            value = self._value(next(self._events), inner)
            if not twice:
                values[key] = value
        return values

    def _plain(self, text: str, place: Place, path: Path_) -> Any:
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INT.fullmatch(text) or _OTHER_INT.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                self._note(place, path, f"{_short(text)} has too many digits", f"write at most {_MAX_DIGITS}")
                return 0
            return int(text, 10 if _INT.fullmatch(text) else 0)
        if _NOT_A_NUMBER.fullmatch(text) or (_FLOAT.fullmatch(text) and math.isinf(float(text))):
            self._note(place, path, f"{_short(text)} is no number that a server could use", "write a finite one")
            return 0.0
        return float(text) if _FLOAT.fullmatch(text) else text

    def _note(self, place: Place, path: Path_, reason: str, remedy: str) -> None:
        self.problems.append(
            Problem(
                reason=reason, remedy=remedy, path=dotted(path), file=self._file, line=place.line, column=place.column
            )
        )

    def _fail(self, place: Place, path: Path_, reason: str, remedy: str) -> NoReturn:
        self._note(place, path, reason, remedy)
        raise SpecError(self.problems)


def _place(event: Any) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def dotted(path: Path_) -> str:
    """Print ``("golden", 0, "inputs")`` as ``golden[0].inputs``; a key that is no word, quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if part.isprintable() and len(part) <= 60 and part else _short(part)
            text += f".{word}" if text else word
    return text
