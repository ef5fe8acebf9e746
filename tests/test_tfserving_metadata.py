"""What a model's metadata says of its signatures."""

from __future__ import annotations

import pytest
from google.protobuf import json_format

from servewright.backends.tfserving import metadata, protos
from servewright.errors import ProbeError

FLOATS: object = {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "3"}]}}
OF_ANY_RANK: object = {"dtype": "DT_INT64", "tensor_shape": {"unknown_rank": True}}
RESOURCE: object = {"dtype": "DT_RESOURCE", "tensor_shape": {}}


def definitions(**sides: dict[str, object]) -> dict[str, object]:
    """Return SignatureDef messages by name: one, of these tensors."""
    found = protos.SignatureDefMap()
    json_format.ParseDict({"signature_def": {"serving_default": sides}}, found)
    return dict(found.signature_def)


def test_tensors_come_in_the_order_of_their_names() -> None:
    found = metadata.signature("m", definitions(inputs={"b": FLOATS, "a": OF_ANY_RANK}, outputs={"y": FLOATS}), "")
    assert [(each.name, each.dtype, each.shape) for each in found.inputs] == [
        ("a", "int64", None), ("b", "float32", (None, 3)),
    ]  # fmt: skip
    assert [each.name for each in found.outputs] == ["y"]


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_tensor_that_is_no_array_is_named(side: str) -> None:
    """With its dtype: whoever reads it must find it among dozens."""
    sides: dict[str, dict[str, object]] = {"inputs": {"x": FLOATS}, "outputs": {"y": FLOATS}}
    sides[f"{side}s"]["table"] = RESOURCE
    with pytest.raises(metadata.NoArraysError, match=rf"^m: signature 'serving_default' .*{side} 'table' .*'resource'"):
        metadata.signature("m", definitions(**sides), "serving_default")


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_signature_without_tensors_is_an_error_of_ours(side: str) -> None:
    """TensorFlow saves a function of no arguments, too."""
    sides: dict[str, dict[str, object]] = {"inputs": {"x": FLOATS}, "outputs": {"y": FLOATS}}
    sides[side] = {}
    with pytest.raises(metadata.NoArraysError, match=rf"signature 'serving_default' .*: {side} "):
        metadata.signature("m", definitions(**sides), "serving_default")


def test_a_signature_that_is_not_there_tells_those_that_are() -> None:
    with pytest.raises(metadata.NoSignatureError, match="no signature 'other'; it has serving_default"):
        metadata.signature("m", definitions(inputs={"x": FLOATS}, outputs={"y": FLOATS}), "other")


@pytest.mark.parametrize("answer", [{}, {"metadata": {"signature_def": 1}}, {"metadata": None}, []])
def test_an_answer_that_is_no_metadata_is_an_error_of_ours(answer: object) -> None:
    with pytest.raises(ProbeError, match="cannot be read"):
        metadata.from_json(answer)
