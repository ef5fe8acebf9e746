"""What a model file tells about itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from servewright.errors import ModelFileError
from servewright.spec import DTYPES, Signature, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model file, and what its user said about it.

    ``example`` is an ``.npz`` with the inputs of one request by name, in the order in which the model takes them;
    ``code`` names the network's class for a file that holds weights alone, as ``net.py:Net``.
    """

    path: Path
    format: str
    example: Path | None = None
    code: str | None = None
    trust: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a model file says: its format, its signatures (the first is the default) and what it leaves open.

    ``needs`` names what is missing to know the signature: ``example``, ``code`` or both; ``signatures`` is empty then.
    """

    path: Path
    format: str
    signatures: tuple[Signature, ...] = ()
    notes: tuple[str, ...] = ()
    size_bytes: int = 0
    needs: tuple[str, ...] = ()
    code: str | None = None


def tensor(source: Path, name: str, dtype: str | None, shape: Sequence[int | None] | None) -> TensorSpec:
    """Return the tensor that a model file declares; raise `ModelFileError` where it cannot be served."""
    if dtype not in DTYPES:
        raise ModelFileError(f"{source}: {name!r} has dtype {dtype}, which cannot be served; cast it in the model")
    try:
        return TensorSpec(name=name, dtype=dtype, shape=None if shape is None else tuple(shape))  # type: ignore[arg-type]
    except ValidationError as error:
        raise ModelFileError(
            f"{source}: {name!r} has shape {shape!r}, which is none; export the model again"
        ) from error


def signature(source: Path, name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Signature:
    """Return a signature that a model file declares; raise `ModelFileError` where it takes or gives nothing."""
    try:
        return Signature(name=name, inputs=tuple(inputs), outputs=tuple(outputs))
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise ModelFileError(f"{source}: signature {name!r}: {reason}; export the model again") from error


def batch_notes(found: Signature) -> Iterator[str]:
    """Yield a note for each input whose batch axis is fixed: such a model takes no other batch."""
    for item in found.inputs:
        if item.shape and item.shape[0] is not None:
            yield (
                f"input {item.name!r} has a fixed batch of {item.shape[0]}: "
                "requests cannot be batched; export the model with a dynamic first axis"
            )
        elif item.shape == ():
            yield f"input {item.name!r} is a scalar: it has no batch axis, so requests cannot be batched"


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
