"""A tensor as it passes through the server: its type, its shape, and its bytes, which nobody on the way unpacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servewright.backends.tfserving import dtypes

STRING: Final = 7
FLOAT: Final = 1

# Bytes per element of the types whose elements have a fixed size.
WIDTHS: Final = {
    1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 11: 1, 12: 1, 13: 4, 14: 2, 15: 2, 16: 2, 17: 2, 18: 16,
    19: 2, 22: 4, 23: 8,
}  # fmt: skip

# The names that TensorFlow's messages use.
TYPE_NAMES: Final = {
    1: "float", 2: "double", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64", 9: "int64",
    10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16", 17: "uint16",
    18: "complex128", 19: "half", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """``data`` is the elements' bytes in row order, or for strings a list of bytes."""

    dtype: int
    shape: tuple[int, ...]
    data: Any

    @property
    def size(self) -> int:
        """How many elements there are."""
        return math.prod(self.shape)


_MOST_DIMENSIONS: Final = 254
_MOST_ELEMENTS: Final = (1 << 63) - 1


def is_shape(shape: Sequence[int]) -> bool:
    """Tell whether TensorFlow can have a tensor of ``shape``; its library ends the process over one that it cannot."""
    if len(shape) > _MOST_DIMENSIONS:
        return False
    elements = 1
    for size in shape:
        elements *= size
        if size < 0 or elements > _MOST_ELEMENTS:
            return False
    return True


def type_name(number: int) -> str:
    """Return how TensorFlow's messages call a DataType."""
    return TYPE_NAMES.get(number, "float_ref" if number == 101 else f"unknown dtype enum ({number})")


def to_array(tensor: Tensor) -> NDArray[Any]:
    """Return a view of a tensor as an array; strings are objects of bytes."""
    if tensor.dtype == STRING:
        array = np.empty(tensor.size, object)
        array[:] = tensor.data
        return array.reshape(tensor.shape)
    dtype = dtypes.kind_numbered(tensor.dtype).dtype
    return np.frombuffer(tensor.data, dtype).reshape(tensor.shape)


def from_array(array: NDArray[Any], dtype: int) -> Tensor:
    """Return an array as a tensor of the DataType ``dtype``."""
    if dtype == STRING:
        return Tensor(dtype, array.shape, array.reshape(-1).tolist())
    return Tensor(dtype, array.shape, array.tobytes())
