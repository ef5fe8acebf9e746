"""The records of a zip file (PKWARE's APPNOTE 6.3), packed; only what a stored archive needs."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

LOCAL: Final = struct.Struct("<4s5H3L2H")
CENTRAL: Final = struct.Struct("<4s6H3L5H2L")
END: Final = struct.Struct("<4s4H2LH")
END64: Final = struct.Struct("<4sQ2H2L4Q")
LOCATOR64: Final = struct.Struct("<4sLQL")
EXTRA: Final = struct.Struct("<2H")

LOCAL_SIGNATURE: Final = b"PK\3\4"
CENTRAL_SIGNATURE: Final = b"PK\1\2"
END_SIGNATURE: Final = b"PK\5\6"
END64_SIGNATURE: Final = b"PK\6\6"
LOCATOR64_SIGNATURE: Final = b"PK\6\7"

MAX16: Final = 0xFFFF
MAX32: Final = 0xFFFF_FFFF
ZIP64_EXTRA: Final = 1
FLAG_ENCRYPTED: Final = 1 << 0
FLAG_DESCRIPTOR: Final = 1 << 3
FLAG_STRONG_ENCRYPTION: Final = 1 << 6
FLAG_UTF8: Final = 1 << 11
STORED, DEFLATED = 0, 8

_PLAIN, _ZIP64 = 20, 45  # versions of the format needed to read it
_UNIX: Final = 3 << 8
_DATE: Final = 1 << 5 | 1  # 1980-01-01, the oldest date that the format knows; the time is 0
_MODE: Final = 0o100644 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A member that is stored as it is: its name, size and checksum, and where its local header starts."""

    name: str
    size: int
    crc: int
    offset: int

    @property
    def header_size(self) -> int:
        """Bytes between ``offset`` and the content; known before the checksum is."""
        return len(self.local_header())

    def local_header(self) -> bytes:
        """Return the record that precedes the content."""
        name, flags = _encoded(self.name)
        # A member that needs 64 bits says so in both headers; the sizes are then in the extra field alone.
        extra = EXTRA.pack(ZIP64_EXTRA, 16) + struct.pack("<2Q", self.size, self.size) if self.size >= MAX32 else b""
        size = MAX32 if extra else self.size
        version = _ZIP64 if extra else _PLAIN
        header = LOCAL.pack(
            LOCAL_SIGNATURE, version, flags, STORED, 0, _DATE, self.crc, size, size, len(name), len(extra)
        )
        return header + name + extra

    def central_header(self) -> bytes:
        """Return the member's record in the directory at the end."""
        name, flags = _encoded(self.name)
        wide = [self.size, self.size] if self.size >= MAX32 else []
        size = MAX32 if wide else self.size
        offset = min(self.offset, MAX32)
        wide += [self.offset] if offset == MAX32 else []
        extra = EXTRA.pack(ZIP64_EXTRA, 8 * len(wide)) + struct.pack(f"<{len(wide)}Q", *wide) if wide else b""
        version = _ZIP64 if wide else _PLAIN
        times, ids = (0, _DATE), (0, 0, 0)  # no comment, the first disk, no text attribute
        header = CENTRAL.pack(
            *(CENTRAL_SIGNATURE, _UNIX | version, version, flags, STORED, *times, self.crc, size, size),
            *(len(name), len(extra), *ids, _MODE, offset),
        )
        return header + name + extra


def end_records(*, count: int, size: int, offset: int) -> bytes:
    """Return what closes an archive whose directory has ``count`` members and ``size`` bytes from ``offset`` on."""
    end = END.pack(END_SIGNATURE, 0, 0, min(count, MAX16), min(count, MAX16), min(size, MAX32), min(offset, MAX32), 0)
    if count < MAX16 and size < MAX32 and offset < MAX32:
        return end
    end64 = END64.pack(END64_SIGNATURE, END64.size - 12, _UNIX | _ZIP64, _ZIP64, 0, 0, count, count, size, offset)
    return end64 + LOCATOR64.pack(LOCATOR64_SIGNATURE, 0, offset + size, 1) + end


def _encoded(name: str) -> tuple[bytes, int]:
    encoded = name.encode()
    return encoded, 0 if encoded.isascii() else FLAG_UTF8
