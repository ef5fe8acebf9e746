"""The processors that this program may use, which may be fewer than the machine has."""

from __future__ import annotations

import os
import sys


def usable() -> int:
    """Return how many the system may run it on, at least one; TensorFlow counts its own so, too."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
