"""SHA-256 of files, streamed; a file that has not changed since is not read twice in a process."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from servewright.errors import InputError

CHUNK: Final = 1 << 20  # larger than this gains nothing, and a level-2 cache holds it
_SETTLED_NS: Final = 2_000_000_000  # the coarsest time stamps of a file system in use


class State(NamedTuple):
    """What tells one content of a file from another without reading it.

    The change time is not in it: a hard link moves that, and linking a file must not cost a second read.
    """

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, descriptor: int) -> State:
        """Return the state of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


_seen: dict[State, str] = {}


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file holds: its SHA-256 in hexadecimal, and its size in bytes."""

    sha256: str
    size: int


def digest_of_bytes(content: bytes) -> Digest:
    """Return the digest of ``content``."""
    return Digest(hashlib.sha256(content).hexdigest(), len(content))


def digest_of_file(path: Path) -> Digest:
    """Return the digest of the file at ``path``, from memory if it was read before and has not changed since."""
    with _reading(path) as descriptor:
        state = State.of(descriptor)
        if known := _seen.get(state):
            return Digest(known, state.size)
        digest = _read(descriptor)
        # A file just written may be written again under the same time stamp.
        settled = time.time_ns() - state.changed_ns > _SETTLED_NS
        if settled and State.of(descriptor) == state:
            _seen[state] = digest.sha256
    return digest


def read_digest(path: Path) -> Digest:
    """Return the digest of the file at ``path``, reading every byte whatever is remembered."""
    with _reading(path) as descriptor:
        return _read(descriptor)


def digest_of_members(members: Mapping[str, Path | bytes]) -> dict[str, Digest]:
    """Return the digest of every member by its name, in name order."""
    return {
        name: digest_of_file(content) if isinstance(content, Path) else digest_of_bytes(content)
        for name, content in sorted(members.items())
    }


def combined(digests: Mapping[str, Digest]) -> Digest:
    """Return one digest for many named files, such as a model's directory; their order does not matter."""
    whole = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        whole.update(f"{digest.sha256} {digest.size} {name}\0".encode())
    return Digest(whole.hexdigest(), sum(digest.size for digest in digests.values()))


def remember(descriptor: int, digest: Digest) -> None:
    """Keep the digest of an open file that nobody else writes to, known from writing it."""
    _seen[State.of(descriptor)] = digest.sha256


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file.fileno()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _read(descriptor: int) -> Digest:
    whole, size = hashlib.sha256(), 0
    buffer = memoryview(bytearray(CHUNK))
    while count := os.readv(descriptor, [buffer]):
        whole.update(buffer[:count])
        size += count
    return Digest(whole.hexdigest(), size)
