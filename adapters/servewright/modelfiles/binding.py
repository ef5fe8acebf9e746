"""Which of a model's own inputs and outputs are meant by the names of a signature."""

from __future__ import annotations

from collections.abc import Sequence

from servewright.errors import ModelFileError


def bound(inputs: Sequence[str], parameters: Sequence[str]) -> list[tuple[str, str]]:
    """Return each parameter that gets an input, in order, and that input.

    Inputs go to the parameters of their names, the others in order to the parameters that are left. Nothing is returned
    where there are more inputs than that.
    """
    own = [name for name in inputs if name in parameters]
    left = [name for name in parameters if name not in own]
    others = [name for name in inputs if name not in own]
    if len(others) > len(left):
        return []
    chosen = dict(zip(own, own, strict=True)) | dict(zip(left, others, strict=False))
    return [(name, chosen[name]) for name in parameters if name in chosen]


def refuse_half_named(outputs: Sequence[str], given: Sequence[str]) -> None:
    """Raise `ModelFileError` where some ``outputs`` are the model's own names and others are not.

    Nobody can tell then which is which.
    """
    missing = [name for name in outputs if name not in given]
    if missing and len(missing) < len(outputs):
        raise ModelFileError(
            f"the model gives {', '.join(given)}, without the signature's {', '.join(missing)}; use its own names"
        )
