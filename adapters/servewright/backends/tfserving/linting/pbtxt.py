"""Protobuf's text format, read as the server reads it, with the place of every field.

The grammar and the wording are those of protobuf's C++ ``text_format.cc``. Where the server stops at its first
complaint, this reader notes it and goes on as far as the text makes sense, so that one run tells all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

_TOKEN: Final = re.compile(
    r"""(?P<blank>[ \t\r\n\v\f]+|\#[^\n]*)
      | (?P<identifier>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<symbol>.)""",
    re.VERBOSE | re.DOTALL,
)
_INTEGER: Final = re.compile(r"0[xX][0-9a-fA-F]+|[0-9]+")
_MOST_DEPTH: Final = 100
_MOST_DIGITS: Final = 400
_RANGES: Final = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_ESCAPE: Final = re.compile(r"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.S)
# What the server's tokenizer takes after a backslash; Python's lets more pass.
_GOOD_ESCAPE: Final = re.compile(
    r"""\\(?:[abfnrtv\\?'"]|[0-7]|[xX][0-9a-fA-F]|u[0-9a-fA-F]{4}|U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})"""
)
_SIMPLE: Final = {"n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the text; ``kind`` is empty at its end."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(slots=True)
class Message:
    """A message as written: its fields in their order, those that its type does not know left out."""

    kind: str
    start: int
    end: int = 0
    fields: list[Field] = field(default_factory=list)

    def all(self, name: str) -> list[Field]:
        """Return every field called ``name``."""
        return [found for found in self.fields if found.name == name]

    def get(self, name: str) -> Field | None:
        """Return the last field called ``name``."""
        return next((found for found in reversed(self.fields) if found.name == name), None)

    def value(self, name: str, default: Any = None) -> Any:
        """Return the value of a scalar field, or of a wrapper message's ``value``."""
        found = self.get(name)
        if found is None:
            return default
        if isinstance(found.value, Message):
            inner = found.value.get("value")
            return _WRAPPED.get(found.value.kind, default) if inner is None else inner.value
        return found.value


_WRAPPED: Final = {"google.protobuf.StringValue": "", "google.protobuf.BoolValue": False} | {
    f"google.protobuf.{kind}Value": 0 for kind in ("Int64", "Int32", "UInt64", "UInt32", "Double", "Float")
}


@dataclass(slots=True)
class Field:
    """A field as written: the value is a number, a text, a bool, an enum's name, or a `Message`."""

    name: str
    start: int
    value: Any
    at: int
    end: int

    @property
    def message(self) -> Message:
        """The value of a field that is a message."""
        assert isinstance(self.value, Message)
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """Something that the server refuses: ``kind`` is syntax, field, value, twice or oneof.

    ``at`` is the character to point at, ``said_at`` the one that the server's message names, ``message`` its words;
    ``inside`` are the names and places of what looks like fields below an unknown one.
    """

    kind: str
    at: int
    said_at: int
    message: str
    name: str = ""
    parent: str = ""
    inside: tuple[tuple[str, int], ...] = ()


class _StopError(Exception):
    """The text makes no sense from here on."""


def read(text: str, kind: Any) -> tuple[Message, list[Flaw]]:
    """Return the message of the generated class ``kind`` that ``text`` holds, and every flaw, in order."""
    return _Reader(text, kind.DESCRIPTOR).document()


class _Reader:
    def __init__(self, text: str, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._flaws: list[Flaw] = []
        self._skipped: list[tuple[str, int]] = []
        # The length is in characters: the server counts bytes, and columns of ASCII are the same.
        self._tokens = self._tokenized(text)
        self._token = next(self._tokens)

    def document(self) -> tuple[Message, list[Flaw]]:
        root = Message(self._descriptor.full_name, 0)
        try:
            while self._token.kind:
                self._field(root, self._descriptor, 0)
        except _StopError:
            pass
        root.end = self._token.end
        return root, self._flaws

    def _tokenized(self, text: str) -> Iterator[Token]:
        last = None
        text_start = 1 if text.startswith("\ufeff") else 0
        for found in _TOKEN.finditer(text, text_start):
            kind = found.lastgroup or ""
            if kind == "blank":
                last = None
                continue
            token = Token(kind, found[0], found.start(), found.end())
            if kind == "symbol" and found[0] in "\"'":
                self._note("syntax", token, "String literals cannot cross line boundaries.")
            elif last and last.kind == "number" and kind == "identifier" and last.end == token.start:
                self._note("syntax", token, "Need space between number and identifier.")
            elif kind == "number" and re.fullmatch(r"0[0-9]*[89][0-9]*", found[0]):
                self._note("syntax", token, "Numbers starting with leading zero must be in octal.")
            last = token
            yield token
        yield Token("", "", len(text), len(text))

    def _next(self) -> Token:
        token = self._token
        if token.kind:
            self._token = next(self._tokens)
        return token

    def _take(self, symbol: str) -> bool:
        if self._token.kind == "symbol" and self._token.text == symbol:
            self._next()
            return True
        return False

    def _note(
        self, kind: str, token: Token, message: str, *, said: Token | None = None, name: str = "", parent: str = ""
    ) -> None:
        said_at = (said or token).start
        self._flaws.append(Flaw(kind=kind, at=token.start, said_at=said_at, message=message, name=name, parent=parent))

    def _stop(self, message: str) -> None:
        self._note("syntax", self._token, message)
        raise _StopError

    def _expect(self, symbol: str) -> None:
        if not self._take(symbol):
            self._stop(f'Expected "{symbol}", found "{self._token.text}".')

    def _field(self, into: Message, descriptor: Descriptor, depth: int) -> None:
        if self._token.kind == "symbol" and self._token.text == "[":
            self._extension(into, descriptor, depth)
            return
        if self._token.kind != "identifier":
            self._stop(f"Expected identifier, got: {self._token.text}")
        name = self._next()
        known = descriptor.fields_by_name.get(name.text)
        if known is None:
            message = f'Message type "{descriptor.full_name}" has no field named "{name.text}".'
            self._note("field", name, message, said=self._token, name=name.text, parent=descriptor.full_name)
            noted = len(self._flaws) - 1
            self._skipped = []
            try:
                self._skip_value()
            finally:
                self._flaws[noted] = replace(self._flaws[noted], inside=tuple(self._skipped))
        else:
            self._check_repetition(into, descriptor, known, name)
            self._value(into, known, name, depth)
        if not self._take(";"):
            self._take(",")

    def _check_repetition(self, into: Message, descriptor: Descriptor, known: FieldDescriptor, name: Token) -> None:
        if known.is_repeated:
            return
        before = into.get(name.text)
        # A proto3 scalar that has its zero counts as absent, unless it is in a oneof or optional.
        if before is not None and (known.has_presence or before.value not in (0, "", False)):
            message = f'Non-repeated field "{name.text}" is specified multiple times.'
            self._note("twice", name, message, said=self._token, name=name.text, parent=descriptor.full_name)
        group = known.containing_oneof
        if group is None:
            return
        others = {member.name for member in group.fields} - {name.text}
        other = next((found.name for found in into.fields if found.name in others), None)
        if other:
            message = (
                f'Field "{name.text}" is specified along with field "{other}", another member of oneof "{group.name}".'
            )
            self._note("oneof", name, message, said=self._token, name=name.text, parent=descriptor.full_name)

    def _value(self, into: Message, known: FieldDescriptor, name: Token, depth: int) -> None:
        if known.message_type is not None:
            self._take(":")
        elif not self._take(":"):
            self._refuse_value(f'Expected ":", found "{self._token.text}".', known, name)
            return
        if known.is_repeated and self._take("["):
            if self._take("]"):
                return
            while True:
                self._one(into, known, name, depth)
                if self._take("]"):
                    return
                self._expect(",")
        self._one(into, known, name, depth)

    def _one(self, into: Message, known: FieldDescriptor, name: Token, depth: int) -> None:
        at = self._token.start
        value: Any
        if known.message_type is not None:
            opening = self._token
            close = {"{": "}", "<": ">"}.get(opening.text) if opening.kind == "symbol" else None
            if close is None:
                self._refuse_value(f'Expected "{{", found "{opening.text}".', known, name)
                return
            self._next()
            value = Message(known.message_type.full_name, at)
            self._body(value, known.message_type, close, depth + 1)
            into.fields.append(Field(name.text, name.start, value, at, value.end))
            return
        flaws = len(self._flaws)
        value = self._scalar(known)
        if value is None:
            if len(self._flaws) > flaws:
                self._skip_value()
            return
        end = self._last_end
        into.fields.append(Field(name.text, name.start, value, at, end))

    def _body(self, message: Message, descriptor: Descriptor, close: str, depth: int) -> None:
        if depth > _MOST_DEPTH:
            self._stop("Message is too deep, the parser exceeded the configured recursion limit.")
        while not (self._token.kind == "symbol" and self._token.text in "}>"):
            self._field(message, descriptor, depth)
        message.end = self._token.end
        self._expect(close)

    _last_end = 0

    def _scalar(self, known: FieldDescriptor) -> Any:
        token = self._token
        self._last_end = token.end
        if known.enum_type is not None:
            return self._enum(known)
        kind = _KINDS.get(known.type, "int64")
        if kind == "string":
            return self._string(known)
        if kind == "bool":
            return self._bool(known)
        minus = kind not in ("uint32", "uint64") and self._take("-")
        token = self._token
        if kind == "double":
            return self._double(known, minus=minus)
        if token.kind != "number" or not _INTEGER.fullmatch(token.text):
            return self._wrong(known, f"Expected integer, got: {token.text}")
        number = _integer(token.text) * (-1 if minus else 1)
        low, high = _RANGES[kind]
        if not low <= number <= high:
            return self._wrong(known, f"Integer out of range ({token.text})")
        self._last_end = self._next().end
        return number

    def _double(self, known: FieldDescriptor, *, minus: bool) -> Any:
        token = self._token
        if token.kind == "number":
            value = float(int(token.text, 16)) if token.text[:2].lower() == "0x" else float(token.text.rstrip("fF"))
        elif token.text.lower() in ("inf", "infinity", "nan"):
            value = float(token.text)
        else:
            return self._wrong(known, f"Expected double, got: {token.text}")
        self._last_end = self._next().end
        return -value if minus else value

    def _bool(self, known: FieldDescriptor) -> Any:
        token = self._token
        if token.kind == "number" and _INTEGER.fullmatch(token.text):
            if _integer(token.text) > 1:
                return self._wrong(known, f"Integer out of range ({token.text})")
            self._next()
            return bool(_integer(token.text))
        if token.kind != "identifier":
            return self._wrong(known, f"Expected identifier, got: {token.text}")
        if token.text not in ("true", "True", "t", "false", "False", "f"):
            self._next()
            message = f'Invalid value for boolean field "{known.name}". Value: "{token.text}".'
            self._note("value", token, message, said=self._token, name=known.name, parent=_parent(known))
            return None
        self._next()
        return token.text[0].lower() == "t"

    def _enum(self, known: FieldDescriptor) -> Any:
        token = self._token
        if token.kind == "identifier":
            self._next()
            if token.text in _enumeration(known).values_by_name:
                return token.text
            message = f'Unknown enumeration value of "{token.text}" for field "{known.name}".'
            self._note("value", token, message, said=self._token, name=known.name, parent=_parent(known))
            return None
        minus = self._take("-")
        token = self._token
        if token.kind == "number" and _INTEGER.fullmatch(token.text):
            self._last_end = self._next().end
            number = _integer(token.text) * (-1 if minus else 1)
            named = _enumeration(known).values_by_number.get(number)
            return named.name if named else str(number)
        return self._wrong(known, f"Expected integer or identifier, got: {token.text}")

    def _string(self, known: FieldDescriptor) -> Any:
        if self._token.kind != "string":
            return self._wrong(known, f"Expected string, got: {self._token.text}")
        parts = []
        while self._token.kind == "string":
            token = self._next()
            self._last_end = token.end
            if wrong := next((found for found in _ESCAPE.finditer(token.text) if not _is_good(found)), None):
                place = replace(token, start=token.start + wrong.start())
                message = f"Invalid escape sequence in string literal: {wrong[0]!r}."
                self._note("value", place, message, name=known.name, parent=_parent(known))
            parts.append(_ESCAPE.sub(_unescaped, token.text[1:-1]))
        return "".join(parts)

    def _wrong(self, known: FieldDescriptor, message: str) -> None:
        self._note("value", self._token, message, name=known.name, parent=_parent(known))

    def _refuse_value(self, message: str, known: FieldDescriptor, name: Token) -> None:
        token = self._token if self._token.kind else name
        self._note("value", token, message, said=self._token, name=known.name, parent=_parent(known))
        self._skip_value()

    def _extension(self, into: Message, descriptor: Descriptor, depth: int) -> None:
        """Read ``[type.googleapis.com/a.Message] { ... }`` inside an Any; other extensions do not exist here."""
        opening = self._next()
        words = []
        while self._token.kind and self._token.text != "]":
            words.append(self._next().text)
        self._expect("]")
        name = "".join(words)
        if descriptor.full_name != "google.protobuf.Any":
            message = f'Extension "{name}" is not defined or is not an extension of "{descriptor.full_name}".'
            self._note("field", opening, message, said=self._token, name=name, parent=descriptor.full_name)
        inner = None
        if descriptor.full_name == "google.protobuf.Any":
            try:
                inner = descriptor.file.pool.FindMessageTypeByName(name.rpartition("/")[2])
            except KeyError:
                inner = None  # a type that only the server may know
        if inner is None:
            self._skip_value()
        else:
            self._take(":")
            at, close = self._token.start, {"{": "}", "<": ">"}.get(self._token.text, "")
            if not close:
                self._stop(f'Expected "{{", found "{self._token.text}".')
            self._next()
            value = Message(inner.full_name, at)
            self._body(value, inner, close, depth + 1)
            into.fields.append(Field(f"[{inner.full_name}]", opening.start, value, at, value.end))
        if not self._take(";"):
            self._take(",")

    def _skip_value(self) -> None:
        """Go over a value of unknown kind; stop where the text cannot be one."""
        colon = self._take(":")
        token = self._token
        if token.kind == "symbol" and token.text in "{<[":
            self._skip_block()
        elif token.kind == "string":
            while self._token.kind == "string":
                self._next()
        elif token.kind in ("number", "identifier") and (colon or token.kind == "number"):
            self._next()
        elif token.kind == "symbol" and token.text == "-":
            self._next()
            self._next()
        else:
            raise _StopError  # the complaint before this one says it all

    def _skip_block(self) -> None:
        closing = {"{": "}", "<": ">", "[": "]"}
        waiting: list[str] = []
        while self._token.kind:
            token = self._next()
            if token.kind == "identifier" and self._token.kind == "symbol" and self._token.text in ":{<":
                self._skipped.append((token.text, token.start))
            if token.kind != "symbol":
                continue
            if token.text in closing:
                waiting.append(closing[token.text])
            elif waiting and token.text == waiting[-1]:
                waiting.pop()
                if not waiting:
                    return
        raise _StopError


_KINDS: Final = {
    1: "double", 2: "double", 3: "int64", 4: "uint64", 5: "int32", 6: "uint64", 7: "uint32", 8: "bool", 9: "string",
    12: "string", 13: "uint32", 15: "int32", 16: "int64", 17: "int32", 18: "int64",
}  # fmt: skip


def _parent(field: FieldDescriptor) -> str:
    """Return the name of the message that ``field`` belongs to; extensions belong to none."""
    return field.containing_type.full_name if field.containing_type else ""


def _enumeration(field: FieldDescriptor) -> EnumDescriptor:
    assert field.enum_type is not None  # only fields of this kind come here
    return field.enum_type


def _integer(text: str) -> int:
    if text[:2] in ("0x", "0X"):
        return int(text, 16)
    # A leading zero means octal, as in C; the tokenizer has complained of other digits. Python refuses to read thousands
    # of digits; hundreds are beyond every range as well.
    return int(text, 8) if text.startswith("0") and set(text) <= set("01234567") else int(text[:_MOST_DIGITS])


def _is_good(found: re.Match[str]) -> bool:
    return _GOOD_ESCAPE.match(found[0]) is not None


def _unescaped(found: re.Match[str]) -> str:
    octal, hexadecimal, short, long, other = found.groups()
    if octal:
        return chr(int(octal, 8))
    if digits := hexadecimal or short or long:
        return chr(min(int(digits, 16), 0x10FFFF))
    return _SIMPLE.get(other, other)
