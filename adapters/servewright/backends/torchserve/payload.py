"""Tensors as the handlers of servewright read and write them: the client's half of ``docs/handlers.md``.

Arrays in, bytes out, and back; nothing here talks to a server. Every form copies whole arrays and never visits
single elements. Over HTTP the form is told by headers, over gRPC by further fields of the request.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from io import BytesIO
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

import numpy as np
import orjson

from servewright.errors import InputError, ProbeError, ServerAnswerError

JSON: Final = "application/json"
NPY: Final = "application/x-npy"
RAW: Final = "application/octet-stream"
FRAME: Final = "application/x-safetensors"
ERROR_MAGIC: Final = b"SERVEWRIGHT-ERROR\n"
"""What an error over gRPC begins with; no other form can begin so."""

Form = Literal["raw", "json", "npy"]
Arrays = Mapping[str, np.ndarray]

_FRAME_DTYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
        "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F16": "float16", "F32": "float32",
        "F64": "float64", "BF16": "bfloat16",
    }
)  # fmt: skip
_FRAME_CODES: Final[Mapping[str, str]] = MappingProxyType({name: code for code, name in _FRAME_DTYPES.items()})


def encode_http(inputs: Arrays, form: Form = "raw") -> tuple[bytes, dict[str, str]]:
    """Return a request's body and headers; the answer is asked for in a binary form unless ``form`` is json.

    ``raw`` sends one input as its bytes, and several as a safetensors frame; ``npy`` can hold one input only.
    """
    arrays = {name: _sendable(name, array) for name, array in inputs.items()}
    if form == "json":
        return _to_json(arrays), {"Content-Type": JSON, "Accept": JSON}
    if form == "npy":
        name, array = _only(arrays)
        return _to_npy(array), {"Content-Type": NPY, "X-Tensor-Name": _quoted(name), "Accept": f"{NPY}, {FRAME}"}
    accept = f"{RAW}, {FRAME}"
    if len(arrays) != 1:
        return _to_frame(arrays), {"Content-Type": FRAME, "Accept": accept}
    name, array = _only(arrays)
    return array.tobytes(), {
        "Content-Type": RAW,
        "X-Tensor-Name": _quoted(name),
        "X-Tensor-Dtype": array.dtype.name,
        "X-Tensor-Shape": _shape_text(array),
        "Accept": accept,
    }


def decode_http(
    status: int, headers: Mapping[str, str], body: bytes, dtypes: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Return the outputs of an answer, in any of the forms; an answer that is an error is a `ServerAnswerError`.

    JSON does not tell dtypes: name them in ``dtypes``, or get what numpy makes of the numbers.
    """
    if status != 200:
        raise ServerAnswerError(status, _error_text(body))
    lowered = {name.lower(): value for name, value in headers.items()}
    form = lowered.get("content-type", JSON).partition(";")[0].strip().lower()
    name = unquote(lowered.get("x-tensor-name", ""))
    if form == RAW:
        dtype, shape = lowered.get("x-tensor-dtype", ""), lowered.get("x-tensor-shape", "")
        return {name: _from_raw(body, dtype, _parsed_shape(shape))}
    if form == NPY:
        return {name: _from_npy(body)}
    if form == FRAME:
        return _from_frame(body)
    if form == JSON:
        return _from_json(body, dtypes or {})
    raise ProbeError(
        f"the answer's Content-Type is {form!r}; a servewright handler sends {JSON}, {NPY}, {RAW}, {FRAME}"
    )


def encode_grpc(inputs: Arrays, form: Form = "raw") -> dict[str, bytes]:
    """Return a request's fields (the ``input`` map of a PredictionsRequest)."""
    body, headers = encode_http(inputs, form)
    fields = {"data": body, "content_type": headers["Content-Type"].encode()}
    for header, field in (("X-Tensor-Name", "name"), ("X-Tensor-Dtype", "dtype"), ("X-Tensor-Shape", "shape")):
        if header in headers:
            fields[field] = headers[header].encode()
    fields["accept"] = (JSON if form == "json" else FRAME).encode()
    return fields


def decode_grpc(answer: bytes, dtypes: Mapping[str, str] | None = None) -> dict[str, np.ndarray]:
    """Return the outputs of an answer asked for by `encode_grpc`; an error body is a `ServerAnswerError`."""
    if answer.startswith(ERROR_MAGIC):
        detail = answer[len(ERROR_MAGIC) :]
        raise ServerAnswerError(_error_code(detail), _error_text(detail))
    if answer[:1] in (b"{", b"["):
        return _from_json(answer, dtypes or {})
    return _from_frame(answer)


def _sendable(name: str, array: np.ndarray) -> np.ndarray:
    """Return the array in C order and little-endian, the only layout on the wire."""
    array = np.asarray(array)
    if array.dtype.name not in _FRAME_CODES:
        raise InputError(f"input {name!r} is of dtype {array.dtype}; send one of {', '.join(_FRAME_CODES)}")
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not np.little_endian):
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array) if array.ndim else array


def _only(arrays: Arrays) -> tuple[str, np.ndarray]:
    if len(arrays) != 1:
        raise InputError(f"this form holds one input, not {len(arrays)}; use form raw or json")
    return next(iter(arrays.items()))


def _quoted(name: str) -> str:
    """Return a name that may stand in a header: printable ASCII, others percent-encoded."""
    return quote(name, safe="/:")


def _shape_text(array: np.ndarray) -> str:
    return ",".join(map(str, array.shape))


def _parsed_shape(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ProbeError(f"the answer's shape {text!r} is not a list of sizes")
    return tuple(map(int, parts))


def _from_raw(data: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype not in _FRAME_CODES:
        raise ProbeError(f"the answer's dtype {dtype!r} is none of {', '.join(_FRAME_CODES)}")
    wide = dtype == "bfloat16"  # numpy has no such type: the same values as float32
    stored = np.dtype("uint16" if wide else dtype).newbyteorder("<")
    expected = math.prod(shape) * stored.itemsize
    if expected != len(data):
        raise ProbeError(f"the answer has {len(data)} bytes, but {dtype} of shape {list(shape)} takes {expected}")
    array = np.frombuffer(data, stored).reshape(shape)
    return (array.astype("uint32") << np.uint32(16)).view("float32") if wide else array


def _widened(array: np.ndarray) -> np.ndarray:
    """Return bfloat16, which these forms do not have, as the same values in float32."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def _to_npy(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, _widened(array), allow_pickle=False)
    return buffer.getvalue()


def _from_npy(body: bytes) -> np.ndarray:
    # Not np.load, which takes whatever looks like a zip for an archive of arrays.
    try:
        array: np.ndarray = np.lib.format.read_array(BytesIO(body), allow_pickle=False)
    except Exception as error:  # numpy's reader raises whatever Python's own parser does
        raise ProbeError(f"the answer is not a readable .npy: {error}") from error
    return array


def _to_frame(arrays: Arrays) -> bytes:
    """Lay arrays out as safetensors does: 8 bytes of header length, a JSON header, then every array's bytes."""
    header: dict[str, dict[str, Any]] = {}
    start = 0
    for name, array in arrays.items():
        offsets = [start, start + array.nbytes]
        header[name] = {"dtype": _FRAME_CODES[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
        start += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin aligned, and no frame begins as JSON or an error does
    return b"".join((struct.pack("<Q", len(text)), text, *(_bytes_of(array) for array in arrays.values())))


def _bytes_of(array: np.ndarray) -> memoryview:
    """Return an array's bytes without a copy, whatever its dtype and number of axes."""
    return array.reshape(-1).view("uint8").data


def _from_frame(body: bytes) -> dict[str, np.ndarray]:
    try:
        (length,) = struct.unpack_from("<Q", body)
        if length > len(body) - 8:
            raise ValueError(f"its header would take {length} bytes of {len(body)}")
        header = json.loads(body[8 : 8 + length])
        data = memoryview(body)[8 + length :]
        arrays = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= len(data):
                raise ValueError(f"{name!r} lies outside of the frame")
            arrays[name] = _from_raw(data[start:end], _FRAME_DTYPES[entry["dtype"]], tuple(entry["shape"]))
        return arrays
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ProbeError(f"the answer is not a safetensors frame: {error!r}") from error


def _to_json(arrays: Arrays) -> bytes:
    plain = {name: _widened(array) for name, array in arrays.items()}
    # orjson writes NaN and Infinity as null, and no array without axes.
    if all(array.ndim and (array.dtype.kind != "f" or bool(np.isfinite(array).all())) for array in plain.values()):
        return orjson.dumps({"inputs": plain}, option=orjson.OPT_SERIALIZE_NUMPY)
    return json.dumps({"inputs": {name: array.tolist() for name, array in plain.items()}}).encode()


def _parsed_json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        return json.loads(body)  # NaN and Infinity, which orjson refuses


def _from_json(body: bytes, dtypes: Mapping[str, str]) -> dict[str, np.ndarray]:
    try:
        answer = _parsed_json(body)
        arrays = {name: np.asarray(values, dtype=dtypes.get(name)) for name, values in answer["outputs"].items()}
        if other := [name for name, array in arrays.items() if array.dtype.name not in _FRAME_CODES]:
            raise ValueError(f"{other[0]!r} holds no numbers")
        return arrays
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ProbeError(f'the answer is not JSON of the form {{"outputs": {{name: numbers}}}}: {error!r}') from error


def _error_detail(body: bytes) -> Mapping[str, Any]:
    try:
        detail = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return detail if isinstance(detail, dict) else {}


def _error_text(body: bytes) -> str:
    """Return the server's own text from a JSON error body, else the body's beginning."""
    message = _error_detail(body).get("message")
    return message if isinstance(message, str) else body[:500].decode(errors="replace")


def _error_code(body: bytes) -> int | str:
    code = _error_detail(body).get("code")
    return code if isinstance(code, int) else "UNKNOWN"
