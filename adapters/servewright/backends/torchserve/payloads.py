"""Predictions requests in their final bytes, for a load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from servewright.backend import Payload, Transport
from servewright.spec import ModelSpec

if TYPE_CHECKING:
    from servewright.backend import Tensors
    from servewright.backends.torchserve.client import Client


def payloads(spec: ModelSpec, samples: Sequence[Tensors], transport: Transport) -> list[Payload]:
    """Return one request for each of ``samples``, in the raw form, about the model's default version."""
    from servewright.backends.torchserve import payload, protos

    if transport == "grpc":
        messages = [
            protos.PredictionsRequest(model_name=spec.name, input=payload.encode_grpc(dict(sample)))
            for sample in samples
        ]
        return [
            Payload(target=protos.PREDICTIONS, body=message.SerializeToString(), refusal=payload.ERROR_MAGIC)
            for message in messages
        ]
    path = f"/predictions/{quote(spec.name, safe='')}"
    encoded = [payload.encode_http(dict(sample)) for sample in samples]
    return [Payload(target=path, body=body, headers=headers) for body, headers in encoded]


def credentials(client: Client) -> Mapping[str, str]:
    """Return the token that lets a prediction in, for a server that wants one."""
    return client.authorization()
