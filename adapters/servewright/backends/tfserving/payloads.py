"""Predict requests in their final bytes, for a load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from servewright.backend import Payload, Transport
from servewright.spec import ModelSpec

if TYPE_CHECKING:
    from servewright.backend import Tensors


def payloads(spec: ModelSpec, samples: Sequence[Tensors], transport: Transport) -> list[Payload]:
    """Return one request for each of ``samples``, about the version that the server prefers."""
    from servewright.backends.tfserving import json_tensors, predictions, protos, texts
    from servewright.backends.tfserving.targets import Target

    target = Target(texts.served_name(spec), signature=spec.signature.name)
    if transport == "grpc":
        encoded = [predictions.encode_request(target.encoded(), sample) for sample in samples]
        return [Payload(target=protos.PREDICT, body=body) for body in encoded]
    path, headers = f"{target.path()}:predict", {"Content-Type": "application/json"}
    bodies = [json_tensors.encode_predict(sample, target.signature) for sample in samples]
    return [Payload(target=path, body=body, headers=headers) for body in bodies]
