"""What a spec says against what a live server has: every setting that can be read, and what is there unasked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from servewright.backend import Backend, Identity, Reading
from servewright.errors import InputError, ServerAnswerError
from servewright.fleet import Fleet
from servewright.server import RunningServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What a comparison gave: every reading, and which server it was."""

    server: Identity
    readings: tuple[Reading, ...]

    @property
    def differences(self) -> tuple[Reading, ...]:
        """The settings that the server has otherwise than the spec."""
        return tuple(each for each in self.readings if each.readable and each.found != each.wanted)

    @property
    def unread(self) -> tuple[Reading, ...]:
        """The settings that cannot be read."""
        return tuple(each for each in self.readings if not each.readable)

    def as_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "ok": not self.differences,
            "server": {"name": self.server.name, "version": self.server.version, "stand_in": self.server.stand_in},
            "differences": [_values(each) for each in self.differences],
            "same": [_values(each) for each in self.readings if each.readable and each.found == each.wanted],
            "unread": [_values(each) for each in self.unread],
        }


def compare(fleet: Fleet, backend: Backend, server: RunningServer) -> Drift:
    """Return how ``server`` differs from ``fleet``; `ProbeError` where it cannot be asked. Nothing is changed."""
    client = backend.connect(server)
    try:
        readings = tuple(_readings(fleet, backend, server, client))
        return Drift(server=_identity(backend, client), readings=readings)
    finally:
        client.close()


def _identity(backend: Backend, client: Any) -> Identity:
    """Return what the server says that it is; an address of its management alone may not tell."""
    try:
        return backend.identity(client)
    except (ServerAnswerError, InputError):
        return Identity(name=backend.title, version="(not told by the server)", stand_in=False)


def _readings(fleet: Fleet, backend: Backend, server: RunningServer, client: Any) -> Iterator[Reading]:
    yield from backend.read_back(server, client, fleet)
    yield from backend.survey(client, fleet)


def _values(reading: Reading) -> dict[str, Any]:
    return {
        "setting": reading.setting,
        "wanted": _plain(reading.wanted),
        "found": _plain(reading.found),
        "source": reading.source,
    }


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
