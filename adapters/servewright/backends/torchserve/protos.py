"""TorchServe's gRPC messages, with their true names and field numbers; its wheel brings none.

The definitions lie in ``proto/``; messages are attributes of this module: ``protos.PredictionsRequest(...)``.
Ping takes ``google.protobuf.Empty``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from servewright.wire import Schema

SCHEMA = Schema(Path(__file__).parent / "proto")

_INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"
_MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService/"
PING = _INFERENCE + "Ping"
PREDICTIONS = _INFERENCE + "Predictions"
STREAM_PREDICTIONS = _INFERENCE + "StreamPredictions"
DESCRIBE_MODEL = _MANAGEMENT + "DescribeModel"
LIST_MODELS = _MANAGEMENT + "ListModels"
REGISTER_MODEL = _MANAGEMENT + "RegisterModel"
SCALE_WORKER = _MANAGEMENT + "ScaleWorker"
SET_DEFAULT = _MANAGEMENT + "SetDefault"
UNREGISTER_MODEL = _MANAGEMENT + "UnregisterModel"


def __getattr__(name: str) -> Any:
    """Return the message class called ``name``."""
    try:
        return SCHEMA[name]
    except KeyError as error:
        raise AttributeError(f"no message {name!r} in {SCHEMA.folder}") from error
