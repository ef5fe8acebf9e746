"""Run a server as PID 1: pass signals on, collect what is orphaned, and end when the server ends.

A process whose number is 1 ignores a signal that it has no handler for, and torchserve is a wrapper that passes none
on: without this, a stop would be a kill ten seconds later.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def main(command: list[str]) -> int:
    """Run ``command`` and return its exit code, as a shell would."""
    server = subprocess.Popen(command)  # noqa: S603  (the image's own command)
    stopping = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for pid in (server.pid, *children(server.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

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
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
