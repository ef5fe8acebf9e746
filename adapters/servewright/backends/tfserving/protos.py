"""TensorFlow Serving's messages, with their true names and field numbers, and without TensorFlow.

The official Python package needs all of TensorFlow and leaves out the files of the command line
(``BatchingParameters``, ``MonitoringConfig``, ``SSLConfig``...). The definitions lie in ``proto/``; messages are
attributes of this module by their names without the package: ``protos.PredictRequest(...)``,
``protos.ModelVersionStatus.State.Name(30)``, ``protos.SCHEMA["ModelVersionStatus.State"]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from servewright.wire import Schema

SCHEMA = Schema(Path(__file__).parent / "proto")

PREDICT = "/tensorflow.serving.PredictionService/Predict"
CLASSIFY = "/tensorflow.serving.PredictionService/Classify"
REGRESS = "/tensorflow.serving.PredictionService/Regress"
MULTI_INFERENCE = "/tensorflow.serving.PredictionService/MultiInference"
GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
GET_MODEL_STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
RELOAD_CONFIG = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"


def __getattr__(name: str) -> Any:
    """Return the message class or enum called ``name``."""
    try:
        return SCHEMA[name]
    except KeyError as error:
        raise AttributeError(f"no message or enum {name!r} in {SCHEMA.folder}") from error
