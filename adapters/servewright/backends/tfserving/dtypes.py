"""What elements a tensor may have: TensorFlow's DataTypes, numpy's dtypes, and how either lies in a message.

Dtypes are called by numpy's names, and ``bfloat16`` and ``string``. bfloat16 is ``ml_dtypes.bfloat16`` where that
package is installed, and else its 16 bits as uint16; strings are object arrays of bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from servewright.backends.tfserving import protos
from servewright.errors import InputError


class TensorError(InputError):
    """An array that no tensor can hold, or a tensor that no array can hold.

    ``tensor`` is its name in the request or answer, where it has one.
    """

    def __init__(self, message: str, *, tensor: str = "") -> None:
        self.tensor = tensor
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Kind:
    """How elements of one DataType lie in memory and in ``TensorProto``'s ``*_val`` fields."""

    number: int
    name: str
    dtype: np.dtype[Any]  # in memory, little-endian as in tensor_content
    field: str
    field_number: int
    packed: Literal["fixed", "varint", "bool", "bits"]


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype("<u2")
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16


_KINDS = (
    Kind(1, "float32", np.dtype("<f4"), "float_val", 5, "fixed"),
    Kind(2, "float64", np.dtype("<f8"), "double_val", 6, "fixed"),
    Kind(3, "int32", np.dtype("<i4"), "int_val", 7, "varint"),
    Kind(4, "uint8", np.dtype("u1"), "int_val", 7, "varint"),
    Kind(5, "int16", np.dtype("<i2"), "int_val", 7, "varint"),
    Kind(6, "int8", np.dtype("i1"), "int_val", 7, "varint"),
    Kind(8, "complex64", np.dtype("<c8"), "scomplex_val", 9, "fixed"),
    Kind(9, "int64", np.dtype("<i8"), "int64_val", 10, "varint"),
    Kind(10, "bool", np.dtype("?"), "bool_val", 11, "bool"),
    Kind(14, "bfloat16", _bfloat16(), "half_val", 13, "bits"),
    Kind(17, "uint16", np.dtype("<u2"), "int_val", 7, "varint"),
    Kind(18, "complex128", np.dtype("<c16"), "dcomplex_val", 12, "fixed"),
    Kind(19, "float16", np.dtype("<f2"), "half_val", 13, "bits"),
    Kind(22, "uint32", np.dtype("<u4"), "uint32_val", 16, "varint"),
    Kind(23, "uint64", np.dtype("<u8"), "uint64_val", 17, "varint"),
)
_BY_NUMBER = {kind.number: kind for kind in _KINDS}
_BY_DTYPE = {kind.dtype: kind for kind in reversed(_KINDS)}  # uint16 is itself, not the bits of bfloat16
_BY_NAME = {kind.name: kind for kind in _KINDS}
STRING = 7

DTYPES: Mapping[str, int] = MappingProxyType({"string": STRING} | {kind.name: kind.number for kind in _KINDS})
"""The DataType number of every dtype that can be sent, by its name."""

_NAMES = {number: name for name, number in DTYPES.items()}


def dtype_name(number: int) -> str:
    """Return the name of a DataType, of a reference type (TensorFlow 1) the name of what it refers to.

    A type that no array has is called as TensorFlow calls it, such as ``resource``.
    """
    number = number - 100 if number > 100 else number
    if name := _NAMES.get(number):
        return name
    values = {value: name for name, value in protos.DataType.items()}
    return str(values.get(number, f"dt_{number}")).removeprefix("DT_").lower()


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of arrays of the dtype ``name``; raise `TensorError` where arrays have no such dtype."""
    return np.dtype(object) if name == "string" else kind_named(name).dtype


def kind_of(dtype: np.dtype[Any]) -> Kind:
    """Return the kind of arrays of ``dtype``, in either byte order; raise `TensorError` where no tensor holds them."""
    return _BY_DTYPE.get(dtype) or kind_named(dtype.name)


def kind_named(name: str) -> Kind:
    """Return the kind of the numeric dtype ``name``; raise `TensorError` where arrays have no such dtype."""
    if kind := _BY_NAME.get(name):
        return kind
    raise TensorError(f"dtype {name} cannot be sent; choose from {', '.join(DTYPES)}")


def kind_numbered(number: int) -> Kind:
    """Return the kind of a numeric DataType; raise `TensorError` where arrays have no such dtype."""
    if kind := _BY_NUMBER.get(number):
        return kind
    raise TensorError(f"a tensor of {dtype_name(number)} cannot be read as an array")
