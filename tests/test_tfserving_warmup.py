"""Warm-up files are what TensorFlow reads, and hold one request per batch size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.records import records
from servewright.backends.tfserving.tensors import decode_tensor
from servewright.backends.tfserving.warmup import warmup_records, write_records
from servewright.errors import InputError
from servewright.spec import Signature, TensorSpec

SIGNATURE = Signature(
    name="serving_default",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 2)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(None, 2)),),
)
SAMPLE = {"x": np.array([[1, 2], [3, 4]], np.float32)}


@given(st.lists(st.binary(max_size=3000), max_size=5))
def test_records_come_back(contents: list[bytes]) -> None:
    """What is written as records is read back as the same records."""
    assert list(records(write_records(contents))) == contents


def test_each_batch_size_has_its_request() -> None:
    """Every size gets a Predict of so many rows, for the model and signature that were named."""
    logs = [protos.PredictionLog.FromString(each) for each in records(warmup_records(SIGNATURE, "m", (1, 3), SAMPLE))]
    requests = [log.predict_log.request for log in logs]
    for each in requests:
        assert (each.model_spec.name, each.model_spec.signature_name) == ("m", "serving_default")
    values = [decode_tensor(each.inputs["x"].SerializeToString()).tolist() for each in requests]
    assert values == [[[1, 2]], [[1, 2], [3, 4], [1, 2]]]


def test_too_many_sizes_are_refused() -> None:
    """The server fails a load with more than a thousand records, so the packager does first."""
    with pytest.raises(InputError, match="at most 1000"):
        warmup_records(SIGNATURE, "m", range(1, 1002), SAMPLE)


@pytest.mark.tensorflow
def test_tensorflow_reads_it(tmp_path: Path) -> None:
    """TensorFlow's own reader finds every record whole."""
    pytest.importorskip("tensorflow")
    path = tmp_path / "warmup"
    path.write_bytes(warmup_records(SIGNATURE, "m", (1, 8, 32), SAMPLE))
    script = "import sys, tensorflow as tf; print([len(r.numpy()) for r in tf.data.TFRecordDataset(sys.argv[1])])"
    answer = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == str([len(each) for each in records(path.read_bytes())])
