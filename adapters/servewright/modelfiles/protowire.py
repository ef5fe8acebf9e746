"""The protobuf wire format, walked in place: a model of many gigabytes tells its signature without being read whole.

Only the fields on the way to a signature are looked at; graphs and weights between them are stepped over.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """The bytes are not a protobuf message, or end in the middle of one."""


def mapped(path: Path) -> memoryview:
    """Return the content of the file at ``path`` without reading it; it stays mapped while a part of it is held."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) in the order of the bytes; varints as unsigned numbers, the rest as views."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError(f"no field can have number 0 (byte {at})")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise WireError(f"field {number} has wire type {kind} (byte {at})")
        if at + size > end:
            raise WireError(f"field {number} needs {size} bytes at byte {at}, and only {end - at} follow")
        yield number, message[at : at + size]
        at += size


def submessages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield each value of the field ``wanted``, which holds messages, text or bytes."""
    for number, value in fields(message):
        if number == wanted:
            if isinstance(value, int):
                raise WireError(f"field {number} should hold bytes")
            yield value


def texts(message: memoryview, wanted: int) -> Iterator[str]:
    """Yield each value of the text field ``wanted``."""
    for value in submessages(message, wanted):
        try:
            yield bytes(value).decode()
        except UnicodeDecodeError as error:
            raise WireError(f"field {wanted} is not text") from error


def text(message: memoryview, wanted: int) -> str:
    """Return the text field ``wanted``; the last of several counts, as protobuf says, and an absent one is empty."""
    return ([*texts(message, wanted)] or [""])[-1]


def integer(message: memoryview, wanted: int) -> int:
    """Return the signed number in field ``wanted``, 0 where it is absent."""
    result = 0
    for number, value in fields(message):
        if number == wanted:
            if not isinstance(value, int):
                raise WireError(f"field {number} should hold a number")
            result = value
    return result - (1 << 64) if result >= 1 << 63 else result


def entries(message: memoryview, wanted: int) -> dict[str, memoryview]:
    """Return the map field ``wanted`` from text to messages, in the order of its keys.

    Writers lay out maps in any order they like; sorted, the same model always tells the same.
    """
    empty = memoryview(b"")
    found = {text(entry, 1): ([*submessages(entry, 2)] or [empty])[-1] for entry in submessages(message, wanted)}
    return dict(sorted(found.items()))


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if at >= len(message):
            raise WireError(f"the message ends in the middle of a number (byte {at})")
        byte = message[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
        if shift > 63:
            raise WireError(f"a number has more than 64 bits (byte {at})")
