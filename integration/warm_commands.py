"""A process that has imported what `servewright` needs, and runs commands in forks of itself: for tests of many kills.

Reads a JSON list of words a line, answers with the number of the process that carries them out, and then with its exit
code (or the negative of the signal that ended it). What the command prints goes to the file named first.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import grpc  # noqa: F401  (imported, and not used before the fork: its threads would not survive it)
import numpy as np  # noqa: F401
import pydantic  # noqa: F401

import servewright.backends.tfserving.rollout
import servewright.backends.torchserve.rollout
import servewright.cli.rollback
import servewright.cli.rollout
import servewright.pipeline
import servewright.rollout.carrying  # noqa: F401
from servewright.cli import run


def carry_out(output: str, words: list[str]) -> int:
    """Run one command with its output in a file; a traceback lands there too."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        return run(words)
    except BaseException:  # noqa: BLE001  (this fork ends here, whatever happened)
        traceback.print_exc()
        return 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


for line in sys.stdin:
    output, *words = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os._exit(carry_out(output, words))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
