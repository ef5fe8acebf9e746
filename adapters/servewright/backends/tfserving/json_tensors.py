"""numpy arrays to the JSON of TensorFlow Serving's REST API and back.

Finite numbers go through orjson, which reads numpy's memory itself. NaN and Infinity, which the server takes and gives
as bare words and JSON does not have, go through the standard library, as do strings that are not UTF-8.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from servewright.backends.tfserving.dtypes import TensorError, kind_named, numpy_dtype

Array = NDArray[Any]

_FITTING = {"b": "b", "i": "iu", "u": "iu"}  # the kinds of JSON numbers that fit a dtype's kind; floats take all


def encode_predict(inputs: Mapping[str, ArrayLike], signature: str = "") -> bytes:
    """Return the body of a Predict request in column form; raise `TensorError` for what JSON cannot say."""
    parts = [b'"signature_name":' + orjson.dumps(signature)] if signature else []
    columns = []
    for name, array in inputs.items():
        try:
            columns.append(orjson.dumps(name) + b":" + encode_array(array))
        except TensorError as error:
            raise TensorError(f"tensor {name!r}: {error}", tensor=name) from error
    parts.append(b'"inputs":{' + b",".join(columns) + b"}")
    return b"{" + b",".join(parts) + b"}"


def encode_array(array: ArrayLike) -> bytes:
    """Return ``array`` as nested JSON lists, strings as base64 objects."""
    array = np.asarray(array)
    if array.dtype.kind in "OSUT":
        return orjson.dumps(_nested(array.shape, map(_base64_object, array.reshape(-1).tolist())))
    kind_named(array.dtype.name)
    if array.dtype.kind == "c":
        raise TensorError("JSON has no complex numbers; use gRPC")
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return json.dumps(array.tolist(), separators=(",", ":")).encode()
    if not array.ndim:
        return orjson.dumps(array.item())
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return orjson.dumps(native, option=orjson.OPT_SERIALIZE_NUMPY)


def parse(body: bytes) -> Any:
    """Return the content of an answer; raise `ValueError` if it is none.

    Bytes that are not UTF-8 inside strings come out as surrogates, as of `os.fsdecode`.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body.decode("utf-8", "surrogateescape"))


def decode_predict(answer: Any, dtypes: Mapping[str, str]) -> dict[str, Array]:
    """Return the outputs of an answer in column form, each of its dtype; raise `TensorError` where it does not fit."""
    if not isinstance(answer, dict) or "outputs" not in answer:
        raise TensorError("the answer has no 'outputs'")
    outputs = answer["outputs"]
    if len(dtypes) == 1:  # the only output stands without its name
        (name,) = dtypes
        outputs = {name: outputs}
    if not isinstance(outputs, dict) or set(outputs) != set(dtypes):
        found = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise TensorError(f"the answer has {found}, the signature {sorted(dtypes)}")
    arrays = {}
    for name, value in outputs.items():
        try:
            arrays[name] = decode_array(value, dtypes[name])
        except (TensorError, ValueError, TypeError, OverflowError) as error:
            raise TensorError(f"tensor {name!r}: {error}", tensor=name) from error
    return arrays


def decode_array(value: Any, dtype: str) -> Array:
    """Return nested lists of JSON as an array of ``dtype``.

    Raises `TensorError`, or numpy's `ValueError`, `TypeError` or `OverflowError`, where they are none.
    """
    if dtype == "string":
        strings = np.asarray(value, dtype=object)
        decoded = np.empty(strings.size, object)
        decoded[:] = [_bytes(item) for item in strings.reshape(-1).tolist()]
        return decoded.reshape(strings.shape)
    wanted = numpy_dtype(dtype)
    array = np.asarray(value)
    if dtype == "uint64" and array.dtype.kind == "f":  # what numpy makes of numbers on both sides of 2**63
        array = np.array(value, wanted)
    if array.size and array.dtype.kind not in _FITTING.get(wanted.kind, "iuf"):
        raise TensorError(f"not {dtype}: {str(value)[:60]}")
    found = array.astype(wanted, copy=False)
    if wanted.kind in "iu" and not np.array_equal(found, array):
        raise TensorError(f"beyond {dtype}: {str(value)[:60]}")
    return found


def _nested(shape: tuple[int, ...], values: Iterable[Any]) -> Any:
    flat = np.empty(math.prod(shape), object)
    flat[:] = list(values)
    return flat.reshape(shape).tolist()


def _base64_object(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise TensorError(f"a tensor of strings holds bytes or str alone, not {type(value).__name__}")
    return {"b64": base64.b64encode(value).decode()}


def _bytes(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", "surrogateescape")
    if isinstance(item, dict) and isinstance(encoded := item.get("b64"), str):
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error as error:
            raise TensorError(f"broken base64: {encoded[:60]!r}") from error
    raise TensorError(f"not a string: {str(item)[:60]}")
