"""Message classes made from `.proto` files at run time, in a descriptor pool of their own.

Two files of one name or one message name in the same pool are an error of protobuf's; a private pool lets our
definitions live beside any installed package that registers the same messages.

The reader takes what such files need: proto3 with ``package``, ``import``, messages (nested ones too), enums,
scalar, ``optional``, ``repeated`` and ``map`` fields, ``oneof``, and the options ``json_name`` and ``packed``.
Other options and ``reserved`` are read over; ``service`` and ``extend`` are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NoReturn

from servewright.errors import InputError, Problem, SpecError

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import (
        DescriptorProto,
        EnumDescriptorProto,
        FieldDescriptorProto,
        FileDescriptorProto,
    )
    from google.protobuf.descriptor_pool import DescriptorPool

_SCALARS = {  # the numbers of FieldDescriptorProto.Type
    "double": 1,
    "float": 2,
    "int64": 3,
    "uint64": 4,
    "int32": 5,
    "fixed64": 6,
    "fixed32": 7,
    "bool": 8,
    "string": 9,
    "bytes": 12,
    "uint32": 13,
    "sfixed32": 15,
    "sfixed64": 16,
    "sint32": 17,
    "sint64": 18,
}
_OPTIONAL, _REPEATED = 1, 3  # the numbers of FieldDescriptorProto.Label
_TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"[^"\n]*"|-?[\w.]+|\S', re.DOTALL)
_INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|[0-9]+)")

# The part of google/protobuf that configs and requests of model servers use.
_WELL_KNOWN = {
    "google/protobuf/any.proto": """
        syntax = "proto3"; package google.protobuf;
        message Any { string type_url = 1; bytes value = 2; }
    """,
    "google/protobuf/empty.proto": """
        syntax = "proto3"; package google.protobuf;
        message Empty {}
    """,
    "google/protobuf/wrappers.proto": """
        syntax = "proto3"; package google.protobuf;
        message DoubleValue { double value = 1; }
        message FloatValue { float value = 1; }
        message Int64Value { int64 value = 1; }
        message UInt64Value { uint64 value = 1; }
        message Int32Value { int32 value = 1; }
        message UInt32Value { uint32 value = 1; }
        message BoolValue { bool value = 1; }
        message StringValue { string value = 1; }
        message BytesValue { bytes value = 1; }
    """,
}


class Schema:
    """The messages and enums of every ``*.proto`` file in ``folder``.

    Files import each other by their names in that folder, and ``google/protobuf/{any,empty,wrappers}.proto``.
    Nothing is read before the first message is asked for. Safe to share between threads.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = Lock()
        self._pool: DescriptorPool | None = None
        self._names: dict[str, str] = {}
        self._kinds: dict[str, Any] = {}

    @property
    def pool(self) -> DescriptorPool:
        """The descriptor pool, for protobuf functions that take one."""
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    self._pool = self._load()
        return self._pool

    def __getitem__(self, name: str) -> Any:
        """Return the message class, or the enum wrapper, called ``name``, with or without its package.

        A nested one is written ``Outer.Inner``. Raises `KeyError` for an unknown name.
        """
        if (kind := self._kinds.get(name)) is None:
            kind = self._kinds[name] = self._kind(name)
        return kind

    def __iter__(self) -> Iterator[str]:
        """Yield the full name of every message and enum, nested ones included, map entries not."""
        _ = self.pool
        return iter(dict.fromkeys(self._names.values()))

    def parse_text(self, name: str, text: str, *, file: str = "") -> Any:
        """Return the message ``name`` read from protobuf's text format; raise `SpecError` with line and column."""
        from google.protobuf import text_format

        try:
            return text_format.Parse(text, self[name](), descriptor_pool=self.pool)
        except text_format.ParseError as error:
            # The message repeats the place that the error carries, as "3:7 : ...".
            reason = re.sub(r"^\d+:\d+ : ", "", str(error))
            line, column = error.GetLine() or 0, error.GetColumn() or 0
            raise SpecError([Problem(reason=reason, file=file, line=line, column=column)]) from error

    def _kind(self, name: str) -> Any:
        from google.protobuf import message_factory
        from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

        pool = self.pool
        full = self._names[name]
        with self._lock:  # one class per message: two of one name would not mix
            if name not in self._kinds:
                try:
                    self._kinds[name] = message_factory.GetMessageClass(pool.FindMessageTypeByName(full))
                except KeyError:
                    self._kinds[name] = EnumTypeWrapper(pool.FindEnumTypeByName(full))
            return self._kinds[name]

    def _load(self) -> DescriptorPool:
        from google.protobuf.descriptor_pool import DescriptorPool

        pool = DescriptorPool()
        loaded: set[str] = set()

        def add(file: str, wanted_by: str) -> None:
            if file in loaded:
                return
            loaded.add(file)
            parsed = read_proto(file, self._text(file, wanted_by))
            for needed in parsed.dependency:
                add(needed, file)
            try:
                pool.AddSerializedFile(parsed.SerializeToString())
            except TypeError as error:
                raise InputError(f"{self.folder / file}: {error}") from error
            for name in _names(parsed):
                self._names[name] = name
                self._names.setdefault(name.removeprefix(f"{parsed.package}."), name)

        for path in sorted(self.folder.glob("*.proto")):
            add(path.name, "")
        return pool

    def _text(self, file: str, wanted_by: str) -> str:
        try:
            return _WELL_KNOWN.get(file) or (self.folder / file).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"{self.folder / wanted_by}: cannot import {file}: {error.strerror}") from error


def read_proto(file: str, text: str) -> FileDescriptorProto:
    """Return the descriptor of a proto3 ``text``; raise `InputError` with its line where it cannot be read."""
    return _Reader(file, text).file()


def _names(file: FileDescriptorProto) -> Iterator[str]:
    def below(prefix: str, messages: Any, enums: Any) -> Iterator[str]:
        yield from (prefix + enum.name for enum in enums)
        for message in messages:
            if not message.options.map_entry:
                yield prefix + message.name
                yield from below(f"{prefix}{message.name}.", message.nested_type, message.enum_type)

    yield from below(f"{file.package}." if file.package else "", file.message_type, file.enum_type)


class _Reader:
    """Walks the words of one file from left to right."""

    def __init__(self, file: str, text: str) -> None:
        self._file, self._text = file, text
        self._words: list[str] = [word for word in _TOKEN.findall(text) if word[:2] not in ("//", "/*")]
        self._at = 0

    def file(self) -> FileDescriptorProto:
        from google.protobuf.descriptor_pb2 import FileDescriptorProto

        result = FileDescriptorProto(name=self._file, syntax="proto3")
        while self._at < len(self._words):
            match self._take():
                case "syntax":
                    self._expect("=")
                    self._expect('"proto3"')
                    self._expect(";")
                case "package":
                    result.package = self._take()
                    self._expect(";")
                case "import":
                    result.dependency.append(self._take().strip('"'))
                    self._expect(";")
                case "message":
                    self._message(result.message_type.add())
                case "enum":
                    self._enum(result.enum_type.add())
                case "option":
                    self._skip_to(";")
                case ";":
                    pass
                case word:
                    self._fail(f"cannot read {word!r}", self._at - 1)
        return result

    def _message(self, message: DescriptorProto) -> None:
        message.name = self._take()
        self._expect("{")
        optionals: list[FieldDescriptorProto] = []
        while (word := self._take()) != "}":
            match word:
                case "message":
                    self._message(message.nested_type.add())
                case "enum":
                    self._enum(message.enum_type.add())
                case "oneof":
                    self._oneof(message)
                case "option" | "reserved":
                    self._skip_to(";")
                case "map" if self._peek() == "<":
                    self._map(message)
                case "repeated":
                    self._field(message, self._take(), _REPEATED)
                case "optional":
                    optionals.append(self._field(message, self._take(), _OPTIONAL))
                case ";":
                    pass
                case _:
                    self._field(message, word, _OPTIONAL)
        for field in optionals:  # protobuf wants the oneofs that stand for "optional" behind all others
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")

    def _field(self, message: DescriptorProto, kind: str, label: int, oneof: int | None = None) -> FieldDescriptorProto:
        name = self._take()
        self._expect("=")
        field = message.field.add(name=name, number=self._integer(), label=label)
        if scalar := _SCALARS.get(kind):
            field.type = scalar  # type: ignore[assignment]
        else:
            field.type_name = kind  # the pool finds out whether this is a message or an enum, and of which scope
        if oneof is not None:
            field.oneof_index = oneof
        self._end_of_field(field)
        return field

    def _map(self, message: DescriptorProto) -> None:
        self._expect("<")
        key = self._take()
        self._expect(",")
        value = self._take()
        self._expect(">")
        field_name = self._peek()
        entry = message.nested_type.add(name="".join(part.capitalize() for part in field_name.split("_")) + "Entry")
        entry.options.map_entry = True
        for number, (name, kind) in enumerate((("key", key), ("value", value)), 1):
            field = entry.field.add(name=name, number=number, label=_OPTIONAL)
            if scalar := _SCALARS.get(kind):
                field.type = scalar  # type: ignore[assignment]
            else:
                field.type_name = kind
        self._field(message, entry.name, _REPEATED)

    def _oneof(self, message: DescriptorProto) -> None:
        index = len(message.oneof_decl)
        message.oneof_decl.add(name=self._take())
        self._expect("{")
        while (word := self._take()) != "}":
            if word == "option":
                self._skip_to(";")
            else:
                self._field(message, word, _OPTIONAL, index)

    def _enum(self, enum: EnumDescriptorProto) -> None:
        enum.name = self._take()
        self._expect("{")
        while (word := self._take()) != "}":
            if word in ("option", "reserved"):
                if word == "option" and self._peek() == "allow_alias":
                    enum.options.allow_alias = True
                self._skip_to(";")
            else:
                self._expect("=")
                enum.value.add(name=word, number=self._integer())
                if self._peek() == "[":
                    self._skip_to("]")
                self._expect(";")

    def _end_of_field(self, field: FieldDescriptorProto) -> None:
        while self._peek() in ("[", ","):
            self._take()
            option = self._take()
            self._expect("=")
            value = self._take()
            if option == "json_name":
                field.json_name = value.strip('"')
            elif option == "packed":
                field.options.packed = value == "true"
            if self._peek() == "]":
                self._take()
        self._expect(";")

    def _integer(self) -> int:
        word = self._take()
        if not _INTEGER.fullmatch(word):
            self._fail(f"expected a number, got {word!r}", self._at - 1)
        return int(word, 0)

    def _peek(self) -> str:
        if self._at >= len(self._words):
            self._fail("the file ends too early", self._at - 1)
        return self._words[self._at]

    def _take(self) -> str:
        word = self._peek()
        self._at += 1
        return word

    def _expect(self, wanted: str) -> None:
        if (word := self._take()) != wanted:
            self._fail(f"expected {wanted!r}, got {word!r}", self._at - 1)

    def _skip_to(self, last: str) -> None:
        while self._take() != last:
            pass

    def _fail(self, reason: str, at: int) -> NoReturn:
        words = [found for found in _TOKEN.finditer(self._text) if found[0][:2] not in ("//", "/*")]
        start = words[at].start() if words else 0
        line = self._text.count("\n", 0, start) + 1
        column = start - self._text.rfind("\n", 0, start)
        raise InputError(str(Problem(reason=reason, file=self._file, line=line, column=column)))
