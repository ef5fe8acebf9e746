"""What a study says of where it was made."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from servewright import __version__, processors
from servewright.tuning.study import Machine


def machine() -> Machine:
    """Describe this machine."""
    import psutil

    return Machine(
        cpu=_processor(), cores=processors.usable(), memory=int(psutil.virtual_memory().total),
        system=f"{platform.system()} {platform.release()} {platform.machine()}", python=platform.python_version(),
    )  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions(packages: Sequence[str] = ("numpy",)) -> dict[str, str]:
    """Return the versions of this package and of those ``packages`` that are installed."""
    found = {"servewright": __version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
