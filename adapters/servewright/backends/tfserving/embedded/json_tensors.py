"""The tensors of a REST request, and the real server's words for every way in which they can be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from servewright.backends.tfserving.embedded.json_elements import (
    BOOL,
    DOUBLE,
    dense_shape,
    fill,
    is_base64,
    packed,
    quick_tensor,
)
from servewright.backends.tfserving.embedded.json_reader import LONG_NUMBER, parse
from servewright.backends.tfserving.embedded.json_writer import shown
from servewright.backends.tfserving.embedded.status import StatusError, invalid_argument
from servewright.backends.tfserving.embedded.tensor import Tensor, is_shape


@dataclass(frozen=True, slots=True)
class PredictBody:
    """A Predict request as REST has it: ``row`` tells in which form the answer goes back."""

    signature_name: str
    inputs: Mapping[str, Tensor]
    row: bool


def predict_body(body: bytes, inputs_of: Callable[[str], Mapping[str, int]]) -> PredictBody:
    """Read the body of ``:predict``; ``inputs_of`` returns the DataTypes of a signature's inputs by name.

    Raises `StatusError`.
    """
    document = parse(body)
    name = signature_name(document)
    types = inputs_of(name)
    if not types:
        raise invalid_argument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    plain = b"true" not in body and b"false" not in body
    if DOUBLE in types.values() and LONG_NUMBER.search(body):
        document = parse(body, precise=True)
    if "instances" in document:
        instances = document["instances"]
        if "inputs" in document:
            raise format_error(
                document, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
            )
        if not isinstance(instances, list):
            raise format_error(document, "Expecting 'instances' to be an list/array")
        if not instances:
            raise format_error(document, "No values in 'instances' array")
        return PredictBody(name, _checked(_rows(instances, types, plain=plain)), row=True)
    if "inputs" in document:
        return PredictBody(name, _checked(_columns(document["inputs"], types, plain=plain)), row=False)
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _checked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not is_shape(tensor.shape):
            raise invalid_argument(f"tensor parsing error: {name}")
    return tensors


def signature_name(document: Any) -> str:
    """Return the signature that a request names, or ``""``; refuse a document that is no object."""
    if not isinstance(document, dict):
        raise format_error(document, "Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise format_error(document, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def format_error(value: Any, reason: str) -> StatusError:
    """Return an error that shows the JSON value it is about."""
    return invalid_argument(f"JSON Value: {shown(value)} {reason}")


# Column form


def _columns(value: Any, types: Mapping[str, int], *, plain: bool) -> dict[str, Tensor]:
    if not isinstance(value, dict) or is_base64(value):
        if len(types) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        ((name, dtype),) = types.items()
        return {name: _tensor(value, dtype, plain=plain)}
    tensors = {}
    for name, dtype in types.items():
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
        tensors[name] = _tensor(value[name], dtype, plain=plain)
    return tensors


def _tensor(value: Any, dtype: int, *, plain: bool) -> Tensor:
    quick = quick_tensor(value, dtype) if plain or dtype == BOOL else None
    if quick is not None:
        return quick
    shape = dense_shape(value)
    flat: list[Any] = []
    fill(value, 0, dtype, shape, flat)
    return packed(flat, dtype, tuple(shape))


# Row form


@dataclass(slots=True)
class _Column:
    """The elements that the rows so far gave to one input."""

    flat: list[Any] = field(default_factory=list)
    size: int = -1
    shape: list[int] = field(default_factory=list)


def _rows(instances: list[Any], types: Mapping[str, int], *, plain: bool) -> dict[str, Tensor]:
    if (plain or set(types.values()) == {BOOL}) and (quick := _quick_rows(instances, types)) is not None:
        return quick
    if not isinstance(instances[0], dict) and len(types) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    named = _is_row_object(instances[0])
    columns: dict[str, _Column] = {}
    for at, item in enumerate(instances):
        if named:
            _add_named(item, at, types, columns)
            continue
        if _is_row_object(item):
            raise invalid_argument(f"Expecting value/list but got object at item {at} of input list")
        try:
            _add(item, next(iter(types)), types, columns)
        except StatusError as error:
            raise invalid_argument(f"Failed to process element: {at} of 'instances' list. Error: {error}") from error
    return {name: packed(column.flat, types[name], (len(instances), *column.shape)) for name, column in columns.items()}


def _add_named(item: Any, at: int, types: Mapping[str, int], columns: dict[str, _Column]) -> None:
    if not _is_row_object(item):
        raise invalid_argument(f"Expecting object but got list at item {at} of input list")
    for name, value in item.items():
        try:
            _add(value, name, types, columns)
        except StatusError as error:
            raise invalid_argument(
                f"Failed to process element: {at} key: {name} of 'instances' list. Error: {error}"
            ) from error
    if set(item) != set(types):
        raise invalid_argument(
            f"Failed to process element: {at} of 'instances' list. JSON object: {shown(item)} keys must be equal "
            f"to: {','.join(sorted(types))}"
        )


def _add(value: Any, name: str, types: Mapping[str, int], columns: dict[str, _Column]) -> None:
    if name not in types:
        raise invalid_argument(f"JSON object: does not have named input: {name}")
    column = columns.setdefault(name, _Column())
    shape = dense_shape(value)
    before = len(column.flat)
    fill(value, 0, types[name], shape, column.flat)
    size = len(column.flat) - before
    if column.size < 0:
        column.size, column.shape = size, shape
    elif column.size != size:
        raise invalid_argument(f"Expecting tensor size: {column.size} but got: {size}")
    elif column.shape != shape:
        raise invalid_argument(f"Expecting shape {_listed(column.shape)} but got: {_listed(shape)}")


def _listed(shape: list[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _is_row_object(value: Any) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _quick_rows(instances: list[Any], types: Mapping[str, int]) -> dict[str, Tensor] | None:
    """Return the tensors of rows in which nothing is wrong or unusual; ``None`` means: look closer."""
    if not _is_row_object(instances[0]):
        if len(types) > 1:
            return None
        ((name, dtype),) = types.items()
        tensor = quick_tensor(instances, dtype)
        return None if tensor is None else {name: tensor}
    if any(not isinstance(item, dict) or item.keys() != types.keys() for item in instances):
        return None
    tensors = {}
    for name, dtype in types.items():
        tensor = quick_tensor([item[name] for item in instances], dtype)
        if tensor is None:
            return None
        tensors[name] = tensor
    return tensors
