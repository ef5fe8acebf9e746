"""A process and everything it started, found and ended together.

Only the standard library and psutil: the module is also a script, the guard, which outlives a killed parent by
the moments it takes to end the tree that the parent left.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

OF_ANOTHER_BOOT = -1.0  # when a process was created that has ended with the machine's last boot
# A process number does not come round again within seconds.
_SAME_TIME_S = 2.0
_KILL_S = 5.0
_POLL_S = 0.02


def created(process: psutil.Process) -> float:
    """Return when a process was created, in seconds, by a clock that nobody sets.

    Linux counts from the boot, and psutil adds when that was, which moves with the clock; elsewhere the time of day was
    noted as the process began, and stays.
    """
    since = psutil.boot_time() if sys.platform == "linux" else 0.0
    return float(process.create_time() - since)


def boot() -> str:
    """Return what sets this boot of the machine apart from others; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def is_alive(pid: int, at: float) -> bool:
    """Tell whether ``pid`` still is the process that was `created` ``at``, and runs."""
    try:
        process = psutil.Process(pid)
        return abs(created(process) - at) <= _SAME_TIME_S and _runs(process)
    except psutil.Error:
        return False


def members(pid: int, at: float) -> set[psutil.Process]:
    """Return what runs of the tree that ``pid``, a session leader `created` ``at``, has started.

    The descendants, and the session: a process whose parent has died is no descendant any more, but stays in it.
    """
    found: set[psutil.Process] = set()
    if at == OF_ANOTHER_BOOT:
        return found  # a session of that number is another's, even where its leader has ended
    try:
        leader = psutil.Process(pid)
        if abs(created(leader) - at) > _SAME_TIME_S:
            return found  # another's: the system gives no number away that a session still bears
        found = {leader, *leader.children(recursive=True)}
    except psutil.Error:
        pass  # the leader is gone; its session may live on
    for other in psutil.pids():
        try:
            if os.getsid(other) == pid:
                found.add(psutil.Process(other))
        except (OSError, psutil.Error):
            continue  # ended meanwhile, or none of our business
    return {process for process in found if _runs(process)}


def end(pid: int, at: float, *, grace_s: float) -> tuple[int, ...]:
    """Ask the tree of ``pid`` to stop, kill after ``grace_s`` what still runs, and return what survived even that.

    SIGTERM goes to the leader, its children and the orphans: a wrapper and what it wraps. Deeper processes are
    their parents' to stop, as a server stops its workers; SIGKILL goes to all.
    """
    known: set[psutil.Process] = set()
    asked: set[psutil.Process] = set()
    kill_at = time.monotonic() + grace_s
    while True:
        known = {process for process in known | members(pid, at) if _runs(process)}
        if not known:
            return ()
        now = time.monotonic()
        if now >= kill_at + _KILL_S:
            return tuple(sorted(process.pid for process in known))
        if now >= kill_at:
            for process in known:
                _signal(process.kill)
        else:
            for process in _outermost(known, pid) - asked:
                _signal(process.terminate)
                asked.add(process)
        time.sleep(_POLL_S)


def _outermost(processes: Iterable[psutil.Process], leader: int) -> set[psutil.Process]:
    parents = {process: _parent(process) for process in processes}
    inside = {process.pid for process in parents} - {leader}
    return {process for process, parent in parents.items() if parent not in inside}


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except psutil.Error:
        return 0


def _runs(process: psutil.Process) -> bool:
    try:
        if not process.is_running():
            return False
        # A zombie with threads has ended for its parent alone: its other threads still hold its ports and files.
        return process.status() != psutil.STATUS_ZOMBIE or bool(process.num_threads() > 1)
    except psutil.Error:
        return False


def _signal(send: Callable[[], None]) -> None:
    # psutil compares the creation time first: a number that was given away is not signalled. What ended meanwhile
    # needs no signal, and what we may not signal is found among the survivors.
    with suppress(psutil.Error):
        send()


def _guard(pid: int, at: float, grace_s: float, scratch: Iterable[str]) -> None:
    """Wait until the parent closes standard input, if only by dying, then end the tree and remove ``scratch``."""
    while sys.stdin.buffer.read(1):
        pass
    end(pid, at, grace_s=grace_s)
    for path in scratch:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
