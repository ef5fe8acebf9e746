"""The file that a server reads its models from, at its start or again and again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from servewright.backends.tfserving import texts
from servewright.errors import InputError
from servewright.rollout.plan import Aim
from servewright.staging import staged_file

if TYPE_CHECKING:
    from servewright.server import RunningServer


def config_file(aim: Aim, server: RunningServer, via: str) -> Path | None:
    """Return the file that holds the server's config, as far as it is known."""
    named = aim.options.get("config")
    if named is None and server.site is not None and server.runtime != "docker":
        named = f"{server.site.config}/{texts.MODEL_CONFIG}"
    if via == "grpc":
        return Path(named) if named else None
    if named is None:
        raise InputError("via=file needs the file that the server polls: say config=FILE")
    path = Path(named)
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be replaced; via=file needs a config file that may be written, and its folder")
    return path


def read(file: Path) -> str:
    """Return the text of a config file."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}; name the server's model config file") from error


def replace_file(path: Path, text: str) -> None:
    """Put ``text`` in the place of a file, in one step, readable for those who could read it before."""
    with staged_file(path) as descriptor:
        if path.exists():
            os.fchmod(descriptor, path.stat().st_mode & 0o777)
        data = memoryview(text.encode())
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
