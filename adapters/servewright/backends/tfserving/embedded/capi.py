"""TensorFlow's C library, called without Python's TensorFlow.

The library is the one inside the ``tensorflow`` package: the SavedModel loader and the session are the same C++ as
in ``tensorflow_model_server``, so errors read the same. It is there in half a second where ``import tensorflow``
takes many, and one call of a small model costs a fifth of a signature function's.
"""

from __future__ import annotations

import ctypes as c
import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from servewright.backends.tfserving.embedded.status import Code, StatusError
from servewright.errors import MissingExtraError

_P = c.c_void_p
_SMALL = 22  # bytes that a TF_TString holds inside itself
STRING_WIDTH = 24  # bytes of a TF_TString


class Buffer(c.Structure):
    """TF_Buffer."""

    _fields_ = (("data", _P), ("length", c.c_size_t), ("deallocator", _P))


class Output(c.Structure):
    """TF_Output: one output of an operation of a graph."""

    _fields_ = (("operation", _P), ("index", c.c_int))


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_Version": (c.c_char_p, ()),
    "TF_NewStatus": (_P, ()),
    "TF_DeleteStatus": (None, (_P,)),
    "TF_GetCode": (c.c_int, (_P,)),
    "TF_Message": (c.c_char_p, (_P,)),
    "TF_NewSessionOptions": (_P, ()),
    "TF_DeleteSessionOptions": (None, (_P,)),
    "TF_SetConfig": (None, (_P, c.c_char_p, c.c_size_t, _P)),
    "TF_NewGraph": (_P, ()),
    "TF_DeleteGraph": (None, (_P,)),
    "TF_NewBuffer": (c.POINTER(Buffer), ()),
    "TF_NewBufferFromString": (c.POINTER(Buffer), (c.c_char_p, c.c_size_t)),
    "TF_DeleteBuffer": (None, (_P,)),
    "TF_LoadSessionFromSavedModel": (_P, (_P, _P, c.c_char_p, _P, c.c_int, _P, _P, _P)),
    "TF_CloseSession": (None, (_P, _P)),
    "TF_DeleteSession": (None, (_P, _P)),
    "TF_GraphOperationByName": (_P, (_P, c.c_char_p)),
    "TF_OperationNumOutputs": (c.c_int, (_P,)),
    "TF_SessionRun": (None, (_P, _P, _P, _P, c.c_int, _P, _P, c.c_int, _P, c.c_int, _P, _P)),
    "TF_AllocateTensor": (_P, (c.c_int, _P, c.c_int, c.c_size_t)),
    "TF_NewTensor": (_P, (c.c_int, _P, c.c_int, _P, c.c_size_t, _P, _P)),
    "TF_DeleteTensor": (None, (_P,)),
    "TF_TensorType": (c.c_int, (_P,)),
    "TF_NumDims": (c.c_int, (_P,)),
    "TF_Dim": (c.c_int64, (_P, c.c_int)),
    "TF_TensorByteSize": (c.c_size_t, (_P,)),
    "TF_TensorData": (_P, (_P,)),
    "TF_StringCopy": (None, (_P, c.c_char_p, c.c_size_t)),
    "TF_StringDealloc": (None, (_P,)),
}


class Library:
    """The functions of the library, by name."""

    def __init__(self, folder: Path) -> None:
        suffix = "2.dylib" if sys.platform == "darwin" else "so.2"
        # Loaded for ourselves alone: the library has an OpenSSL of its own, over which Python's would stumble.
        paths = [folder / f"libtensorflow_{part}.{suffix}" for part in ("framework", "cc")]
        libraries = [c.CDLL(str(path), mode=c.RTLD_LOCAL) for path in paths]
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(libraries[-1], name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("TF_"), function)
        # Quick calls keep the interpreter's lock: giving it up costs more than they do.
        holding = c.PyDLL(str(paths[-1]), mode=c.RTLD_LOCAL)
        for name in _QUICK:
            function = getattr(holding, name)
            function.restype, function.argtypes = _FUNCTIONS[name]
            setattr(self, name.removeprefix("TF_"), function)
        # A function of C that may be called in place of a deallocator and does nothing.
        self.nothing = c.cast(c.CDLL(None).getpid, _P)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


_QUICK = (
    "TF_GetCode", "TF_Message", "TF_AllocateTensor", "TF_NewTensor", "TF_DeleteTensor", "TF_TensorType", "TF_NumDims",
    "TF_Dim", "TF_TensorByteSize", "TF_TensorData", "TF_StringCopy", "TF_StringDealloc",
)  # fmt: skip


@cache
def library() -> Library:
    """Return TensorFlow's C library; raise `MissingExtraError` where the package is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what fails is in the status of the call
    # The real server computes without oneDNN's kernels; theirs differ in last digits and in errors' words.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    spec = find_spec("tensorflow")
    for place in (spec and spec.submodule_search_locations) or ():
        try:
            return Library(Path(place))
        except OSError as error:
            raise MissingExtraError(f"tensorflow's C library ({error})", "tensorflow", "the embedded server") from error
    raise MissingExtraError("tensorflow", "tensorflow", "the embedded server")


def version() -> str:
    """Return TensorFlow's version."""
    text: bytes = library().Version()
    return text.decode()


class Status:
    """A TF_Status that turns into a `StatusError`."""

    __slots__ = ("pointer",)

    def __init__(self) -> None:
        self.pointer = library().NewStatus()

    def check(self) -> None:
        """Raise what the last call left here, if it failed."""
        tf = library()
        if code := tf.GetCode(self.pointer):
            text = tf.Message(self.pointer).decode(errors="replace")
            raise StatusError(Code(code) if code in Code._value2member_map_ else Code.UNKNOWN, text)

    def __del__(self) -> None:
        library().DeleteStatus(self.pointer)


def string_bytes(values: list[bytes], into: Any) -> list[int]:
    """Write ``values`` as TF_TStrings to the address ``into``; return the addresses that need `free_strings`."""
    tf = library()
    if all(len(value) <= _SMALL for value in values):
        packed = b"".join([bytes((len(value) << 2,)) + value.ljust(_SMALL + 1, b"\0") for value in values])
        c.memmove(into, packed, len(packed))
        return []
    c.memset(into, 0, STRING_WIDTH * len(values))
    places = [into + STRING_WIDTH * index for index in range(len(values))]
    for place, value in zip(places, values, strict=True):
        tf.StringCopy(place, value, len(value))
    return [place for place, value in zip(places, values, strict=True) if len(value) > _SMALL]


def free_strings(places: list[int]) -> None:
    """Free what `string_bytes` took."""
    tf = library()
    for place in places:
        tf.StringDealloc(place)


def read_strings(address: int, count: int) -> list[bytes]:
    """Return the ``count`` TF_TStrings at ``address``."""
    raw = c.string_at(address, STRING_WIDTH * count)
    values = []
    for at in range(0, len(raw), STRING_WIDTH):
        kind = raw[at] & 3
        if kind == 0:  # small: the length in the first byte, then the text
            values.append(raw[at + 1 : at + 1 + (raw[at] >> 2)])
            continue
        word = int.from_bytes(raw[at : at + 8], "little")
        if kind == 2:  # offset: 32 bits of length, 32 bits of distance from here
            size, distance = (word & 0xFFFF_FFFF) >> 2, word >> 32
            values.append(c.string_at(address + at + distance, size))
        else:  # large: length, capacity, pointer; view: length, pointer
            pointer_at = at + (16 if kind == 1 else 8)
            values.append(c.string_at(int.from_bytes(raw[pointer_at : pointer_at + 8], "little"), word >> 2))
    return values
