"""What a server can be brought to: a whole config, and the versions that it serves then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servewright.backends.tfserving import protos

CONFIG = "config"  # the kind of the steps from one state to another


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A whole config, as the text that the server gets, and which versions of our models it serves.

    ``unknown`` names labels that must not resolve: how it is seen that a polled file was read.
    """

    config: str
    serves: Mapping[str, Sequence[int]]
    unknown: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return {"config": self.config, "serves": self.serves, "unknown": self.unknown}

    @property
    def message(self) -> Any:
        """The config as a ``ModelServerConfig``."""
        return protos.SCHEMA.parse_text("ModelServerConfig", self.config)

    def labels(self, model: str) -> dict[str, int]:
        """Return the labels of a model."""
        return next((dict(each.version_labels) for each in models_of(self.message) if each.name == model), {})


def models_of(config: Any) -> Iterable[Any]:
    """Return the entries of a ``ModelServerConfig``."""
    models: Iterable[Any] = config.model_config_list.config
    return models


def text_of(config: Any) -> str:
    """Return a config as the text that a server gets."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))
