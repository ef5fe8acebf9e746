"""Directories of an artifact's files, assembled from hard links: gigabytes of weights cost no time and no space.

A linked file *is* its source under a second name: a program that replaces the source by renaming a new file over it
leaves the artifact as it was, one that writes into the source in place changes the artifact too. ``copy_tree`` makes
files of their own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from servewright.digest import CHUNK, State
from servewright.errors import InputError, PackagingError
from servewright.members import Members, check_members
from servewright.staging import staged_directory, sync_directory

# Another file system, a file of somebody else's (Linux: fs.protected_hardlinks), too many links, none supported.
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


def assemble_tree(target: Path, members: Members) -> None:
    """Make ``target`` a directory of exactly ``members``, hard-linked where that is possible and copied elsewhere.

    A directory of that name is replaced in one step. Raises InputError for unsafe names, unreadable sources, and a
    source inside the directory to be replaced; PackagingError if the disk does not take it. ``target`` is then as
    it was.
    """
    _assemble(target, members, _link_or_copy)


def copy_tree(target: Path, members: Members) -> None:
    """Do as `assemble_tree` does, with files of their own only."""
    _assemble(target, members, _copy)


def _assemble(target: Path, members: Members, place: Callable[[Path, Path], None]) -> None:
    check_members(members)
    _refuse_own_sources(target, members)
    with staged_directory(target) as root:
        directories = sorted({root / parent for name in members for parent in PurePosixPath(name).parents} | {root})
        for directory in directories[1:]:
            directory.mkdir()
        for name, content in sorted(members.items()):
            if isinstance(content, Path):
                place(content, root / name)
            else:
                _write(root / name, content)
        for directory in directories:
            sync_directory(directory)


def _refuse_own_sources(target: Path, members: Members) -> None:
    """Refuse to replace a directory that a member comes from: that would remove the source."""
    replaced = target.resolve()
    for name, content in sorted(members.items()):
        if not isinstance(content, Path):
            continue
        if replaced in content.resolve().parents or replaced in (content.parent.resolve() / content.name).parents:
            raise InputError(
                f"member {name!r}: {content} lies in {target}, which would be replaced; choose another one"
            )


def _link_or_copy(source: Path, path: Path) -> None:
    try:
        # Resolved first: link(2) on Linux would make a second name of a symbolic link, not of the file behind it.
        os.link(source.resolve(), path)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        _copy(source, path)


def _copy(source: Path, path: Path) -> None:
    try:
        file = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    try:
        state = State.of(file)
        with path.open("xb", buffering=0) as copy:
            size = _copy_content(file, copy.fileno(), state.size)
            os.fsync(copy.fileno())
        if size != state.size or State.of(file) != state:
            raise PackagingError(f"{source} changed while it was packed; run again when nothing writes to it")
    finally:
        os.close(file)


def _copy_content(file: int, copy: int, size: int) -> int:
    """Copy ``size`` bytes or to the end of ``file``, inside the kernel where it can; return how many there were."""
    done = 0
    # macOS has no such call, and some file systems do not take it; the loop below tells what is wrong with a disk.
    with suppress(AttributeError, OSError):
        while done < size and (count := os.copy_file_range(file, copy, size - done)):
            done += count
    while count := len(chunk := os.read(file, CHUNK)):
        done += count
        while chunk:
            chunk = chunk[os.write(copy, chunk) :]
    return done


def _write(path: Path, content: bytes) -> None:
    with path.open("xb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
        os.fsync(file.fileno())
