"""The fields of a protobuf message as they lie in its bytes, found without copying or parsing what they hold.

For messages that are mostly one large field, such as a tensor: protobuf's own classes would copy it once more and
turn packed numbers into Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from servewright.errors import InputError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
Found = tuple[int, int, int, int]


class BrokenMessageError(InputError):
    """Bytes that are not the message they should be."""


def scan(data: memoryview) -> Iterator[Found]:
    """Yield number, wire type, start and end of every field, in the order of ``data``; raise `BrokenMessageError`.

    Start and end enclose the payload of a `BYTES` field and the encoded number of any other.
    """
    at, size = 0, len(data)
    while at < size:
        key, at = read_varint(data, at)
        number, kind = key >> 3, key & 7
        start = at
        if kind == BYTES:
            length, start = read_varint(data, at)
            at = start + length
        elif kind == VARINT:
            _, at = read_varint(data, at)
        elif kind == FIXED32:
            at += 4
        elif kind == FIXED64:
            at += 8
        else:
            raise BrokenMessageError(f"byte {at}: wire type {kind} does not exist")
        if number == 0 or at > size:
            raise BrokenMessageError(f"byte {start}: field {number} ends beyond its message")
        yield number, kind, start, at


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the unsigned 64-bit varint at ``at`` and where the next byte is; raise `BrokenMessageError`."""
    result = shift = 0
    try:
        while (byte := data[at]) >= 0x80:
            result |= (byte & 0x7F) << shift
            shift += 7
            at += 1
            if shift > 63:
                raise BrokenMessageError(f"byte {at}: a number of more than ten bytes")
    except IndexError:
        raise BrokenMessageError(f"byte {at}: a number without its end") from None
    return (result | byte << shift) & 0xFFFF_FFFF_FFFF_FFFF, at + 1


def varint(value: int) -> bytes:
    """Return ``value``, from 0 to 2**64 - 1, as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def key(number: int, kind: int = BYTES) -> bytes:
    """Return the key that stands before a field."""
    return varint(number << 3 | kind)


def head(number: int, size: int) -> bytes:
    """Return what stands before the ``size`` bytes of a `BYTES` field."""
    return key(number) + varint(size)


def unpack_varints(packed: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the numbers of a packed varint field; raise `BrokenMessageError`."""
    if not packed.size:
        return np.empty(0, np.uint64)
    last = packed < 0x80  # the last byte of each number
    if last.all():
        return packed.astype(np.uint64)
    if not last[-1]:
        raise BrokenMessageError("packed numbers without their end")
    ends = np.flatnonzero(last)
    starts = np.empty_like(ends)
    starts[0] = 0
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    shortest, longest = int(lengths.min()), int(lengths.max())
    if longest > 10:
        raise BrokenMessageError("packed numbers of more than ten bytes")
    septets = (packed & 0x7F).astype(np.uint64)
    values = np.zeros(ends.size, np.uint64)
    for place in range(longest):
        shift = np.uint64(7 * place)
        if place < shortest:
            values |= septets[starts + place] << shift
        else:
            longer = np.flatnonzero(lengths > place)
            values[longer] |= septets[starts[longer] + place] << shift
    return values


def pack_varints(values: NDArray[np.uint64]) -> bytes:
    """Return ``values`` as the payload of a packed varint field."""
    if not values.size or int(values.max()) < 0x80:
        return values.astype(np.uint8).tobytes()
    lengths = np.ones(values.size, np.int64)
    for place in range(1, 10):
        longer = values >= np.uint64(1 << 7 * place)
        if not longer.any():
            break
        lengths += longer
    ends = np.cumsum(lengths)
    starts = ends - lengths
    out = np.empty(int(ends[-1]), np.uint8)
    for place in range(int(lengths.max())):
        wide = np.flatnonzero(lengths > place)
        septets = (values[wide] >> np.uint64(7 * place)).astype(np.uint8) & 0x7F
        out[starts[wide] + place] = septets | (lengths[wide] > place + 1).astype(np.uint8) << 7
    return out.tobytes()
