"""Live servers as people name them: one that `up` started, or addresses with what belongs to the server."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from servewright.errors import InputError
from servewright.server import RunningServer

_ADDRESSES = ("http", "grpc", "management")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A server that runs: its addresses as ``host:port`` by name, and what else was said of it."""

    said: str
    name: str = ""
    endpoints: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values; there is no secret among them."""
        return {
            "said": self.said, "name": self.name, "endpoints": dict(self.endpoints), "options": dict(self.options),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Live:
        """Return what `as_json` gave."""
        return cls(**values)

    def server(self, backend: str) -> RunningServer:
        """Return the server, to talk to."""
        if self.name:
            from servewright import state

            return state.find(self.name).server()
        endpoints = dict(self.endpoints)
        if "key_file" in self.options:
            endpoints["key_file"] = self.options["key_file"]
        return RunningServer(backend=backend, runtime="remote", endpoints=endpoints)

    def shares_an_address_with(self, other: Live) -> bool:
        """Tell whether both are one server."""
        return bool(set(self.endpoints.values()) & set(other.endpoints.values()))


def parse(text: str, options: Collection[str]) -> Live:
    """Read a ``--live``: a server's name, or ``http://host:port`` and ``key=value``, separated by commas.

    Keys are ``http``, ``grpc``, ``management`` and those of the backend's ``options``.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        return _started(text, text, {})
    name, endpoints, said = "", {}, {}
    for part in text.split(","):
        key, sign, value = part.partition("=")
        if url := re.fullmatch(r"(http|grpc)://([^/,]+)/?", part):
            key, sign, value = url[1], "=", url[2]
        if key == "name" and sign:
            name = value
        elif key in _ADDRESSES and sign:
            if not _ADDRESS.fullmatch(value):
                raise InputError(f"--live {text}: {value!r} is not host:port")
            endpoints[key] = value
        elif key in options and sign and value:
            said[key] = value
        else:
            known = ", ".join(f"{each}=..." for each in (*_ADDRESSES, *options))
            raise InputError(f"--live {text}: {part!r} says nothing known; write http://host:port, {known}")
    if name:
        return _started(text, name, said)
    if not endpoints:
        raise InputError(f"--live {text} names no address; write http://host:port, or grpc=host:port")
    return Live(said=text, endpoints=endpoints, options=said)


def with_management(text: str, key_file: Path | None) -> Live:
    """Read a ``--live`` for one who only looks: an HTTP address is that of the management too, unless it is said."""
    live = parse(text, ("key_file",))
    http = live.endpoints.get("http")
    endpoints = {**({"management": http} if http else {}), **live.endpoints}
    options = {**live.options, **({"key_file": str(key_file)} if key_file else {})}
    return replace(live, endpoints=endpoints, options=options)


def _started(text: str, name: str, options: Mapping[str, str]) -> Live:
    from servewright import state

    return Live(said=text, name=name, endpoints=dict(state.find(name).endpoints), options=options)
