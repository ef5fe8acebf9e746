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
_TRIES = 4  # draws for each input that is wanted: some come out like others
_LARGEST = 4 << 30  # bytes; a small zip can hold far more, and all of it would be read


def load_npz(path: Path) -> Arrays:
    """Read arrays by name; never a pickle. A file that is none of these is an `InputError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > _LARGEST:
                raise InputError(f"{path} holds {size} bytes of arrays; write fewer rows")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (
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
    """Return up to ``count`` single-row inputs, no two alike, drawn from the rows of ``known`` where given.

    Fewer where there are not so many, as of one boolean.
    """
    random = np.random.default_rng(seed)
    found: dict[tuple[object, ...], Arrays] = {}
    for index in range(_TRIES * count):
        drawn = made_up(signature, 1, seed=seed + index) if known is None else _drawn(signature, known, index, random)
        found.setdefault(tuple(map(_content, drawn.values())), drawn)
        if len(found) == count:
            break
    return list(found.values())


def _content(array: NDArray[np.generic]) -> object:
    return tuple(array.ravel()) if array.dtype == object else array.tobytes()


def _drawn(signature: Signature, known: Arrays, index: int, random: np.random.Generator) -> Arrays:
    """Return the row at ``index`` while there is one, then something between two rows."""
    rows = min(len(array) for array in known.values())
    first = {name: _row(array, index % rows) for name, array in known.items()}
    if index < rows:
        return first
    other = (index + 1 + int(random.integers(max(1, rows - 1)))) % rows
    second = {name: _row(array, other) for name, array in known.items()}
    if rows == 1:
        second = made_up(signature, 1, seed=int(random.integers(2**32)))
    share = float(random.uniform(0.3, 0.9))
    return {name: _mixed(array, second[name], share, random) for name, array in first.items()}


def _row(array: NDArray[np.generic], index: int) -> NDArray[np.generic]:
    return array[index : index + 1]


def _mixed(
    one: NDArray[np.generic], other: NDArray[np.generic], share: float, random: np.random.Generator
) -> NDArray[np.generic]:
    """Return what lies between two rows; where nothing does, as between integers, elements of the one and the other."""
    if one.shape != other.shape:
        return one
    if one.dtype.kind in "fc" or one.dtype.name == "bfloat16":
        wide = np.complex128 if one.dtype.kind == "c" else np.float64
        return np.asarray(one.astype(wide) * share + other.astype(wide) * (1.0 - share)).astype(one.dtype)
    return np.where(random.random(one.shape) < share, one, other).astype(one.dtype)


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
