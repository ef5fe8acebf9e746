"""Build the wheel, install it elsewhere, and run the fast tests against it: what users get is what is tested."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Return pytest's exit code."""
    with tempfile.TemporaryDirectory(prefix="servewright-wheel-") as folder:
        here = Path(folder)
        build = [sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", folder, str(ROOT)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        wheel = next(here.glob("*.whl"))
        site = here / "site"
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
        subprocess.run(install, check=True)
        # Away from the checkout, whose folders would hide that a file is missing from the wheel.
        for name in ("tests", "docs", "pyproject.toml", ".pre-commit-hooks.yaml"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, here / name)
        environment = os.environ | {"PYTHONPATH": str(site), "SERVEWRIGHT_EXPECT_PACKAGE": str(site / "servewright")}
        command = [sys.executable, "-m", "pytest", "tests", "-q", "-n", "2", "-p", "no:cacheprovider", *sys.argv[1:]]
        command += ["-o", f"pythonpath={site / 'servewright' / 'handlers'}"]
        return subprocess.run(command, cwd=here, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
