"""What this machine can run, and how to get what is missing."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from servewright import registry
from servewright.backend import Backend
from servewright.errors import UnavailableError

_NEEDED_BY_EXTRA = re.compile(r"(?P<package>[A-Za-z0-9._-]+).*\bextra == ['\"](?P<extra>\w+)['\"]")
_DEVELOPMENT = "dev"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked for; ``kind`` is ``python``, ``package`` or ``runtime``."""

    kind: str
    what: str
    ok: bool
    detail: str


def examine() -> list[Finding]:
    """Look for Python, the packages of the extras, and every runtime of every backend."""
    return [*_python(), *_packages(), *_runtimes()]


def _python() -> Iterator[Finding]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding(
        kind="python", what="Python", ok=supported, detail=detail if supported else f"{detail}; use 3.11 to 3.13"
    )


def _packages() -> Iterator[Finding]:
    """Yield what each extra brings, as the installed package's own metadata list it."""
    for package, extra in sorted(_extras().items(), key=lambda item: (item[1], item[0])):
        try:
            yield Finding(kind="package", what=package, ok=True, detail=version(package))
        except PackageNotFoundError:
            install = f"pip install 'servewright[{extra}]'"
            yield Finding(kind="package", what=package, ok=False, detail=install)


def _extras() -> dict[str, str]:
    """Return the first extra that brings each package; none where this runs without being installed."""
    with suppress(PackageNotFoundError):
        found = [match for line in requires("servewright") or () if (match := _NEEDED_BY_EXTRA.match(line))]
        pairs = [(match["package"], match["extra"]) for match in reversed(found) if match["extra"] != _DEVELOPMENT]
        return dict(pairs)
    return {}


def _runtimes() -> Iterator[Finding]:
    for name in registry.names():
        backend = registry.get(name)
        for runtime in backend.runtimes:
            what = f"{name}, runtime {runtime}"
            try:
                detail = _found(backend, runtime)
            except UnavailableError as error:
                yield Finding(kind="runtime", what=what, ok=False, detail=str(error))
            else:
                yield Finding(kind="runtime", what=what, ok=True, detail=detail)


def _found(backend: Backend, runtime: str) -> str:
    """Return what would start ``backend``."""
    if runtime == "docker":
        from servewright import engine, launching

        found, image = engine.connect(), launching.image_for(backend)
        here = "is here" if engine.local_image(found, image) else "would be pulled"
        return f"Docker Engine {found.version} at {found.address.url}; image {image} {here}"
    program = backend.program(runtime)
    return program.note or " ".join(program.argv)
