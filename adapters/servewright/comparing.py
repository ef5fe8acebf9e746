"""Comparing outputs: the first difference that matters, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servewright.samples import Arrays, fits, shown
from servewright.spec import Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far floats may be from what was wanted: ``atol + rtol * |wanted|``."""

    rtol: float = 1e-4
    atol: float = 1e-5


def difference(
    found: Mapping[str, NDArray[np.generic]], wanted: Mapping[str, NDArray[np.generic]], within: Tolerance
) -> str:
    """Return the first difference in words, or an empty text where there is none."""
    if set(found) != set(wanted):
        return f"outputs {sorted(found)} instead of {sorted(wanted)}"
    for name, want in wanted.items():
        got = found[name]
        if got.shape != want.shape:
            return f"{name} has shape {list(got.shape)} instead of {list(want.shape)}"
        if got.dtype != want.dtype:
            return f"{name} is {got.dtype} instead of {want.dtype}"
        close = _close(got, want, within)
        if not close.all():
            at = tuple(int(axis) for axis in np.argwhere(~close)[0])
            wrong = int((~close).sum())
            return (
                f"{name}{list(at)} is {_plain(got[at])} instead of {_plain(want[at])} "
                f"({wrong} of {close.size} values differ by more than rtol {within.rtol:g}, atol {within.atol:g})"
            )
    return ""


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value


def _close(found: NDArray[np.generic], wanted: NDArray[np.generic], within: Tolerance) -> NDArray[np.bool_]:
    if wanted.dtype.kind in "fc" or wanted.dtype.name == "bfloat16":
        as_float = np.complex128 if wanted.dtype.kind == "c" else np.float64
        return np.isclose(
            found.astype(as_float), wanted.astype(as_float), rtol=within.rtol, atol=within.atol, equal_nan=True
        )
    return np.asarray(found == wanted, dtype=np.bool_).reshape(wanted.shape)


def misfit(outputs: Mapping[str, NDArray[np.generic]], signature: Signature) -> str:
    """Return how ``outputs`` differ from what ``signature`` promises, or an empty text."""
    wanted = {tensor.name: tensor for tensor in signature.outputs}
    if set(outputs) != set(wanted):
        return f"outputs {sorted(outputs)} instead of {sorted(wanted)}"
    for name, array in outputs.items():
        dtype = "string" if array.dtype == object else array.dtype.name
        if dtype != wanted[name].dtype and (dtype, wanted[name].dtype) != ("float32", "bfloat16"):  # as some widen it
            return f"{name} is {dtype} instead of {wanted[name].dtype}"
        if not fits(array.shape, wanted[name].shape):
            return f"{name} has shape {list(array.shape)} instead of {shown(wanted[name].shape)}"
    return ""


def stranger(found: Arrays, own: int, serial: list[Arrays]) -> int | None:
    """Return whose serial answer ``found`` is nearer to than to its own, or ``None``.

    Equal answers are nobody else's: only a strictly nearer one counts.
    """
    distances = [_distance(found, answer) for answer in serial]
    nearest = int(np.argmin(distances))
    return nearest if distances[nearest] < distances[own] else None


def _distance(one: Arrays, other: Arrays) -> float:
    total = 0.0
    for name, array in one.items():
        rest = other[name]
        if array.shape != rest.shape:
            return float("inf")
        if array.dtype.kind in "fiub" or array.dtype.name == "bfloat16":
            gap = array.astype(np.float64) - rest.astype(np.float64)
            total += float(np.nan_to_num(gap, nan=0.0, posinf=1e30, neginf=-1e30).__abs__().sum())
        else:
            total += float((array != rest).sum())
    return total
