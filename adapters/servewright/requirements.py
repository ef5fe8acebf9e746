"""Requirements for pip, pinned to what is installed here: an image then holds what was tested beside it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version


def pinned(packages: Iterable[str]) -> tuple[str, ...]:
    """Return a line for each of ``packages``; one that is not installed here is left to pip.

    A local version (``2.13.0+cpu``) is no index's: the release alone is asked for.
    """
    return tuple(_line(package) for package in packages)


def _line(package: str) -> str:
    try:
        return f"{package}=={version(package).partition('+')[0]}"
    except PackageNotFoundError:
        return package
