"""The versions of a model that a server serves, and what its labels name, as the server itself tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from servewright.errors import ServerAnswerError

if TYPE_CHECKING:
    from servewright.backends.tfserving.client import Client
    from servewright.backends.tfserving.versions import ModelVersion

AVAILABLE, END = "AVAILABLE", "END"


def status(client: Client, model: str) -> tuple[ModelVersion, ...]:
    """Return what the server tells of a model's versions: nothing of one that it does not know."""
    try:
        return client.status(model)
    except ServerAnswerError as error:
        if error.status in (404, "NOT_FOUND"):
            return ()
        raise


def served_versions(client: Client, model: str) -> tuple[int, ...]:
    """Return the versions of a model that the server serves."""
    return available(status(client, model))


def available(entries: Iterable[ModelVersion]) -> tuple[int, ...]:
    """Return those versions that requests can reach."""
    return tuple(sorted(entry.version for entry in entries if entry.state == AVAILABLE))


def version_of_label(client: Client, model: str, label: str) -> int | None:
    """Return what a label resolves to; ``None`` for a label, or a model, that the server does not know."""
    try:
        return client.version_of_label(model, label)
    except ServerAnswerError as error:
        if error.status in (404, "NOT_FOUND"):
            return None
        raise


def listed(versions: Iterable[int]) -> str:
    """Print version numbers."""
    return ", ".join(map(str, sorted(versions))) or "none"
