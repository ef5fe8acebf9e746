"""Predict, whoever asks: gRPC, REST or a warm-up record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.predict_wire import read_tensor
from servewright.backends.tfserving.embedded.servable import (
    CLASSIFY_METHOD,
    DEFAULT_SIGNATURE,
    PREDICT_METHOD,
    REGRESS_METHOD,
    Servable,
    Signature,
    chosen_outputs,
    feeds,
)
from servewright.backends.tfserving.embedded.status import Code, StatusError, failed_precondition
from servewright.backends.tfserving.embedded.tensor import Tensor

Outputs = list[tuple[str, Tensor]]
RUNTIME = "TF1"  # what the real server calls sessions in its latency metric


def predict_signature(servable: Servable, name: str, *, check_method: bool = False) -> Signature:
    """Return the signature that a request asks for; raise `StatusError`."""
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise failed_precondition(f'Serving signature key "{name}" not found.')
    method = signature.message.method_name
    if check_method and method not in (PREDICT_METHOD, CLASSIFY_METHOD, REGRESS_METHOD):
        raise StatusError(
            Code.INTERNAL,
            f"Expected prediction signature method_name to be one of {{{PREDICT_METHOD}, {CLASSIFY_METHOD}, "
            f"{REGRESS_METHOD}}}. Was: {method}",
        )
    return signature


async def predict(
    servable: Servable,
    signature: Signature,
    inputs: Mapping[str, Any],
    metrics: Metrics,
    *,
    model: str,
    output_filter: Sequence[str] = (),
    deadline_us: int | None = None,
    read: Callable[[Any, str], Tensor] = read_tensor,
) -> Outputs:
    """Return the outputs by alias; ``read`` makes a tensor of an input: of a TensorProto, unless told otherwise."""
    tensors = [
        (name, read(inputs[alias], alias) if alias in inputs else read_tensor(signature.message.defaults[alias], alias))
        for alias, name in feeds(signature, inputs)
    ]
    outputs = chosen_outputs(signature, output_filter)
    started = time.monotonic_ns()
    results = await servable.run(tensors, tuple(outputs.values()), deadline_us)
    metrics.runtime_latency.add((time.monotonic_ns() - started) // 1000, model, "Predict", RUNTIME)
    return list(zip(outputs, results, strict=True))
