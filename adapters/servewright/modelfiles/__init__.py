"""Looking into model files: which format, which signatures, without running a stranger's code.

Nothing heavy is imported here: what needs a framework runs in a process of its own.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from servewright.errors import InputError, ModelFileError
from servewright.modelfiles.detection import detect
from servewright.spec import FORMATS

if TYPE_CHECKING:
    from servewright.modelfiles.inspection import Inspection, Source

__all__ = ["detect", "inspect", "source_of"]


def inspect(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002
    example: Path | None = None,
    code: str | None = None,
    trust: bool = False,
) -> Inspection:
    """Return what the model at ``path`` says of itself.

    ``format`` is checked against what the file holds. For files that do not tell, ``example`` names an ``.npz`` with
    inputs by name and ``code`` the network's class (``net.py:Net``). ``trust`` lets a stranger's code run.
    Raises `ModelFileError` for what cannot be used and `UntrustedPickleError` for what would run a stranger's code.
    """
    source = source_of(path, format=format, example=example, code=code, trust=trust)
    module = importlib.import_module(f"servewright.modelfiles.{source.format}")
    try:
        found: Inspection = module.inspect(source)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error
    return found


def source_of(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002
    example: Path | None = None,
    code: str | None = None,
    trust: bool = False,
) -> Source:
    """Return the model at ``path`` with its format, told from its content and checked against ``format``."""
    from servewright.modelfiles.inspection import Source

    if format is not None and format not in FORMATS:
        raise InputError(f"no model format {format!r}; choose from {', '.join(FORMATS)}")
    found = detect(path)
    if format is not None and format != found:
        raise ModelFileError(f"{path} is a {found} model, not {format}; write format: {found}, or name another file")
    return Source(path=path, format=found, example=example, code=code, trust=trust)
