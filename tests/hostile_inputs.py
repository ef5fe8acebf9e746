"""Readers of what strangers wrote, and inputs that nobody wrote: mutations of real and made-up files, by a seed.

The same seed and number give the same input on every machine, so whatever an input brings about can be had again.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from google.protobuf import text_format

from servewright import yamltext
from servewright.archive_check import check_archive
from servewright.backends.tfserving import protos
from servewright.backends.torchserve import properties
from servewright.errors import ServewrightError
from servewright.linting import walking
from servewright.linting.finding import Finding
from servewright.linting.linter import Context, Follow
from servewright.linting.sources import Source
from servewright.manifest import Manifest
from servewright.modelfiles import pickles
from servewright.zip_format import BrokenZipError

LARGEST = 256 << 10
_BREAKS = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # YAML's: more than others know
_EXOTIC = re.compile(r"[^\S \t\r\n\v\f]")  # blanks for Python's tokenizer, and not for the server's


class WrongAnswerError(Exception):
    """A reader took what it should have refused, or the other way round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A reader with files to start from; ``read`` returns whether it took the input, and raises for what is a bug."""

    name: str
    seeds: Sequence[bytes]
    words: Sequence[bytes]
    read: Callable[[bytes, Path], bool]


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode("utf-8")


def _linted(kind: str, name: str, content: bytes) -> list[Finding]:
    """Check a text as one of the linter's kinds; whatever is found has a place in the text."""
    source = Source(name, Path("/nonexistent") / name, _text(content))
    found = []
    for linter in walking.linters().values():
        for each in linter.kinds:
            each.recognise(source)
            if each.name != kind:
                continue
            for item in each.check(source, Context()):
                assert isinstance(item, Finding | Follow), item
                if isinstance(item, Finding):
                    found.append(item)
    lines = len(_BREAKS.findall(source.text)) + 1
    for item in found:
        if not (1 <= item.line <= lines and item.column >= 1 and item.what and item.rule in walking.rules()):
            raise WrongAnswerError(f"a finding without a place: {item}")
    return found


def _pbtxt(kind: str, message: str) -> Callable[[bytes, Path], bool]:
    syntax = {f"TFS{number:03}" for number in range(1, 10)}

    def read(content: bytes, _: Path) -> bool:
        text = _text(content)
        found = _linted(kind, "models.config", content)
        flawed = any(item.rule in syntax for item in found)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # of escapes that Python's codecs will refuse one day
                text_format.Parse(text.removeprefix("\ufeff"), getattr(protos, message)())
        except text_format.ParseError as error:
            if "codec can't" in str(error):  # bytes that are no UTF-8, half of a surrogate: the server takes them
                return not flawed
            taken = False
        except (ValueError, UnicodeError, RecursionError, OverflowError):
            return not flawed  # protobuf's reader in Python gives up in its own ways; it is no judge here
        else:
            taken = True
        wrong = next((item for item in found if item.rule in syntax), None)
        if taken and wrong and text.strip() and "escape sequence" not in wrong.what and not _EXOTIC.search(text):
            raise WrongAnswerError(f"protobuf takes it, and the linter says {wrong.rule}: {wrong.what}")
        if not taken and not flawed:
            raise WrongAnswerError("protobuf refuses it, and the linter finds nothing")
        return taken

    return read


def _properties(content: bytes, _: Path) -> bool:
    _linted("ts_config_properties", "config.properties", content)
    with suppress(ServewrightError):
        entries = properties.parse_lines(_text(content))
        assert dict(properties.parse(_text(content))) == {entry.key: entry.value for entry in entries}
        return True
    return False


def _yaml(content: bytes, _: Path) -> bool:
    _linted("ts_model_config", "model-config.yaml", content)
    try:
        yamltext.parse(content, file="spec.yaml")
    except ServewrightError:
        return False
    try:
        list(yaml.parse(content.decode("utf-8-sig"), Loader=yaml.CSafeLoader))
    except yaml.YAMLError as error:
        raise WrongAnswerError(f"libyaml refuses what our reader takes: {error}") from error
    return True


def _commands(content: bytes, _: Path) -> bool:
    from servewright.linting import commands

    for name in ("Dockerfile", "compose.yaml", "start.sh"):
        source = Source(name, Path("/nonexistent") / name, _text(content))
        try:
            found = list(commands.invocations(source))
        except commands.PlacedYamlError as error:
            if error.line < 1:
                raise WrongAnswerError("an error without a place") from error
            continue
        for invocation in found:
            for linter in walking.linters().values():
                if linter.command is not None:
                    for item in linter.command(invocation, Context()):
                        assert isinstance(item, Finding | Follow), item
    return True


def _manifest(content: bytes, _: Path) -> bool:
    text = _text(content)
    _linted("ts_manifest", "MANIFEST.json", content)
    try:
        manifest = Manifest.from_json(text)
    except ServewrightError:
        return False
    if Manifest.from_json(manifest.to_json()) != manifest:
        raise WrongAnswerError("a manifest does not survive being written")
    return True


def _pickle(content: bytes, _: Path) -> bool:
    try:
        found = pickles.imports(io.BytesIO(content))
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeError, AttributeError, MemoryError, EOFError):
        return False  # what `torch_imports` makes one error of ours of
    if len({item.name for item in found}) < len(found):
        raise WrongAnswerError("an import is named twice")
    return True


def _zip(content: bytes, folder: Path) -> bool:
    path = folder / "m.mar"
    path.write_bytes(content)
    safe = not check_archive(path)
    for finding in walking.lint([path]).findings:
        if finding.rule not in walking.rules():
            raise WrongAnswerError(f"an unknown rule: {finding}")
    if safe:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if bad := archive.testzip():
                raise WrongAnswerError(f"Python cannot unpack {bad!r} of a safe archive")
            if len(set(names)) < len(names) or any(name.startswith("/") or ".." in name.split("/") for name in names):
                raise WrongAnswerError(f"unsafe names: {names}")
    return safe


def _torch_file(content: bytes, folder: Path) -> bool:
    path = folder / "weights.pt"
    path.write_bytes(content)
    try:
        pickles.torch_imports(path)
    except ServewrightError:
        return False
    except BrokenZipError as error:
        raise WrongAnswerError("an inner error came out") from error
    return True


_MODELS = b"""\
model_config_list { config { name: "m" base_path: "/models/m" model_platform: "tensorflow"
  model_version_policy { specific { versions: 1 versions: 2 } } version_labels { key: 'stable' value: 1 } } }
"""
_BATCHING = b"""\
max_batch_size { value: 32 }
batch_timeout_micros { value: 5000 }
# why
allowed_batch_sizes: [8, 16, 32] thread_pool_name { value: 'p' } pad_variable_length_inputs: true
"""
_PBTXT = {
    "tfs_model_config": (
        "ModelServerConfig",
        _MODELS,
    ),
    "tfs_batching": (
        "BatchingParameters",
        _BATCHING,
    ),
    "tfs_monitoring": ("MonitoringConfig", b"prometheus_config: { enable: true, path: '/metrics' };"),
    "tfs_session": ("ConfigProto", b"gpu_options { visible_device_list: '0' } device_count { key: 'CPU' value: 0x2 }"),
    "tfs_ssl": ("SSLConfig", b'server_key: "-----BEGIN\\n" "\\x41\\101\\u00e9" client_verify: false'),
}
_PBTXT_WORDS = (
    *(b"{", b"}", b"<", b">", b"[", b"]", b":", b",", b";", b"#", b'"', b"'", b"\\", b"value", b"key", b"-", b"config"),
    *(b"0x", b"1e999", b"inf", b"-nan", b"true", b"[type.googleapis.com/a.B]", b"any.type", b"reserved", b"\\777"),
    *(b"\\U0010ffff", b"\\ud800", b"18446744073709551616", b"-9223372036854775809"),
)
_COMMON = (
    *(b"\0", b"\r", b"\n", b"\r\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"$$X$$", b"${X}", b" " * 40, b"-1"),
    *("\u2028".encode(), "\U0001f600".encode(), b"9" * 400),
)
_YAML_WORDS = (
    *(b"&a ", b"*a", b"<<: *a\n", b"!!python/object/apply:os.system ", b"- ", b": ", b"? ", b"| \n", b">-\n", b"---\n"),
    *(b"...\n", b"%YAML 1.1\n", b"{", b"}", b"[", b"]", b"!!binary ", b"0o17", b"1:30", b"~", b"\t"),
)
_SHELL_WORDS = (
    *(b"&&", b"|", b";", b"$(", b")", b"`", b"'", b'"', b"\\\n", b"--", b"=", b"torchserve --start", b"--port="),
    *(b"tensorflow_model_server", b"FROM ", b"CMD [", b"ENV TS_X=1\n", b"sh -c '", b"docker run "),
)


def _zips() -> list[bytes]:
    made = []
    handler = b"def handle(data, context):\n    return [1 for _ in data]\n"
    manifest = b'{"model": {"modelName": "m", "handler": "h.py", "serializedFile": "w.pt"}}'
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("MAR-INF/MANIFEST.json", manifest)
            archive.writestr("h.py", handler)
            archive.writestr("w.pt", _pickled()[0])
            archive.writestr("data/", b"")
        made.append(buffer.getvalue())
    return made


def _torch_files() -> list[bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled()[0])
        archive.writestr("archive/data/0", b"\0" * 64)
    legacy = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, OrderedDict(), ["0"]))
    return [buffer.getvalue(), legacy + struct.pack("<q4f", 4, 1, 2, 3, 4)]


def _pickled() -> list[bytes]:
    value = {"a": [1, 2.5, "é", b"x" * 300, None, True, 1 << 70, (1, 2), {3}], "b": OrderedDict(c=complex(1, 2))}
    return [pickle.dumps(value, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


_SPEC = b"""\
servewright: 1
name: digits
version: 3
model: {path: model.pt, format: torchscript}
batching:
  max_size: 16
  max_delay: 2ms
signature: &s
  inputs: [{name: x, dtype: float32, shape: [null, 4]}]
labels: 'a''b'
text: |
  lines
  more
"""
_PROPERTIES = b"""\
inference_address=http://127.0.0.1:8080
! c
models={\\
  "m": {"1.0": {"batchSize": 8}}\\
}
a\\ b:c\\u0041=
"""
_SCRIPTS = (
    b"""\
#!/bin/sh
exec docker run -p 8500:8500 -v $PWD:/models tensorflow/serving:2.17 --model_name='a b' \\
  --x=1 &
""",
    b"""\
ARG A=1
FROM pytorch/torchserve:0.12.0-cpu
ENV TS_A=1 B="c d"
CMD ["torchserve", "--start", "--ncs"]
""",
    b"""\
services:
  a:
    image: tensorflow/serving
    command: [--port=8500]
    ports: ['8500:8500']
""",
    b"""\
apiVersion: v1
spec:
  containers:
  - image: x
    args: [torchserve, --start]
    env: [{name: TS_A, value: b}]
""",
)
_MAR_MANIFEST = b"""\
{"createdOn": "x", "runtime": "python", "model": {"modelName": "m", "modelVersion": "1.0", "handler": "h.py"}}
"""


def readers(corpus: Path | None) -> list[Reader]:
    """Return every reader, with the files of ``corpus`` among its seeds where there is one."""

    def real(kind: str) -> list[bytes]:
        folder = corpus / kind if corpus else None
        return [path.read_bytes()[:LARGEST] for path in sorted(folder.iterdir())] if folder and folder.is_dir() else []

    found = [
        Reader(name=f"pbtxt {kind}", seeds=[made, *real(kind)], words=_PBTXT_WORDS, read=_pbtxt(kind, message))
        for kind, (message, made) in _PBTXT.items()
    ]
    words = (b"\\", b"\\u12", b"\\uD800", b"=", b":", b"#", b"!", b"\\\n", b"models={", b"}", b"$$", b"http://[::]:1")
    found.append(
        Reader(name="properties", seeds=[_PROPERTIES, *real("ts_config_properties")], words=words, read=_properties)
    )
    yamls = [_SPEC, b"minWorkers: 1\nmaxWorkers: 2\nhandler:\n  a: [1, {b: c}]\n", *real("ts_model_config")]
    found.append(Reader(name="yaml", seeds=yamls, words=_YAML_WORDS, read=_yaml))
    found.append(Reader(name="commands", seeds=_SCRIPTS, words=(*_SHELL_WORDS, *_YAML_WORDS), read=_commands))
    ours = {
        "servewright_manifest": 1, "backend": "torchserve", "tool_version": "1", "spec_digest": "0" * 64,
        "model_digest": "1" * 64, "files": {"models/m.mar": {"sha256": "2" * 64, "size": 3}},
    }  # fmt: skip
    with suppress(ServewrightError):
        Manifest.from_json(json.dumps(ours))
    json_words = (
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b":",
        b",",
        b"null",
        b"NaN",
        b"1e400",
        b"\\u0000",
        b"\\ud800",
        b'"files"',
    )
    seeds = [json.dumps(ours).encode(), _MAR_MANIFEST, *real("ts_manifest")]
    found.append(Reader(name="manifest", seeds=seeds, words=json_words, read=_manifest))
    opcodes = tuple(
        bytes([code])
        for code in b"(.0123cdegGhijJKLMNpqQrRsStTuUVXabl}]){\x80\x81\x82\x85\x8a\x8c\x8d\x8e\x90\x93\x94\x95\x98"
    )
    found.append(
        Reader(name="pickle", seeds=_pickled(), words=(*opcodes, b"cos\nsystem\n", b"\xff\xff\xff\x7f"), read=_pickle)
    )
    signs = (
        b"PK\1\2",
        b"PK\3\4",
        b"PK\5\6",
        b"PK\6\6",
        b"PK\6\7",
        b"\xff" * 4,
        b"\0" * 4,
        b"../",
        b"/",
        b"\x0c\0",
        b"\1\0",
    )
    found.append(Reader(name="zip", seeds=_zips(), words=signs, read=_zip))
    found.append(Reader(name="torch file", seeds=_torch_files(), words=(*signs, *opcodes), read=_torch_file))
    return found


def made(all_readers: Sequence[Reader], seed: int, number: int) -> tuple[Reader, bytes]:
    """Return the reader and the input of a number."""
    chance = random.Random(f"{seed}:{number}")
    reader = all_readers[number % len(all_readers)]
    content = bytearray(chance.choice(reader.seeds))
    if chance.random() < 0.02:
        content = bytearray(chance.randbytes(chance.randrange(2000)))
    for _ in range(chance.choice((0, 1, 1, 2, 3, 5, 8))):
        _mutate(content, chance, reader)
    return reader, bytes(content[:LARGEST])


def _mutate(content: bytearray, chance: random.Random, reader: Reader) -> None:
    at = chance.randrange(len(content) + 1)
    end = min(len(content), at + chance.choice((1, 2, 4, 8, 30, 200)))
    kind = chance.randrange(10)
    word = chance.choice((*reader.words, *_COMMON))
    if kind == 0 and content:
        content[min(at, len(content) - 1)] = chance.randrange(256)
    elif kind == 1 and content:
        content[min(at, len(content) - 1)] ^= 1 << chance.randrange(8)
    elif kind == 2:
        del content[at:end]
    elif kind == 3:
        content[at:at] = content[at:end] * chance.choice((1, 2, 10))
    elif kind in (4, 5):
        content[at:at] = word
    elif kind == 6:
        content[at:end] = word
    elif kind == 7:
        other = chance.choice(reader.seeds)
        start = chance.randrange(len(other) + 1)
        content[at:end] = other[start : start + chance.choice((10, 100, 1000))]
    elif kind == 8:
        del content[at:]
    elif chance.random() < 0.2:  # deep or long, seldom: one such input takes as long as a hundred others
        content[at:at] = word * chance.choice((100, 1000, 5000))
