"""TFRecord files, read as TensorFlow reads them: length, its checksum, the data, its checksum."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

_HEADER: Final = 12  # 8 bytes of length, 4 of its checksum
_FOOTER: Final = 4


class RecordError(Exception):
    """A file that is no TFRecord file, or that was cut."""


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a TFRecord file; raise `RecordError` in TensorFlow's words."""
    at = 0
    while len(data) - at >= _HEADER:  # a shorter rest counts as the end
        length, check = struct.unpack_from("<QI", data, at)
        if masked_crc32c(data[at : at + 8]) != check:
            raise RecordError(f"corrupted record at {at}" + ("" if at else " (Is this even a TFRecord file?)"))
        start = at + _HEADER
        if start + length + _FOOTER > len(data):
            raise RecordError(f"truncated record at {at}' failed with Read less bytes than requested")
        body = data[start : start + length]
        if masked_crc32c(body) != struct.unpack_from("<I", data, start + length)[0]:
            raise RecordError(f"corrupted record at {start}")
        yield body
        at = start + length + _FOOTER


def masked_crc32c(data: bytes) -> int:
    """Return the checksum that TFRecord files hold."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE: Final = _table()
_LANES: Final = 1 << 10


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of ``data``.

    Long data is cut into equal lanes that numpy takes through the table together; their checksums are then joined.
    """
    crc = 0xFFFFFFFF
    lane = len(data) // _LANES
    if lane >= _LANES:
        table = np.array(_TABLE, np.uint32)
        block = np.frombuffer(data, np.uint8, lane * _LANES).reshape(_LANES, lane)
        sums = np.zeros(_LANES, np.uint32)
        sums[0] = crc
        for column in range(lane):
            sums = (sums >> np.uint32(8)) ^ table[(sums ^ block[:, column]) & np.uint32(0xFF)]
        shift = _zeros_operator(lane)
        crc = 0
        for one in sums.tolist():
            crc = _times(shift, crc) ^ one
        data = data[lane * _LANES :]
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _times(matrix: list[int], vector: int) -> int:
    total, at = 0, 0
    while vector:
        if vector & 1:
            total ^= matrix[at]
        vector >>= 1
        at += 1
    return total


def _zeros_operator(count: int) -> list[int]:
    """Return the matrix over GF(2) that takes a checksum over ``count`` bytes of zero."""
    step = [_TABLE[1 << bit] if bit < 8 else 1 << (bit - 8) for bit in range(32)]
    result = [1 << bit for bit in range(32)]
    while count:
        if count & 1:
            result = [_times(step, column) for column in result]
        step = [_times(step, column) for column in step]
        count >>= 1
    return result
