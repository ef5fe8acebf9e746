"""The canary of a rollout, asked as if it were the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servewright.backends.tfserving.client import Client
    from servewright.rollout.plan import Step
    from servewright.specfile import Document


def canary(step: Step, client: Client, document: Document) -> tuple[Any, Document]:
    """Return a client and a spec that ask the canary of a probe step."""
    name = step.values["model"]
    named = replace(document, spec=document.spec.model_copy(update={"name": name}))
    return Canary(client, step.values.get("label")), named


class Canary:
    """A client that asks for one label; for the usual version where that is ``None``."""

    def __init__(self, client: Client, label: str | None) -> None:
        self._client, self._label = client, label

    def predict(self, model: str, inputs: Mapping[str, Any], **how: Any) -> Mapping[str, Any]:
        """Return the outputs by name."""
        return self._client.predict(model, inputs, label=self._label, **how)

    def metadata(self, model: str, **which: Any) -> Any:
        """Return a signature of the model."""
        return self._client.metadata(model, label=self._label, **which)
