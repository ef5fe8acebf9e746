"""Write beside, then rename: whatever bears the final name is whole, whenever the writer was killed.

A part is called ``.<name>.<random>.part`` and lies in the target's own directory. Its writer holds a lock on it
for as long as it lives, so that the next writer can tell a dead one's part and remove it. Locks were preferred to
process ids, which mean nothing in another container or on another host of a shared file system.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from servewright.errors import PackagingError

_REASONS: Final = {
    errno.EACCES: "no permission; choose another directory or change its rights",
    errno.EPERM: "no permission; choose another directory or change its rights",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.ENOENT: "the directory vanished while it was written",
    errno.EEXIST: "a file is there where a directory is needed; remove it or choose another name",
    errno.EISDIR: "a directory of that name is there; remove it or choose another name",
    errno.ENOTDIR: "a file is there where a directory is needed; remove it or choose another name",
    errno.EFBIG: "the file is larger than the file system or the process's limit (ulimit -f) allows",
    errno.ENAMETOOLONG: "the name is too long for the file system",
}


@contextmanager
def staged_file(target: Path) -> Iterator[int]:
    """Yield the descriptor of a new file, which becomes ``target`` if the block ends well and vanishes if not."""
    with writing(target), _parents_of(target := _named(target)):
        _sweep(target)
        part, descriptor = _locked_part(target, _new_file)
        try:
            yield descriptor
            part.replace(target)
        except BaseException:
            with suppress(FileNotFoundError):
                part.unlink()
            raise
        finally:
            os.close(descriptor)
        sync_directory(target.parent)


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield a new directory, which takes the place of ``target`` if the block ends well and vanishes if not.

    An older directory is exchanged for the new one in one step where the system can (Linux, macOS), then removed.
    """
    with writing(target), scratch_directory(target := _named(target)) as part:
        yield part
        _move_in(part, target)
        sync_directory(target.parent)


@contextmanager
def scratch_directory(target: Path) -> Iterator[Path]:
    """Yield a directory beside ``target`` for what is made on the way; it vanishes, and a dead writer's is swept."""
    with _parents_of(target := _named(target)):
        with writing(target):
            _sweep(target)
            part, descriptor = _locked_part(target, _new_directory)
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
            os.close(descriptor)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the system's errors into one that names ``target``, the cause and what to do."""
    try:
        yield
    except OSError as error:
        raise PackagingError(f"cannot write {target}: {_reason(error, target)}") from error


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # some network file systems cannot, and say EINVAL
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(target: Path) -> Path:
    """Return ``target`` so that it ends in a name: ``.`` and ``..`` have none to put a part beside."""
    return target.resolve() if target.name in ("", "..") else target


@contextmanager
def _parents_of(target: Path) -> Iterator[None]:
    with writing(target):
        missing = [parent for parent in target.parents if not parent.exists()]
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # no longer empty: another writer's by now
            for directory in missing:
                directory.rmdir()
        raise


def _locked_part(target: Path, create: Callable[[Path], int | None]) -> tuple[Path, int]:
    while True:
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        # Until it is locked, another writer's sweep may take it for a dead one's and remove it.
        if (descriptor := create(part)) is None:
            continue
        with suppress(OSError):  # a file system without locks: parts of the dead stay, which does no harm
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if part.exists():
            return part, descriptor
        os.close(descriptor)


def _new_file(part: Path) -> int:
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _new_directory(part: Path) -> int | None:
    part.mkdir()
    with suppress(FileNotFoundError):
        return os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return None


def _sweep(target: Path) -> None:
    """Remove the parts of ``target`` whose writers are dead."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.part")
    for entry in os.scandir(target.parent):
        if not pattern.fullmatch(entry.name) or entry.is_symlink():
            continue
        with suppress(OSError):  # locked by a living writer, gone meanwhile, or not ours to touch
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink()
            finally:
                os.close(descriptor)


def _move_in(part: Path, target: Path) -> None:
    """Give ``part`` the name ``target``; an older directory is then called ``part``."""
    while True:
        try:
            part.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        with suppress(FileNotFoundError):  # the older one vanished: rename again
            _exchange(part, target)
            return


def _exchange(part: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(part), os.fsencode(target)
    at_cwd = -100  # AT_FDCWD
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(old, new, ctypes.c_uint(2))  # RENAME_SWAP
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(at_cwd, old, at_cwd, new, ctypes.c_uint(2))  # RENAME_EXCHANGE
    else:
        ctypes.set_errno(errno.ENOSYS)
        failed = True
    if not failed:
        return
    if (code := ctypes.get_errno()) not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(target))
    _exchange_in_two_steps(part, target)


def _exchange_in_two_steps(part: Path, target: Path) -> None:
    # For a moment no directory has the name; if the writer dies in it, the old one is left whole as a part.
    aside = part.with_name(f"{part.name[:-14]}.{secrets.token_hex(4)}.part")
    target.rename(aside)
    try:
        part.rename(target)
    except OSError:
        aside.rename(target)
        raise
    aside.rename(part)


def _reason(error: OSError, target: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = next(parent for parent in target.absolute().parents if parent.exists())
        free = shutil.disk_usage(there).free >> 20
        return f"the disk has no room for it ({free} MiB free without it); make room or choose another directory"
    return _REASONS.get(error.errno or 0, error.strerror or str(error))
