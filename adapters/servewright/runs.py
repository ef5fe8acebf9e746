"""Runs: the folder that a command keeps its files in, and the lock that says that the command lives.

The lock is the kernel's: it ends with the process that holds it, however that ends. A folder whose lock is free is
what a killed run left, unless it belongs to a server that stays.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from servewright.errors import LaunchError

PREFIX = "servewright-run-"
_KEPT_BY = "kept-by"
# Worker sockets lie below a run's folder, and AF_UNIX ends at about 107 characters.
_LONGEST_PARENT = 40
_TRIES = 100


class Run:
    """A folder of this command's own; the lock on it is held until `close`."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self._lock = folder, lock

    @property
    def name(self) -> str:
        """What sets this run apart from all others of this machine."""
        return self.folder.name

    def keep_for(self, server: Path) -> None:
        """Let the folder outlive this command for as long as there is a file at ``server``."""
        (self.folder / _KEPT_BY).write_text(str(server.absolute()), encoding="utf-8")

    def close(self) -> None:
        """Give the lock back, and remove the folder unless it stays for a server."""
        if self._lock < 0:
            return
        if not _is_kept(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def parent() -> Path:
    """Return the folder that runs lie in: the system's for temporary files, where its path is short enough."""
    folder = tempfile.gettempdir()
    return Path(folder if len(folder) <= _LONGEST_PARENT else "/tmp")  # noqa: S108  (mkdtemp makes a private folder)


def begin() -> Run:
    """Make a folder for a run that begins, and lock it."""
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent()))
        lock = claim(folder)
        if lock is not None:
            return Run(folder, lock)
    raise LaunchError(f"cannot make a folder of our own in {parent()}; something removes it at once")


def claim(folder: Path) -> int | None:
    """Lock a folder that was just made; ``None`` where a sweep came between, which then removed it.

    The lock lasts until the descriptor is closed.
    """
    try:
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(lock), folder.stat()):
            return lock
    except FileNotFoundError:
        return None
    os.close(lock)
    return None


@contextmanager
def running() -> Iterator[Run]:
    """Make a folder for as long as the block lasts."""
    run = begin()
    try:
        yield run
    finally:
        run.close()


def is_alive(folder: Path) -> bool:
    """Tell whether the command that made ``folder`` still runs, or a server stays for which the folder is kept."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # not ours to look at
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return _is_kept(folder)


def sweep() -> list[Path]:
    """Remove the folders that killed runs of this user left, and return them."""
    return sweep_folders(parent().glob(f"{PREFIX}*"), keep=_is_kept)


def sweep_folders(folders: Iterable[Path], *, keep: Callable[[Path], bool]) -> list[Path]:
    """Remove those of ``folders`` that nobody has locked, that are this user's, and that ``keep`` does not name."""
    return [folder for folder in sorted(folders) if _remove_if_dead(folder, keep)]


def _remove_if_dead(folder: Path, keep: Callable[[Path], bool]) -> bool:
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The lock stays ours while we remove: whoever made the folder this instant waits for it, and makes another.
        if os.fstat(lock).st_uid != os.geteuid() or keep(folder):
            return False
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _is_kept(folder: Path) -> bool:
    try:
        return Path((folder / _KEPT_BY).read_text(encoding="utf-8")).exists()
    except (OSError, ValueError):
        return False
