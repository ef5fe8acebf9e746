"""Zip archives that are the same bytes on every run and machine, written at the disk's speed.

Members are stored, not deflated (weights do not shrink, and deflating takes ten times as long), in name order, with
one date and one mode for all. Where every byte will lie follows from names and sizes alone, so two threads share the
work: one copies the contents, the other takes checksums, and the headers that hold these are put in last.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from servewright.digest import CHUNK, Digest, State, remember
from servewright.errors import InputError, PackagingError
from servewright.members import Members, check_members
from servewright.staging import staged_file
from servewright.zip_format import Stored, end_records


def write_zip(target: Path, members: Members) -> Digest:
    """Write ``members`` to the zip file ``target``, stored, and return its digest; a file of that name is replaced.

    Raises InputError for unsafe names and unreadable sources, PackagingError if the disk does not take it or a source
    changes meanwhile; ``target`` is then as it was.
    """
    check_members(members)
    sources = [_Source.of(members[name]) for name in sorted(members)]
    layout = _layout(sorted(members), [source.size for source in sources])
    stop = Event()
    with staged_file(target) as archive, ThreadPoolExecutor(max_workers=1) as beside:
        checked = beside.submit(_checked, sources, layout, stop)
        try:
            for source, member in zip(sources, layout, strict=True):
                _copy(archive, source, member.offset + member.header_size)
            os.fsync(archive)  # most of it, while the other thread still takes checksums
            headers, tail, digest = checked.result()
        finally:
            stop.set()
        for member, header in zip(layout, headers, strict=True):
            _write_at(archive, header, member.offset)
        _write_at(archive, tail, digest.size - len(tail))
        os.fsync(archive)
        remember(archive, digest)
    return digest


@dataclass(frozen=True, slots=True)
class _Source:
    """A member's content as it was when packing began; reading it later refuses another one."""

    content: Path | bytes
    size: int
    state: State | None = None

    @classmethod
    def of(cls, content: Path | bytes) -> _Source:
        if isinstance(content, bytes):
            return cls(content, len(content))
        with _reading(content) as file:
            state = State.of(file)
            return cls(content, state.size, state)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the content piece by piece; a piece is valid until the next one is asked for."""
        if isinstance(self.content, bytes):
            yield self.content
            return
        buffer = memoryview(bytearray(min(CHUNK, self.size + 1)))  # one more: growth is seen
        with _reading(self.content) as file:
            seen = 0
            while seen <= self.size and (count := _read(file, buffer, self.content)):
                seen += count
                if seen <= self.size:
                    yield buffer[:count]
            if seen != self.size or State.of(file) != self.state:
                raise PackagingError(f"{self.content} changed while it was packed; run again when nothing writes to it")


def _layout(names: Sequence[str], sizes: Sequence[int]) -> list[Stored]:
    layout, offset = [], 0
    for name, size in zip(names, sizes, strict=True):
        member = Stored(name=name, size=size, crc=0, offset=offset)
        layout.append(member)
        offset += member.header_size + size
    return layout


def _checked(sources: Sequence[_Source], layout: Sequence[Stored], stop: Event) -> tuple[list[bytes], bytes, Digest]:
    """Return the local headers with their checksums, what follows the contents, and the whole archive's digest."""
    whole, headers, directory, size = hashlib.sha256(), [], bytearray(), 0
    for source, unchecked in zip(sources, layout, strict=True):
        crc = 0
        for chunk in _until(stop, source.chunks()):
            crc = zlib.crc32(chunk, crc)
        member = replace(unchecked, crc=crc)
        headers.append(member.local_header())
        directory += member.central_header()
        whole.update(headers[-1])
        for chunk in _until(stop, source.chunks()):
            whole.update(chunk)
        size = member.offset + member.header_size + member.size
    tail = bytes(directory) + end_records(count=len(layout), size=len(directory), offset=size)
    whole.update(tail)
    return headers, tail, Digest(whole.hexdigest(), size + len(tail))


def _until(stop: Event, chunks: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    for chunk in chunks:
        if stop.is_set():  # the writer failed: nobody waits for the answer
            return
        yield chunk


def _copy(archive: int, source: _Source, offset: int) -> None:
    for chunk in source.chunks():
        offset += _write_at(archive, chunk, offset)


def _write_at(archive: int, content: bytes | memoryview, offset: int) -> int:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(archive, rest, offset)
        offset += written
        rest = rest[written:]
    return len(content)


@contextmanager
def _reading(source: Path) -> Iterator[int]:
    try:
        # The path may have become a named pipe since it was checked; opening one would wait for a writer.
        file = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    try:
        yield file
    finally:
        os.close(file)


def _read(file: int, buffer: memoryview, source: Path) -> int:
    try:
        return os.readv(file, [buffer])
    except OSError as error:
        raise PackagingError(f"{source} cannot be read: {error.strerror}") from error
