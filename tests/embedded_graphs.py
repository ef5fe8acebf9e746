"""Small SavedModels made by hand, so that tests of the embedded server need no Python TensorFlow to write them."""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.fields import head, key, varint

FLOAT, INT32, STRING, INT64, QINT8 = 1, 3, 7, 9, 11


def _message(number: int, data: bytes) -> bytes:
    return head(number, len(data)) + data


def _number(number: int, value: int) -> bytes:
    return key(number, 0) + varint(value & (1 << 64) - 1)


def _attribute(name: str, value: bytes) -> bytes:
    return _message(5, _message(1, name.encode()) + _message(2, value))


def _type(name: str, dtype: int) -> bytes:
    return _attribute(name, _number(6, dtype))


def node(name: str, op: str, inputs: Sequence[str] = (), *attributes: bytes) -> bytes:
    """Return a NodeDef."""
    body = _message(1, name.encode()) + _message(2, op.encode())
    return body + b"".join(_message(3, one.encode()) for one in inputs) + b"".join(attributes)


def placeholder(name: str, dtype: int) -> bytes:
    """Return a node that is fed."""
    return node(name, "Placeholder", (), _type("dtype", dtype), _attribute("shape", _message(7, _number(3, 1))))


def constant(name: str, dtype: int, shape: Sequence[int], data: bytes) -> bytes:
    """Return a node with a value."""
    tensor = protos.TensorProto(
        dtype=dtype, tensor_shape={"dim": [{"size": size} for size in shape]}, tensor_content=data
    )
    return node(name, "Const", (), _type("dtype", dtype), _attribute("value", _message(8, tensor.SerializeToString())))


def binary(name: str, op: str, one: str, other: str, dtype: int) -> bytes:
    """Return a node of two inputs of one type."""
    return node(name, op, (one, other), _type("T", dtype))


def half_plus(addend: float) -> list[bytes]:
    """Return the graph ``y = x / 2 + addend``."""
    return [
        placeholder("x", FLOAT),
        constant("half", FLOAT, (), struct.pack("<f", 0.5)),
        constant("addend", FLOAT, (), struct.pack("<f", addend)),
        binary("product", "Mul", "x", "half", FLOAT),
        binary("y", "AddV2", "product", "addend", FLOAT),
    ]


def with_total() -> list[bytes]:
    """Return the graph ``y = x + 1, total = the sum of all rows of the batch, for each row``."""
    return [
        placeholder("x", INT64),
        constant("one", INT64, (), struct.pack("<q", 1)),
        constant("axis", INT32, (1,), struct.pack("<i", 0)),
        binary("y", "AddV2", "x", "one", INT64),
        node("zeros", "ZerosLike", ("x",), _type("T", INT64)),
        node(
            "sum", "Sum", ("x", "axis"), _type("T", INT64), _type("Tidx", INT32), _attribute("keep_dims", _number(5, 0))
        ),
        binary("total", "AddV2", "zeros", "sum", INT64),
    ]


def quantized() -> list[bytes]:
    """Return the graph ``same = q``, of a type that no array has."""
    return [placeholder("q", QINT8), node("same", "Identity", ("q",), _type("T", QINT8))]


def texts() -> list[bytes]:
    """Return the graph ``text = s``."""
    return [placeholder("s", STRING), node("text", "Identity", ("s",), _type("T", STRING))]


def lengths() -> list[bytes]:
    """Return the graph ``value = the bytes of a serialized example, score = the same in a column``."""
    return [
        placeholder("examples", STRING),
        node("bytes", "StringLength", ("examples",)),
        node("value", "Cast", ("bytes",), _type("SrcT", INT32), _type("DstT", FLOAT)),
        constant("axis", INT32, (), struct.pack("<i", 1)),
        node("score", "ExpandDims", ("value", "axis"), _type("T", FLOAT), _type("Tdim", INT32)),
    ]


def save(
    folder: Path,
    nodes: Sequence[bytes],
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    functions: Sequence[bytes] = (),
    name: str = "serving_default",
) -> Path:
    """Write a SavedModel with one signature; inputs and outputs are node names with their types."""
    return save_signatures(folder, nodes, {name: signature_of(inputs, outputs)}, functions)


def signature_of(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    """Return the SignatureDef of nodes with their types, each a vector."""

    def infos(names: Mapping[str, int]) -> dict[str, object]:
        shape = {"dim": [{"size": -1}]}
        return {name: {"name": f"{name}:0", "dtype": dtype, "tensor_shape": shape} for name, dtype in names.items()}

    return protos.SignatureDef(inputs=infos(inputs), outputs=infos(outputs), method_name="tensorflow/serving/predict")


def save_signatures(
    folder: Path, nodes: Sequence[bytes], signatures: Mapping[str, Any], functions: Sequence[bytes] = ()
) -> Path:
    """Write a SavedModel with these signatures."""
    versions = _message(4, _number(1, 1882))
    library = _message(2, b"".join(_message(1, one) for one in functions))
    graph = b"".join(_message(1, one) for one in nodes) + library + versions
    meta = protos.MetaGraphDef(meta_info_def={"tags": ["serve"]}, signature_def=signatures)
    meta_graph = meta.SerializeToString() + _message(2, graph)
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(_number(1, 1) + _message(2, meta_graph))
    return folder


def save_half_plus(folder: Path, addend: float, signature: str = "serving_default") -> Path:
    """Write the model ``y = x / 2 + addend``."""
    return save(folder, half_plus(addend), {"x": FLOAT}, {"y": FLOAT}, name=signature)


def save_with_total(folder: Path) -> Path:
    """Write the model that tells each row the sum of its batch."""
    return save(folder, with_total(), {"x": INT64}, {"y": INT64, "total": INT64})


def save_texts(folder: Path) -> Path:
    """Write the model that gives strings back."""
    return save(folder, texts(), {"s": STRING}, {"text": STRING})


def save_batching_itself(folder: Path, size: int) -> Path:
    """Write the model ``y = x + 1`` that computes once ``size`` rows wait in a batch of its own."""

    def names(*types: int) -> bytes:
        return _message(1, _message(6, b"".join(varint(dtype) for dtype in types)))

    argument = _message(1, b"x") + _number(3, FLOAT), _message(1, b"y") + _number(3, FLOAT)
    signature = _message(1, b"add") + _message(2, argument[0]) + _message(3, argument[1])
    body = [constant("one", FLOAT, (), struct.pack("<f", 1)), binary("sum", "AddV2", "x", "one:output:0", FLOAT)]
    result = _message(4, _message(1, b"y") + _message(2, b"sum:z:0"))
    function = _message(1, signature) + b"".join(_message(3, one) for one in body) + result
    batched = node(
        "batched",
        "BatchFunction",
        ("x",),
        _attribute("f", _message(10, _message(1, b"add"))),
        _attribute("num_batch_threads", _number(3, 1)),
        _attribute("max_batch_size", _number(3, size)),
        _attribute("batch_timeout_micros", _number(3, 1_800_000_000)),
        _attribute("Tin", names(FLOAT)),
        _attribute("Tcaptured", names()),
        _attribute("Tout", names(FLOAT)),
    )
    nodes = [placeholder("x", FLOAT), batched, node("y", "Identity", ("batched",), _type("T", FLOAT))]
    return save(folder, nodes, {"x": FLOAT}, {"y": FLOAT}, functions=[function])


def save_lengths(folder: Path) -> Path:
    """Write a model that classifies and regresses examples by their lengths."""
    examples = {"inputs": {"name": "examples:0", "dtype": STRING}}
    return save_signatures(
        folder,
        lengths(),
        {
            "serving_default": protos.SignatureDef(
                inputs=examples,
                outputs={"outputs": {"name": "value:0", "dtype": FLOAT}},
                method_name="tensorflow/serving/regress",
            ),
            "classes": protos.SignatureDef(
                inputs=examples,
                outputs={"scores": {"name": "score:0", "dtype": FLOAT}},
                method_name="tensorflow/serving/classify",
            ),
        },
    )


if __name__ == "__main__":
    save_half_plus(Path(sys.argv[1]), 2.0)
