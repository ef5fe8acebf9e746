"""A model's signatures, as the server tells them over REST or gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.dtypes import dtype_name
from servewright.errors import ProbeError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from servewright.spec import Signature, TensorSpec

DEFAULT_SIGNATURE = "serving_default"


class NoSignatureError(ProbeError):
    """The model has no signature of that name; the text tells those that it has."""


class NoArraysError(ProbeError):
    """A signature that no spec can tell: without inputs, or with a resource, which the text names with its dtype."""


def from_json(answer: Any) -> tuple[int, Mapping[str, Any]]:
    """Return the version and its SignatureDef messages by name, from a metadata answer over REST."""
    from google.protobuf import json_format

    definitions = protos.SignatureDefMap()
    try:
        json_format.ParseDict(answer["metadata"]["signature_def"], definitions, ignore_unknown_fields=True)
        return int(answer["model_spec"]["version"]), definitions.signature_def
    except (json_format.ParseError, KeyError, TypeError, ValueError) as error:
        raise ProbeError(f"the server's metadata cannot be read: {error!r}") from error


def from_message(answer: Any) -> tuple[int, Mapping[str, Any]]:
    """Return the version and its SignatureDef messages by name, from a GetModelMetadataResponse."""
    definitions = protos.SignatureDefMap()
    if not answer.metadata["signature_def"].Unpack(definitions):
        raise ProbeError("the server's metadata holds no SignatureDefMap")
    return answer.model_spec.version.value, definitions.signature_def


def signature(model: str, definitions: Mapping[str, Any], name: str) -> Signature:
    """Return the signature called ``name``, tensors in order of their names.

    Raises `NoSignatureError` where the model has none of that name, and `NoArraysError` where no spec can tell it.
    """
    from pydantic import ValidationError

    from servewright.spec import Signature

    name = name or DEFAULT_SIGNATURE
    if name not in definitions:
        raise NoSignatureError(f"{model} has no signature {name!r}; it has {', '.join(sorted(definitions)) or 'none'}")
    found, what = definitions[name], f"{model}: signature {name!r} cannot be served to arrays"
    inputs, outputs = _tensors(f"{what}: input", found.inputs), _tensors(f"{what}: output", found.outputs)
    try:
        return Signature(name=name, inputs=inputs, outputs=outputs)
    except ValidationError as error:
        raise NoArraysError(f"{what}: {_complaint(error)}") from error


def output_dtypes(definition: Any) -> dict[str, str]:
    """Return the dtype name of every output of a SignatureDef message."""
    return {name: dtype_name(info.dtype) for name, info in definition.outputs.items()}


def _tensors(what: str, infos: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    from pydantic import ValidationError

    from servewright.spec import TensorSpec

    found = []
    for name, info in sorted(infos.items()):
        try:
            found.append(
                TensorSpec.model_validate({"name": name, "dtype": dtype_name(info.dtype), "shape": shape(info)})
            )
        except ValidationError as error:
            raise NoArraysError(f"{what} {name!r} has {_complaint(error)}") from error
    return tuple(found)


def _complaint(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} {first['input']!r}: {first['msg']}"


def shape(info: Any) -> tuple[int | None, ...] | None:
    """Return the shape of a TensorInfo message: None for an axis of any size, or for a rank that is not known."""
    if info.tensor_shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
