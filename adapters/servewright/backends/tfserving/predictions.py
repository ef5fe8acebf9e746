"""The bytes of Predict's request and answer: each tensor's data is copied once, into its place.

What depends on names, types and shapes alone is kept, since the same ones come again and again: after the wait for an
answer the processor has forgotten this code, and every step of it takes several times longer than in a tight loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from numpy.typing import ArrayLike

from servewright.backends.tfserving.dtypes import TensorError
from servewright.backends.tfserving.fields import BYTES, BrokenMessageError, head, scan
from servewright.backends.tfserving.tensors import Array, Buffer, Form, decode_tensor, tensor_parts

_SPEC, _INPUTS = 1, 2  # field numbers of PredictRequest
_OUTPUTS = 1  # field number of PredictResponse


def encode_request(
    model_spec: bytes, inputs: Mapping[str, ArrayLike], *, dtypes: Mapping[str, str] | None = None
) -> bytes:
    """Return a PredictRequest.

    ``model_spec`` is a ``ModelSpec`` in bytes; ``dtypes`` names those of inputs that their arrays do not tell (see
    `tensor_parts`). Raises `TensorError` with the tensor's name.
    """
    return b"".join([head(_SPEC, len(model_spec)) + model_spec, *_map_parts(_INPUTS, inputs, dtypes or {}, "content")])


def encode_answer(outputs: Mapping[str, ArrayLike], *, form: Form = "values") -> bytes:
    """Return a PredictResponse without its ``model_spec``, in the form in which the real server answers by default."""
    return b"".join(_map_parts(_OUTPUTS, outputs, {}, form))


def decode_answer(data: bytes) -> dict[str, Array]:
    """Return the outputs of a PredictResponse.

    Raises `BrokenMessageError`, or `TensorError` with the tensor's name.
    """
    view = memoryview(data)
    tensors = {}
    for number, kind, start, end in scan(view):
        if number == _OUTPUTS and kind == BYTES:
            name, value = _entry(view[start:end])
            try:
                tensors[name] = decode_tensor(value)
            except (TensorError, BrokenMessageError) as error:
                raise TensorError(f"tensor {name!r}: {error}", tensor=name) from error
    return tensors


def _map_parts(number: int, tensors: Mapping[str, ArrayLike], dtypes: Mapping[str, str], form: Form) -> list[Buffer]:
    parts: list[Buffer] = []
    for name, array in tensors.items():
        try:
            start, payload = tensor_parts(array, dtype=dtypes.get(name, ""), form=form)
        except TensorError as error:
            raise TensorError(f"tensor {name!r}: {error}", tensor=name) from error
        parts += (_entry_head(number, name, len(start) + len(payload)), start, payload)
    return parts


@lru_cache(256)
def _entry_head(number: int, name: str, size: int) -> bytes:
    """Return what stands before the ``size`` bytes of the value of a map's entry."""
    encoded = name.encode()
    start = head(1, len(encoded)) + encoded + head(2, size)
    return head(number, len(start) + size) + start


def _entry(data: memoryview) -> tuple[str, memoryview]:
    name, value = "", memoryview(b"")
    for number, kind, start, end in scan(data):
        if kind == BYTES and number == 1:
            try:
                name = str(data[start:end], "utf-8")
            except UnicodeDecodeError as error:
                raise BrokenMessageError(f"a name that is not UTF-8: {bytes(data[start:end])!r}") from error
        elif kind == BYTES and number == 2:
            value = data[start:end]
    return name, value
