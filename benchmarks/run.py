"""Run the benchmarks one after the other, and kill studies; `make bench` installs first what they compare with.

Each prints ratios that were measured in one run; all together take hours. Some are run by themselves. As much a test:
``embedded_fuzz.py``, ``reader_fuzz.py``, ``embedded_swaps.py``, ``fleet_scale.py``. Needs a corpus: ``lint_corpus.py``.
Take longer: ``outlived_token.py`` (70 minutes), ``embedded_soak.py``, and ``surfaces/record.py`` (hours, on a machine
that does nothing else).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
KILLS = 20
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
    print(f"== studies killed at {KILLS} random moments, and resumed", flush=True)
    studies = str(HERE.parent / "integration" / "test_tune.py")
    pytest = [str(Path(sys.executable).with_name("pytest")), studies, "-k", "no_kill", "-q", "-s"]
    environment = os.environ | {"SERVEWRIGHT_KILLS": str(KILLS)}
    return failed + (subprocess.run(pytest, cwd=HERE.parent, env=environment).returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
