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
# Closing the gaps in eight bytes of seven bits each: neighbours become 14 bits, those 28, those 56.
_FOLDS = tuple(
    (np.uint64(low), np.uint64(high), np.uint64(shift))
    for low, high, shift in (
        (0x007F_007F_007F_007F, 0x7F00_7F00_7F00_7F00, 1),
        (0x0000_3FFF_0000_3FFF, 0x3FFF_0000_3FFF_0000, 2),
        (0x0000_0000_0FFF_FFFF, 0x0FFF_FFFF_0000_0000, 4),
    )
)
_FIRST_BYTES = np.array([(1 << 8 * min(count, 8)) - 1 for count in range(11)], np.uint64)
Found = tuple[int, int, int, int]


class BrokenMessageError(InputError):
    """Bytes that are not the message they should be."""


def scan(data: memoryview) -> Iterator[Found]:
    """Yield number, wire type, start and end of every field, in the order of ``data``; raise `BrokenMessageError`.

    Start and end enclose the payload of a `BYTES` field and the encoded number of any other.
    """
    at, size = 0, len(data)
    while at < size:
        key = data[at]
        at += 1
        if key >= 0x80:
            key, at = read_varint(data, at - 1)
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
        if (byte := data[at]) < 0x80:
            return byte, at + 1
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
    last = packed < 0x80  # the last byte of each number
    if last.all():
        return packed.astype(np.uint64)
    if not last[-1]:
        raise BrokenMessageError("packed numbers without their end")
    ends = np.flatnonzero(last) + 1
    starts = np.concatenate(([0], ends[:-1]))
    lengths = ends - starts
    if lengths.max() > 10:
        raise BrokenMessageError("packed numbers of more than ten bytes")
    padded = np.concatenate((packed, np.zeros(10, np.uint8)))
    # One eight-byte word from every offset on; a number's first eight bytes are the word at its start.
    words = np.ndarray(packed.size, "<u8", padded, strides=(1,))[starts] & _FIRST_BYTES[lengths]
    for low, high, shift in _FOLDS:
        words = words & low | (words & high) >> shift
    if lengths.max() > 8:
        for place in (8, 9):
            longer = np.flatnonzero(lengths > place)
            words[longer] |= (padded[starts[longer] + place] & 0x7F).astype(np.uint64) << np.uint64(7 * place)
    return words


def pack_varints(values: NDArray[np.uint64]) -> bytes:
    """Return ``values`` as the payload of a packed varint field."""
    if not values.size or values.max() < 0x80:
        return values.astype(np.uint8).tobytes()
    lengths = np.ones(values.size, np.uint8)
    for place in range(1, 10):
        longer = values >= np.uint64(1 << 7 * place)
        if not longer.any():
            break
        lengths += longer
    longest = lengths.max()
    octets = np.empty((values.size, longest), np.uint8)
    for place in range(longest):
        octets[:, place] = values >> np.uint64(7 * place) & np.uint64(0x7F)
        octets[:, place] |= (lengths > place + 1).astype(np.uint8) << 7
    return octets[np.arange(longest) < lengths[:, np.newaxis]].tobytes()
