"""The bytes of Predict's request and answer, for client and server: each tensor's data is copied once, into place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.dtypes import TensorError
from servewright.backends.tfserving.fields import BYTES, BrokenMessageError, head, scan
from servewright.backends.tfserving.tensors import Array, Buffer, Form, decode_tensor, tensor_parts

_INPUTS, _REQUEST_SPEC, _OUTPUT_FILTER = 2, 1, 3  # field numbers of PredictRequest
_OUTPUTS, _ANSWER_SPEC = 1, 2  # field numbers of PredictResponse


@dataclass(frozen=True, slots=True)
class PredictCall:
    """A PredictRequest, read: ``model_spec`` is a ``ModelSpec`` message."""

    model_spec: Any
    inputs: dict[str, Array]
    output_filter: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PredictAnswer:
    """A PredictResponse, read: ``model_spec`` is a ``ModelSpec`` message."""

    model_spec: Any
    outputs: dict[str, Array]


def encode_request(
    model_spec: Any,
    inputs: Mapping[str, ArrayLike],
    *,
    dtypes: Mapping[str, str] | None = None,
    output_filter: Iterable[str] = (),
) -> bytes:
    """Return a PredictRequest; ``dtypes`` names those of inputs that their arrays do not tell (`tensor_parts`)."""
    parts = [_message(_REQUEST_SPEC, model_spec), *_map_parts(_INPUTS, inputs, dtypes or {}, "content")]
    parts += (head(_OUTPUT_FILTER, len(name)) + name for name in (text.encode() for text in output_filter))
    return b"".join(parts)


def encode_answer(
    model_spec: Any,
    outputs: Mapping[str, ArrayLike],
    *,
    dtypes: Mapping[str, str] | None = None,
    form: Form = "values",
) -> bytes:
    """Return a PredictResponse; the real server's ``form`` is ``values`` unless told otherwise by a flag."""
    parts = _map_parts(_OUTPUTS, outputs, dtypes or {}, form)
    return b"".join([*parts, _message(_ANSWER_SPEC, model_spec)])


def decode_request(data: bytes) -> PredictCall:
    """Return the content of a PredictRequest; raise `BrokenMessageError`, or `TensorError` with the tensor's name."""
    fields = _fields(data)
    names = tuple(_text(name) for name in fields.get(_OUTPUT_FILTER, ()))
    return PredictCall(_spec(fields, _REQUEST_SPEC), _tensors(fields.get(_INPUTS, ())), names)


def decode_answer(data: bytes) -> PredictAnswer:
    """Return the content of a PredictResponse; raise `BrokenMessageError`, or `TensorError` with the tensor's name."""
    fields = _fields(data)
    return PredictAnswer(_spec(fields, _ANSWER_SPEC), _tensors(fields.get(_OUTPUTS, ())))


def _message(number: int, message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return head(number, len(data)) + data


def _map_parts(number: int, tensors: Mapping[str, ArrayLike], dtypes: Mapping[str, str], form: Form) -> list[Buffer]:
    parts: list[Buffer] = []
    for name, array in tensors.items():
        try:
            value = tensor_parts(array, dtype=dtypes.get(name, ""), form=form)
        except TensorError as error:
            raise TensorError(f"tensor {name!r}: {error}", tensor=name) from error
        encoded = name.encode()
        size = sum(map(len, value))
        start = head(1, len(encoded)) + encoded + head(2, size)
        parts += [head(number, len(start) + size) + start, *value]
    return parts


def _fields(data: bytes) -> dict[int, list[memoryview]]:
    view = memoryview(data)
    fields: dict[int, list[memoryview]] = {}
    for number, kind, start, end in scan(view):
        if kind == BYTES:
            fields.setdefault(number, []).append(view[start:end])
    return fields


def _spec(fields: Mapping[int, list[memoryview]], number: int) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return protos.ModelSpec.FromString(b"".join(fields.get(number, ())))  # pieces of a message merge
    except DecodeError as error:
        raise BrokenMessageError(f"no ModelSpec: {error}") from error


def _tensors(entries: Iterable[memoryview]) -> dict[str, Array]:
    tensors = {}
    for entry in entries:
        name, value = "", memoryview(b"")
        for number, kind, start, end in scan(entry):
            if kind == BYTES and number == 1:
                name = _text(entry[start:end])
            elif kind == BYTES and number == 2:
                value = entry[start:end]
        try:
            tensors[name] = decode_tensor(value)
        except (TensorError, BrokenMessageError) as error:
            raise TensorError(f"tensor {name!r}: {error}", tensor=name) from error
    return tensors


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise BrokenMessageError(f"a name that is not UTF-8: {bytes(data[:40])!r}") from error
