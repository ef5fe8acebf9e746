"""The reader of `.proto` files, held against protoc on the same text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servewright.errors import InputError, SpecError
from servewright.wire import Schema, read_proto

protoc = pytest.importorskip("grpc_tools.protoc")

EVERYTHING = """\
// A comment; "message" in it is no message.
syntax = "proto3";
package some.where;
import "google/protobuf/any.proto";
import "google/protobuf/wrappers.proto";
import "other.proto";
option java_package = "com.example; not the end";

/* Another comment,
   message Not { over two lines } */
message Outer {
  reserved 8, 9 to 11;
  reserved "old";
  message Inner {
    enum Level { LOW = 0; HIGH = 0x10; BELOW = -3; }
    Level level = 1;
    repeated Level levels = 2 [packed = false];
    repeated Outer back = 3;
  }
  double a_double = 1; float a_float = 2; int64 an_int64 = 3; uint64 a_uint64 = 4; int32 an_int32 = 5;
  fixed64 a_fixed64 = 6; fixed32 a_fixed32 = 7; bool a_bool = 12; string a_string = 13; bytes a_bytes = 14;
  uint32 a_uint32 = 15; sfixed32 an_sfixed32 = 16; sfixed64 an_sfixed64 = 17; sint32 an_sint32 = 18;
  sint64 an_sint64 = 19;
  optional int32 maybe = 20 [deprecated = true, json_name = "perhaps,[so]"];
  oneof choice { string word = 21; Inner inner = 22; Inner.Level level = 23; }
  map<string, Inner> by_long_name = 24;
  map<int32, some.where.Outer.Inner.Level> levels = 25;
  repeated google.protobuf.Any anything = 26;
  google.protobuf.Int64Value wrapped = 27;
  optional Elsewhere elsewhere = 28;
  repeated .some.where.Elsewhere map = 29;
};
message Empty {}
enum Alias { option allow_alias = true; NIL = 0; ZERO = 0; }
"""
OTHER = 'syntax = "proto3"; package some.where; message Elsewhere { bool here = 1; }'


def folder_of(folder: Path, **texts: str) -> Path:
    """Write ``texts`` as ``name.proto`` into ``folder`` and return it."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.proto").write_text(text)
    return folder


def pool_of_protoc(folder: Path) -> DescriptorPool:
    """Return the pool of every file in ``folder`` as protoc reads it."""
    target = folder / "set.bin"
    names = [path.name for path in sorted(folder.glob("*.proto"))]
    includes = [f"-I{folder}", f"-I{files('grpc_tools') / '_proto'}"]
    assert protoc.main(["protoc", *includes, "--include_imports", f"--descriptor_set_out={target}", *names]) == 0
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(target.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


def bare(descriptor: Any) -> DescriptorProto | EnumDescriptorProto:
    """Return ``descriptor`` without what does not change a byte of its messages: options, order, reservations."""
    if not hasattr(descriptor, "fields"):
        enum = EnumDescriptorProto()
        descriptor.CopyToProto(enum)
        return enum
    message = DescriptorProto()
    descriptor.CopyToProto(message)
    strip(message, descriptor)
    return message


def strip(message: DescriptorProto, descriptor: Any) -> None:
    """Keep of ``message`` and all inside it what decides about bytes and JSON, with every JSON name told."""
    del message.reserved_range[:], message.reserved_name[:]
    message.field.sort(key=lambda field: field.number)
    message.nested_type.sort(key=lambda nested: nested.name)
    for field in message.field:
        packed = field.options.packed if field.options.HasField("packed") else None
        field.ClearField("options")
        if packed is not None:
            field.options.packed = packed
        field.json_name = descriptor.fields_by_number[field.number].json_name
    for nested in message.nested_type:
        strip(nested, descriptor.nested_types_by_name[nested.name])


def differences(folder: Path) -> Iterator[str]:
    """Yield each message or enum of ``folder`` that we read otherwise than protoc."""
    schema, truth = Schema(folder), pool_of_protoc(folder)
    for name in schema:
        if name.startswith("google.protobuf."):
            continue
        ours = bare(schema[name].DESCRIPTOR)
        kind = truth.FindMessageTypeByName if isinstance(ours, DescriptorProto) else truth.FindEnumTypeByName
        if (theirs := bare(kind(name))) != ours:
            yield f"{name}:\n{ours}\nis not\n{theirs}"


class TestReading:
    """Reading a folder of files."""

    def test_everything_the_reader_knows_equals_protoc(self, tmp_path: Path) -> None:
        """Every construct of the subset gives the descriptors that protoc gives."""
        assert list(differences(folder_of(tmp_path, main=EVERYTHING, other=OTHER))) == []

    def test_every_name_is_listed_once(self, tmp_path: Path) -> None:
        """Iterating gives full names, nested ones too, and no map entries."""
        names = [name for name in Schema(folder_of(tmp_path, main=EVERYTHING, other=OTHER)) if "some" in name]
        assert sorted(names) == [
            "some.where.Alias",
            "some.where.Elsewhere",
            "some.where.Empty",
            "some.where.Outer",
            "some.where.Outer.Inner",
            "some.where.Outer.Inner.Level",
        ]

    def test_short_and_full_names_are_one_class(self, tmp_path: Path) -> None:
        """A message has one class, whatever name it is asked by."""
        schema = Schema(folder_of(tmp_path, main=EVERYTHING, other=OTHER))
        assert schema["Outer.Inner"] is schema["some.where.Outer.Inner"]

    def test_unknown_names_are_key_errors(self, tmp_path: Path) -> None:
        """A name that no file defines is a KeyError."""
        with pytest.raises(KeyError, match="Nobody"):
            Schema(folder_of(tmp_path, other=OTHER))["Nobody"]

    def test_one_class_for_all_threads(self, tmp_path: Path) -> None:
        """Threads that ask for the first time at once get the same class."""
        schema = Schema(folder_of(tmp_path, main=EVERYTHING, other=OTHER))
        start, got = threading.Barrier(8), []

        def ask() -> None:
            start.wait()
            got.append(schema["Outer"])

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 8
        assert len(set(got)) == 1

    def test_two_schemas_of_one_name_live_together(self, tmp_path: Path) -> None:
        """Two folders may define the same message differently in one process."""
        first = Schema(folder_of(tmp_path / "a", other=OTHER))
        second = Schema(folder_of(tmp_path / "b", other=OTHER.replace("bool here = 1", "string there = 2")))
        assert first["Elsewhere"](here=True).SerializeToString() == b"\x08\x01"
        assert second["Elsewhere"](there="x").SerializeToString() == b"\x12\x01x"


class TestText:
    """Reading text format with a schema."""

    def test_text_is_parsed_with_messages_of_the_schema(self, tmp_path: Path) -> None:
        """Text format reaches maps, wrappers and the inside of an Any."""
        schema = Schema(folder_of(tmp_path, main=EVERYTHING, other=OTHER))
        text = """
            by_long_name { key: "k" value { level: HIGH } }
            wrapped { value: 7 }
            anything { [type.googleapis.com/some.where.Elsewhere] { here: true } }
        """
        message = schema.parse_text("Outer", text)
        assert message.by_long_name["k"].level == 16
        assert message.wrapped.value == 7
        inside = schema["Elsewhere"]()
        assert message.anything[0].Unpack(inside)
        assert inside.here
        printed = text_format.MessageToString(message, descriptor_pool=schema.pool)
        assert schema.parse_text("Outer", printed) == message

    def test_a_mistake_has_its_place(self, tmp_path: Path) -> None:
        """A text that does not fit is a SpecError with file, line and column."""
        schema = Schema(folder_of(tmp_path, other=OTHER))
        with pytest.raises(SpecError) as caught:
            schema.parse_text("Elsewhere", "here: true\n  where: 1", file="x.pbtxt")
        (problem,) = caught.value.problems
        assert (problem.file, problem.line) == ("x.pbtxt", 2)
        assert 'no field named "where"' in problem.reason


class TestBrokenFiles:
    """What the reader refuses."""

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('syntax = "proto2";', "x.proto:1:10: expected '\"proto3\"', got '\"proto2\"'"),
            ("message M {", "the file ends too early"),
            ("message M { int32 a = b; }", "x.proto:1:23: expected a number, got 'b'"),
            ("// one\n/* two */ service S {}", "x.proto:2:11: cannot read 'service'"),
            ("message M { int32 a 1; }", "x.proto:1:21: expected '=', got '1'"),
            ("enum E { A = 0 B = 1; }", "x.proto:1:16: expected ';', got 'B'"),
            ("package p", "the file ends too early"),
            ("", ""),
        ],
    )
    def test_the_place_and_the_reason_are_told(self, text: str, reason: str) -> None:
        """What cannot be read is an InputError that names line, column and word; an empty file is fine."""
        if not reason:
            assert not read_proto("x.proto", text).message_type
            return
        with pytest.raises(InputError) as caught:
            read_proto("x.proto", text)
        assert reason in str(caught.value)

    def test_an_unknown_type_is_told(self, tmp_path: Path) -> None:
        """A field of a type that no file defines is an InputError with the file's name."""
        schema = Schema(folder_of(tmp_path, x='syntax = "proto3"; message M { Nobody n = 1; }'))
        with pytest.raises(InputError, match=r"x\.proto"):
            schema["M"]

    def test_a_missing_import_is_told(self, tmp_path: Path) -> None:
        """An import that is not in the folder is an InputError that names both files."""
        schema = Schema(folder_of(tmp_path, x='import "y.proto";'))
        with pytest.raises(InputError, match=r"x\.proto: cannot import y\.proto"):
            schema["M"]


IDENTIFIERS = st.from_regex(r"[a-z][a-z0-9]{0,5}(_[a-z][a-z0-9]{0,3}){0,2}", fullmatch=True)
KINDS = st.sampled_from(["double", "int64", "bool", "string", "bytes", "sint32", "fixed64", "Last", "Last.Deep", "E"])
KEYS = st.sampled_from(["string", "int32", "bool", "uint64"])


@st.composite
def protos(draw: st.DrawFn) -> str:
    """Draw the text of a file with messages of unique field names and numbers."""
    messages = []
    for index in range(draw(st.integers(1, 4))):
        names = draw(st.lists(IDENTIFIERS, unique_by=lambda name: name.replace("_", ""), min_size=1, max_size=6))
        numbers = draw(st.lists(st.integers(1, 18999), unique=True, min_size=len(names), max_size=len(names)))
        lines = []
        for name, number in zip(names, numbers, strict=True):
            shape = draw(st.sampled_from(["", "repeated ", "optional ", "map", "oneof"]))
            kind = draw(KINDS)
            if shape == "map":
                lines.append(f"map<{draw(KEYS)}, {kind}> {name} = {number};")
            elif shape == "oneof":
                lines.append(f"oneof One{name} {{ {kind} {name} = {number}; }}")
            else:
                lines.append(f"{shape}{kind} {name} = {number};")
        messages.append(f"message M{index} {{ {' '.join(lines)} }}")
    ends = "message Last { message Deep { int32 v = 1; } } enum E { ZERO = 0; }"
    return f'syntax = "proto3"; package {draw(IDENTIFIERS)}; ' + "\n".join([*messages, ends])


class TestAnyFile:
    """Reading files that nobody thought of."""

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(text=protos())
    def test_equals_protoc(self, tmp_path: Path, text: str) -> None:
        """Whatever messages a file has, the descriptors equal protoc's."""
        assert list(differences(folder_of(tmp_path, any=text))) == []

    @given(text=st.text(alphabet='message enum{}[]<>=;,."/*\n 0', max_size=60))
    def test_noise_is_an_input_error_or_read(self, text: str) -> None:
        """No text, however broken, raises anything but InputError."""
        try:
            read_proto("x.proto", text)
        except InputError as error:
            assert str(error).startswith("x.proto")  # noqa: PT017  (either outcome is right)
