"""How long `servewright --help` and `servewright render` take, relative to an empty Python, from an installed wheel.

An editable install is no fair subject: where bytecode may not be written, it is compiled anew at every start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPEC = """servewright: 1
name: digits
model: {path: model.pt, format: torchscript}
signature:
  inputs: [{name: image, dtype: float32, shape: [null, 1, 8, 8]}]
  outputs: [{name: scores, dtype: float32, shape: [null, 10]}]
"""


def main() -> None:
    """Print the median seconds of each command, and their ratios to ``python -c pass``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="servewright-startup-") as folder:
        here = Path(folder)
        environment = _installed(here)
        (here / "digits.yaml").write_text(SPEC)
        (here / "model.pt").write_bytes(b"weights")
        commands = {
            "python -c pass": ["-c", "pass"],
            "servewright --help": ["-m", "servewright", "--help"],
            "servewright render": ["-m", "servewright", "render", "digits.yaml", "-b", "torchserve"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(wanted.rounds + 1):
            for name, words in commands.items():
                start = time.perf_counter()
                subprocess.run(
                    [sys.executable, *words], cwd=here, env=environment, check=True, stdout=subprocess.DEVNULL
                )
                if number:  # the first round writes bytecode
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: median / medians["python -c pass"] for name, median in medians.items()}
    if wanted.json:
        print(json.dumps({"seconds": medians, "ratios": ratios}, indent=2))
        return
    for name, median in medians.items():
        print(f"{name:<20} {median:.3f} s, {ratios[name]:.1f} times python -c pass")


def _installed(here: Path) -> dict[str, str]:
    """Build the wheel, install it below ``here``, and return an environment that finds it first."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(here), str(ROOT)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    wheel = next(here.glob("*.whl"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(here / "site"),
        str(wheel),
    ]
    subprocess.run([*install, str(wheel)], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return environment | {"PYTHONPATH": str(here / "site")}


if __name__ == "__main__":
    main()
