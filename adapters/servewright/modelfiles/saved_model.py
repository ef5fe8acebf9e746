"""TensorFlow SavedModels: their signatures without TensorFlow, and running them with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.errors import MissingExtraError, ModelFileError
from servewright.modelfiles import protowire
from servewright.modelfiles.inspection import Inspection, Source, batch_notes, signature, size_of, tensor
from servewright.spec import Signature, TensorSpec

if TYPE_CHECKING:
    from servewright.modelfiles.worker import Arrays, Loaded

SERVE = "serve"
DEFAULT = "serving_default"
_INIT_OP = "__saved_model_init_op"
# DataType in tensorflow/core/framework/types.proto
_DTYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16",
    17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64",
}  # fmt: skip


def inspect(source: Source) -> Inspection:
    """Return the signatures of the SavedModel in the folder ``source.path``; ``serving_default`` comes first."""
    notes: list[str] = []
    try:
        found = _signatures(source.path, _message(source.path), notes)
    except protowire.WireError as error:
        raise ModelFileError(
            f"{source.path}/saved_model.pb is broken: {error}; it was cut off or changed: export the model again"
        ) from error
    notes += [note for item in found[:1] for note in batch_notes(item)]
    notes += _variables(source.path)
    return Inspection(
        path=source.path, format=source.format, signatures=found, notes=tuple(notes), size_bytes=size_of(source.path)
    )


def _variables(folder: Path) -> Iterator[str]:
    variables = folder / "variables"
    if not (variables / "variables.index").is_file():
        yield "it has no variables/variables.index: right only where all weights are constants of the graph"
    elif not any(variables.glob("variables.data-*-of-*")):
        raise ModelFileError(f"{folder} lacks variables/variables.data-*: its weights; copy the whole folder")


def _message(folder: Path) -> memoryview:
    binary = folder / "saved_model.pb"
    if binary.is_file():
        message = protowire.mapped(binary)
        if not len(message):
            raise ModelFileError(f"{binary} is empty: zero bytes; export the model again")
        return message
    # The text form, and the form in parts for graphs over 2 GB: TensorFlow itself knows how to read them.
    from servewright.modelfiles.child import Child

    with Child("saved_model", subject=folder) as child:
        _, arrays = child.call("binary", {"path": str(folder)})
    return arrays["message"].data


def _signatures(folder: Path, message: memoryview, notes: list[str]) -> tuple[Signature, ...]:
    tagged = {tuple(sorted(protowire.texts(_one(graph, 1), 4))): graph for graph in protowire.submessages(message, 2)}
    if not tagged:
        raise ModelFileError(f"{folder} holds no graph; export the model again")
    serving = [graph for tags, graph in tagged.items() if SERVE in tags]
    if not serving:
        there = ", ".join("+".join(tags) or "none" for tags in tagged)
        raise ModelFileError(f"{folder} has no graph for serving (tags: {there}); export it with the tag {SERVE!r}")
    graph = next((tagged[tags] for tags in tagged if tags == (SERVE,)), serving[0])
    found: dict[str, Signature] = {}
    for name, definition in protowire.entries(graph, 5).items():
        if name == _INIT_OP:
            continue
        try:
            found[name] = signature(
                folder, name, list(_tensors(folder, definition, 1)), list(_tensors(folder, definition, 2))
            )
        except ModelFileError as error:
            notes.append(f"signature {name!r} is left out: {str(error).removeprefix(f'{folder}: ')}")
    if not found:
        reason = "; ".join(notes) or "it was saved without one"
        raise ModelFileError(
            f"{folder} has no signature that can be served ({reason}); "
            "save it with tf.saved_model.save(..., signatures=...), or give the .keras file"
        )
    return tuple(sorted(found.values(), key=lambda item: (item.name != DEFAULT, item.name)))


def _tensors(folder: Path, definition: memoryview, wanted: int) -> Iterator[TensorSpec]:
    for name, info in protowire.entries(definition, wanted).items():
        encodings = {number for number, _ in protowire.fields(info)}
        if encodings & {4, 5}:
            raise ModelFileError(f"{folder}: tensor {name!r} is sparse or ragged; make it dense in the model")
        number = protowire.integer(info, 2)
        shape = _shape(_one(info, 3))
        yield tensor(folder, name, _DTYPES.get(number, f"number {number}"), shape)


def _shape(message: memoryview) -> tuple[int | None, ...] | None:
    if protowire.integer(message, 3):
        return None
    sizes = [protowire.integer(dimension, 1) for dimension in protowire.submessages(message, 2)]
    return tuple(None if size == -1 else size for size in sizes)


def _one(message: memoryview, wanted: int) -> memoryview:
    return ([*protowire.submessages(message, wanted)] or [memoryview(b"")])[-1]


def binary(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """Return the SavedModel message of a folder that has it as text or in parts; runs in a child."""
    import numpy as np

    tensorflow()
    from tensorflow.python.saved_model import loader_impl

    message = loader_impl.parse_saved_model(arguments["path"]).SerializeToString()
    return {}, {"message": np.frombuffer(message, np.uint8)}


def load(source: Source, wanted: Signature | None) -> Loaded:
    """Return what runs one signature of the model, in a session as a server does; runs in a child."""
    from servewright.modelfiles.worker import Loaded

    tf = tensorflow()
    name = DEFAULT if wanted is None else wanted.name
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta_graph = tf.compat.v1.saved_model.loader.load(session, [SERVE], str(source.path))
    if name not in meta_graph.signature_def:
        there = ", ".join(sorted(set(meta_graph.signature_def) - {_INIT_OP}))
        raise ModelFileError(f"{source.path} has no signature {name!r}; choose from {there}")
    definition = meta_graph.signature_def[name]
    feeds = {alias: info.name for alias, info in definition.inputs.items()}
    dtypes = {alias: tf.dtypes.as_dtype(info.dtype).as_numpy_dtype for alias, info in definition.inputs.items()}
    fetches = {alias: info.name for alias, info in definition.outputs.items()}
    if wanted is not None:
        lost = [item.name for item in wanted.outputs if item.name not in fetches]
        if lost:
            raise ModelFileError(f"{source.path}: {name!r} has no output {lost[0]!r}: {', '.join(sorted(fetches))}")
        fetches = {item.name: fetches[item.name] for item in wanted.outputs}

    def predict(inputs: Arrays) -> Arrays:
        unknown = sorted(set(inputs) ^ set(feeds))
        if unknown:
            takes, got = ", ".join(sorted(feeds)), ", ".join(sorted(inputs))
            raise ModelFileError(f"{source.path}: {name!r} takes {takes}, not {got}")
        given = {feeds[alias]: value.astype(dtypes[alias], copy=False) for alias, value in inputs.items()}
        results: Arrays = session.run(fetches, given)
        return results

    return Loaded(predict, tuple(sorted(feeds)))


def tensorflow() -> Any:
    """Import TensorFlow with sane threads and without its greetings."""
    import os

    from servewright.modelfiles.worker import THREADS

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise MissingExtraError("tensorflow", "tensorflow", "running a TensorFlow or Keras model") from error
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    return tf


OPERATIONS = {"binary": binary}
