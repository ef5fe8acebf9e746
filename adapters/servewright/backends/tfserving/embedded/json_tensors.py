"""The tensors of a REST request, and the real server's words for every way in which they can be wrong."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servewright.backends.tfserving.embedded.json_reader import LONG_NUMBER, parse
from servewright.backends.tfserving.embedded.json_writer import shown
from servewright.backends.tfserving.embedded.status import Code, StatusError, invalid_argument
from servewright.backends.tfserving.embedded.tensor import STRING, Tensor, is_shape, type_name

_DOUBLE: Final = 2
_BOOL: Final = 10
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


@dataclass(frozen=True, slots=True)
class PredictBody:
    """A Predict request as REST has it: ``row`` tells in which form the answer goes back."""

    signature_name: str
    inputs: Mapping[str, Tensor]
    row: bool


def predict_body(body: bytes, inputs_of: Callable[[str], Mapping[str, int]]) -> PredictBody:
    """Read the body of ``:predict``; ``inputs_of`` returns the DataTypes of a signature's inputs by name.

    Raises `StatusError`.
    """
    document = parse(body)
    name = signature_name(document)
    types = inputs_of(name)
    if not types:
        raise invalid_argument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    plain = b"true" not in body and b"false" not in body
    if _DOUBLE in types.values() and LONG_NUMBER.search(body):
        document = parse(body, precise=True)
    if "instances" in document:
        instances = document["instances"]
        if "inputs" in document:
            raise format_error(
                document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
            )
        if not isinstance(instances, list):
            raise format_error(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise format_error(document, "No values in 'instances' array")
        return PredictBody(name, _checked(_rows(instances, types, plain=plain)), row=True)
    if "inputs" in document:
        return PredictBody(name, _checked(_columns(document["inputs"], types, plain=plain)), row=False)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _checked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not is_shape(tensor.shape):
            raise invalid_argument(f"tensor parsing error: {name}")
    return tensors


def signature_name(document: Any) -> str:
    """Return the signature that a request names, or ``""``; refuse a document that is no object."""
    if not isinstance(document, dict):
        raise format_error(document, "Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise format_error(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def format_error(value: Any, reason: str) -> StatusError:
    """Return an error that shows the JSON value it is about."""
    return invalid_argument(f"JSON Value: {shown(value)} {reason}")


# Column form


def _columns(value: Any, types: Mapping[str, int], *, plain: bool) -> dict[str, Tensor]:
    if not isinstance(value, dict) or is_base64(value):
        if len(types) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        ((name, dtype),) = types.items()
        return {name: _tensor(value, dtype, plain=plain)}
    tensors = {}
    for name, dtype in types.items():
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        tensors[name] = _tensor(value[name], dtype, plain=plain)
    return tensors


def _tensor(value: Any, dtype: int, *, plain: bool) -> Tensor:
    quick = _quick(value, dtype) if plain else None
    if quick is not None:
        return quick
    shape = _dense_shape(value)
    flat: list[Any] = []
    _fill(value, 0, dtype, shape, flat)
    return _packed(flat, dtype, tuple(shape))


# Row form


@dataclass(slots=True)
class _Column:
    """The elements that the rows so far gave to one input."""

    flat: list[Any] = field(default_factory=list)
    size: int = -1
    shape: list[int] = field(default_factory=list)


def _rows(instances: list[Any], types: Mapping[str, int], *, plain: bool) -> dict[str, Tensor]:
    if plain and (quick := _quick_rows(instances, types)) is not None:
        return quick
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = _is_row_object(instances[0])
    columns: dict[str, _Column] = {}
    for at, item in enumerate(instances):
        if named:
            _add_named(item, at, types, columns)
            continue
        if _is_row_object(item):
            raise invalid_argument(f"Expecting value/list but got object at item {at} of input list")
        try:
            _add(item, next(iter(types)), types, columns)
        except StatusError as error:
            raise invalid_argument(f"Failed to process element: {at} of 'instances' list. Error: {error}") from error
    return {
        name: _packed(column.flat, types[name], (len(instances), *column.shape)) for name, column in columns.items()
    }


def _add_named(item: Any, at: int, types: Mapping[str, int], columns: dict[str, _Column]) -> None:
    if not _is_row_object(item):
        raise invalid_argument(f"Expecting object but got list at item {at} of input list")
    for name, value in item.items():
        try:
            _add(value, name, types, columns)
        except StatusError as error:
            raise invalid_argument(
                f"Failed to process element: {at} key: {name} of 'instances' list. Error: {error}"
            ) from error
    if set(item) != set(types):
        raise invalid_argument(
            f"Failed to process element: {at} of 'instances' list. JSON object: {shown(item)} keys must be equal "
            f"to: {','.join(sorted(types))}"
        )


def _add(value: Any, name: str, types: Mapping[str, int], columns: dict[str, _Column]) -> None:
    if name not in types:
        raise invalid_argument(f"JSON object: does not have named input: {name}")
    column = columns.setdefault(name, _Column())
    shape = _dense_shape(value)
    before = len(column.flat)
    _fill(value, 0, types[name], shape, column.flat)
    size = len(column.flat) - before
    if column.size < 0:
        column.size, column.shape = size, shape
    elif column.size != size:
        raise invalid_argument(f"Expecting tensor size: {column.size} but got: {size}")
    elif column.shape != shape:
        raise invalid_argument(f"Expecting shape {_listed(column.shape)} but got: {_listed(shape)}")


def _listed(shape: list[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _is_row_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _quick_rows(instances: list[Any], types: Mapping[str, int]) -> dict[str, Tensor] | None:
    """Return the tensors of rows in which nothing is wrong or unusual; ``None`` means: look closer."""
    if not _is_row_object(instances[0]):
        if len(types) > 1:
            return None
        ((name, dtype),) = types.items()
        tensor = _quick(instances, dtype)
        return None if tensor is None else {name: tensor}
    if any(not isinstance(item, dict) or item.keys() != types.keys() for item in instances):
        return None
    tensors = {}
    for name, dtype in types.items():
        tensor = _quick([item[name] for item in instances], dtype)
        if tensor is None:
            return None
        tensors[name] = tensor
    return tensors


# Elements


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


def _quick(value: Any, dtype: int) -> Tensor | None:
    """Return a regular nested list as a tensor, or ``None`` where each element has to be looked at."""
    if dtype == STRING:
        if isinstance(value, list) and all(type(item) is str for item in value):
            return Tensor(STRING, (len(value),), [item.encode("utf-8", "surrogateescape") for item in value])
        return None
    if dtype not in _FLOATS and dtype not in _INTEGERS:
        return None
    try:
        array = np.array(value)
    except (ValueError, OverflowError, TypeError):
        return None
    kind = array.dtype.kind
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


def _dense_shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def _fill(value: Any, level: int, dtype: int, shape: list[int], flat: list[Any]) -> None:
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
    elif dtype == _BOOL:
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


def _packed(flat: list[Any], dtype: int, shape: tuple[int, ...]) -> Tensor:
    if dtype == STRING:
        return Tensor(dtype, shape, flat)
    if dtype == _BOOL:
        return Tensor(dtype, shape, np.array(flat, np.bool_).tobytes())
    if dtype in _FLOATS:
        tensor = _floats(np.array([float(value) for value in flat], np.float64), dtype)
        return Tensor(dtype, shape, tensor.data)
    if dtype in _INTEGERS:
        (low, _), narrow = _INTEGERS[dtype]
        return Tensor(dtype, shape, np.array(flat, np.int64 if low else np.uint64).astype(narrow).tobytes())
    return Tensor(dtype, shape, b"")
