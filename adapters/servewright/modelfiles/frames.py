"""Messages between us and the process that holds a model: JSON and arrays over a pipe, and no pickle.

A message is the length of its head (4 bytes, little-endian), the head as JSON, and the arrays' bytes one after the
other in the order of the head. Texts travel as their lengths and their bytes; bfloat16 as float32, which loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_MAX_HEAD_BYTES = 1 << 26


def write(stream: IO[bytes], values: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
    """Write one message and flush it."""
    described, payload = [], []
    for name, array in (arrays or {}).items():
        kind, buffers = _encoded(np.asarray(array))
        sizes = [len(buffer) for buffer in buffers]
        described.append({"name": name, "dtype": kind, "shape": list(np.shape(array)), "sizes": sizes})
        payload += buffers
    head = json.dumps({"values": dict(values), "arrays": described}).encode()
    stream.write(len(head).to_bytes(4, "little") + head)
    for buffer in payload:
        stream.write(buffer)
    stream.flush()


def read(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the next message; raise `EOFError` where the stream ends before its end."""
    size = int.from_bytes(_exactly(stream, 4), "little")
    if size > _MAX_HEAD_BYTES:
        raise EOFError(f"a head of {size} bytes is none of ours")
    head = json.loads(_exactly(stream, size))
    arrays = {}
    for item in head["arrays"]:
        buffers = [_exactly(stream, length) for length in item["sizes"]]
        arrays[item["name"]] = _decoded(item["dtype"], buffers).reshape(item["shape"])
    return head["values"], arrays


def _encoded(array: Array) -> tuple[str, list[memoryview | bytes]]:
    if array.dtype.kind in "OSU":
        items = [_as_bytes(item) for item in array.ravel().tolist()]
        lengths = np.array([len(item) for item in items], "<u8")
        return "string", [lengths.tobytes(), b"".join(items)]
    if array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return array.dtype.name, [little.reshape(-1).view(np.uint8).data]


def _as_bytes(item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    raise TypeError(f"an array of text holds {type(item).__name__}")


def _decoded(dtype: str, buffers: list[bytearray]) -> Array:
    if dtype != "string":
        return np.frombuffer(buffers[0], np.dtype(dtype).newbyteorder("<"))
    ends = np.cumsum(np.frombuffer(buffers[0], "<u8")).tolist()
    result = np.empty(len(ends), object)
    start = 0
    for index, end in enumerate(ends):
        result[index] = bytes(buffers[1][start:end])
        start = end
    return result


def _exactly(stream: IO[bytes], size: int) -> bytearray:
    result = bytearray(size)
    view, at = memoryview(result), 0
    while at < size:
        count = stream.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"the stream ended {size - at} bytes too early")
        at += count
    return result
