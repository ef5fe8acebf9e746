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
from servewright.backends.tfserving.checksum import crc32c
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


def crc_by_bits(data: bytes) -> int:
    """Return the CRC-32C as its definition says: one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_checksum_is_the_published_one() -> None:
    """The check value of CRC-32C and the vectors of RFC 3720 come out."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("size", [0, 1, 32767, 32768, 32769, 65535, 131_077])
def test_long_data_has_the_same_checksum_as_bit_by_bit(size: int) -> None:
    """The lanes in which long data is taken join to the checksum of the whole, whatever is left over."""
    data = np.random.default_rng(size).bytes(size)
    assert crc32c(data) == crc_by_bits(data)


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
