"""TFRecord files, read as TensorFlow reads them: length, its checksum, the data, its checksum."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from servewright.backends.tfserving.checksum import masked_crc32c

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
