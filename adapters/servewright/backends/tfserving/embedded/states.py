"""What state each version of each model is in, and waiting for it to change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from servewright.backends.tfserving.embedded.status import StatusError


class State(IntEnum):
    """The states of a version, numbered as in ``ModelVersionStatus``."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass(frozen=True, slots=True)
class VersionState:
    """A version's state, and why it failed if it did."""

    state: State
    error: StatusError | None = None


def servable_id(name: str, version: int) -> str:
    """Return how the log calls a version."""
    return f"{{name: {name} version: {version}}}"


class States:
    """The state of every version that ever was; ended versions stay."""

    def __init__(self) -> None:
        self._models: dict[str, dict[int, VersionState]] = {}
        self._changed = asyncio.Event()
        self._fresh: list[dict[tuple[str, int], VersionState]] = []

    def set(self, name: str, version: int, state: State, error: StatusError | None = None) -> None:
        """Note that a version is now in ``state``."""
        entry = VersionState(state, error)
        self._models.setdefault(name, {})[version] = entry
        for seen in self._fresh:
            seen[name, version] = entry
        self._changed.set()
        self._changed = asyncio.Event()

    def of(self, name: str) -> Mapping[int, VersionState]:
        """Return the versions of a model, the highest first."""
        versions = self._models.get(name, {})
        return {version: versions[version] for version in sorted(versions, reverse=True)}

    async def settled(self, names: Iterable[str]) -> dict[str, tuple[int, VersionState]]:
        """Wait until each model has a version that is available or ended; return that version of each.

        Only what happens from now on counts, so that an earlier life of a model does not.
        """
        names = list(names)
        seen: dict[tuple[str, int], VersionState] = {}
        self._fresh.append(seen)
        try:
            while True:
                changed = self._changed
                found = {name: _first_settled(name, seen) for name in names}
                if all(found.values()):
                    return {name: entry for name, entry in found.items() if entry}
                await changed.wait()
        finally:
            self._fresh.remove(seen)


def _first_settled(name: str, seen: Mapping[tuple[str, int], VersionState]) -> tuple[int, VersionState] | None:
    versions = sorted((version for model, version in seen if model == name), reverse=True)
    for version in versions:
        entry = seen[name, version]
        if entry.state in (State.AVAILABLE, State.END):
            return version, entry
    return None


def not_available(kind: str, found: Mapping[str, tuple[int, VersionState]]) -> str | None:
    """Return which of the awaited models ended instead of becoming available, or ``None``."""
    failed = {name: entry for name, entry in found.items() if entry[1].state is not State.AVAILABLE}
    if not failed:
        return None
    parts = []
    for name, (version, entry) in sorted(failed.items()):
        why = f" due to error: {entry.error}" if entry.error else ""
        parts.append(f"{{{servable_id(name, version)}{why}}}, ")
    return f"{len(failed)} {kind}(s) did not become available: {{{''.join(parts)}}}"
