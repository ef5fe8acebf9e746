"""Run every benchmark after the other; each prints ratios that were measured in one run.

Three take longer and are run by themselves: ``outlived_token.py`` (70 minutes), ``embedded_soak.py``, and
``surfaces/record.py`` (hours, on a machine that does nothing else).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    "startup.py",
    "client_import.py",
    "predict_grpc.py",
    "packaging.py",
    "launch_overhead.py",
    "load_client.py",
    "load_client.py --stall",
    "load_tools.py",
    "embedded_throughput.py",
    "simulation_accuracy.py",
    "tuner_replay.py",
    "tuned_over_default.py",
)


def main() -> int:
    """Return how many benchmarks failed."""
    failed = 0
    for script in SCRIPTS:
        name, *options = script.split()
        print(f"== {script}", flush=True)
        failed += subprocess.run([sys.executable, str(HERE / name), *options]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
