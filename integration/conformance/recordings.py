"""The recordings: setups, and lines of what was asked and what came back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "SERVEWRIGHT_CONFORMANCE"
GROUPS = ("rest", "grpc", "startup", "batching")


@dataclass(frozen=True, slots=True)
class Line:
    """One recorded exchange; ``raw`` is the line as it stands in its file."""

    id: str
    raw: Mapping[str, Any]

    @property
    def setup(self) -> str:
        """The setup whose server was asked."""
        return str(self.raw.get("server", ""))

    @property
    def expect(self) -> Mapping[str, Any]:
        """What came back."""
        return self.raw.get("expect") or {}


@dataclass(frozen=True, slots=True)
class Recordings:
    """All lines of the groups that are there, and the setups they name."""

    folder: Path
    setups: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, tuple[Line, ...]] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        """The folder of the SavedModels."""
        return self.folder / "models"


class NoRecordingsError(Exception):
    """There are none; the text says what is needed."""


def load() -> Recordings:
    """Read the recordings that the environment points at; raise `NoRecordingsError`."""
    root = os.environ.get(VARIABLE)
    if not root:
        raise NoRecordingsError(
            f"{VARIABLE} names no folder. It has to hold tfserving/ with setups.json, models/ and any of "
            + ", ".join(f"{group}.jsonl" for group in GROUPS)
            + ": answers that a real tensorflow_model_server gave. They are not part of this repository."
        )
    folder = (Path(root) / "tfserving").resolve()
    try:
        setups = json.loads((folder / "setups.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise NoRecordingsError(f"{folder}: {error.strerror}; {VARIABLE} has to name the folder above it") from error
    groups = {}
    for group in GROUPS:
        path = folder / f"{group}.jsonl"
        if path.exists():
            lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines() if text.strip()]
            groups[group] = tuple(Line(str(raw["id"]), raw) for raw in lines)
    return Recordings(folder, setups, groups)
