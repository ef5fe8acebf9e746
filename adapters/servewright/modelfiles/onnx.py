"""ONNX files: what the graph takes and gives, read without onnx, and running it with onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from servewright.errors import MissingExtraError, ModelFileError
from servewright.modelfiles import inspection, protowire
from servewright.modelfiles.binding import bound, refuse_half_named
from servewright.modelfiles.inspection import Inspection, Source
from servewright.spec import Signature, TensorSpec

if TYPE_CHECKING:
    from servewright.modelfiles.worker import Arrays, Loaded

DEFAULT = "serving_default"
# TensorProto.DataType in onnx/onnx.proto
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip
_EXTERNAL = 1  # TensorProto.DataLocation


def inspect(source: Source) -> Inspection:
    """Return the graph's signature: its inputs without the weights, named axes as ``None``."""
    try:
        graph = next(protowire.submessages(protowire.mapped(source.path), 7))
        weights = _weights(source.path, graph)
        takes = [item for item in _tensors(source.path, graph, 11) if item.name not in weights]
        gives = list(_tensors(source.path, graph, 12))
    except protowire.WireError as error:
        raise ModelFileError(f"{source.path} is broken: {error}; write or download it again") from error
    signature = inspection.signature(source.path, DEFAULT, takes, gives)
    return Inspection(
        path=source.path,
        format=source.format,
        signatures=(signature,),
        notes=tuple(inspection.batch_notes(signature)),
        size_bytes=inspection.size_of(source.path),
    )


def external_files(path: Path) -> tuple[str, ...]:
    """Return the files beside the model at ``path`` that hold its weights, as the model names them."""
    try:
        graph = next(protowire.submessages(protowire.mapped(path), 7))
        return tuple(sorted({name for weight in protowire.submessages(graph, 5) for name in _locations(weight)}))
    except (protowire.WireError, StopIteration) as error:
        raise ModelFileError(f"{path} is broken: {error}; write or download it again") from error


def _weights(path: Path, graph: memoryview) -> set[str]:
    names: set[str] = set()
    checked: set[str] = set()
    for weight in protowire.submessages(graph, 5):
        names.add(protowire.text(weight, 8))
        for location in _locations(weight):
            if location not in checked:
                _check_location(path, location)
                checked.add(location)
    names |= {protowire.text(next(protowire.submessages(sparse, 1)), 8) for sparse in protowire.submessages(graph, 15)}
    return names


def _locations(weight: memoryview) -> Iterator[str]:
    if protowire.integer(weight, 14) == _EXTERNAL:
        for entry in protowire.submessages(weight, 13):
            if protowire.text(entry, 1) == "location":
                yield protowire.text(entry, 2)


def _check_location(path: Path, location: str) -> None:
    if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
        raise ModelFileError(f"{path} wants its weights from {location!r}, outside its own folder; save it again")
    if not (path.parent / location).is_file():
        raise ModelFileError(f"{path} keeps its weights in {location!r}, which is not beside it; copy that file too")


def _tensors(path: Path, graph: memoryview, wanted: int) -> Iterator[TensorSpec]:
    for value in protowire.submessages(graph, wanted):
        name = protowire.text(value, 1)
        kinds = dict(protowire.fields(next(protowire.submessages(value, 2), memoryview(b""))))
        tensor = kinds.get(1)
        if not isinstance(tensor, memoryview):
            raise ModelFileError(f"{path}: {name!r} is a sequence, map or sparse tensor; make it a dense tensor")
        number = protowire.integer(tensor, 1)
        shapes = list(protowire.submessages(tensor, 2))
        shape = [_size(axis) for axis in protowire.submessages(shapes[-1], 1)] if shapes else None
        yield inspection.tensor(path, name, _DTYPES.get(number, f"number {number}"), shape)


def _size(axis: memoryview) -> int | None:
    fixed = any(number == 1 for number, _ in protowire.fields(axis))
    size = protowire.integer(axis, 1)
    return size if fixed and size >= 0 else None  # some exporters write -1 for any size


def load(source: Source, signature: Signature | None) -> Loaded:
    """Return what runs the graph on the CPU; runs in a child."""
    from servewright.modelfiles.worker import THREADS, Loaded

    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnx", "running an ONNX model") from error
    inspect(source)  # onnxruntime's own words on missing weights are of no help
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(source.path), options, providers=["CPUExecutionProvider"])
    takes = [item.name for item in session.get_inputs()]
    gives = [item.name for item in session.get_outputs()]
    names = gives if signature is None else [item.name for item in signature.outputs]
    fetched = names if set(names) <= set(gives) else gives
    if len(names) != len(fetched):
        raise ModelFileError(f"{source.path} gives {', '.join(gives)}, not {', '.join(names)}; correct the signature")
    refuse_half_named(names, gives)

    def predict(inputs: Arrays) -> Arrays:
        feeds = {parameter: _text(inputs[name]) for parameter, name in bound(list(inputs), takes)}
        results: Sequence[Any] = session.run(fetched, feeds)
        return dict(zip(names, results, strict=True))

    return Loaded(predict, tuple(takes))


def _text(array: object) -> object:
    import numpy as np

    if isinstance(array, np.ndarray) and array.dtype == object:  # onnxruntime takes str, and gives str
        return np.array([item.decode() for item in array.ravel()], object).reshape(array.shape)
    return array


OPERATIONS: dict[str, object] = {}
