"""The server's log: lines on stderr in the form of the real one's, with the names of its source files."""

from __future__ import annotations

import sys
import time
from typing import Literal

Level = Literal["I", "W", "E"]


def log(level: Level, place: str, message: str) -> None:
    """Write one line; ``place`` is the source file under whose name the real server writes it."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
    try:
        sys.stderr.write(f"{stamp}: {level} {place}] {message}\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads it any more; serving goes on
        return


def say(text: str) -> None:
    """Write a line to stdout, at once."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        return
