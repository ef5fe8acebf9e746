"""What only TorchServe understands: the spec's ``torchserve:`` key."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from servewright.fields import Part


class Options(Part):
    """Settings of a TorchServe fleet beyond the spec's own keys.

    ``properties`` go to ``config.properties``, ``yaml`` to the archive's ``model-config.yaml``,
    ``environment`` to the server's processes.
    """

    properties: dict[str, str | int | bool] = Field(default_factory=dict)
    yaml: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)
