"""What a pickle would import when it is read, found without reading it.

A pickle is a program: reading it imports what it names and calls it. The scanner walks the opcodes with a stack on
which only texts have a value, so the names of every import are known; where a name is computed, it is unknown,
and what is unknown is refused. torch's own weights-only reader stays the guard when a file is loaded: the scanner
says why before anything is loaded, and covers the readers that have no such guard.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from servewright.errors import ModelFileError, UntrustedPickleError
from servewright.modelfiles import zips

_ZIP = b"PK\x03\x04"  # by which torch.load tells its two forms apart
MAX_BYTES = 512 << 20
_UNKNOWN = "a name that is computed while reading"
# What torch.load(weights_only=True) allows as well; none of these runs what a file says.
_PLAIN = frozenset(
    {
        "_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set",
        "__builtin__.bytearray", "__builtin__.complex", "__builtin__.set",
        "collections.Counter", "collections.OrderedDict",
        "torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter", "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2", "torch.storage.TypedStorage", "torch.storage.UntypedStorage",
    }
)  # fmt: skip
_PLAIN_PATTERN = re.compile(
    r"torch\.(cuda\.)?(sparse\.)?(BFloat16|Bool|Byte|Char|ComplexDouble|ComplexFloat|Double|Float|Half|Int|Long|Short|"
    r"QInt32|QInt8|QUInt2x4|QUInt4x2|QUInt8)(Storage|Tensor)"
    r"|torch\.(b?float\d+\w*|q?u?int\d+(x\d+)?|complex\d+|bool|bits\d+(x\d+)?|per_(tensor|channel)_\w+)"
    r"|torch\._utils\._rebuild_(device_tensor_from_(cpu_tensor|numpy)|meta_tensor_no_storage|nested_tensor|parameter|"
    r"parameter_with_state|qtensor|sparse_tensor|tensor|tensor_v2|tensor_v3|wrapper_subclass)"
)
_COMMANDS = re.compile(r"(os|posix|nt|subprocess|pty|shutil|socket|ctypes|runpy|importlib|sys|code|webbrowser)\b")
_EVALUATES = re.compile(r"(builtins|__builtin__)\.(eval|exec|execfile|compile|__import__|open|getattr|setattr)\b")
# The last three: a zip with a method, a password or packed bytes that Python cannot read.
_FORMAT_ERRORS = (
    ValueError, IndexError, KeyError, OverflowError, UnicodeError, AttributeError, MemoryError, NotImplementedError,
    RuntimeError, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Import:
    """Something that a pickle imports, and the byte at which it does."""

    name: str
    position: int

    @property
    def plain(self) -> bool:
        """Whether it only rebuilds weights and containers."""
        return self.name in _PLAIN or _PLAIN_PATTERN.fullmatch(self.name) is not None

    @property
    def danger(self) -> str:
        """What reading it would do, in words."""
        if _COMMANDS.match(self.name):
            return "can run any command on this machine"
        if _EVALUATES.match(self.name):
            return "can run any Python code"
        if self.name == _UNKNOWN:
            return "hides what it imports"
        return f"runs the code of {self.name.partition('.')[0]!r} with arguments from the file"


def imports(stream: IO[bytes], *, limit: int = MAX_BYTES) -> tuple[Import, ...]:
    """Return what the pickle at the stream's position imports, once each, and leave the stream behind its end.

    Raises `ValueError` for what is not a pickle, is cut off, or is longer than ``limit`` bytes.
    """
    start = stream.tell()
    found: dict[str, Import] = {}
    for name, position in _walk(stream, start + limit):
        found.setdefault(name, Import(name, position))
    return tuple(found.values())


def torch_imports(path: Path) -> tuple[Import, ...]:
    """Return what a file of ``torch.save`` imports, in the zip form and the one before torch 1.6."""
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) == _ZIP:
                with zips.opened(file) as archive:
                    return archive_imports(archive)
            file.seek(0)
            # A number, a version, a description of the machine, the object, and the keys of its storages.
            return tuple(found for _ in range(5) for found in imports(file))
    except (OSError, EOFError, zipfile.BadZipFile, *_FORMAT_ERRORS) as error:
        raise ModelFileError(f"{path} is broken: {error}; it was cut off: write or download it again") from error


def archive_imports(archive: zipfile.ZipFile) -> tuple[Import, ...]:
    """Return what each ``*.pkl`` of a torch archive imports; raise `ValueError` where one is no pickle."""
    found: list[Import] = []
    for entry in archive.infolist():
        if entry.filename.endswith(".pkl"):
            if entry.file_size > MAX_BYTES:
                raise ValueError(f"{entry.filename} has {entry.file_size} bytes, more than {MAX_BYTES} of a pickle")
            with archive.open(entry) as member:
                found += imports(io.BytesIO(member.read(MAX_BYTES)))
    return tuple(found)


def torch_file_imports(content: bytes) -> tuple[Import, ...]:
    """Return what the bytes of a file import that ``torch.load`` or ``pickle.loads`` would read."""
    if content.startswith(_ZIP):
        with zips.opened(io.BytesIO(content)) as archive:
            return archive_imports(archive)
    stream = io.BytesIO(content)
    found: list[Import] = []
    while stream.tell() < len(content):
        found += imports(stream)
        if len(found) > 10_000:
            raise ValueError("it imports more than 10000 things")
    return tuple(found)


def refuse_strangers(path: Path, found: tuple[Import, ...], *, remedy: str) -> None:
    """Raise `UntrustedPickleError` where an import is more than weights; says which, why, and what to do."""
    strange = sorted((item for item in found if not item.plain), key=lambda item: not _COMMANDS.match(item.name))
    if not strange:
        return
    worst = strange[0]
    others = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
    raise UntrustedPickleError(
        f"{path}: reading it would import {worst.name}{others}, which {worst.danger}; "
        f"{remedy}, or give --trust to run it, if you know who wrote it"
    )


def _walk(stream: IO[bytes], end: int) -> Iterator[tuple[str, int]]:
    """Yield (name, position) of each import, keeping only texts on a stack that is otherwise of unknowns."""
    stack: list[object] = []
    memo: dict[int, object] = {}
    position = 0
    for opcode, argument, at in pickletools.genops(stream):
        position = at or 0
        if position > end:
            raise ValueError(f"the pickle is longer than {end} bytes")
        code = opcode.name
        if code in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".", 1), position
        elif code == "STACK_GLOBAL":
            module, name = stack[-2:] if len(stack) > 1 else (None, None)
            known = isinstance(module, str) and isinstance(name, str)
            yield f"{module}.{name}" if known else _UNKNOWN, position
        elif code.startswith("EXT"):
            yield f"copyreg extension {argument}", position
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            if stack:
                memo[int(argument or 0)] = stack[-1]
            continue
        elif code == "MEMOIZE":
            if stack:
                memo[len(memo)] = stack[-1]
            continue
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(int(argument or 0)))
            continue
        elif code == "DUP":
            stack.append(stack[-1] if stack else None)
            continue
        _apply(opcode, argument, stack)


_MARK = object()
_TEXTS = frozenset(
    {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
)


def _apply(opcode: pickletools.OpcodeInfo, argument: object, stack: list[object]) -> None:
    takes = opcode.stack_before
    if pickletools.markobject in takes:
        while stack and stack.pop() is not _MARK:
            pass
        below = takes.index(pickletools.markobject)
    else:
        below = len(takes)
    if below:
        del stack[-below:]
    for item in opcode.stack_after:
        if item is pickletools.markobject:
            stack.append(_MARK)
        else:
            stack.append(argument if opcode.name in _TEXTS else None)
