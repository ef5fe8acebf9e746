"""Run a server, mostly as PID 1: pass signals on, collect what is orphaned, and end when all that it started has ended.

A process whose number is 1 ignores a signal that it has no handler for, and torchserve is a wrapper that passes none
on: without this, a stop would be a kill ten seconds later. Where another process is PID 1 (`docker run --init`, a pod
that shares its processes), orphans would be that one's, and nobody would wait for the JVM: this asks for them too.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

FOLDERS = ("TMPDIR", "TEMP", "LOG_LOCATION")
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def make_folders() -> None:
    """Make the folders that the environment names: a volume that is mounted over the image's own is empty."""
    for name in FOLDERS:
        if folder := os.environ.get(name):
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                sys.stderr.write(f"{name}: {folder}: {error.strerror}; mount a folder that can be written\n")


def adopt_orphans() -> None:
    """Become the parent of what is orphaned below this process, as PID 1 is of all."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # no C library to ask: as before
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def main(command: list[str]) -> int:
    """Run ``command`` and return its exit code, as a shell would.

    After a signal this waits for every process that was started; the engine's grace period is what ends the wait.
    """
    make_folders()
    adopt_orphans()
    server = subprocess.Popen(command)  # noqa: S603  (the image's own command)
    stopping = 0
    told: set[int] = set()

    def tell(pids: list[int]) -> None:
        for pid in pids:
            told.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, stopping)

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = number
        tell([server.pid, *children(server.pid)])

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    code = 0
    with suppress(ChildProcessError):
        while True:
            pid, status = os.wait()
            if pid == server.pid:
                code = os.waitstatus_to_exitcode(status)
                server.returncode = code
                if not stopping:
                    break  # what it leaves behind is no server, and ends with us
            if stopping:  # what was too deep to be told, and is an orphan now
                tell([each for each in children(os.getpid()) if each not in told])
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
