"""Tensors pass between messages, TensorFlow and arrays as on the real server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.merging import check_mergeable, joined, merge_parts
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.predict_wire import read_tensor, spec_field, write_response, write_tensor
from servewright.backends.tfserving.embedded.status import Code, StatusError
from servewright.backends.tfserving.embedded.tensor import STRING, Tensor, from_array, is_shape, to_array
from servewright.backends.tfserving.tensors import decode_tensor

TYPES = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    4: np.uint8,
    5: np.int16,
    6: np.int8,
    8: np.complex64,
    9: np.int64,
    10: np.bool_,
    17: np.uint16,
    18: np.complex128,
    19: np.float16,
    22: np.uint32,
    23: np.uint64,
}


def proto(shape: tuple[int, ...] = (), dtype: int = 1, **fields: Any) -> Any:
    """Return a TensorProto."""
    return protos.TensorProto(dtype=dtype, tensor_shape={"dim": [{"size": size} for size in shape]}, **fields)


def numbers(shape: tuple[int, ...], **fields: Any) -> Any:
    """Return the numbers that the server takes from a TensorProto."""
    return to_array(read_tensor(proto(shape, **fields), "x")).tolist()


class TestReading:
    """Contradictions are resolved, or refused, as by the real server."""

    def test_missing_values_are_the_last_one_or_zero(self) -> None:
        """No values are zeros; fewer than the shape has are filled up; more are cut."""
        assert numbers((2,)) == [0, 0]
        assert numbers((3,), float_val=[1, 2]) == [1, 2, 2]
        assert numbers((1,), float_val=[1, 2]) == [1]
        assert numbers((0,), float_val=[1]) == []
        assert numbers((2,), dtype=6, int_val=[300, -1]) == [44, -1]

    def test_content_comes_before_values(self) -> None:
        """Where both are there, the content counts, and has to have the right size."""
        assert numbers((1,), float_val=[7], tensor_content=np.float32(1).tobytes()) == [1]

    def test_an_unknown_rank_is_a_scalar(self) -> None:
        """As on the real server."""
        message = protos.TensorProto(dtype=1, tensor_shape={"unknown_rank": True, "dim": [{"size": 4}]}, float_val=[3])
        assert to_array(read_tensor(message, "x")).shape == ()

    @pytest.mark.parametrize(
        ("shape", "fields"),
        [
            ((2,), {"tensor_content": b"abc"}),
            ((-1,), {}),
            ((1 << 62, 4), {}),
            ((1,) * 255, {}),
            ((1 << 40,), {}),
            ((), {"dtype": 0}),
            ((), {"dtype": 101}),
            ((), {"dtype": 20}),
            ((3,), {"dtype": 7, "tensor_content": b"\x01"}),
            ((1 << 40,), {"dtype": 7}),
            ((1 << 40,), {"dtype": 7, "tensor_content": b"\x01a"}),
        ],
    )
    def test_what_no_tensor_can_be_is_refused(self, shape: tuple[int, ...], fields: dict[str, Any]) -> None:
        """One text for all of them, with the input's name."""
        with pytest.raises(StatusError) as error:
            read_tensor(proto(shape, **fields), "x")
        assert (error.value.code, error.value.message) == (Code.INVALID_ARGUMENT, "tensor parsing error: x")

    def test_strings_come_in_both_forms(self) -> None:
        """As values, or as content of lengths and bytes."""
        assert read_tensor(proto((2,), dtype=7, string_val=[b"a", b""]), "x").data == [b"a", b""]
        assert read_tensor(proto((2,), dtype=7, tensor_content=b"\x01\x00a"), "x").data == [b"a", b""]


class TestWriting:
    """Answers are in the fields of their types."""

    @pytest.mark.parametrize("dtype", TYPES)
    @given(data=st.data())
    def test_every_type_comes_back(self, dtype: int, data: st.DataObject) -> None:
        """An answer's bytes are a TensorProto with the same elements in its values."""
        shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
        raw = data.draw(st.binary(min_size=16 * 27, max_size=16 * 27))
        count = int(np.prod(shape))
        kind = np.dtype(TYPES[dtype])
        array = (
            np.frombuffer(raw, np.uint8, count) > 9 if kind == np.bool_ else np.frombuffer(raw, kind, count)
        ).reshape(shape)
        encoded = write_tensor(from_array(array, dtype))
        message = protos.TensorProto.FromString(encoded)
        assert not message.tensor_content
        np.testing.assert_array_equal(decode_tensor(encoded), array)
        np.testing.assert_array_equal(to_array(read_tensor(message, "x")), array)

    def test_responses_are_messages(self) -> None:
        """Ready-made heads and values are the same bytes as protobuf's own."""
        outputs = [
            ("y", from_array(np.array([[1.5, 2]], np.float32), 1)),
            ("n", from_array(np.array([-1, 2**40]), 9)),
            ("s", Tensor(STRING, (1,), [b"text"])),
        ]
        for _ in range(2):  # the second time from the cache
            response = protos.PredictResponse.FromString(write_response(outputs, spec_field("m", 3, "sig")))
            assert response.outputs["y"].float_val == [1.5, 2]
            assert response.outputs["n"].int64_val == [-1, 2**40]
            assert response.outputs["s"].string_val == [b"text"]
            assert (response.model_spec.name, response.model_spec.version.value) == ("m", 3)


class TestMerging:
    """Tensors of a batch are joined, padded, or refused."""

    def test_a_piece_has_its_rows(self) -> None:
        """Pieces of a split request are rows of it."""
        tensor = from_array(np.arange(6, dtype=np.int64).reshape(3, 2), 9)
        assert to_array(merge_parts(tensor, 1, 2)).tolist() == [[2, 3], [4, 5]]
        assert merge_parts(tensor, 0, 3) is tensor
        assert merge_parts(Tensor(STRING, (2,), [b"a", b"b"]), 1, 1).data == [b"b"]

    def test_shorter_tensors_grow_with_their_first_element(self) -> None:
        """Variable lengths are padded to the longest."""
        parts = [from_array(np.array([[1, 2]], np.float32), 1), from_array(np.array([[3, 4, 5]], np.float32), 1)]
        grown = joined(parts, 0, pad=True)
        assert [to_array(part).tolist() for part in grown] == [[[1, 2, 1]], [[3, 4, 5]]]

    def test_padding_repeats_the_last_requests_first_row(self) -> None:
        """Rows that round a batch up are valid rows."""
        parts = [from_array(np.array([1, 2]), 9), from_array(np.array([3, 4]), 9)]
        assert to_array(joined(parts, 3, pad=False)[-1]).tolist() == [3, 3, 3]
        empty = from_array(np.zeros((0, 2), np.float32), 1)
        assert to_array(joined([empty], 2, pad=False)[-1]).tolist() == [[0, 0], [0, 0]]

    def test_what_cannot_be_joined_is_refused(self) -> None:
        """Other shapes, other ranks and other types fail the whole batch."""
        one = from_array(np.zeros((1, 2), np.float32), 1)
        for other, pad, complaint in (
            (np.zeros((1, 3), np.float32), False, "padding is turned off"),
            (np.zeros((1, 2, 2), np.float32), True, "different ranks"),
        ):
            with pytest.raises(StatusError, match=complaint):
                check_mergeable("x:0", [one, from_array(other, 1)], pad=pad)
        with pytest.raises(StatusError, match=r"Got float and int64\."):
            check_mergeable("x:0", [one, from_array(np.zeros((1, 2), np.int64), 9)], pad=False)


@given(st.lists(st.integers(-2, 1 << 40), max_size=6))
def test_shapes_that_overflow_are_none(shape: list[int]) -> None:
    """A shape is one that TensorFlow's library can count."""
    if any(size < 0 for size in shape):
        assert not is_shape(shape)
    elif int(np.prod([int(size) for size in shape], dtype=object)) and shape:
        assert is_shape(shape) == (int(np.prod(shape, dtype=object)) < 1 << 63)


def test_metrics_are_prometheus_text() -> None:
    """Names, labels, cumulative buckets, sums and counts are as on the real server's page."""
    metrics = Metrics()
    metrics.requests.add('m"', "OK")
    metrics.request_latency.add(50, "m", "Predict", "GRPC")
    page = metrics.page()
    assert ':tensorflow:serving:request_count{model_name="m\\"",status="OK"} 1' in page
    assert ':request_latency_bucket{model_name="m",API="Predict",entrypoint="GRPC",le="32.4"} 0' in page
    assert ':request_latency_bucket{model_name="m",API="Predict",entrypoint="GRPC",le="58.32"} 1' in page
    assert 'le="1.47476e+09"} 1' in page
    assert ':request_latency_sum{model_name="m",API="Predict",entrypoint="GRPC"} 50' in page
    assert "padding_size" not in page
    assert metrics.value("/tensorflow/serving/request_count") == 1
