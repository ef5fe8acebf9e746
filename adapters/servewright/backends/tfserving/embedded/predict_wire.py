"""Predict's request and answer as bytes: tensors go in and out without a Python step per element."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final

import numpy as np

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.dtypes import TensorError, kind_numbered
from servewright.backends.tfserving.embedded.status import invalid_argument
from servewright.backends.tfserving.embedded.tensor import STRING, WIDTHS, Tensor, from_array, is_shape
from servewright.backends.tfserving.fields import VARINT, BrokenMessageError, head, key, pack_varints, varint
from servewright.backends.tfserving.tensors import decode_tensor

_FEW: Final = 256  # so many numbers are quicker to take one by one
_MOST_FILLED: Final = 1 << 28  # bytes that a request may ask for without sending them
_FIXED: Final = {1, 2, 8, 10, 18}  # in memory and in a message alike
_SMALL_CODES: Final = {1: "f4", 2: "f8", 3: "i4", 9: "i8"}


def read_tensor(proto: Any, name: str) -> Tensor:
    """Return what a ``TensorProto`` holds, as the real server takes it; raise `StatusError`.

    No values are zeros, the last one stands for all that are missing, too many are cut, an unknown rank is a scalar.
    """
    try:
        return _read(proto)
    except (TensorError, BrokenMessageError, ValueError, OverflowError, MemoryError) as error:
        raise invalid_argument(f"tensor parsing error: {name}") from error


def _read(proto: Any) -> Tensor:
    dtype = proto.dtype
    shape: tuple[int, ...] = tuple([dim.size for dim in proto.tensor_shape.dim])
    if proto.tensor_shape.unknown_rank:
        shape = ()
    if not is_shape(shape):
        raise TensorError(f"no tensor has the shape {shape}")
    if dtype == STRING:
        return _strings(proto, shape)
    if dtype not in WIDTHS:
        raise TensorError(f"no tensor of type {dtype} can be read")
    size = math.prod(shape)
    if content := proto.tensor_content:
        if len(content) != size * WIDTHS[dtype]:
            raise TensorError(f"{len(content)} bytes are no tensor of shape {shape}")
        return Tensor(dtype, shape, content)
    kind = kind_numbered(dtype)
    values = getattr(proto, kind.field)
    given = len(values) // 2 if dtype in (8, 18) else len(values)
    if dtype in _SMALL_CODES and 0 < given <= _FEW and given == size:
        return Tensor(dtype, shape, np.array(values, _SMALL_CODES[dtype]).tobytes())
    if given < size and size * WIDTHS[dtype] > _MOST_FILLED:
        raise TensorError(f"{given} values stand for {size}")
    if given > size:
        trimmed = protos.TensorProto()
        trimmed.CopyFrom(proto)
        del getattr(trimmed, kind.field)[size * (2 if dtype in (8, 18) else 1) :]
        proto = trimmed
        if not size:
            return Tensor(dtype, shape, b"")
    if shape != tuple([dim.size for dim in proto.tensor_shape.dim]) or proto.tensor_shape.unknown_rank:
        known = protos.TensorProto()
        known.CopyFrom(proto)
        known.ClearField("tensor_shape")
        proto = known
    return from_array(decode_tensor(proto.SerializeToString()), dtype)


def _strings(proto: Any, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    if proto.tensor_content:
        if size > len(proto.tensor_content):
            raise TensorError(f"{len(proto.tensor_content)} bytes are no {size} strings")
        array = decode_tensor(protos.TensorProto(
            dtype=STRING, tensor_shape={"dim": [{"size": size}]}, tensor_content=proto.tensor_content
        ).SerializeToString())  # fmt: skip
        return Tensor(STRING, shape, array.tolist())
    values = list(proto.string_val[:size])
    if len(values) < size and size * 8 > _MOST_FILLED:
        raise TensorError(f"{len(values)} strings stand for {size}")
    values += [values[-1] if values else b""] * (size - len(values))
    return Tensor(STRING, shape, values)


def write_response(outputs: list[tuple[str, Tensor]], model_spec: bytes) -> bytes:
    """Return a PredictResponse; ``model_spec`` is its field 2, ready."""
    parts: list[bytes] = []
    for alias, tensor in outputs:
        if tensor.dtype in _FIXED:
            parts += (_entry_head(alias, tensor.dtype, tensor.shape, len(tensor.data)), tensor.data)
        else:
            parts.append(_entry(alias, write_tensor(tensor)))
    parts.append(model_spec)
    return b"".join(parts)


def write_tensor(tensor: Tensor) -> bytes:
    """Return a ``TensorProto`` with its values in the ``*_val`` field of its type."""
    if tensor.dtype == STRING:
        message = protos.TensorProto(dtype=STRING, string_val=tensor.data)
        dims = message.tensor_shape
        dims.SetInParent()
        for size in tensor.shape:
            dims.dim.add(size=size)
        encoded: bytes = message.SerializeToString()
        return encoded
    start = _tensor_head(tensor.dtype, tensor.shape)
    data: bytes = tensor.data
    if not data:
        return start
    if tensor.dtype not in WIDTHS or (11 <= tensor.dtype <= 16 and tensor.dtype != 14):
        return start + head(4, len(data)) + data  # quantized types have no field of their own
    kind = kind_numbered(tensor.dtype)
    if tensor.dtype in _FIXED:
        return start + head(kind.field_number, len(data)) + data
    if kind.packed == "bits":
        flat = np.frombuffer(data, np.uint16).astype(np.uint64)
    else:
        flat = np.frombuffer(data, kind.dtype)
        flat = flat.astype(np.int64).view(np.uint64) if flat.dtype.kind == "i" else flat.astype(np.uint64)
    payload = pack_varints(flat)
    return start + head(kind.field_number, len(payload)) + payload


def spec_field(name: str, version: int, signature: str) -> bytes:
    """Return field 2 of a PredictResponse: the model and version that answered."""
    spec = protos.ModelSpec(name=name, version={"value": version}, signature_name=signature)
    data: bytes = spec.SerializeToString()
    return head(2, len(data)) + data


@lru_cache(maxsize=4096)
def _entry_head(alias: str, dtype: int, shape: tuple[int, ...], size: int) -> bytes:
    """Return what stands before the values of an output whose elements have a fixed size."""
    start = _tensor_head(dtype, shape)
    if size:
        start += head(kind_numbered(dtype).field_number, size)
    name = alias.encode()
    label = head(1, len(name)) + name
    value = head(2, len(start) + size) + start
    return head(1, len(label) + len(value) + size) + label + value


def _entry(alias: str, tensor: bytes) -> bytes:
    name = alias.encode()
    label = head(1, len(name)) + name + head(2, len(tensor))
    return head(1, len(label) + len(tensor)) + label + tensor


@lru_cache(maxsize=4096)
def _tensor_head(dtype: int, shape: tuple[int, ...]) -> bytes:
    dims = b""
    for size in shape:
        dim = key(1, VARINT) + varint(size) if size else b""
        dims += head(2, len(dim)) + dim
    return key(1, VARINT) + varint(dtype) + head(2, len(dims)) + dims
