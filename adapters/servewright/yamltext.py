"""YAML (and so JSON) with the place of every value, and nothing that surprises.

The grammar is libyaml's; the meaning is YAML 1.2's core schema, in which ``no`` and ``1:30`` are texts. Tags are
refused, aliases are counted, keys may not repeat, and a number is a number: neither infinite nor NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
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


# A line and a column, both from 0, as one number: there is one for each value of a text, and the collector of garbage
# does not look at numbers.
_Spot = int
_COLUMN_BITS: Final = 32
# Where a value stands, and, of a mapping or a list, where each thing in it stands by its key or index.
_Spots = _Spot | tuple[_Spot, dict[str | int, "_Spots"]]


class Places(Mapping[Path_, Place]):
    """The place of every value of a text by its path, in the order of the text; held as a tree."""

    __slots__ = ("_root",)

    def __init__(self, root: _Spots) -> None:
        self._root = root

    def __getitem__(self, path: Path_) -> Place:
        spots = self._root
        for part in path:
            if isinstance(spots, int):
                raise KeyError(path)
            spots = spots[1][part]
        return _unpacked(spots)

    def __iter__(self) -> Iterator[Path_]:
        waiting: list[tuple[Path_, _Spots]] = [((), self._root)]
        while waiting:
            path, spots = waiting.pop()
            yield path
            if not isinstance(spots, int):
                waiting += [((*path, part), inner) for part, inner in reversed(spots[1].items())]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True


def _unpacked(spots: _Spots) -> Place:
    line, column = divmod(spots if isinstance(spots, int) else spots[0], 1 << _COLUMN_BITS)
    return Place(line + 1, column + 1)


@dataclass(frozen=True, slots=True)
class Tree:
    """The values of a text and the place of each, by its path.

    Mappings and lists of the text that are alike are one object: whoever changes one changes them all.
    """

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
    return Tree(value, Places(reader.spots))


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
        self.spots: _Spots = 0
        self.problems: list[Problem] = []
        self._file = file
        self._text = text
        self._next: Callable[[], Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text).get_event
        self._anchors: dict[str, tuple[Any, int]] = {}  # the value and how many values are in it
        self._count = 0
        # What was read before. Each is kept here, so that an identity stays that of one value.
        self._plain: dict[str, Any] = {}
        self._texts: dict[str, str] = {}
        self._mappings: dict[tuple[str | int, ...], dict[str, Any]] = {}
        self._lists: dict[tuple[int, ...], list[Any]] = {}

    def document(self) -> Any:
        """Return the value of the only document."""
        self._next()  # the stream's start
        if isinstance(self._next(), yaml.StreamEndEvent):
            self._fail(Place(1, 1), (), "the file is empty", "see: servewright init --help")
        value, self.spots = self._value(self._next(), ())
        self._next()  # the document's end
        after = self._next()
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

    def _value(self, event: Any, path: Path_) -> tuple[Any, _Spots]:
        """Return the value that ``event`` begins, and where it and all in it stand."""
        mark = event.start_mark
        spot: _Spot = mark.line << _COLUMN_BITS | mark.column
        if type(event) is yaml.AliasEvent:
            return self._aliased(event, path), spot
        before = self._count
        self._count += 1
        if before >= _MAX_VALUES:
            self._fail_as_too_many(event, path)
        if len(path) > _MAX_DEPTH:
            self._fail(_place(event), path[:3], "nested too deeply", "a spec has a few levels")
        if event.tag is not None:
            self._note(_place(event), path, f"the tag {event.tag!r} is not allowed", "remove it")
        spots: _Spots = spot
        if type(event) is yaml.ScalarEvent:
            value = self._scalar(event, path)
        else:
            inner: dict[str | int, _Spots] = {}
            is_mapping = type(event) is yaml.MappingStartEvent
            value = self._mapping(path, inner) if is_mapping else self._sequence(path, inner)
            spots = spot, inner
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._count - before
        return value, spots

    def _aliased(self, event: Any, path: Path_) -> Any:
        if event.anchor not in self._anchors:
            reason = f"the alias *{event.anchor} stands before its anchor, or in it"
            self._fail(_place(event), path, reason, "write the value out")
        value, size = self._anchors[event.anchor]
        self._count += size
        if self._count > _MAX_VALUES:
            self._fail_as_too_many(event, path)
        return value

    def _fail_as_too_many(self, event: Any, path: Path_) -> NoReturn:
        self._fail(_place(event), path, "too many values (aliases that multiply?)", "write fewer")

    def _sequence(self, path: Path_, inner: dict[str | int, _Spots]) -> list[Any]:
        values: list[Any] = []
        while type(event := self._next()) is not yaml.SequenceEndEvent:
            index = len(values)
            value, inner[index] = self._value(event, (*path, index))
            values.append(value)
        return self._lists.setdefault(tuple(map(id, values)), values)

    def _mapping(self, path: Path_, inner: dict[str | int, _Spots]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while type(event := self._next()) is not yaml.MappingEndEvent:
            if type(event) is not yaml.ScalarEvent:
                self._note(_place(event), path, "a key that is not text", "write a plain key")
                self._value(event, (*path, "?"))
                self._value(self._next(), (*path, "?"))
                continue
            key: str = self._texts.setdefault(event.value, event.value)
            at = (*path, key)
            value, spots = self._value(self._next(), at)
            if key in values:
                self._note(_place(event), at, f"{_short(key)} stands twice", "remove one of the two")
                continue
            # The place of the key: the value may stand lines below it.
            mark: Any = event.start_mark
            spot: _Spot = mark.line << _COLUMN_BITS | mark.column
            inner[key] = spot if isinstance(spots, int) else (spot, spots[1])
            values[key] = value
        return self._mappings.setdefault((*values, *map(id, values.values())), values)

    def _scalar(self, event: Any, path: Path_) -> Any:
        text: str = event.value
        if event.style:
            return self._texts.setdefault(text, text)
        if text in self._plain:
            return self._plain[text]
        before = len(self.problems)
        value = self._meaning(text, event, path)
        if len(self.problems) == before:
            self._plain[text] = self._texts.setdefault(value, value) if type(value) is str else value
        return value

    def _meaning(self, text: str, event: Any, path: Path_) -> Any:
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INT.fullmatch(text) or _OTHER_INT.fullmatch(text):
            if len(text) > _MAX_DIGITS:
                reason = f"{_short(text)} has too many digits"
                self._note(_place(event), path, reason, f"write at most {_MAX_DIGITS}")
                return 0
            return int(text, 10 if _INT.fullmatch(text) else 0)
        if _NOT_A_NUMBER.fullmatch(text) or (_FLOAT.fullmatch(text) and math.isinf(float(text))):
            reason = f"{_short(text)} is no number that a server could use"
            self._note(_place(event), path, reason, "write a finite one")
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
