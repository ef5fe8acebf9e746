"""Learning a signature by running a model on an example: for files that tell nothing of their shapes."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.errors import InputError, ModelFileError
from servewright.modelfiles import inspection
from servewright.modelfiles.inspection import Inspection, Source
from servewright.spec import TensorSpec

if TYPE_CHECKING:
    from servewright.modelfiles.frames import Array

DEFAULT = "serving_default"


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an ``.npz`` file in its order; raise `InputError` for what is none, or holds pickles."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path} holds one array without a name; write it with numpy.savez(path, x=array)")
            arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; write it with numpy.savez(path, x=array)") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        said = "it holds Python objects" if "allow_pickle" in str(error) else str(error)
        raise InputError(
            f"{path} is not an .npz of arrays ({said}); write it with numpy.savez(path, x=array)"
        ) from error
    if not arrays:
        raise InputError(f"{path} holds no array; write it with numpy.savez(path, x=array)")
    return {name: _as_objects(array) if array.dtype.kind in "SU" else array for name, array in arrays.items()}


def inspect_by_example(source: Source) -> Inspection:
    """Run the model in a child on ``source.example``, then on twice as many rows, and say what its outputs are.

    A dimension that grows with the rows is the batch; everything else is taken as the example has it.
    """
    import numpy as np

    from servewright.modelfiles.child import Child

    assert source.example is not None
    inputs = read_npz(source.example)
    notes = [f"shapes other than the batch axis are those of {source.example.name}: write null where any size is taken"]
    with Child(source.format, subject=source.path) as child:
        loaded, _ = child.call("load", {"source": description(source), "signature": None})
        inputs, remarks = _ordered(inputs, loaded["order"])
        notes += remarks
        _, single = child.call("predict", {}, inputs)
        _, again = child.call("predict", {}, inputs)
        doubled: dict[str, Array] | None = None
        if all(array.ndim for array in inputs.values()):
            try:
                twice = {name: np.concatenate([array, array]) for name, array in inputs.items()}
                _, doubled = child.call("predict", {}, twice)
            except ModelFileError as error:
                notes.append(f"the model refuses twice the rows of the example, so its batch is fixed: {error}")
    if any(not _same(single[name], again[name]) for name in single):
        notes.append("the model gives another answer to the same input each time: parity with it cannot be checked")
    takes = [_declared(source.path, name, array, grows=doubled is not None) for name, array in inputs.items()]
    gives = [_observed(source.path, name, array, (doubled or {}).get(name)) for name, array in single.items()]
    signature = inspection.signature(source.path, DEFAULT, takes, gives)
    notes += inspection.batch_notes(signature)
    if doubled is not None:
        notes += [
            f"output {item.name!r} does not grow with the rows: it cannot be split between batched requests"
            for item in gives
            if not item.shape or item.shape[0] is not None
        ]
    return Inspection(
        path=source.path,
        format=source.format,
        signatures=(signature,),
        notes=tuple(notes),
        size_bytes=inspection.size_of(source.path),
        code=source.code,
    )


def description(source: Source) -> dict[str, Any]:
    """Return ``source`` as the child takes it."""
    return {"path": str(source.path), "format": source.format, "code": source.code, "trust": source.trust}


def _ordered(inputs: dict[str, Array], order: Sequence[str]) -> tuple[dict[str, Array], list[str]]:
    """Return the inputs in the model's own order where they have its names; else they are taken by position."""
    if not order or list(inputs) == list(order[: len(inputs)]):
        return inputs, []
    if set(inputs) <= set(order):
        return {name: inputs[name] for name in order if name in inputs}, []
    return inputs, [f"inputs are handed over by position: the model calls them {', '.join(order[: len(inputs)])}"]


def _as_objects(array: Array) -> Array:
    import numpy as np

    texts = [item.encode() if isinstance(item, str) else item for item in array.ravel().tolist()]
    result = np.empty(len(texts), object)
    result[:] = texts
    return result.reshape(array.shape)


def _dtype(array: Array) -> str:
    return "string" if array.dtype == object else array.dtype.name


def _declared(path: Path, name: str, array: Array, *, grows: bool) -> TensorSpec:
    shape: tuple[int | None, ...] = array.shape
    return inspection.tensor(path, name, _dtype(array), (None, *shape[1:]) if grows else shape)


def _observed(path: Path, name: str, single: Array, doubled: Array | None) -> TensorSpec:
    shape: tuple[int | None, ...] = single.shape
    if doubled is not None and doubled.ndim == single.ndim:
        shape = tuple(one if one == two else None for one, two in zip(single.shape, doubled.shape, strict=True))
    return inspection.tensor(path, name, _dtype(single), shape)


def _same(one: Array, two: Array) -> bool:
    import numpy as np

    if one.dtype == object or one.shape != two.shape:
        return bool(one.shape == two.shape and (one == two).all())
    return bool(np.allclose(one, two, rtol=1e-4, atol=1e-5, equal_nan=True))
