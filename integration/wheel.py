"""Build the wheel, install it elsewhere, and test what users get: by the fast tests, and as a user's project does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Nothing here may hang: whatever takes longer, in seconds, has failed.
LONGEST_S = 900


def main() -> int:
    """Return pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="servewright-wheel-") as folder:
        here = Path(folder)
        build = [sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL, timeout=LONGEST_S)
        wheel = next(here.glob("*.whl"))
        site = here / "site"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
        subprocess.run(install, check=True, timeout=LONGEST_S)
        # Away from the checkout, whose folders would hide that a file is missing from the wheel.
        for name in ("tests", "docs", "benchmarks"):
            shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("*.jsonl", "__pycache__"))
        for name in ("pyproject.toml", ".pre-commit-hooks.yaml"):
            shutil.copyfile(ROOT / name, here / name)
        environment = os.environ | {"PYTHONPATH": str(site), "SERVEWRIGHT_EXPECT_PACKAGE": str(site / "servewright")}
        environment["SERVEWRIGHT_STATE"] = str(here / "state")
        environment["PATH"] = f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}"
        command = [sys.executable, "-m", "pytest", "tests", "-q", "-n", "2", "-p", "no:cacheprovider", *sys.argv[1:]]
        command += ["-o", f"pythonpath={site / 'servewright' / 'handlers'}"]
        return subprocess.run(command, cwd=here, env=environment).returncode or sample(here, environment)


def sample(here: Path, environment: Mapping[str, str]) -> int:
    """Do with the sample project what its README says, on whatever runs the servers here; return an exit code."""
    print("== a user's project, with the built wheel", flush=True)
    project = here / "project"
    shutil.copytree(
        ROOT / "examples" / "pytest-project", project, ignore=shutil.ignore_patterns("model.pt", "saved_model", "__*")
    )
    where = "import os, servewright.pytest_plugin as p; assert p.__file__.startswith(os.environ['PYTHONPATH']), p"
    commands = [
        [sys.executable, "-P", "-c", where],
        [sys.executable, "train.py"],
        # Required: a skip would look as if it worked.
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "--serving-require", "auto"],
        ["./smoke.sh"],
    ]
    for command in commands:
        done = subprocess.run(command, cwd=project, env=environment, stdin=subprocess.DEVNULL, timeout=LONGEST_S)
        if done.returncode:
            print(f"failed: {' '.join(command)}", file=sys.stderr)
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
