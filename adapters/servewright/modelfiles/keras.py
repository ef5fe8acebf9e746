"""Keras files, the zip of Keras 3 and the HDF5 before it: their signatures, and what in them would run code.

Both hold the network as JSON, which can name functions to call and carry bytecode. Keras's own safe mode has had
holes and does not cover HDF5 at all, so the JSON is checked here before Keras sees it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.errors import ModelFileError, PackagingError, UntrustedPickleError
from servewright.modelfiles import inspection, keras_config, zips
from servewright.modelfiles.detection import is_hdf5
from servewright.modelfiles.examples import description
from servewright.modelfiles.inspection import Inspection, Source
from servewright.spec import Signature, TensorSpec

if TYPE_CHECKING:
    from servewright.modelfiles.worker import Arrays, Loaded

DEFAULT = "serving_default"
_MAX_CONFIG_BYTES = 256 << 20
# Layers that run what a file brings along: bytecode, a pickled module, another model's graph.
_RUNNING = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"})
# Where Keras has the parts of networks; elsewhere it has functions that download, write files or change its own mode.
_PARTS = (
    "keras", "keras.activations", "keras.constraints", "keras.dtype_policies", "keras.initializers", "keras.layers",
    "keras.losses", "keras.metrics", "keras.models", "keras.ops", "keras.optimizers", "keras.quantizers",
    "keras.random", "keras.regularizers", "keras.src",
)  # fmt: skip
_NOT_PARTS = ("keras.src.saving", "keras.src.utils", "keras.src.backend.config", "keras.src.legacy.saving")


def inspect(source: Source) -> Inspection:
    """Return the signature of the model; Keras is asked only where the file's own JSON does not tell."""
    config = screen(source)
    if (found := keras_config.signature_parts(config)) is None:
        from servewright.modelfiles.child import Child

        with Child("keras", subject=source.path) as child:
            found, _ = child.call("describe", {"source": description(source)})
    signature = inspection.signature(
        source.path, DEFAULT, _tensors(source, found, "inputs"), _tensors(source, found, "outputs")
    )
    return Inspection(
        path=source.path,
        format=source.format,
        signatures=(signature,),
        notes=tuple(inspection.batch_notes(signature)),
        size_bytes=inspection.size_of(source.path),
    )


def export_saved_model(
    source: Path, target: Path, *, signature_name: str = DEFAULT, trust: bool = False, timeout_s: float = 600.0
) -> Path:
    """Write the Keras model ``source`` as a SavedModel folder ``target``, with one signature and any batch size.

    Inputs and outputs are named as `inspect` names them. The folder appears whole or not at all; raises
    `PackagingError` where it is there already or cannot be written.
    """
    from servewright.modelfiles import source_of
    from servewright.modelfiles.child import Child

    model = source_of(source, format="keras", trust=trust)
    screen(model)
    if target.exists():
        raise PackagingError(f"{target} exists already; remove it or choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise PackagingError(f"{target} cannot be written: {error.strerror or error}") from error
    try:
        with Child("keras", subject=source, timeout_s=timeout_s) as child:
            values = {"source": description(model), "target": str(beside / "model"), "signature_name": signature_name}
            child.call("export", values)
        (beside / "model").rename(target)
    except OSError as error:
        raise PackagingError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def hdf5_config(path: Path) -> str:
    """Return the JSON of the network in an HDF5 file, which takes a library, and so a child."""
    from servewright.modelfiles.child import Child

    with Child("keras", subject=path) as child:
        return str(child.call("read_config", {"path": str(path)})[0]["config"])


def screen(source: Source, read_hdf5: Callable[[Path], str] = hdf5_config) -> Any:
    """Return the network as JSON; raise `UntrustedPickleError` where reading the model would run code from the file."""
    config = _config(source, read_hdf5)
    for name, why in _strangers(config):
        if why == "custom":
            raise ModelFileError(
                f"{source.path} uses {name}, whose code is not in the file; export it where that code is, "
                "with model.export('saved_model'), and give the folder"
            )
        if not source.trust:
            raise UntrustedPickleError(
                f"{source.path}: reading it would run {name}, {why}; rebuild the model without it, export it as a "
                "SavedModel, or give --trust to run it, if you know who wrote it"
            )
    return config


def _config(source: Source, read_hdf5: Callable[[Path], str]) -> Any:
    if is_hdf5(source.path):
        text = read_hdf5(source.path)
    else:
        try:
            with zips.opened(source.path) as archive:
                entry = archive.getinfo("config.json")
                if entry.file_size > _MAX_CONFIG_BYTES:
                    raise ModelFileError(f"{source.path} has a config.json of {entry.file_size} bytes; save it again")
                text = archive.read(entry).decode()
        except (zipfile.BadZipFile, KeyError, EOFError, UnicodeDecodeError) as error:
            raise ModelFileError(f"{source.path} is broken: {error}; write or download it again") from error
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{source.path} has a config.json that is not JSON: {error}; save the model again"
        ) from error


def _strangers(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, why) for each thing in a config that is no plain part of Keras; ``custom`` means absent code."""
    if isinstance(value, list):
        for item in value:
            yield from _strangers(item)
    if not isinstance(value, dict):
        return
    kind, module = value.get("class_name"), value.get("module")
    if isinstance(kind, str):
        name = f"{module}.{value.get('config')}" if kind == "function" else kind
        if kind in _RUNNING:
            yield f"a {kind} layer" if kind != "__lambda__" else "a lambda", "which is code that its author put into it"
        elif isinstance(module, str) and module != "builtins" and not _is_part(module):
            package = module.partition(".")[0]
            yield name, "custom" if package != "keras" else "which is no part of a network"
        elif module is None and ">" in str(value.get("registered_name") or ""):
            yield str(value["registered_name"]), "custom"
    for item in value.values():
        yield from _strangers(item)


def _is_part(module: str) -> bool:
    inside = any(module == part or (module.startswith(f"{part}.") and part != "keras") for part in _PARTS)
    return inside and not module.startswith(_NOT_PARTS)


def _tensors(source: Source, found: Mapping[str, Any], which: str) -> list[TensorSpec]:
    return [inspection.tensor(source.path, name, dtype, shape) for name, dtype, shape in found[which]]


def read_config(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """Return the JSON of the network in an HDF5 file; runs in a child."""
    from servewright.modelfiles import keras_runtime

    return {"config": keras_runtime.hdf5_config(Path(arguments["path"]))}, {}


def describe(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """Return what the model takes and gives, as Keras says; runs in a child."""
    from servewright.modelfiles import keras_runtime

    source = keras_runtime.source_of(arguments["source"])
    screen(source, keras_runtime.hdf5_config)
    return keras_runtime.Network(source).description(), {}


def export(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Arrays]:
    """Write the model as a SavedModel; runs in a child."""
    from servewright.modelfiles import keras_runtime

    source = keras_runtime.source_of(arguments["source"])
    screen(source, keras_runtime.hdf5_config)
    keras_runtime.Network(source).export(arguments["target"], arguments["signature_name"])
    return {}, {}


def load(source: Source, signature: Signature | None) -> Loaded:
    """Return what runs the model with Keras; runs in a child."""
    from servewright.modelfiles import keras_runtime

    screen(source, keras_runtime.hdf5_config)
    return keras_runtime.Network(source).loaded(signature)


OPERATIONS = {"read_config": read_config, "describe": describe, "export": export}
