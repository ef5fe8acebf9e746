"""The client's half of the handlers' protocol: what is encoded is decoded, and nonsense is our error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from servewright.backends.torchserve import payload
from servewright.errors import InputError, ProbeError, ServerAnswerError

DTYPES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
)
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.one_of(*(arrays_of.arrays(dtype, SHAPES) for dtype in DTYPES))
NAMES = st.text(min_size=1, max_size=20)


def echoed(body: bytes, headers: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Read a request as if it were an answer: both have the same forms."""
    return payload.decode_http(200, headers, body)


class TestRoundTrips:
    """Arrays come back as they went."""

    @given(inputs=st.dictionaries(NAMES, ARRAYS, max_size=3))
    def test_binary_forms_lose_nothing(self, inputs: dict[str, np.ndarray]) -> None:
        """Any arrays under any names keep their names, order, shapes, dtypes and bits."""
        outputs = echoed(*payload.encode_http(inputs))
        assert list(outputs) == list(inputs)
        for name, array in inputs.items():
            assert outputs[name].dtype == array.dtype
            assert outputs[name].shape == array.shape
            assert outputs[name].tobytes() == array.tobytes()

    @given(name=NAMES, array=ARRAYS)
    def test_npy_loses_nothing(self, name: str, array: np.ndarray) -> None:
        """The same holds for one array as .npy."""
        ((found, output),) = echoed(*payload.encode_http({name: array}, "npy")).items()
        assert found == name
        assert output.dtype == array.dtype
        assert output.tobytes() == array.tobytes()

    @given(inputs=st.dictionaries(NAMES, ARRAYS.filter(lambda array: array.size), min_size=1, max_size=3))
    def test_json_keeps_every_value(self, inputs: dict[str, np.ndarray]) -> None:
        """Decimal digits, NaN and Infinity included, give back the same numbers of every dtype."""
        body, headers = payload.encode_http(inputs, "json")
        answer = json.dumps({"outputs": json.loads(body)["inputs"]}).encode()
        dtypes = {name: array.dtype.name for name, array in inputs.items()}
        outputs = payload.decode_http(200, headers, answer, dtypes)
        for name, array in inputs.items():
            np.testing.assert_array_equal(outputs[name], array)

    @pytest.mark.parametrize(
        "change",
        [np.asfortranarray, lambda array: array[::-1, ::2], lambda array: array.astype(">f4"), lambda array: array.T],
    )
    @pytest.mark.parametrize("form", ["raw", "npy", "json"])
    def test_the_layout_in_memory_does_not_matter(
        self, form: payload.Form, change: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Strides and byte order of the caller's arrays stay on the caller's side."""
        array = change(np.arange(12, dtype="float32").reshape(3, 4))
        body, headers = payload.encode_http({"x": array}, form)
        output = np.asarray(json.loads(body)["inputs"]["x"]) if form == "json" else echoed(body, headers)["x"]
        np.testing.assert_array_equal(output, array)

    def test_bfloat16_answers_are_widened(self) -> None:
        """bfloat16, which numpy does not have, comes as the same values in float32."""
        headers = {"content-type": "application/octet-stream", "X-Tensor-Dtype": "bfloat16", "X-Tensor-Shape": "2"}
        bits = struct.pack("<2H", 0x3F80, 0xC000)  # 1 and -2
        assert payload.decode_http(200, headers, bits)[""].tolist() == [1.0, -2.0]

    @pytest.mark.parametrize("form", ["raw", "npy", "json"])
    def test_bfloat16_arrays_can_be_sent(self, form: payload.Form) -> None:
        """Arrays of the ml_dtypes package go as they are, or as float32 in forms without such a type."""
        bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
        body, headers = payload.encode_http({"x": np.array([[1, -2]], bfloat16)}, form)
        output = np.asarray(json.loads(body)["inputs"]["x"]) if form == "json" else echoed(body, headers)["x"]
        assert output.tolist() == [[1, -2]]

    def test_the_same_arrays_travel_as_grpc_fields(self) -> None:
        """Over gRPC, what headers say is said in fields, and answers are asked for in a form that describes itself."""
        fields = payload.encode_grpc({"x": np.zeros((2, 1), "int32")})
        assert fields == {
            "data": bytes(8),
            "content_type": b"application/octet-stream",
            "name": b"x",
            "dtype": b"int32",
            "shape": b"2,1",
            "accept": b"application/x-safetensors",
        }
        both = {"x": np.zeros((2, 1), "int32"), "y": np.ones(3)}
        outputs = payload.decode_grpc(payload.encode_grpc(both)["data"])
        assert [array.tolist() for array in outputs.values()] == [[[0], [0]], [1, 1, 1]]

    def test_json_answers_over_grpc_are_read(self) -> None:
        """JSON is told from a frame by its first byte."""
        answer = payload.decode_grpc(b'{"outputs": {"y": [[1, NaN]]}}', {"y": "float16"})
        assert answer["y"].dtype == np.float16

    @given(inputs=st.dictionaries(NAMES, ARRAYS, max_size=3))
    def test_no_frame_looks_like_json_or_an_error(self, inputs: dict[str, np.ndarray]) -> None:
        """What tells the forms apart over gRPC cannot be wrong."""
        frame = payload.encode_http({"": np.zeros(1), " ": np.zeros(1)} | inputs)[0]
        assert frame[:1] not in (b"{", b"[", payload.ERROR_MAGIC[:1])


class TestRefusals:
    """What cannot be sent or read."""

    @pytest.mark.parametrize("array", [np.array(["a"]), np.array([{}]), np.zeros(1, "complex64"), np.zeros(1, "M8[s]")])
    def test_arrays_without_a_wire_form_are_not_sent(self, array: np.ndarray) -> None:
        """Text, objects, complex numbers and dates are refused by name before anything is sent."""
        with pytest.raises(InputError, match="input 'x' is of dtype"):
            payload.encode_http({"x": array})

    def test_npy_holds_one_array(self) -> None:
        """A form of one tensor refuses two."""
        with pytest.raises(InputError, match="holds one input, not 2"):
            payload.encode_http({"x": np.zeros(1), "y": np.zeros(1)}, "npy")

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b'{"code": 400, "type": "BadRequestException", "message": "no"}', "no"),
            (b"upstream timed out", "upstream timed out"),
            (b"[1]", "[1]"),
            (b'{"message": 5}', '{"message": 5}'),
        ],
    )
    def test_an_error_answer_is_raised_with_its_text(self, body: bytes, message: str) -> None:
        """Any status but 200 is a ServerAnswerError, with the server's message or the body as it came."""
        with pytest.raises(ServerAnswerError) as caught:
            payload.decode_http(400, {}, body)
        assert (caught.value.status, caught.value.message) == (400, message)

    @pytest.mark.parametrize(
        ("detail", "status"), [(b'{"code": 500, "message": "broke"}', 500), (b"", "UNKNOWN"), (b"{}", "UNKNOWN")]
    )
    def test_an_error_body_over_grpc_is_raised(self, detail: bytes, status: int | str) -> None:
        """The magic line makes an answer an error, however little follows it."""
        with pytest.raises(ServerAnswerError) as caught:
            payload.decode_grpc(payload.ERROR_MAGIC + detail)
        assert caught.value.status == status

    @pytest.mark.parametrize(
        ("headers", "body"),
        [
            ({"Content-Type": "text/html"}, b"<html>"),
            ({"Content-Type": "application/octet-stream"}, b"1234"),
            ({"Content-Type": "application/octet-stream", "X-Tensor-Dtype": "float32", "X-Tensor-Shape": "2"}, b"1234"),
            ({"Content-Type": "application/octet-stream", "X-Tensor-Dtype": "float32", "X-Tensor-Shape": "x"}, b"1234"),
            ({"Content-Type": "application/x-npy"}, b"\x93NUMPY"),
            ({"Content-Type": "application/json"}, b'{"predictions": []}'),
            ({"Content-Type": "application/json"}, b'{"outputs": {"x": [[1], [1, 2]]}}'),
            ({"Content-Type": "application/json"}, b'{"outputs": {"x": ["1"]}}'),
            ({"Content-Type": "application/json"}, b'{"outputs": {"y": [300]}}'),
            ({}, b"\x80PNG"),
        ],
    )
    def test_an_answer_in_no_known_form_is_our_error(self, headers: dict[str, str], body: bytes) -> None:
        """A server that answers something else is a ProbeError that says what was expected."""
        with pytest.raises(ProbeError, match="answer"):
            payload.decode_http(200, headers, body, {"y": "uint8"})

    @given(body=st.binary(max_size=120), header=st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["x", "dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=3
        ),
        max_leaves=8,
    ))  # fmt: skip
    def test_any_bytes_are_arrays_or_our_error(self, body: bytes, header: Any) -> None:
        """Nothing that a server can send raises anything but our errors."""
        text = json.dumps(header).encode()
        for answer in (body, struct.pack("<Q", len(text)) + text + body):
            for form in (payload.JSON, payload.NPY, payload.FRAME):
                with suppress(ProbeError):
                    outputs = payload.decode_http(200, {"Content-Type": form}, answer)
                    assert all(isinstance(array, np.ndarray) for array in outputs.values())
