"""The original model, run beside the server that serves it: what its answers should be.

It runs in a process of its own, in float32 on the CPU: the frameworks are imported there, a crash there is an error
here, and the process ends when the ``with`` block does, or when we do.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from servewright.errors import InputError, ModelFileError
from servewright.modelfiles import inspect, source_of
from servewright.modelfiles.child import Child
from servewright.modelfiles.examples import description
from servewright.spec import Signature, TensorSpec

Array = npt.NDArray[np.generic]


class ReferenceModel:
    """A model in a child process; it is loaded by the first `predict`, or on entering the ``with`` block.

    ``code`` names the network's class (``net.py:Net``) for a state_dict. Inputs and outputs have the names and the
    order of ``signature``; without one, the model's own. ``timeout_s`` is for loading and for each call. Safe to share
    between threads.
    """

    def __init__(
        self,
        path: Path,
        *,
        format: str | None = None,  # noqa: A002
        code: str | None = None,
        signature: Signature | None = None,
        trust: bool = False,
        timeout_s: float = 300.0,
    ) -> None:
        self._source = source_of(path, format=format, code=code, trust=trust)
        if signature is None:
            signature = next(iter(inspect(path, format=format, code=code, trust=trust).signatures), None)
        self.signature = signature
        self._timeout_s = timeout_s
        self._child: Child | None = None
        self._lock = threading.Lock()

    def predict(self, inputs: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        """Return the model's outputs by name for ``inputs`` by name; bfloat16 comes as float32, text as bytes objects.

        Raises `InputError` for inputs that the signature does not have, and `ModelFileError` for what the model refuses
        or dies of.
        """
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        if self.signature is not None:
            arrays = _checked(arrays, self.signature)
        with self._lock:
            _, outputs = self._loaded().call("predict", {}, arrays)
        if self.signature is not None:
            _complete(self._source.path, outputs, self.signature)
        return outputs

    def close(self) -> None:
        """End the process; a later `predict` starts another."""
        with self._lock:
            if self._child is not None:
                self._child.close()
                self._child = None

    def _loaded(self) -> Child:
        if self._child is not None and self._child.alive:
            return self._child
        if self._child is not None:
            self._child.close()
        child = Child(self._source.format, subject=self._source.path, timeout_s=self._timeout_s)
        try:
            wanted = None if self.signature is None else self.signature.model_dump(mode="json")
            child.call("load", {"source": description(self._source), "signature": wanted})
        except BaseException:
            child.kill()
            raise
        self._child = child
        return child

    def __enter__(self) -> ReferenceModel:
        with self._lock:
            self._loaded()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked(arrays: dict[str, Array], signature: Signature) -> dict[str, Array]:
    """Return the inputs in the signature's order and dtypes."""
    known = [item.name for item in signature.inputs]
    if lost := [name for name in known if name not in arrays]:
        raise InputError(f"input {lost[0]!r} is missing; the signature {signature.name!r} takes {', '.join(known)}")
    if strange := [name for name in arrays if name not in known]:
        raise InputError(f"there is no input {strange[0]!r}; the signature {signature.name!r} takes {', '.join(known)}")
    return {item.name: _cast(arrays[item.name], item) for item in signature.inputs}


def _cast(array: Array, wanted: TensorSpec) -> Array:
    given = "string" if array.dtype.kind in "OSU" else array.dtype.name
    if given == wanted.dtype:
        return array
    # bfloat16 travels as float32: numpy has no type for it.
    target = "float32" if wanted.dtype == "bfloat16" else wanted.dtype
    if "string" in (given, target) or not (given == "bfloat16" or np.can_cast(array.dtype, target, "same_kind")):
        raise InputError(f"input {wanted.name!r} has dtype {given}, and the signature says {wanted.dtype}; convert it")
    return array.astype(target)


def _complete(path: Path, outputs: Mapping[str, Array], signature: Signature) -> None:
    lost = [item.name for item in signature.outputs if item.name not in outputs]
    if lost:
        raise ModelFileError(f"{path} gives {', '.join(outputs)}, and not {lost[0]!r}; correct the signature's outputs")
