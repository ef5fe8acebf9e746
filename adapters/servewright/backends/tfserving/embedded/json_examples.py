"""Classify's and Regress's REST bodies: JSON objects that become ``tensorflow.Example`` messages."""

from __future__ import annotations

from typing import Any

from servewright.backends.tfserving.embedded.json_elements import decode_base64, is_base64, json_type
from servewright.backends.tfserving.embedded.json_reader import parse
from servewright.backends.tfserving.embedded.json_tensors import format_error, signature_name
from servewright.backends.tfserving.embedded.status import StatusError, invalid_argument

_LISTS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def example_request(body: bytes, request: Any) -> Any:
    """Fill ``request``, a ClassificationRequest or RegressionRequest, from ``body``; raise `StatusError`."""
    document = parse(body)
    if name := signature_name(document):
        request.model_spec.signature_name = _text(name)
    context = "context" in document
    if context:
        _example(document["context"], request.input.example_list_with_context.context)
    if "examples" not in document:
        raise format_error(document, "When method is classify, key 'examples' is expected and was not found")
    examples = document["examples"]
    if not isinstance(examples, list):
        raise format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise format_error(document, "'examples' value is an empty array")
    into = (request.input.example_list_with_context if context else request.input.example_list).examples
    for value in examples:
        _example(value, into.add())
    return request


def _example(value: Any, example: Any) -> None:
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {json_type(value)}")
    example.SetInParent()
    for name, content in value.items():
        feature = example.features.feature[_text(name)]
        for item in content if isinstance(content, list) else [content]:
            _add(item, name, feature)


def _text(name: str) -> str:
    """Return a name as a message can hold it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _add(value: Any, name: str, feature: Any) -> None:
    if value is None or isinstance(value, list) or (isinstance(value, dict) and not is_base64(value)):
        raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {json_type(value)}")
    if isinstance(value, bool):
        _list(feature, "int64_list", name).append(int(value))
    elif isinstance(value, dict):
        _list(feature, "bytes_list", name).append(decode_base64(value))
    elif isinstance(value, str):
        _list(feature, "bytes_list", name).append(value.encode("utf-8", "surrogateescape"))
    elif isinstance(value, float):
        _list(feature, "float_list", name).append(value)
    else:
        values = _list(feature, "int64_list", name)
        if value >= 1 << 63:
            raise invalid_argument(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        values.append(value)


def _list(feature: Any, kind: str, name: str) -> Any:
    has = feature.WhichOneof("kind")
    if has not in (None, kind):
        raise _kind_error(name, has)
    return getattr(feature, kind).value


def _kind_error(name: str, has: str) -> StatusError:
    return invalid_argument(f"Unexpected element type in feature: {name} expecting type: {_LISTS[has]}")
