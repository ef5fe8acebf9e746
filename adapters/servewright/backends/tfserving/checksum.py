"""CRC-32C, the checksum of TFRecord files, without a package for it."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL: Final = 0x82F63B78  # Castagnoli's, bits reversed
_MASK_DELTA: Final = 0xA282EAD8
_LONG: Final = 1 << 15  # shorter data is quicker byte by byte


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the checksum as TFRecord files hold it: rotated and shifted, since they may hold checksums themselves."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of ``data``.

    Long data is cut into lanes of equal length, which numpy takes through a table together, two bytes at a step, and
    whose checksums are then joined in pairs.
    """
    crc = 0xFFFFFFFF
    if len(data) >= _LONG:
        lanes = 1 << len(data).bit_length() // 2
        steps = len(data) // (2 * lanes)
        words = np.frombuffer(data, "<u2", lanes * steps).reshape(lanes, steps)
        sums = np.zeros(lanes, np.uint32)
        sums[0] = crc
        table = _tables()[1]
        for step in range(steps):
            sums = table[(sums ^ words[:, step]) & np.uint32(0xFFFF)] ^ (sums >> np.uint32(16))
        crc = _joined(sums, 2 * steps)
        data = data[2 * lanes * steps :]
    single = _tables()[0]
    for byte in data:
        crc = (crc >> 8) ^ single[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _joined(sums: NDArray[np.uint32], length: int) -> int:
    """Return the checksum of all lanes, a power of two of them with ``length`` bytes each."""
    columns = _over_zeros(length)
    while sums.size > 1:
        sums = _times(columns, sums[::2]) ^ sums[1::2]
        columns = _times(columns, columns)
    return int(sums[0])


def _over_zeros(count: int) -> NDArray[np.uint32]:
    """Return the matrix over GF(2), by columns, that takes a checksum over ``count`` bytes of zero."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    one_byte = (bits >> np.uint32(8)) ^ np.array(_tables()[0], np.uint32)[bits & np.uint32(0xFF)]
    result = bits
    while count:
        if count & 1:
            result = _times(one_byte, result)
        one_byte = _times(one_byte, one_byte)
        count >>= 1
    return result


def _times(columns: NDArray[np.uint32], vectors: NDArray[np.uint32]) -> NDArray[np.uint32]:
    total = np.zeros_like(vectors)
    for bit, column in enumerate(columns):
        total ^= ((vectors >> np.uint32(bit)) & np.uint32(1)) * column
    return total


@cache
def _tables() -> tuple[list[int], NDArray[Any]]:
    """Return what one byte, and what two bytes, do to a checksum of zeros."""
    single = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        single = (single >> np.uint32(1)) ^ ((single & np.uint32(1)) * np.uint32(_POLYNOMIAL))
    pairs = np.arange(65536, dtype=np.uint32)
    for _ in range(2):
        pairs = single[pairs & np.uint32(0xFF)] ^ (pairs >> np.uint32(8))
    return single.tolist(), pairs
