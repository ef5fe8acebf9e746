"""The records of a zip file (PKWARE's APPNOTE 6.3): what a stored archive is written with, and any is indexed by."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

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
ZIP64_FROM: Final = MAX32  # sizes and offsets from here on, and
ZIP64_FROM_MEMBERS: Final = MAX16  # counts from here on, go into 64-bit records
ZIP64_EXTRA: Final = 1
UNICODE_PATH_EXTRA: Final = 0x7075  # Info-ZIP's: unzip takes this name instead, Java does not
FLAG_ENCRYPTED: Final = 1 << 0
FLAG_DESCRIPTOR: Final = 1 << 3
FLAG_STRONG_ENCRYPTION: Final = 1 << 6
FLAG_UTF8: Final = 1 << 11
STORED, DEFLATED = 0, 8

_PLAIN, _ZIP64 = 20, 45  # versions of the format needed to read it
_UNIX: Final = 3 << 8
_DATE: Final = 1 << 5 | 1  # 1980-01-01, the oldest date that the format knows; the time is 0
_MODE: Final = 0o100644 << 16
_LARGEST_DIRECTORY: Final = 64 << 20  # bytes, read at once


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
        wide = self.size >= ZIP64_FROM
        extra = EXTRA.pack(ZIP64_EXTRA, 16) + struct.pack("<2Q", self.size, self.size) if wide else b""
        size = MAX32 if wide else self.size
        version = _ZIP64 if wide else _PLAIN
        header = LOCAL.pack(
            LOCAL_SIGNATURE, version, flags, STORED, 0, _DATE, self.crc, size, size, len(name), len(extra)
        )
        return header + name + extra

    def central_header(self) -> bytes:
        """Return the member's record in the directory at the end."""
        name, flags = _encoded(self.name)
        wide = [self.size, self.size] if self.size >= ZIP64_FROM else []
        size = MAX32 if wide else self.size
        far = self.offset >= ZIP64_FROM
        offset = MAX32 if far else self.offset
        wide += [self.offset] if far else []
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
    if count < ZIP64_FROM_MEMBERS and size < ZIP64_FROM and offset < ZIP64_FROM:
        return END.pack(END_SIGNATURE, 0, 0, count, count, size, offset, 0)
    end64 = END64.pack(END64_SIGNATURE, END64.size - 12, _UNIX | _ZIP64, _ZIP64, 0, 0, count, count, size, offset)
    locator = LOCATOR64.pack(LOCATOR64_SIGNATURE, 0, offset + size, 1)
    return end64 + locator + END.pack(END_SIGNATURE, 0, 0, MAX16, MAX16, MAX32, MAX32, 0)


def _encoded(name: str) -> tuple[bytes, int]:
    encoded = name.encode()
    return encoded, 0 if encoded.isascii() else FLAG_UTF8


class BrokenZipError(Exception):
    """A file that no zip reader should trust; ``rule`` names what it breaks."""

    def __init__(self, rule: str, message: str) -> None:
        self.rule = rule
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """A member as the directory at an archive's end describes it; ``packed`` is its size in the archive.

    ``other_name`` is what some programs call it: those that know Info-ZIP's field for it.
    """

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int
    other_name: str = ""

    @property
    def is_directory(self) -> bool:
        """Whether it stands for a directory: its name says so."""
        return self.name.endswith("/")

    @property
    def encrypted(self) -> bool:
        """Whether it needs a password."""
        return bool(self.flags & (FLAG_ENCRYPTED | FLAG_STRONG_ENCRYPTION))

    def content_offset(self, file: BinaryIO) -> int:
        """Return where the content starts, behind the record in front of it."""
        *_, name_size, extra_size = LOCAL.unpack(_at(file, self.offset, LOCAL.size))
        return self.offset + LOCAL.size + int(name_size) + int(extra_size)

    def difference(self, file: BinaryIO) -> str:
        """Return how the record in front of the content contradicts the directory; empty when it does not."""
        signature, _, flags, method, _, _, crc, packed, size, name_size, extra_size = LOCAL.unpack(
            _at(file, self.offset, LOCAL.size)
        )
        if signature != LOCAL_SIGNATURE:
            return "has no record where the directory says"
        name = _decoded(_at(file, self.offset + LOCAL.size, name_size), flags)
        if name != self.name:
            return f"calls itself {name!r} in the record in front of it"
        extra = _at(file, self.offset + LOCAL.size + name_size, extra_size)
        if other := _other_name(extra, name):
            return f"calls itself {other!r} too, in the record in front of it"
        size, packed = _widened([size, packed], _extra(extra, ZIP64_EXTRA))
        claims = {"flags": (flags, self.flags), "method": (method, self.method)}
        if not flags & FLAG_DESCRIPTOR:
            claims |= {"checksum": (crc, self.crc), "size": (size, self.size), "packed size": (packed, self.packed)}
        elif method == STORED:
            return "is stored without its size in front of it, which Java refuses"
        wrong = [what for what, (here, there) in claims.items() if here != there]
        return f"has another {' and '.join(wrong)} in the record in front of it" if wrong else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The directory of an archive, where it starts, where the archive ends, and how many bytes follow."""

    members: tuple[Indexed, ...]
    directory_offset: int
    end: int
    trailing: int


def read_index(file: BinaryIO, *, most_members: int) -> Index:
    """Read the directory of the archive in ``file``; raise BrokenZipError where there is none to be trusted."""
    length = file.seek(0, os.SEEK_END)
    tail_size = min(length, END.size + MAX16)
    tail = _at(file, length - tail_size, tail_size)
    place = tail.rfind(END_SIGNATURE)
    if place < 0 or len(tail) - place < END.size:
        raise BrokenZipError("no zip", "is no zip archive")
    end = length - tail_size + place
    _, disk, first_disk, _, count, size, offset, _ = END.unpack_from(tail, place)
    records_end = end
    if count == MAX16 or MAX32 in (size, offset):
        count, size, offset, records_end = _end64(file, end, count, size, offset)
    if disk or first_disk:
        raise BrokenZipError("no zip", "is one part of a split archive")
    if count > most_members:
        raise BrokenZipError("count bomb", f"claims {count} members, and {most_members} are allowed")
    if offset + size != records_end:
        raise BrokenZipError("hidden data", "something lies before the archive, or between its directory and its end")
    if size > _LARGEST_DIRECTORY:
        raise BrokenZipError("count bomb", f"its directory has {size} bytes, and {_LARGEST_DIRECTORY} are allowed")
    members = tuple(_indexed(_at(file, offset, size), count))
    return Index(members=members, directory_offset=offset, end=end + END.size, trailing=length - end - END.size)


def _end64(file: BinaryIO, end: int, count: int, size: int, offset: int) -> tuple[int, int, int, int]:
    """Return count, size and offset of the directory, and where it must end, as the 64-bit records say."""
    if end < LOCATOR64.size:
        raise BrokenZipError("broken", "its 64-bit records are missing")
    signature, _, place, _ = LOCATOR64.unpack(_at(file, end - LOCATOR64.size, LOCATOR64.size))
    if signature != LOCATOR64_SIGNATURE:
        return count, size, offset, end  # exactly as many as the short record can just hold
    fields = END64.unpack(_at(file, place, END64.size))
    if fields[0] != END64_SIGNATURE or place + 12 + fields[1] != end - LOCATOR64.size:
        raise BrokenZipError("broken", "its 64-bit records are not where they should be")
    return fields[7], fields[8], fields[9], place


def _indexed(directory: bytes, count: int) -> Iterator[Indexed]:
    place = 0
    for _ in range(count):
        if len(directory) - place < CENTRAL.size:
            raise BrokenZipError("broken", "its directory is cut short")
        fields = CENTRAL.unpack_from(directory, place)
        signature, _, version, flags, method, _, _, crc, packed, size, *sizes, _, _, attributes, offset = fields
        name_size, extra_size, comment_size = sizes
        stop = place + CENTRAL.size + name_size + extra_size + comment_size
        if signature != CENTRAL_SIGNATURE or stop > len(directory):
            raise BrokenZipError("broken", "its directory is cut short")
        if version & 0xFF > _ZIP64:
            raise BrokenZipError("broken", f"it needs version {(version & 0xFF) / 10} of the format to be read")
        start = place + CENTRAL.size
        name = _decoded(directory[start : start + name_size], flags)
        extra = directory[start + name_size : start + name_size + extra_size]
        size, packed, offset = _widened([size, packed, offset], _extra(extra, ZIP64_EXTRA))
        yield Indexed(
            name=name,
            flags=flags,
            method=method,
            crc=crc,
            packed=packed,
            size=size,
            offset=offset,
            # Whatever system it claims to come from: some programs make links and devices of these bits on any.
            mode=attributes >> 16,
            other_name=_other_name(extra, name),
        )
        place = stop
    if place != len(directory):
        raise BrokenZipError("hidden data", f"{len(directory) - place} bytes of its directory belong to no member")


def _extra(extra: bytes, wanted: int) -> bytes:
    """Return what the extra field of kind ``wanted`` holds; empty where there is none."""
    while len(extra) >= EXTRA.size:
        kind, size = EXTRA.unpack_from(extra)
        if kind == wanted:
            return extra[EXTRA.size : EXTRA.size + size]
        extra = extra[EXTRA.size + size :]
    return b""


def _other_name(extra: bytes, name: str) -> str:
    """Return the name that an extra field gives beside ``name``; empty where both are the same."""
    other = _extra(extra, UNICODE_PATH_EXTRA)[5:].decode("utf-8", "replace")  # after a version and a checksum
    return "" if other == name else other


def _widened(numbers: list[int], wide: bytes) -> list[int]:
    """Replace each number that says so by the next 64-bit one."""
    found = []
    for number in numbers:
        if number == MAX32:
            if len(wide) < 8:
                raise BrokenZipError("broken", "a 64-bit size is missing")
            number, wide = int.from_bytes(wide[:8], "little"), wide[8:]
        found.append(number)
    return found


def _decoded(name: bytes, flags: int) -> str:
    try:
        return name.decode("utf-8" if flags & FLAG_UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise BrokenZipError("broken", f"the name {name!r} is not UTF-8, as it claims") from error


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    if len(content := file.read(size)) < size:
        raise BrokenZipError("broken", "is cut short")
    return content
