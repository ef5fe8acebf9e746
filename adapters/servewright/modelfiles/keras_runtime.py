"""Keras in the child: loading a model, its signature in Keras's words, running it, exporting it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.errors import MissingExtraError, ModelFileError
from servewright.modelfiles import saved_model
from servewright.modelfiles.detection import is_hdf5
from servewright.modelfiles.inspection import Source
from servewright.modelfiles.keras_config import unique_names

if TYPE_CHECKING:
    from servewright.modelfiles.worker import Arrays, Loaded
    from servewright.spec import Signature


class Network:
    """A Keras model whose inputs and outputs have names and an order."""

    def __init__(self, source: Source) -> None:
        keras = _keras()
        self._path, self._keras = source.path, keras
        with tempfile.TemporaryDirectory() as folder:
            # Keras goes by the name's ending; our user's file may have any.
            suffix = ".h5" if is_hdf5(source.path) else ".keras"
            named = Path(folder) / f"model{suffix}"
            named.symlink_to(source.path.resolve())
            self.model = keras.saving.load_model(str(named), compile=False, safe_mode=not source.trust)
        if not getattr(self.model, "inputs", None):
            raise ModelFileError(
                f"{source.path} does not say what it takes: a network that was never built, or a class of its own; "
                "export it with model.export('saved_model'), and give the folder"
            )
        self._takes = _structure(self.model, "input")
        self.inputs = _named(keras, self._takes)
        self.outputs = _named(keras, _structure(self.model, "output"))

    def description(self) -> dict[str, Any]:
        """Return ``inputs`` and ``outputs`` as (name, dtype, shape)."""
        return {
            "inputs": [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in self.inputs.items()],
            "outputs": [(name, str(tensor.dtype), list(tensor.shape)) for name, tensor in self.outputs.items()],
        }

    def call(self, tensors: list[Any]) -> dict[str, Any]:
        """Return the outputs by name for the inputs in order."""
        given = self._keras.tree.pack_sequence_as(self._takes, tensors)
        found = self._keras.tree.flatten(self.model(given, training=False))
        return dict(zip(self.outputs, found, strict=True))

    def loaded(self, signature: Signature | None) -> Loaded:
        """Return how to run the model with arrays by name."""
        from servewright.modelfiles.worker import Loaded

        names = list(self.outputs) if signature is None else [item.name for item in signature.outputs]
        takes = list(self.inputs)

        def predict(inputs: Arrays) -> Arrays:
            if len(inputs) != len(takes):
                raise ModelFileError(f"{self._path} takes {', '.join(takes)}, not {', '.join(inputs)}")
            order = takes if set(inputs) == set(takes) else list(inputs)
            dtypes = [tensor.dtype for tensor in self.inputs.values()]
            convert = self._keras.ops.convert_to_tensor
            found = self.call([convert(inputs[name], dtype) for name, dtype in zip(order, dtypes, strict=True)])
            if set(names) <= set(found):
                found = {name: found[name] for name in names}
            elif len(names) != len(found):
                raise ModelFileError(f"{self._path} gives {', '.join(found)}, not {', '.join(names)}")
            arrays = [self._keras.ops.convert_to_numpy(value) for value in found.values()]
            return dict(zip(names, arrays, strict=True))

        return Loaded(predict, tuple(takes))

    def export(self, target: str, signature_name: str) -> None:
        """Write a SavedModel with one signature, named as ours are."""
        tf = saved_model.tensorflow()
        if self._keras.backend.backend() != "tensorflow":
            raise ModelFileError(f"{self._path}: only TensorFlow writes SavedModels; unset KERAS_BACKEND")
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in self.inputs.items()]
        archive = self._keras.export.ExportArchive()
        archive.track(self.model)
        archive.add_endpoint(signature_name, lambda *tensors: self.call(list(tensors)), input_signature=specs)
        archive.write_out(target, verbose=False)


def source_of(values: Mapping[str, Any]) -> Source:
    """Return the source that a message of ours describes."""
    return Source(path=Path(values["path"]), format=values["format"], trust=bool(values.get("trust")))


def hdf5_config(path: Path) -> str:
    """Return the JSON of the network in an HDF5 file."""
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingExtraError("h5py", "tensorflow", "reading a Keras HDF5 file") from error
    try:
        with h5py.File(path) as file:
            config = file.attrs.get("model_config")
    except OSError as error:
        raise ModelFileError(
            f"{path} is broken: {error}; it was cut off or changed: write or download it again"
        ) from error
    if config is None:
        raise ModelFileError(f"{path} holds weights without a network; save the whole model: model.save('model.keras')")
    return config.decode() if isinstance(config, bytes) else str(config)


def _keras() -> Any:
    saved_model.tensorflow()
    try:
        import keras
    except ImportError as error:
        raise MissingExtraError("keras", "tensorflow", "reading a Keras model") from error
    return keras


def _structure(model: Any, which: str) -> Any:
    try:
        return getattr(model, which)
    except AttributeError:  # a Sequential read from HDF5 has lists alone
        tensors = getattr(model, f"{which}s")
        return tensors[0] if len(tensors) == 1 else tensors


def _named(keras: Any, structure: Any) -> dict[str, Any]:
    """Return the tensors of a structure in its flat order, by their keys in a mapping, else by their layers' names."""
    flat = keras.tree.flatten(structure)
    if isinstance(structure, dict) and len(structure) == len(flat):
        found = {id(tensor): key for key, tensor in structure.items()}
        names = [str(found[id(tensor)]) for tensor in flat]
    else:
        names = [tensor._keras_history.operation.name for tensor in flat]
    return dict(zip(unique_names(names), flat, strict=True))
