"""Warm-up: the requests that a model brings with it are run before it is served."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.inference import classify, multi_inference, regress
from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.predict import predict, predict_signature
from servewright.backends.tfserving.embedded.records import RecordError, records
from servewright.backends.tfserving.embedded.servable import Servable
from servewright.backends.tfserving.embedded.status import Code, StatusError, invalid_argument

FILE = "assets.extra/tf_serving_warmup_requests"
_MOST_RECORDS = 1000
_PLACE = "saved_model_warmup_util.cc"


async def warm_up(servable: Servable, metrics: Metrics, *, iterations: int = 1) -> None:
    """Run every record of the model's warm-up file; raise `StatusError` for the first that fails."""
    path = os.path.join(servable.path, FILE)  # noqa: PTH118  (a base path may be a URI)
    if not os.path.exists(path):  # noqa: PTH110
        log("I", _PLACE, f"No warmup data file found at {path}")
        return
    log("I", _PLACE, f"Starting to read warmup data for model at {path} with model-warmup-options ")
    started, count = time.monotonic_ns(), 0
    error: StatusError | None = None
    try:
        data = await asyncio.to_thread(Path(path).read_bytes)
        for record in records(data):
            log_entry = _parsed(record, path)
            for _ in range(iterations):
                await _run(servable, log_entry, metrics)
            count += 1
            if count > _MOST_RECORDS:
                raise invalid_argument(f"Number of warmup records exceeds the maximum ({_MOST_RECORDS}) at {path}")
    except RecordError as broken:
        error = StatusError(Code.DATA_LOSS, str(broken))
    except OSError as failed:
        raise StatusError(Code.UNKNOWN, f"{path}; {failed.strerror}") from failed
    spent = (time.monotonic_ns() - started) // 1000
    metrics.warmup_latency.add(spent, servable.path, str(error) if error else "OK")
    if error:
        raise StatusError(error.code, f"{error.message}. Please verify your warmup data is in TFRecord format.")
    log(
        "I",
        _PLACE,
        f"Finished reading warmup data for model at {path}. Number of warmup records read: {count}. "
        f"Elapsed time (microseconds): {spent}.",
    )


def _parsed(record: bytes, path: str) -> Any:
    try:
        return protos.PredictionLog.FromString(record)
    except DecodeError as error:
        shown = _readable(record)
        raise invalid_argument(f"Failed to parse warmup record: {shown} from {path}") from error


def _readable(data: bytes) -> str:
    """Return bytes as text; what is no UTF-8 is taken for Latin-1, as gRPC's clients do with such a message."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


async def _run(servable: Servable, entry: Any, metrics: Metrics) -> None:
    kind = entry.WhichOneof("log_type")
    if kind == "predict_log":
        request = entry.predict_log.request
        signature = predict_signature(servable, request.model_spec.signature_name)
        await predict(
            servable, signature, request.inputs, metrics, model=request.model_spec.name,
            output_filter=request.output_filter,
        )  # fmt: skip
    elif kind == "classify_log":
        await classify(servable, entry.classify_log.request, metrics)
    elif kind == "regress_log":
        await regress(servable, entry.regress_log.request, metrics)
    elif kind == "multi_inference_log":
        await multi_inference(servable, entry.multi_inference_log.request, metrics)
    elif kind is not None:
        number = entry.DESCRIPTOR.fields_by_name[kind].number
        raise StatusError(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}")
