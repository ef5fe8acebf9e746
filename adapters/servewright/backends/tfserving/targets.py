"""What a request is about: a model, one of its versions, one of its signatures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from servewright.backends.tfserving import protos
from servewright.errors import InputError


@dataclass(frozen=True, slots=True)
class Target:
    """A model by name, and optionally a version by number or label, and a signature; else the server chooses."""

    model: str
    version: int | None = None
    label: str | None = None
    signature: str = ""

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise InputError(f"{self.model}: a request names a version ({self.version}) or a label ({self.label!r})")

    def path(self) -> str:
        """Return the path of the model's REST resource; the signature has no place in it."""
        path = f"/v1/models/{quote(self.model, safe='')}"
        if self.version is not None:
            return f"{path}/versions/{self.version}"
        if self.label is not None:
            return f"{path}/labels/{quote(self.label, safe='')}"
        return path

    def message(self) -> Any:
        """Return the ``ModelSpec`` message."""
        spec = protos.ModelSpec(name=self.model, signature_name=self.signature)
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label
        return spec

    def encoded(self) -> bytes:
        """Return the bytes of the ``ModelSpec`` message."""
        return _encoded(self)


@lru_cache(256)
def _encoded(target: Target) -> bytes:
    data: bytes = target.message().SerializeToString()
    return data
