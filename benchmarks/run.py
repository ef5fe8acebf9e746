"""Run every benchmark after the other; each prints ratios that were measured in one run."""

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
        if not (HERE / script).exists():
            continue
        print(f"== {script}", flush=True)
        failed += subprocess.run([sys.executable, str(HERE / script)]).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
