"""The elements of a REST request's tensors: numbers, texts, truth values and Base64, taken together or one by one."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servewright.backends.tfserving.embedded.json_writer import shown
from servewright.backends.tfserving.embedded.status import Code, StatusError, invalid_argument
from servewright.backends.tfserving.embedded.tensor import STRING, Tensor, type_name

DOUBLE: Final = 2
BOOL: Final = 10
_FLOATS: Final[dict[int, Any]] = {1: np.float32, 2: np.float64}
# What JSON numbers must fit in, and what they become: narrow types take any int32 and wrap.
_INT32, _INT64 = (-(1 << 31), (1 << 31) - 1), (-(1 << 63), (1 << 63) - 1)
_INTEGERS: Final[dict[int, tuple[tuple[int, int], Any]]] = {
    3: (_INT32, np.int32),
    4: (_INT32, np.uint8),
    5: (_INT32, np.int16),
    6: (_INT32, np.int8),
    9: (_INT64, np.int64),
    22: ((0, (1 << 32) - 1), np.uint32),
    23: ((0, (1 << 64) - 1), np.uint64),
}


def is_base64(value: Any) -> bool:
    """Tell whether ``value`` is ``{"b64": "..."}``."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(value: Any) -> bytes:
    """Return the bytes of ``{"b64": "..."}``; raise `StatusError`."""
    if not is_base64(value):
        raise invalid_argument(f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    text = value["b64"].encode("utf-8", "surrogateescape").translate(None, b" \t\n\r\v\f")
    if b"=" not in text:
        text += b"=" * (-len(text) % 4)  # padding may be left out
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise invalid_argument("Unable to base64 decode") from error


def quick_tensor(value: Any, dtype: int) -> Tensor | None:
    """Return a regular nested list as a tensor, or ``None`` where each element has to be looked at."""
    if dtype == STRING:
        if isinstance(value, list) and all(type(item) is str for item in value):
            return Tensor(STRING, (len(value),), [item.encode("utf-8", "surrogateescape") for item in value])
        return None
    if dtype not in _FLOATS and dtype not in _INTEGERS and dtype != BOOL:
        return None
    try:
        array = np.array(value)
    except (ValueError, OverflowError, TypeError):
        return None
    kind = array.dtype.kind
    if dtype == BOOL:
        return Tensor(dtype, array.shape, array.tobytes()) if kind == "b" else None
    if dtype in _FLOATS:
        return _floats(array, dtype) if kind in "fiu" else None
    bounds, narrow = _INTEGERS[dtype]
    if array.size and (kind not in "iu" or int(array.min()) < bounds[0] or int(array.max()) > bounds[1]):
        return None
    return Tensor(dtype, array.shape, array.astype(narrow).tobytes())


def _floats(array: NDArray[Any], dtype: int) -> Tensor:
    """Return numbers as float or double; denormal ones are zeros, as on the real server's REST threads."""
    kind = _FLOATS[dtype]
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float64).astype(kind)
    small = np.abs(narrow) < np.finfo(kind).tiny
    if small.any():
        narrow = np.where(small, np.copysign(kind(0), narrow), narrow)
    return Tensor(dtype, array.shape, narrow.tobytes())


def dense_shape(value: Any) -> list[int]:
    """Return the shape that nested lists have if all are as long as the first of their level."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def fill(value: Any, level: int, dtype: int, shape: list[int], flat: list[Any]) -> None:
    """Append the elements of ``value`` to ``flat``, in the order and with the complaints of the real server."""
    rank = len(shape)
    waiting = [(value, level)]
    while waiting:
        item, depth = waiting.pop()
        if not isinstance(item, list):
            if depth != rank:
                raise invalid_argument(
                    f"JSON Value: {shown(item)} found at incorrect level: {depth + 1} in the JSON DOM. "
                    f"Expected at level: {rank}"
                )
            flat.append(_element(item, dtype))
            continue
        if depth >= rank:
            raise invalid_argument(f"Encountered list at unexpected level: {depth} expected < {rank}")
        if len(item) != shape[depth]:
            raise invalid_argument(
                f"Encountered list at unexpected size: {len(item)} at level: {depth} expected size: {shape[depth]}"
            )
        waiting += [(inner, depth + 1) for inner in reversed(item)]


def _element(value: Any, dtype: int) -> Any:
    if isinstance(value, dict):
        if dtype == STRING:
            return decode_base64(value)
        raise _type_error(value, dtype)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype in _FLOATS:
        fits = number
    elif dtype in _INTEGERS:
        low, high = _INTEGERS[dtype][0]
        fits = number and isinstance(value, int) and low <= value <= high
    elif dtype == STRING:
        if isinstance(value, str):
            return value.encode("utf-8", "surrogateescape")
        fits = False
    elif dtype == BOOL:
        fits = isinstance(value, bool)
    else:
        raise StatusError(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {shown(value)} to type: {type_name(dtype)}")
    if not fits:
        raise _type_error(value, dtype)
    return value


def _type_error(value: Any, dtype: int) -> StatusError:
    return invalid_argument(
        f"JSON Value: {shown(value)} Type: {json_type(value)} is not of expected type: {type_name(dtype)}"
    )


def json_type(value: Any) -> str:
    """Return RapidJSON's name of the type of a value."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return "True" if value else "False"
    for kind, name in ((dict, "Object"), (list, "Array"), (str, "String")):
        if isinstance(value, kind):
            return name
    return "Number"


def packed(flat: list[Any], dtype: int, shape: tuple[int, ...]) -> Tensor:
    """Return checked elements as a tensor."""
    if dtype == STRING:
        return Tensor(dtype, shape, flat)
    if dtype == BOOL:
        return Tensor(dtype, shape, np.array(flat, np.bool_).tobytes())
    if dtype in _FLOATS:
        tensor = _floats(np.array([float(value) for value in flat], np.float64), dtype)
        return Tensor(dtype, shape, tensor.data)
    if dtype in _INTEGERS:
        (low, _), narrow = _INTEGERS[dtype]
        return Tensor(dtype, shape, np.array(flat, np.int64 if low else np.uint64).astype(narrow).tobytes())
    return Tensor(dtype, shape, b"")
