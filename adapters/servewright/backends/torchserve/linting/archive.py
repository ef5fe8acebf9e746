"""Checks of a ``.mar``: proved safe first, then read member by member, never unpacked."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from servewright.archive_check import Limits, check_archive
from servewright.backends.torchserve.archive import MANIFEST
from servewright.backends.torchserve.linting import archive_rules as rules
from servewright.backends.torchserve.linting import handler, manifest, model_config
from servewright.errors import InputError
from servewright.linting import suppressions
from servewright.linting.finding import Finding
from servewright.linting.linter import BinaryKind, Context, Follow, Found
from servewright.linting.rule import Rule
from servewright.linting.sources import Source
from servewright.zip_format import STORED, Indexed, read_index

if TYPE_CHECKING:
    from servewright.modelfiles.pickles import Import

_WEIGHTS: Final = (".pt", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt")
_ZIP: Final = b"PK\3\4"
# How a pickle of protocol 2 to 5 begins, or a zip that may hold some, whatever the file is called.
_STARTS: Final = (_ZIP, b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
_LEGACY: Final = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number as a pickle writes it
_HEAD: Final = 64
_MOST_IMPORTS: Final = 10_000
_LARGEST_TEXT: Final = 4 << 20
_LARGEST_PACKED: Final = 512 << 20


def recognise(path: Path, head: bytes) -> bool:
    """Tell whether a file is a model archive: its name says so."""
    return path.suffix.lower() == ".mar"


def check(path: Path, name: str, context: Context) -> Found:
    """Check an archive's form, and where that is sound its manifest, settings, handler and weights."""
    try:
        found = check_archive(path)
    except InputError as error:
        yield rules.NO_ZIP.on(name, 1, 1, str(error))
        return
    for finding in found:
        yield rules.OF_CHECK.get(finding.rule, rules.HIDDEN).on(name, 1, 1, str(finding))
    if found:
        return
    with zipfile.ZipFile(path) as archive:
        model = yield from _members(archive, path, name, context)
    yield from _pickles(path, name, model.get("serializedFile", ""))


def _members(
    archive: zipfile.ZipFile, path: Path, name: str, context: Context
) -> Generator[Finding | Follow, None, dict[str, str]]:
    """Check what the manifest names, and return what it says of the model."""
    sizes = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}

    def text(member: str) -> Source | None:
        if sizes.get(member, _LARGEST_TEXT + 1) > _LARGEST_TEXT:
            return None
        return Source(f"{name}!/{member}", path, archive.read(member).decode("utf-8", "replace"))

    described = text(MANIFEST)
    model: dict[str, str] = {}
    if described is None:
        yield rules.MISSING_MANIFEST.on(name, 1, 1)
    else:
        yield from manifest.checked(described, sizes)
        model = _model(described)
    config = model.get("configFile", "")
    if config and (source := text(config)):
        yield from _kept(source, model_config.check(source, context))
    entry, _, function = model.get("handler", "").partition(":")
    file = entry if entry in sizes else f"{entry}.py"
    if entry and (source := text(file)) and file.endswith(".py"):
        yield from _kept(source, handler.checked(source, sizes, function=function))
    for module in sorted(_modules(sizes)):
        for member in (f"{module}.py", f"{module}/__init__.py"):
            if member in sizes and member != file:
                yield rules.HIDES_LIBRARY.on(f"{name}!/{member}", 1, 1, member)
    return model


def _modules(sizes: Collection[str]) -> set[str]:
    """Return the modules and packages at the archive's root that have the names of others."""
    tops = {member.partition("/")[0] for member in sizes}
    return {top.removesuffix(".py") for top in tops if handler.hides(top.removesuffix(".py"))}


def _kept(source: Source, found: Iterator[Finding | Follow]) -> Iterator[Finding]:
    known = {rule.id for rule in _all_rules()}
    yield from suppressions.apply(source, [item for item in found if isinstance(item, Finding)], known)


def _all_rules() -> list[Rule]:
    from servewright.backends.torchserve.linting import rules as text_rules

    return [*rules.RULES, *text_rules.RULES]


def _model(source: Source) -> dict[str, str]:
    import json

    try:
        model = json.loads(source.text).get("model")
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {key: value for key, value in model.items() if isinstance(value, str)} if isinstance(model, dict) else {}


def _pickles(path: Path, name: str, serialized: str) -> Iterator[Finding]:
    """Walk the opcodes of every file of weights, and of whatever else is a pickle; none is read as one."""
    with FileIO(path) as file:
        for member in read_index(file, most_members=Limits().members).members:
            if member.is_directory:
                continue
            named = member.name.lower().endswith(_WEIGHTS) or member.name == serialized
            with _content(file, member) as stream:
                head = stream.read(_HEAD)
                stream.seek(0)
                if not named and not head.startswith(_STARTS):
                    continue
                try:
                    strange = _strange(stream, member.size, head)
                except Exception as error:  # noqa: BLE001  (any broken pickle: that it cannot be walked is the finding)
                    # Of what is not called weights, nobody said that it is a pickle.
                    if named and not _other_format(member.name):
                        yield rules.PICKLE.on(f"{name}!/{member.name}", 1, 1, f"it cannot be walked ({error})")
                    continue
            if strange:
                first = strange[0]
                more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
                what = f"it imports {first.name}{more}, which {first.danger}"
                yield rules.PICKLE.on(f"{name}!/{member.name}", 1, 1, what)


def _other_format(name: str) -> bool:
    """Tell whether a file of weights is by its name one of a format that holds no pickles."""
    return name.lower().endswith((".onnx", ".safetensors", ".so", ".pt2", ".engine", ".plan"))


def _strange(stream: BinaryIO, size: int, head: bytes) -> list[Import]:
    """Return what a file imports beside weights; raise where it cannot be walked."""
    from servewright.modelfiles import pickles, zips

    if head.startswith(_ZIP):
        with zips.opened(stream) as archive:
            # The one name by which torch.load hands a file to its reader in C++, where a pickle builds its own
            # classes alone.
            if f"{zips.root(archive)}constants.pkl" in archive.namelist():
                return []
            found = pickles.archive_imports(archive)
    elif _LEGACY in head:  # torch before 1.6: five pickles, then the bytes of the storages
        found = tuple(item for _ in range(5) for item in pickles.imports(stream))
    else:
        found = ()
        while stream.tell() < size:
            found += pickles.imports(stream)
            if len(found) > _MOST_IMPORTS:
                raise ValueError(f"it imports more than {_MOST_IMPORTS} things")
    return [item for item in found if not item.plain]


@contextmanager
def _content(file: FileIO, member: Indexed) -> Iterator[BinaryIO]:
    """Open a member's content; a stored one is read where it lies, however large, others are unpacked in memory."""
    start = member.content_offset(file)
    if member.method == STORED:
        with io.BufferedReader(_Part(file, start, member.size)) as stream:
            yield stream
    else:
        # No further than what a file of weights may have; the archive's own check has seen that it is not a bomb.
        file.seek(start)
        packed = file.read(min(member.packed, _LARGEST_PACKED)) or b""
        yield io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _LARGEST_PACKED))


class _Part(io.RawIOBase):
    """Some bytes of a file, as a file of their own."""

    def __init__(self, file: FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(self._size - self._at, 0)]
        self._file.seek(self._start + self._at)
        count = self._file.readinto(view) or 0
        self._at += count
        return count


KIND: Final = BinaryKind(name="mar", title="a model archive (.mar)", recognise=recognise, check=check)
