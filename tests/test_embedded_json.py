"""The embedded server's JSON reads and prints as RapidJSON does on the real server."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.backends.tfserving.embedded import json_writer
from servewright.backends.tfserving.embedded.json_elements import decode_base64
from servewright.backends.tfserving.embedded.json_reader import Reader, count_members, parse
from servewright.backends.tfserving.embedded.json_tensors import predict_body
from servewright.backends.tfserving.embedded.status import Code, StatusError
from servewright.backends.tfserving.embedded.tensor import STRING, Tensor, from_array, to_array

FLOAT, DOUBLE, INT8, INT32, INT64, BOOL, HALF = 1, 2, 6, 3, 9, 10, 19
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text()
    | st.integers(-(10**6), 10**6).map(lambda number: number / 1024),  # few digits: read alike by every reader
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def asked(body: str, **types: int) -> Any:
    """Return what a Predict body holds for a signature with inputs of these types."""
    return predict_body(body.encode(), lambda _: types)


def refused(body: str, **types: int) -> str:
    """Return the words with which a body is refused."""
    with pytest.raises(StatusError) as error:
        asked(body, **types)
    return error.value.message


class TestReading:
    """Documents are read as the real server reads them."""

    @given(VALUES)
    def test_agrees_with_the_standard_on_valid_documents(self, value: Any) -> None:
        """What is valid JSON means the same as for Python's own reader, slowly or quickly read."""
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=2)):
            expected = json.loads(text)
            assert parse(text.encode()) == expected
            assert Reader(text.encode()).document() == expected

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("", "JSON Parse error: The document is empty"),
            ("  ", "JSON Parse error: The document is empty. at offset: 2"),
            ("nul", "JSON Parse error: Invalid value. at offset: 3"),
            ("{a: 1}", "JSON Parse error: Missing a name for object member. at offset: 1"),
            ('{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
            ('{"a": 1 "b": 2}', "JSON Parse error: Missing a comma or '}' after an object member. at offset: 8"),
            ("[1 2]", "JSON Parse error: Missing a comma or ']' after an array element. at offset: 3"),
            ("[1,]", "JSON Parse error: Invalid value. at offset: 3"),
            ("[1.]", "JSON Parse error: Miss fraction part in number. at offset: 3"),
            ("[1e+]", "JSON Parse error: Miss exponent in number. at offset: 4"),
            ("[1e309]", "JSON Parse error: Number too big to be stored in double. at offset: 1"),
            ("[0e999]", "JSON Parse error: Number too big to be stored in double. at offset: 1"),
            ("[" + "9" * 400 + "]", "JSON Parse error: Number too big to be stored in double. at offset: 1"),
            ('["a', "JSON Parse error: Missing a closing quotation mark in string. at offset: 3"),
            ('["\\q"]', "JSON Parse error: Invalid escape character in string. at offset: 2"),
            ('["\\u12x4"]', "JSON Parse error: Incorrect hex digit after \\u escape in string. at offset: 2"),
            ('["\\ud800x"]', "JSON Parse error: The surrogate pair in string is invalid. at offset: 2"),
            ("{}{}", "JSON Parse error: The document root must not be followed by other values. at offset: 2"),
        ],
    )
    def test_says_where_a_document_breaks(self, text: str, complaint: str) -> None:
        """Each mistake has RapidJSON's words and the offset of its byte."""
        with pytest.raises(StatusError) as error:
            parse(text.encode())
        assert (error.value.code, error.value.message) == (Code.INVALID_ARGUMENT, complaint)

    def test_takes_what_json_does_not_have(self) -> None:
        """NaN, Infinity and Inf are numbers, a mark of byte order and a trailing NUL are skipped."""
        values = parse(b"\xef\xbb\xbf[NaN, -Infinity, Inf]\0rest")
        assert math.isnan(values[0])
        assert values[1:] == [-math.inf, math.inf]

    def test_keeps_the_first_of_duplicate_keys(self) -> None:
        """The first of two members of one name is the one that counts."""
        assert parse(b'{"a": 1, "a": 2, "b": {"c": 3, "c": 4}}') == {"a": 1, "b": {"c": 3}}

    @pytest.mark.parametrize(
        ("text", "members"),
        [
            ('{"a": 1, "b": {"c": [{"d": 2}, {"e": 3}]}}', 5),
            ("[[1, 2], [3]]", 0),
            ("7", 0),
            ('[{"a": 1}, 2, {"b": 3}]', 2),
        ],
    )
    def test_counts_the_members_of_all_objects(self, text: str, members: int) -> None:
        """Objects inside of lists and objects count, too."""
        assert count_members(json.loads(text)) == members

    def test_reads_deep_documents(self) -> None:
        """Nesting has no limit but memory."""
        value, depth = parse(b"[" * 5000 + b"]" * 5000), 0
        while value:
            value, depth = value[0], depth + 1
        assert depth == 4999


class TestTensors:
    """Bodies become tensors, or are refused with a reason."""

    def test_rows_and_columns_hold_the_same_tensor(self) -> None:
        """Both forms give the same elements, by name or without."""
        forms = (
            '{"instances": [[1, 2], [3, 4]]}', '{"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}',
            '{"inputs": [[1, 2], [3, 4]]}', '{"inputs": {"x": [[1, 2], [3, 4]]}}',
        )  # fmt: skip
        for form in forms:
            body = asked(form, x=FLOAT)
            assert to_array(body.inputs["x"]).tolist() == [[1, 2], [3, 4]]
            assert body.row == form.startswith('{"instances"')

    @given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2), min_size=1, max_size=5))
    def test_floats_arrive_as_they_are(self, rows: list[list[float]]) -> None:
        """Every float arrives as its nearest 32-bit number; denormal ones arrive as zero."""
        expected = np.array(rows, np.float32)
        expected[np.abs(expected) < np.finfo(np.float32).tiny] *= 0
        found = to_array(asked(json.dumps({"inputs": rows}), x=FLOAT).inputs["x"])
        np.testing.assert_array_equal(found, expected)

    def test_narrow_integers_wrap_and_wide_ones_are_refused(self) -> None:
        """An int8 takes any 32-bit number and wraps; an int32 takes no wider one."""
        assert to_array(asked('{"inputs": [127, -129, 300]}', x=INT8).inputs["x"]).tolist() == [127, 127, 44]
        assert refused('{"inputs": [2147483648]}', x=INT32) == (
            "JSON Value: 2147483648 Type: Number is not of expected type: int32"
        )

    @pytest.mark.parametrize(
        ("body", "types", "complaint"),
        [
            ('{"inputs": [1.0]}', {"x": INT64}, "JSON Value: 1.0 Type: Number is not of expected type: int64"),
            ('{"inputs": ["a"]}', {"x": FLOAT}, 'JSON Value: "a" Type: String is not of expected type: float'),
            ('{"inputs": [true]}', {"x": FLOAT}, "JSON Value: true Type: True is not of expected type: float"),
            ('{"inputs": [1]}', {"x": BOOL}, "JSON Value: 1 Type: Number is not of expected type: bool"),
            ('{"inputs": [1.5]}', {"x": HALF}, "Conversion of JSON Value: 1.5 to type: half"),
            ('{"inputs": [[1], [1, 2]]}', {"x": FLOAT}, "Encountered list at unexpected size: 2 at level: 1 expected"),
            ('{"inputs": [1, [2]]}', {"x": FLOAT}, "Encountered list at unexpected level: 1 expected < 1"),
            ('{"inputs": [[1], 2]}', {"x": FLOAT}, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM"),
            ('{"inputs": {"y": 1}}', {"x": FLOAT}, "Missing named input: x in 'inputs' object."),
            ("[]", {"x": FLOAT}, "JSON Value: [] Is not object"),
            ('{"a": 1}', {"x": FLOAT}, "Missing 'inputs' or 'instances' key"),
            ('{"instances": 1}', {"x": FLOAT}, 'JSON Value: {\n    "instances": 1\n} Expecting \'instances\' to be'),
        ],
    )  # fmt: skip
    def test_says_what_is_wrong(self, body: str, types: dict[str, int], complaint: str) -> None:
        """Each kind of wrong element has the real server's words."""
        assert refused(body, **types).startswith(complaint[:100])

    def test_refuses_more_dimensions_than_tensorflow_has(self) -> None:
        """A list too deep for a tensor is refused before TensorFlow's library sees it."""
        assert refused('{"inputs": ' + "[" * 300 + "1" + "]" * 300 + "}", x=FLOAT) == "tensor parsing error: x"

    @given(st.binary())
    def test_base64_comes_back(self, data: bytes) -> None:
        """What Base64 holds is decoded, with its padding or without."""
        import base64

        text = base64.b64encode(data).decode()
        assert decode_base64({"b64": text}) == decode_base64({"b64": text.rstrip("=")}) == data


class TestPrinting:
    """Numbers and texts look as on the real server."""

    @given(st.floats(width=32))
    def test_floats_have_the_fewest_of_six_or_nine_digits(self, value: float) -> None:
        """A float prints with six digits if they read back equal, else with nine; whole ones end in .0."""
        text = json_writer.decimals([value])[0]
        if not math.isfinite(value):
            assert text == ("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")
            return
        if abs(value) < np.finfo(np.float32).tiny:
            value = math.copysign(0.0, value)
        short = f"{value:.6g}"
        expected = short if np.float32(float(short)) == np.float32(value) else f"{value:.9g}"
        assert text == (expected if "." in expected or "e" in expected else expected + ".0")

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_doubles_have_fifteen_or_seventeen_digits(self, value: float) -> None:
        """A double prints with fifteen digits if they read back equal, else with seventeen."""
        tensor = from_array(np.array([value]), DOUBLE)
        formats, values = json_writer.number_tokens(tensor)
        text = formats[0] % values[0]
        assert float(text) == value or abs(value) < np.finfo(np.float64).tiny
        short = f"{value:.15g}"
        expected = short if float(short) == value else f"{value:.17g}"
        assert text == (expected if "." in expected or "e" in expected else expected + ".0")

    @given(
        st.lists(
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), max_size=4
        )
    )
    def test_rows_read_back(self, rows: list[list[float]]) -> None:
        """The answer in row form is JSON with the same numbers."""
        array = np.array(rows, np.float32).reshape(len(rows), 3)
        answer = json.loads(json_writer.rows({"y": from_array(array, FLOAT), "z": from_array(array[:, 0], FLOAT)}))
        found = np.array([row["y"] for row in answer["predictions"]], np.float32).reshape(-1, 3)
        np.testing.assert_allclose(found, array, rtol=1e-6, atol=1e-37)

    def test_forms_are_laid_out_as_on_the_real_server(self) -> None:
        """Rows are on one line, columns one element a line."""
        tensor = from_array(np.array([[1.5, 1e7], [0, -2]], np.float32), FLOAT)
        assert json_writer.rows({"y": tensor}) == b'{\n    "predictions": [[1.5, 1e+07], [0.0, -2.0]\n    ]\n}'
        assert json_writer.columns({"y": from_array(np.array(3.0, np.float32), FLOAT)}) == b'{\n    "outputs": 3.0\n}'
        two = json_writer.columns(
            {"a": from_array(np.zeros(1, np.int64), INT64), "b": from_array(np.zeros((0,), np.int64), INT64)}
        )
        assert two == b'{\n    "outputs": {\n        "a": [\n            0\n        ],\n        "b": []\n    }\n}'

    @given(st.lists(st.text(), min_size=1, max_size=3))
    def test_texts_read_back(self, values: list[str]) -> None:
        """Strings are escaped so that they read back, and as Base64 where their name ends in _bytes."""
        data = [value.encode("utf-8", "replace") for value in values]
        tensor = Tensor(STRING, (len(data),), data)
        expected = [value.decode() for value in data]
        assert json.loads(json_writer.rows({"s": tensor}))["predictions"] == expected
        encoded = json.loads(json_writer.rows({"s_bytes": tensor}))["predictions"]
        assert [decode_base64(entry) for entry in encoded] == data

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_shortest_form_reads_back(self, value: float) -> None:
        """The form in which error texts show nested numbers reads back as the same number."""
        assert float(json_writer.shortest(value)) == value

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (1e7, "10000000.0"),
            (1e21, "1e21"),
            (1e-5, "0.00001"),
            (1.5e-7, "1.5e-7"),
            (-0.0, "-0.0"),
            (123.456, "123.456"),
        ],
    )
    def test_shortest_form_is_rapidjsons(self, value: float, text: str) -> None:
        """Exponents begin later than in C, and have no plus sign."""
        assert json_writer.shortest(value) == text

    def test_outputs_without_rows_cannot_be_rows(self) -> None:
        """A scalar, or outputs of different sizes, cannot be answered in row form."""
        with pytest.raises(StatusError, match="has no shape information"):
            json_writer.rows({"y": Tensor(FLOAT, (), struct.pack("<f", 1))})
        with pytest.raises(StatusError, match="inconsistent batch size: 2 expecting: 1"):
            json_writer.rows({"a": Tensor(FLOAT, (1,), bytes(4)), "b": Tensor(FLOAT, (2,), bytes(8))})
