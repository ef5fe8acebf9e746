"""Arrays as TensorProtos and back, held against protobuf's own reading and TensorFlow's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from servewright.backends.tfserving import fields, predictions, protos
from servewright.backends.tfserving.dtypes import DTYPES, TensorError, dtype_name, numpy_dtype
from servewright.backends.tfserving.fields import BrokenMessageError
from servewright.backends.tfserving.tensors import decode_tensor, encode_tensor
from servewright.errors import InputError

ml_dtypes = pytest.importorskip("ml_dtypes")

NUMBERS = [name for name in DTYPES if name != "string"]
FORMS = ("content", "values")
UNSIGNED = st.integers(0, 2**64 - 1)


def some(dtype: str, shape: tuple[int, ...] = (2, 3)) -> np.ndarray:
    """Return an array of ``dtype`` whose elements differ, the lowest and highest whole numbers among them."""
    count = math.prod(shape)
    if dtype == "string":
        return np.array([b"", b"\xff\x00", *(b"x" * index for index in range(count))][:count], object).reshape(shape)
    wanted = numpy_dtype(dtype)
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        values = np.linspace(limits.min, limits.max, count).astype(np.float64)
        array = np.clip(values, limits.min, float(limits.max) * (1 - 2**-50)).astype(wanted)
        if count > 1:
            array[0], array[-1] = limits.min, limits.max
        return array.reshape(shape)
    return (np.arange(count) - 1).reshape(shape).astype(wanted)


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Tell whether dtype, shape and every bit are the same."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    if wanted.dtype == object:
        return found.tolist() == wanted.tolist()
    return found.tobytes() == wanted.tobytes()


class TestRoundTrips:
    """What is written is read back."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (2, 0, 3), (300,)], ids=str)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_every_dtype_and_shape(self, dtype: str, shape: tuple[int, ...], form: Any) -> None:
        """Each dtype of each rank comes back bit by bit from either form."""
        array = some(dtype, shape)
        assert same(decode_tensor(encode_tensor(array, form=form)), array)

    @given(
        array=hnp.arrays(
            st.sampled_from([numpy_dtype(name) for name in NUMBERS if name != "bfloat16"]),
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        ),
        form=st.sampled_from(FORMS),
    )
    def test_every_array(self, array: np.ndarray, form: Any) -> None:
        """Any array comes back, NaN with its bits."""
        assert same(decode_tensor(encode_tensor(array, form=form)), array)

    @given(st.lists(st.binary(max_size=9), max_size=9))
    def test_every_string(self, values: list[bytes]) -> None:
        """Any bytes come back as strings."""
        array = np.empty(len(values), object)
        array[:] = values
        assert decode_tensor(encode_tensor(array)).tolist() == values

    @pytest.mark.parametrize("array", [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.int64)[::-2],
        np.arange(3, dtype=">f4"),
        np.arange(6, dtype=">i8").reshape(2, 3)[:, 1:],
    ], ids=["transposed", "reversed", "big-endian", "big-endian slice"])  # fmt: skip
    def test_memory_layout_does_not_matter(self, array: np.ndarray) -> None:
        """Strides and byte order of an array change nothing of its values."""
        for form in FORMS:
            found = decode_tensor(encode_tensor(array, form=form))
            assert found.tolist() == array.tolist()
            assert found.dtype == array.dtype.newbyteorder("<")

    def test_text_becomes_utf8(self) -> None:
        """Arrays of str are sent as UTF-8, whether of numpy's own text type or objects."""
        for array in (np.array(["é", "b"]), np.array(["é", b"b"], object)):
            assert decode_tensor(encode_tensor(array)).tolist() == ["é".encode(), b"b"]

    def test_bfloat16_may_be_held_in_uint16(self) -> None:
        """Told its dtype, an array of 16-bit patterns is sent as bfloat16."""
        bits = np.array([0x3F80, 0xC000], np.uint16)
        found = decode_tensor(encode_tensor(bits, dtype="bfloat16"))
        assert same(found, np.array([1, -2], ml_dtypes.bfloat16))

    def test_content_is_not_copied_when_read(self) -> None:
        """A decoded array is a view of the message, and so cannot be written to."""
        data = encode_tensor(some("float32", (100,)))
        found = decode_tensor(data)
        assert not found.flags.owndata
        assert not found.flags.writeable


class TestAgainstProtobuf:
    """What protobuf's classes read and write."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_values_are_those_that_protobuf_writes(self, dtype: str) -> None:
        """The ``values`` form has the very bytes of a TensorProto filled by hand."""
        array = some(dtype)
        ours = encode_tensor(array, form="values")
        proto = protos.TensorProto.FromString(ours)
        assert proto.dtype == DTYPES[dtype]
        assert [dim.size for dim in proto.tensor_shape.dim] == [2, 3]
        assert not proto.tensor_content
        assert proto.SerializeToString() == ours

    @given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
    def test_packed_whole_numbers(self, values: list[int]) -> None:
        """Packed int64 are what protobuf packs, and are read as it reads them."""
        theirs = protos.TensorProto(dtype=9, int64_val=values, tensor_shape={"dim": [{"size": len(values)}]})
        array = np.array(values, np.int64)
        assert encode_tensor(array, form="values") == theirs.SerializeToString()
        assert decode_tensor(theirs.SerializeToString()).tolist() == values

    @given(st.lists(UNSIGNED, max_size=30))
    @example([0x7F, 0x80, 2**56 - 1, 2**56, 2**63, 2**64 - 1])
    def test_varints_of_every_length(self, values: list[int]) -> None:
        """Packed varints from one to ten bytes long come back, and are as short as they can be."""
        packed = fields.pack_varints(np.array(values, np.uint64))
        assert packed == b"".join(map(fields.varint, values))
        assert fields.unpack_varints(np.frombuffer(packed, np.uint8)).tolist() == values

    @pytest.mark.parametrize("dtype", NUMBERS)
    def test_unpacked_numbers_and_numbers_in_pieces(self, dtype: str) -> None:
        """Values that come one field each, or in two packed pieces, are the same values."""
        array = some(dtype, (4,))
        whole = encode_tensor(array, form="values")
        start = protos.TensorProto(dtype=DTYPES[dtype], tensor_shape={"dim": [{"size": 4}]}).SerializeToString()
        pieces = start + _values_alone(array[:2]) + _values_alone(array[2:])
        assert same(decode_tensor(pieces), array)
        assert same(decode_tensor(_unpacked(whole)), array)

    def test_fields_may_come_in_any_order(self) -> None:
        """The dtype may stand behind the values."""
        array = some("float32")
        parts = [
            protos.TensorProto(float_val=array.reshape(-1)).SerializeToString(),
            protos.TensorProto(tensor_shape={"dim": [{"size": 2}]}).SerializeToString(),
            protos.TensorProto(tensor_shape={"dim": [{"size": 3}]}).SerializeToString(),
            protos.TensorProto(dtype=1).SerializeToString(),
        ]
        assert same(decode_tensor(b"".join(parts)), array)


def _values_alone(array: np.ndarray) -> bytes:
    proto = protos.TensorProto.FromString(encode_tensor(array, form="values"))
    proto.ClearField("dtype")
    proto.ClearField("tensor_shape")
    return bytes(proto.SerializeToString())


def _unpacked(data: bytes) -> bytes:
    """Return a TensorProto with every packed value in a field of its own."""
    proto = protos.TensorProto.FromString(data)
    out = protos.TensorProto(dtype=proto.dtype, tensor_shape=proto.tensor_shape).SerializeToString()
    for field, value in proto.ListFields():
        if field.is_repeated:
            for item in value:
                single = protos.TensorProto(**{field.name: [item]}).SerializeToString()
                ((number, _, start, end),) = fields.scan(memoryview(single))
                wire = {"float_val": 5, "scomplex_val": 5, "double_val": 1, "dcomplex_val": 1}.get(field.name, 0)
                out += fields.key(number, wire) + single[start:end]
    return out


class TestAsTheServerReads:
    """The real server's leniency and its limits."""

    @staticmethod
    def tensor(**content: Any) -> bytes:
        """Return a float TensorProto of shape [3] with ``content``."""
        content = {"dtype": 1, "tensor_shape": {"dim": [{"size": 3}]}} | content
        return bytes(protos.TensorProto(**content).SerializeToString())

    @pytest.mark.parametrize(
        ("content", "wanted"),
        [
            ({}, [0, 0, 0]),
            ({"float_val": [7]}, [7, 7, 7]),
            ({"float_val": [1, 2]}, [1, 2, 2]),
            ({"float_val": [1, 2, 3, 4]}, [1, 2, 3]),
            ({"double_val": [1]}, [0, 0, 0]),
            ({"float_val": [9], "tensor_content": np.array([1, 2, 3], "<f4").tobytes()}, [1, 2, 3]),
            ({"tensor_shape": {"unknown_rank": True}, "float_val": [4]}, 4),
            ({"tensor_shape": None, "float_val": [4]}, 4),
            ({"dtype": 6, "int_val": [300, -1, 5]}, [44, -1, 5]),
            ({"dtype": 7, "string_val": [b"a"]}, [b"a", b"a", b"a"]),
            ({"dtype": 7, "tensor_content": b"\x01\x00\x02abc"}, [b"a", b"", b"bc"]),
            ({"dtype": 7}, [b"", b"", b""]),
        ],
    )
    def test_missing_and_superfluous_values(self, content: dict[str, Any], wanted: Any) -> None:
        """No values are zeros, the last stands for the missing, too many are cut, an unknown rank is a scalar."""
        assert decode_tensor(self.tensor(**content)).tolist() == wanted

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            ({"tensor_content": b"12345678"}, "8 bytes; float32 of shape [3] has 12"),
            ({"dtype": 0}, "a tensor of invalid cannot be read"),
            ({"dtype": 101}, "float32 cannot be read"),
            ({"dtype": 20}, "resource"),
            ({"tensor_shape": {"dim": [{"size": -1}]}}, "dimension 0 of the shape is -1"),
            ({"tensor_shape": {"dim": [{"size": 2**40}]}, "float_val": [1]}, "more than 2 GiB"),
            ({"tensor_shape": {"dim": [{"size": 2**40}]}}, "more than 2 GiB"),
            ({"tensor_shape": {"dim": [{"size": 2**62}, {"size": 0}]}}, "no array can have the shape"),
            ({"tensor_shape": {"dim": [{"size": 1}] * 100}}, "no array can have the shape"),
            ({"dtype": 8, "scomplex_val": [1]}, "without its imaginary part"),
            ({"dtype": 7, "tensor_content": b"\x01\x00\x09abc"}, "do not fill it"),
            ({"dtype": 7, "tensor_content": b"\x01"}, "1 lengths of strings"),
            ({"dtype": 7, "tensor_shape": {"dim": [{"size": 2**40}]}}, "too many"),
        ],
    )
    def test_contradictions_are_told(self, content: dict[str, Any], reason: str) -> None:
        """A tensor that contradicts itself is a TensorError that says how."""
        with pytest.raises(TensorError) as caught:
            decode_tensor(self.tensor(**content))
        assert reason in str(caught.value)

    @pytest.mark.parametrize(
        ("array", "reason"),
        [
            (np.array(["2020-01-01"], "datetime64[D]"), "dtype datetime64[D] cannot be sent"),
            (np.array([1, None], object), "bytes or str alone"),
            (np.array(["\ud800"], object), "bytes or str alone"),
            (np.zeros(2, [("a", "f4")]), "cannot be sent"),
        ],
    )
    def test_arrays_that_no_tensor_holds(self, array: np.ndarray, reason: str) -> None:
        """An array of another kind is a TensorError that names it."""
        with pytest.raises(TensorError) as caught:
            encode_tensor(array)
        assert reason in str(caught.value)

    def test_a_dtype_that_is_not_the_arrays_is_refused(self) -> None:
        """Nothing is converted silently."""
        with pytest.raises(TensorError, match="an array of float64 is no tensor of float32"):
            encode_tensor(np.zeros(2), dtype="float32")

    def test_types_have_their_names(self) -> None:
        """Reference types are called as what they refer to, others as TensorFlow calls them."""
        assert [dtype_name(number) for number in (1, 101, 14, 7, 20, 999)] == [
            "float32", "float32", "bfloat16", "string", "resource", "dt_899",
        ]  # fmt: skip


class TestBrokenBytes:
    """Bytes that are no message."""

    @settings(max_examples=300)
    @given(noise=st.binary(max_size=40), dtype=st.sampled_from(sorted(DTYPES)), at=st.integers(0, 30))
    def test_are_one_of_our_errors_or_an_array(self, noise: bytes, dtype: str, at: int) -> None:
        """Cut, overwritten or random bytes never raise anything but our own errors."""
        whole = encode_tensor(some(dtype, (3,)), form="values")
        for data in (noise, whole[:at], whole[:at] + noise + whole[at + len(noise) :], whole + noise):
            try:
                assert isinstance(decode_tensor(data), np.ndarray)
            except InputError as error:
                assert str(error)  # noqa: PT017  (either outcome is right)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"\x08", "a number without its end"),
            (b"\x08" + b"\xff" * 11, "a number of more than ten bytes"),
            (b"\x0b", "wire type 3 does not exist"),
            (b"\x22\x05ab", "field 4 ends beyond its message"),
            (b"\x08\x09\x52\x02\x80\x80", "packed numbers without their end"),
            (b"\x08\x09\x52\x0c" + b"\xff" * 11 + b"\x01", "packed numbers of more than ten bytes"),
            (b"\x08\x01\x2a\x03abc", "float_val has 3 bytes, no multiple of 4"),
        ],
    )
    def test_say_what_is_broken(self, data: bytes, reason: str) -> None:
        """The error names the place or the field."""
        with pytest.raises(BrokenMessageError) as caught:
            decode_tensor(data)
        assert reason in str(caught.value)


class TestPredictMessages:
    """Requests and answers."""

    def test_a_request_is_what_protobuf_writes(self) -> None:
        """The request has the bytes of the same PredictRequest built with protobuf's classes."""
        inputs = {"image": some("float32"), "é": some("string", (2,))}
        spec = protos.ModelSpec(name="m", signature_name="s", version={"value": 3})
        whole = protos.PredictRequest(model_spec=spec)
        for name, array in inputs.items():
            whole.inputs[name].MergeFromString(encode_tensor(array))
        found = protos.PredictRequest.FromString(predictions.encode_request(spec.SerializeToString(), inputs))
        assert found == whole

    def test_an_answer_reads_back(self) -> None:
        """Outputs come back by name, in whatever form the server writes them."""
        outputs = {"scores": some("float32"), "label": some("string"), "count": some("int64", ())}
        for form in FORMS:
            data = predictions.encode_answer(outputs, form=form) + b"\x12\x03\x0a\x01m"
            found = predictions.decode_answer(data)
            assert list(found) == list(outputs)
            assert all(same(found[name], array) for name, array in outputs.items())

    def test_a_bad_tensor_is_named(self) -> None:
        """The error of one tensor among several says which."""
        answer = protos.PredictResponse()
        answer.outputs["good"].MergeFromString(encode_tensor(some("float32")))
        answer.outputs["bad"].dtype = 20
        with pytest.raises(TensorError, match="tensor 'bad'") as caught:
            predictions.decode_answer(answer.SerializeToString())
        assert caught.value.tensor == "bad"
        with pytest.raises(TensorError, match="tensor 'when'"):
            predictions.encode_request(b"", {"when": np.array(["2020-01-01"], "datetime64[D]")})

    def test_a_name_that_is_not_text_is_told(self) -> None:
        """A name that is not UTF-8 is a broken message."""
        with pytest.raises(BrokenMessageError, match="not UTF-8"):
            predictions.decode_answer(b"\x0a\x03\x0a\x01\xff")


@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensorflow_reads_and_writes_the_same(dtype: str) -> None:
    """TensorFlow makes our array of our bytes, and we its array of its bytes."""
    tf = pytest.importorskip("tensorflow")
    from tensorflow.core.framework import tensor_pb2

    array = some(dtype)
    for form in FORMS:
        found = tf.make_ndarray(tensor_pb2.TensorProto.FromString(encode_tensor(array, form=form)))
        assert found.shape == array.shape
        assert found.tolist() == array.tolist()
    assert same(decode_tensor(tf.make_tensor_proto(array, tf.as_dtype(dtype)).SerializeToString()), array)
