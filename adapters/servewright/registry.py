"""Backends by name: listed without being imported, found in our own folder and in other packages."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from servewright import backends
from servewright.backend import Backend
from servewright.errors import UnknownBackendError

GROUP = "servewright.backends"


def names() -> list[str]:
    """Return every known backend name without importing any backend."""
    built_in = {module.name for module in iter_modules(backends.__path__)}
    return sorted(built_in | set(entry_points(group=GROUP).names))


def get(name: str) -> Backend:
    """Return the backend called ``name``."""
    if name not in names():
        raise UnknownBackendError(name, names())
    plugged = entry_points(group=GROUP, name=name)
    found = next(iter(plugged)).load() if plugged else import_module(f"servewright.backends.{name}").BACKEND
    if not isinstance(found, Backend):
        raise UnknownBackendError(f"{name} (it is not a Backend)", names())
    return found
