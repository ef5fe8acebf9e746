"""Prove an archive safe before a server, or anybody, unpacks it.

Three passes, each only if the one before it found nothing: the directory at the end, the records in front of every
member (TorchServe unpacks by these and never looks at the directory), the contents.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from servewright.digest import CHUNK
from servewright.errors import InputError
from servewright.members import name_problems
from servewright.zip_format import (
    DEFLATED,
    END_SIGNATURE,
    FLAG_DESCRIPTOR,
    LOCAL_SIGNATURE,
    STORED,
    BrokenZipError,
    Index,
    Indexed,
    read_index,
)

_TOLD: Final = 3  # reasons in one line of an error
_UNPACKED: Final = (".mar", ".zip")
_DESCRIPTOR: Final = 24  # bytes at most of the record that may follow a member's content


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may unpack to; ``ratio`` of content to archive counts from ``ratio_from`` bytes of content."""

    members: int = 10_000
    content: int = 256 << 30
    ratio: int = 200
    ratio_from: int = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveFinding:
    """One reason not to unpack an archive; ``member`` is empty where it concerns the whole."""

    rule: str
    detail: str
    member: str = ""

    def __str__(self) -> str:
        return f"{self.member}: {self.detail}" if self.member else self.detail


def check_archive(path: Path, limits: Limits | None = None) -> tuple[ArchiveFinding, ...]:
    """Return every reason not to unpack the zip file at ``path``; every byte is read, nothing is written.

    Raises InputError where there is no readable file.
    """
    limits = limits or Limits()
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{path} is not a regular file")
        with FileIO(path) as file:
            index = read_index(file, most_members=limits.members)
            return (
                tuple(_index_findings(index, limits))
                or tuple(_record_findings(file, index))
                or tuple(_content_findings(file, index.members))
            )
    except BrokenZipError as error:
        return (ArchiveFinding(rule=error.rule, detail=str(error)),)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def refuse_unsafe(folder: Path) -> None:
    """Refuse what a server would unpack: raise InputError where a zip archive in ``folder`` is not safe.

    Files are told by their first bytes, whatever they are called; folders in it hold what is unpacked already.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and (found := _zip_findings(path)):
            reasons = "; ".join(str(finding) for finding in found[:_TOLD])
            more = f"; and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
            raise InputError(f"{path} is not safe to unpack: {reasons}{more}; make it anew from its sources")


def _zip_findings(path: Path) -> tuple[ArchiveFinding, ...]:
    with path.open("rb") as file:
        head = file.read(len(LOCAL_SIGNATURE))
    # The second is an archive of nothing; what a server is told to unpack by its name is checked in any case.
    named = path.suffix in _UNPACKED
    return check_archive(path) if named or head in (LOCAL_SIGNATURE, END_SIGNATURE) else ()


def _index_findings(index: Index, limits: Limits) -> Iterator[ArchiveFinding]:
    members = index.members
    files = [member.name for member in members if not member.is_directory]
    for problem in name_problems(files, [member.name[:-1] for member in members if member.is_directory]):
        yield ArchiveFinding(rule=problem.rule.value, member=problem.name, detail=problem.reason)
    for member in members:
        kind = stat.S_IFMT(member.mode)
        if kind == stat.S_IFLNK:
            yield ArchiveFinding(rule="link", member=member.name, detail="is a symbolic link")
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            yield ArchiveFinding(rule="device", member=member.name, detail="is a device, pipe or socket")
        if member.other_name:
            yield ArchiveFinding(
                rule="mismatch", member=member.name, detail=f"is called {member.other_name!r} by programs such as unzip"
            )
        if member.encrypted:
            yield ArchiveFinding(rule="encryption", member=member.name, detail="is encrypted")
        if member.method not in (STORED, DEFLATED):
            yield ArchiveFinding(
                rule="method", member=member.name, detail=f"is packed with method {member.method}; Java reads 0 and 8"
            )
    content = sum(member.size for member in members)
    if content > limits.content:
        yield ArchiveFinding(rule="size bomb", detail=f"unpacks to {content} bytes, and {limits.content} are allowed")
    if content > max(limits.ratio_from, limits.ratio * index.end):
        yield ArchiveFinding(
            rule="ratio bomb", detail=f"unpacks to {content // index.end} times its size; {limits.ratio} is allowed"
        )
    if index.trailing:
        yield ArchiveFinding(rule="trailing data", detail=f"{index.trailing} bytes follow the archive's directory")


def _record_findings(file: FileIO, index: Index) -> Iterator[ArchiveFinding]:
    """Compare the records in front of the members with the directory, and see that nothing lies between or twice."""
    expected, before = 0, ""
    allowed = 0
    for member in sorted(index.members, key=lambda member: member.offset):
        gap = member.offset - expected
        if gap < 0:
            yield ArchiveFinding(rule="overlap", member=member.name, detail=f"lies inside {before!r}")
            return
        if gap > allowed:
            where = f"after {before!r}" if before else "before the first member"
            yield ArchiveFinding(rule="hidden data", detail=f"{gap} bytes that belong to nothing lie {where}")
        if difference := member.difference(file):
            yield ArchiveFinding(rule="mismatch", member=member.name, detail=difference)
            return
        expected, before = member.content_offset(file) + member.packed, member.name
        allowed = _DESCRIPTOR if member.flags & FLAG_DESCRIPTOR else 0
    if (gap := index.directory_offset - expected) < 0:
        yield ArchiveFinding(rule="overlap", member=before, detail="reaches into the directory")
    elif gap > allowed:
        yield ArchiveFinding(rule="hidden data", detail=f"{gap} bytes that belong to nothing lie after {before!r}")


def _content_findings(file: FileIO, members: Sequence[Indexed]) -> Iterator[ArchiveFinding]:
    buffer = memoryview(bytearray(CHUNK))
    for member in members:
        if detail := _content_problem(file, member, buffer):
            yield ArchiveFinding(rule="content", member=member.name, detail=detail)


def _content_problem(file: FileIO, member: Indexed, buffer: memoryview) -> str:
    """Unpack a member without keeping it, and no further than the size it claims."""
    file.seek(member.content_offset(file))
    left, size, crc = member.packed, 0, 0
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == DEFLATED else None
    while left:
        if not (count := file.readinto(buffer[: min(CHUNK, left)])):
            return "is cut short"
        left -= count
        packed: bytes | memoryview = buffer[:count]
        while packed:
            try:
                # One byte more than it may have is enough to tell; asked for none, zlib would give all.
                chunk = inflate.decompress(packed, min(CHUNK, member.size - size + 1)) if inflate else packed
            except zlib.error as error:
                return f"cannot be inflated: {error}"
            packed = inflate.unconsumed_tail if inflate else b""
            size += len(chunk)
            crc = zlib.crc32(chunk, crc)
            if size > member.size:
                return f"unpacks to more than the {member.size} bytes that it claims"
    if inflate and (not inflate.eof or inflate.unused_data):
        return "does not end where the directory says"
    if size != member.size:
        return f"unpacks to {size} bytes, and claims {member.size}"
    return "" if crc == member.crc else f"its checksum is {crc:08x}, and should be {member.crc:08x}"
