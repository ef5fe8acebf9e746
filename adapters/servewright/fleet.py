"""A fleet: the models of one server, and the server's own settings. A single model is a fleet of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from servewright.errors import SpecError
from servewright.spec import ModelSpec, ServerPorts, ServerSettings
from servewright.specfile import Document

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One server of several that share a fleet's models: its memory in bytes, and the models that it must get.

    ``models`` are patterns of names, ``server`` what its settings differ in from the fleet's.
    """

    name: str
    memory: int | None = None
    models: tuple[str, ...] = ()
    server: ServerSettings = field(default_factory=ServerSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What one server serves; with ``shards``, what several servers share."""

    name: str
    models: tuple[Document, ...]
    server: ServerSettings = field(default_factory=ServerSettings)
    shards: tuple[Shard, ...] = ()

    @property
    def digest(self) -> str:
        """The SHA-256 over the meaning of every spec and of the server's settings."""
        parts = [document.digest for document in self.models] + [self.server.model_dump_json()]
        return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def without_ports(self) -> Fleet:
        """Return the fleet without ports of its own, for a server that lives where others choose."""
        return replace(self, server=self.server.model_copy(update={"ports": ServerPorts()}))

    def agreed(self, key: str, values: Callable[[ModelSpec], Mapping[str, T]]) -> dict[str, T]:
        """Return settings of the server that its specs bring along below ``key``; `SpecError` where two differ."""
        found: dict[str, T] = {}
        given_by: dict[str, str] = {}
        for document in self.models:
            for name, value in values(document.spec).items():
                there = found.setdefault(name, value)
                if there is not value and there != value:
                    reason = f"{value!r} here, and {there!r} in the spec of {given_by[name]}"
                    raise SpecError(
                        [document.problem(f"{key}.{name}", reason, "one server has one value: make them equal")]
                    )
                given_by.setdefault(name, document.spec.name)
        return found
