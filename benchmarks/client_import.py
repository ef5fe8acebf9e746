"""Measure what importing our TensorFlow Serving client costs, beside ``import tensorflow``.

Prints how many times longer TensorFlow takes and how many times more memory it holds (resident set above that of an
empty interpreter): the median of alternating rounds, every import in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "adapters"
CLIENT = "servewright.backends.tfserving.client"
MEASURE = """
import sys, time, psutil
process = psutil.Process()
before = process.memory_info().rss
start = time.perf_counter()
import {module}
took = time.perf_counter() - start
print(took, process.memory_info().rss - before, "tensorflow" in sys.modules)
"""


def measure(module: str) -> tuple[float, int]:
    """Return the seconds and bytes that importing ``module`` takes in a fresh process."""
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    script = MEASURE.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    seconds, size, tensorflow = done.stdout.split()
    if (tensorflow == "True") != (module == "tensorflow"):
        raise SystemExit(f"import {module} does not import what it should")
    return float(seconds), int(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for module in (CLIENT, "tensorflow"):
        measure(module)  # once for the byte code and the disk's cache
    rounds = [(measure(CLIENT), measure("tensorflow")) for _ in range(arguments.rounds)]
    result = {
        "client_s": statistics.median(ours[0] for ours, _ in rounds),
        "tensorflow_s": statistics.median(theirs[0] for _, theirs in rounds),
        "client_mib": statistics.median(ours[1] for ours, _ in rounds) / 2**20,
        "tensorflow_mib": statistics.median(theirs[1] for _, theirs in rounds) / 2**20,
        "times_faster": statistics.median(theirs[0] / ours[0] for ours, theirs in rounds),
        "times_smaller": statistics.median(theirs[1] / ours[1] for ours, theirs in rounds),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"client      {result['client_s']:.3f} s  {result['client_mib']:.0f} MiB")
    print(f"tensorflow  {result['tensorflow_s']:.3f} s  {result['tensorflow_mib']:.0f} MiB")
    print(f"{result['times_faster']:.1f} times faster, {result['times_smaller']:.1f} times smaller")


if __name__ == "__main__":
    main()
