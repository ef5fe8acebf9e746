"""numpy arrays to the bytes of a ``TensorProto`` and back, with no Python step per element.

Arrays are written as ``tensor_content``, or as the ``*_val`` fields in which the real server answers; both forms
are read.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.dtypes import STRING, Kind, TensorError, kind_named, kind_numbered, kind_of
from servewright.backends.tfserving.fields import (
    BYTES,
    VARINT,
    BrokenMessageError,
    head,
    key,
    pack_varints,
    read_varint,
    scan,
    unpack_varints,
    varint,
)

Array = NDArray[Any]
Buffer = bytes | memoryview
Form = Literal["content", "values"]

_DTYPE, _SHAPE, _CONTENT, _STRINGS = 1, 2, 4, 8  # field numbers of TensorProto
_LARGEST = 2**31 - 1  # bytes of one protobuf message
_FEW = 64  # more fields than this are none of ours: protobuf's own parser is quicker


# Writing


def encode_tensor(array: ArrayLike, *, dtype: str = "", form: Form = "content") -> bytes:
    """Return ``array`` as a ``TensorProto``; see `tensor_parts`."""
    return b"".join(tensor_parts(array, dtype=dtype, form=form))


def tensor_parts(array: ArrayLike, *, dtype: str = "", form: Form = "content") -> tuple[bytes, Buffer]:
    """Return two pieces whose concatenation is the ``TensorProto`` of ``array``; the second may be its own memory.

    ``dtype`` says what the array is where its own dtype does not, as for bfloat16 held in uint16. ``form`` is
    ``content`` for ``tensor_content`` and ``values`` for the ``*_val`` field of the dtype; strings have one form.
    Raises `TensorError` for an array that no tensor can hold.
    """
    array = np.asarray(array)
    if dtype == "string" or (not dtype and array.dtype.kind in "OSUT"):
        return _head(STRING, array.shape), _encode_strings(array)
    kind = _kind_of(array, dtype)
    array = np.asarray(array, dtype=kind.dtype, order="C")
    if form == "content":
        payload: Buffer = array.reshape(-1).view(np.uint8).data if array.size else b""
        return _head(kind.number, array.shape, _CONTENT, len(payload)), payload
    payload = _pack(array, kind)
    return _head(kind.number, array.shape, kind.field_number, len(payload)), payload


def _kind_of(array: Array, dtype: str) -> Kind:
    if not dtype:
        return kind_of(array.dtype)
    kind = kind_named(dtype)
    if array.dtype.newbyteorder("<") == kind.dtype:
        return kind
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return replace(kind, dtype=np.dtype("<u2"))
    raise TensorError(f"an array of {array.dtype.name} is no tensor of {dtype}; convert it first")


@lru_cache(256)
def _head(number: int, shape: tuple[int, ...], field: int = 0, size: int = 0) -> bytes:
    """Return the fields ``dtype`` and ``tensor_shape``, and what stands before ``size`` bytes of ``field``, if any."""
    dims = b""
    for length in shape:
        dim = key(1, VARINT) + varint(length) if length else b""
        dims += head(2, len(dim)) + dim
    start = key(_DTYPE, VARINT) + varint(number) + head(_SHAPE, len(dims)) + dims
    return start + head(field, size) if size else start


def _pack(array: Array, kind: Kind) -> bytes:
    flat = array.reshape(-1)
    if kind.packed in ("fixed", "bool"):
        return flat.tobytes()
    if kind.packed == "bits":
        return pack_varints(flat.view(np.uint16).astype(np.uint64))
    # A negative number is written as the 64-bit number of the same value.
    wide = flat.astype(np.int64).view(np.uint64) if flat.dtype.kind == "i" else flat.astype(np.uint64)
    return pack_varints(wide)


def _encode_strings(array: Array) -> bytes:
    values = array.reshape(-1).tolist()
    try:
        try:
            return bytes(protos.TensorProto(string_val=values).SerializeToString())
        except TypeError:
            encoded = [value.encode() if isinstance(value, str) else value for value in values]
            return bytes(protos.TensorProto(string_val=encoded).SerializeToString())
    except (TypeError, UnicodeEncodeError) as error:
        raise TensorError(f"a tensor of strings holds bytes or str alone: {error}") from error


# Reading


def decode_tensor(data: Buffer) -> Array:
    """Return the array that the bytes of a ``TensorProto`` hold.

    Numbers of ``tensor_content``, and of ``float_val`` and its like, are a read-only view of ``data``. As in
    TensorFlow no values at all are zeros, the last value stands for all that are missing, and what is too much is
    cut. Raises `BrokenMessageError` for bytes that are no ``TensorProto`` and `TensorError` for one that contradicts
    itself.
    """
    data = memoryview(data)
    if (fields := _plain_fields(data)) is None:
        return _decode_with_protobuf(data)
    number, payloads = fields
    nothing = memoryview(b"")
    shape = _shape(bytes(payloads.get(_SHAPE, nothing)))
    content = payloads.get(_CONTENT, nothing)
    if number == STRING:
        return _strings([], content, shape)
    kind = kind_numbered(number)
    if content:
        return _from_content(content, kind, shape)
    return _fill(_unpack(payloads.get(kind.field_number, nothing), kind), kind, shape)


def _plain_fields(data: memoryview) -> tuple[int, dict[int, memoryview]] | None:
    """Return the DataType and the payload of every other field, or None where protobuf must sort them out.

    That is for strings, numbers that are not packed, and fields that come in several pieces.
    """
    dtype = 0
    payloads: dict[int, memoryview] = {}
    for count, (number, wire_type, start, end) in enumerate(scan(data)):
        if number == _DTYPE and wire_type == VARINT:
            dtype, _ = read_varint(data, start)
        elif wire_type != BYTES or number == _STRINGS or number in payloads or count > _FEW:
            return None
        else:
            payloads[number] = data[start:end]
    return dtype, payloads


def _decode_with_protobuf(data: memoryview) -> Array:
    from google.protobuf.message import DecodeError

    try:
        proto = protos.TensorProto.FromString(bytes(data))
    except DecodeError as error:
        raise BrokenMessageError(f"no TensorProto: {error}") from error
    shape = _shape(proto.tensor_shape.SerializeToString())
    content = memoryview(proto.tensor_content)
    if proto.dtype == STRING:
        return _strings(proto.string_val, content, shape)
    kind = kind_numbered(proto.dtype)
    if content:
        return _from_content(content, kind, shape)
    values = list(getattr(proto, kind.field))
    if kind.packed == "fixed":
        parts = np.dtype(f"<f{kind.dtype.itemsize // (2 if kind.dtype.kind == 'c' else 1)}")
        return _fill(_view_fixed(np.array(values, parts), kind), kind, shape)
    unsigned = kind.field in ("uint32_val", "uint64_val")
    return _fill(_narrow(np.array(values, np.uint64 if unsigned else np.int64).view(np.uint64), kind), kind, shape)


@lru_cache(256)
def _shape(encoded: bytes) -> tuple[int, ...]:
    data = memoryview(encoded)
    dims: list[int] = []
    for number, wire_type, start, end in scan(data):
        if number == 2 and wire_type == BYTES:
            size = 0
            for inner, inner_type, at, _ in scan(data[start:end]):
                if inner == 1 and inner_type == VARINT:
                    size, _ = read_varint(data[start:end], at)
            if size >= 1 << 63:
                raise TensorError(f"dimension {len(dims)} of the shape is {size - (1 << 64)}, not known")
            dims.append(size)
    return tuple(dims)  # of an unknown rank too: the server takes that for a scalar


def _from_content(content: memoryview, kind: Kind, shape: tuple[int, ...]) -> Array:
    needed = math.prod(shape) * kind.dtype.itemsize
    if len(content) != needed:
        raise TensorError(f"tensor_content has {len(content)} bytes; {kind.name} of shape {list(shape)} has {needed}")
    return _shaped(np.frombuffer(content, kind.dtype), shape)


def _unpack(packed: memoryview, kind: Kind) -> Array:
    data = np.frombuffer(packed, np.uint8)
    if kind.packed == "fixed":
        width = kind.dtype.itemsize // (2 if kind.dtype.kind == "c" else 1)
        if data.size % width:
            raise BrokenMessageError(f"{kind.field} has {data.size} bytes, no multiple of {width}")
        return _view_fixed(data, kind)
    return _narrow(unpack_varints(data), kind)


def _view_fixed(values: Array, kind: Kind) -> Array:
    if values.nbytes % kind.dtype.itemsize:
        raise TensorError(f"{kind.field} has a real part without its imaginary part")
    return values.view(kind.dtype)


def _narrow(values: NDArray[np.uint64], kind: Kind) -> Array:
    """Return ``values`` as the elements that they encode; high bits of narrow ones are ignored, as in protobuf."""
    if kind.packed == "bool":
        return values.astype(np.bool_)
    if kind.packed == "bits":
        return values.astype(np.uint16).view(kind.dtype)
    return values.astype(kind.dtype)


def _fill(values: Array, kind: Kind, shape: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    if values.size == count:
        return _shaped(values, shape)
    if values.size > count:
        return _shaped(values[:count], shape)
    if count * kind.dtype.itemsize > _LARGEST:
        raise TensorError(f"{values.size} values stand for {count} of {kind.name}: more than 2 GiB")
    if not values.size:
        return _shaped(np.zeros(count, kind.dtype), shape)
    whole = np.empty(count, kind.dtype)
    whole[: values.size] = values
    whole[values.size :] = values[-1]
    return _shaped(whole, shape)


def _shaped(values: Array, shape: tuple[int, ...]) -> Array:
    try:
        return values.reshape(shape)
    except (ValueError, OverflowError) as error:  # more axes, or a longer one beside an empty one, than numpy has
        raise TensorError(f"no array can have the shape {list(shape)}: {error}") from error


def _strings(values: Any, content: memoryview, shape: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    if content:
        values = _split_strings(content, count)
    values = values[:count]
    if count * 8 > _LARGEST:
        raise TensorError(f"shape {list(shape)} has {count} strings: too many")
    whole = np.full(count, values[-1] if values else b"", object)
    whole[: len(values)] = values
    return _shaped(whole, shape)


def _split_strings(content: memoryview, count: int) -> list[bytes]:
    """Return the strings of a ``tensor_content``: all lengths as varints, then all bytes."""
    data = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data < 0x80)
    if ends.size < count:
        raise TensorError(f"tensor_content has {ends.size} lengths of strings; the shape has {count}")
    start = int(ends[count - 1]) + 1 if count else 0
    lengths = unpack_varints(data[:start]).tolist()
    stops = list(accumulate(lengths, initial=start))
    if len(content) != stops[-1]:
        raise TensorError("the strings of tensor_content do not fill it")
    return [bytes(content[begin:end]) for begin, end in pairwise(stops)]
