"""Inputs to send: rows of the golden data where there is any, else made up to fit the signature."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from servewright.errors import InputError, UnavailableError
from servewright.spec import Signature, TensorSpec

# How an .npz holds bfloat16: numpy saves it as two nameless bytes, and most people as float32.
_AS_BFLOAT16 = (np.dtype("V2"), np.dtype(np.float32))
Arrays: TypeAlias = dict[str, NDArray[np.generic]]
# The size given to an axis that may have any: small, and not the same as usual batch sizes.
_ANY = 5
_LARGEST = 4 << 30  # bytes; a small zip can hold far more, and all of it would be read


def load_npz(path: Path) -> Arrays:
    """Read arrays by name; never a pickle. A file that is none of these is an `InputError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > _LARGEST:
                raise InputError(f"{path} holds {size} bytes of arrays; write fewer rows")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise InputError(f"{path} is not an .npz of plain arrays ({error}); write it with numpy.savez") from error


def fitting(arrays: Mapping[str, NDArray[np.generic]], tensors: tuple[TensorSpec, ...], *, what: str) -> Arrays:
    """Return ``arrays`` as ``tensors`` want them; what is missing, left over or of another kind is an `InputError`."""
    wanted = {tensor.name: tensor for tensor in tensors}
    if set(arrays) != set(wanted):
        raise InputError(f"{what} holds {sorted(arrays)}, the signature names {sorted(wanted)}; make them the same")
    found: Arrays = {}
    for name, array in arrays.items():
        tensor = wanted[name]
        if tensor.dtype == "string" and array.dtype.kind in "SUO":
            array = np.char.encode(array.astype(np.str_)) if array.dtype.kind == "U" else array
            found[name] = array.astype(object)
        elif tensor.dtype == "bfloat16" and array.dtype in _AS_BFLOAT16:
            wanted_dtype = np_dtype("bfloat16")
            found[name] = array.view(wanted_dtype) if array.dtype.kind == "V" else array.astype(wanted_dtype)
        elif array.dtype != np_dtype(tensor.dtype):
            raise InputError(f"{what}: {name} is {array.dtype}, the signature says {tensor.dtype}; convert the file")
        else:
            found[name] = array
        if not fits(array.shape, tensor.shape):
            raise InputError(f"{what}: {name} has shape {list(array.shape)}, the signature says {shown(tensor.shape)}")
    return found


def np_dtype(name: str) -> np.dtype[np.generic]:
    """Return numpy's dtype for a dtype name of the spec."""
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise UnavailableError("bfloat16 needs the package ml_dtypes; run: pip install ml_dtypes") from error
        narrow: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
        return narrow
    return np.dtype(object if name == "string" else name)


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> bool:
    """Tell whether a shape is one of those that ``wanted`` allows."""
    return wanted is None or (
        len(shape) == len(wanted) and all(want in (None, size) for size, want in zip(shape, wanted, strict=True))
    )


def shown(shape: tuple[int | None, ...] | None) -> str:
    """Print a shape of a signature."""
    return "any" if shape is None else "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def batchable(signature: Signature) -> bool:
    """Tell whether every input and output grows with the batch."""
    return all(
        tensor.shape is None or tensor.shape[:1] == (None,) for tensor in (*signature.inputs, *signature.outputs)
    )


def made_up(signature: Signature, rows: int, *, seed: int) -> Arrays:
    """Return inputs of ``rows`` rows that fit ``signature``; the same for the same ``seed``."""
    random = np.random.default_rng(seed)
    return {tensor.name: _values(tensor, rows, random) for tensor in signature.inputs}


def different(signature: Signature, known: Arrays | None, count: int, *, seed: int) -> list[Arrays]:
    """Return ``count`` single-row inputs that differ from each other, drawn from the rows of ``known`` where given."""
    if known is None:
        return [made_up(signature, 1, seed=seed + index) for index in range(count)]
    random = np.random.default_rng(seed)
    rows = min(len(array) for array in known.values())
    drawn = []
    for index in range(count):
        first, second = index % rows, int(random.integers(rows))
        share = 1.0 if index < rows else float(random.uniform(0.3, 0.9))
        drawn.append({name: _mixed(array, first, second, share) for name, array in known.items()})
    return drawn


def _mixed(array: NDArray[np.generic], first: int, second: int, share: float) -> NDArray[np.generic]:
    one = array[first : first + 1]
    if array.dtype.kind != "f":
        return one
    other = array[second : second + 1]
    mixed: NDArray[np.float64] = one.astype(np.float64) * share + other.astype(np.float64) * (1.0 - share)
    return mixed.astype(array.dtype)


def _values(tensor: TensorSpec, rows: int, random: np.random.Generator) -> NDArray[np.generic]:
    shape = (rows,) if tensor.shape is None else tuple(_ANY if size is None else size for size in tensor.shape)
    if tensor.shape and tensor.shape[0] is None:
        shape = (rows, *shape[1:])
    dtype = np_dtype(tensor.dtype)
    if tensor.dtype == "string":
        words = [b"servewright %d" % number for number in random.integers(1_000_000, size=int(np.prod(shape)))]
        return np.array(words, dtype=object).reshape(shape)
    if tensor.dtype == "bool":
        return random.integers(2, size=shape).astype(dtype)
    if dtype.kind in "iu":
        # Small: most integers that models take are indices into something.
        return random.integers(0, 8, size=shape).astype(dtype)
    return np.asarray(random.normal(size=shape)).astype(dtype)
