"""The processors that this program may use, which may be fewer than the machine has."""

from __future__ import annotations

import os
import sys


def usable() -> int:
    """Return how many there are, at least one; as TensorFlow counts them, a container's or taskset's bounds do."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
