"""Warm-up requests: recorded calls that the server makes of a new version before it says AVAILABLE.

They lie in ``assets.extra`` as TFRecords of PredictionLog, run one at a time through the batching queue, and warm only
the batch sizes that were recorded (``saved_model_warmup_util.cc`` of tensorflow/serving).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.checksum import masked_crc32c
from servewright.backends.tfserving.fields import head
from servewright.backends.tfserving.predictions import encode_request
from servewright.errors import InputError
from servewright.spec import Signature

if TYPE_CHECKING:
    from servewright.backend import Tensors

MOST: Final = 1000  # the server fails a load with more
_PREDICT_LOG, _REQUEST = 6, 1  # field numbers of PredictionLog and of PredictLog


def warmup_records(signature: Signature, name: str, batch_sizes: Sequence[int], sample: Tensors) -> bytes:
    """Return one request for each of ``batch_sizes`` (in rows), made by repeating the rows of ``sample``."""
    if len(batch_sizes) > MOST:
        raise InputError(f"{len(batch_sizes)} warm-up requests: the server takes at most {MOST}; allow fewer sizes")
    spec = protos.ModelSpec(name=name, signature_name=signature.name).SerializeToString()
    dtypes = {tensor.name: tensor.dtype for tensor in signature.inputs}
    return write_records(_log(encode_request(spec, _rows(sample, size), dtypes=dtypes)) for size in batch_sizes)


def write_records(records: Iterable[bytes]) -> bytes:
    """Return ``records`` as a TFRecord file: length, its checksum, the data, its checksum, for each."""
    parts: list[bytes] = []
    for record in records:
        length = struct.pack("<Q", len(record))
        parts += (
            length,
            struct.pack("<I", masked_crc32c(length)),
            record,
            struct.pack("<I", masked_crc32c(record)),
        )
    return b"".join(parts)


def _log(request: bytes) -> bytes:
    log = head(_REQUEST, len(request)) + request
    return head(_PREDICT_LOG, len(log)) + log


def _rows(sample: Tensors, size: int) -> Tensors:
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in sample.items()}
