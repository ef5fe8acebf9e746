"""Joining the tensors of a batch: the same shape behind the first axis, or padded to it, and rows of padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from servewright.backends.tfserving.embedded.status import Code, StatusError, failed_precondition, invalid_argument
from servewright.backends.tfserving.embedded.tensor import STRING, Tensor, from_array, to_array, type_name

_MOST_PADDED_RANK = 6


def merge_parts(tensor: Tensor, start: int, rows: int) -> Tensor:
    """Return ``rows`` rows of a tensor from ``start`` on."""
    if rows == tensor.shape[0]:
        return tensor
    width = len(tensor.data) // tensor.shape[0]
    return Tensor(tensor.dtype, (rows, *tensor.shape[1:]), tensor.data[start * width : (start + rows) * width])


def check_mergeable(name: str, parts: Sequence[Tensor], *, pad: bool) -> None:
    """Raise `StatusError` unless the parts of the input ``name`` can be one tensor."""
    first = parts[0]
    for part in parts[1:]:
        if pad:
            if len(part.shape) != len(first.shape):  # the real server ends here, for every client
                raise failed_precondition(
                    f"Tensors with name '{name}' from different tasks have different ranks and cannot be padded"
                )
        elif part.shape[1:] != first.shape[1:]:
            raise failed_precondition(
                f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off. "
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name have equal "
                "dimensions starting with the first dim."
            )
    if pad and len(first.shape) > _MOST_PADDED_RANK:
        raise invalid_argument("Only tensors with rank from 1 to 6 can be padded.")
    for part in parts[1:]:
        if part.dtype != first.dtype:
            raise StatusError(
                Code.INTERNAL,
                "Tensor concat operation failed: INVALID_ARGUMENT: Cannot concatenate tensors that have different "
                f"data types. Got {type_name(first.dtype)} and {type_name(part.dtype)}.",
            )


def joined(parts: Sequence[Tensor], padding: int, *, pad: bool) -> list[Tensor]:
    """Return the parts ready to be joined: of one shape, and behind them ``padding`` copies of the last one's row 0."""
    if pad and len({part.shape[1:] for part in parts}) > 1:
        longest = tuple(max(sizes) for sizes in zip(*[part.shape[1:] for part in parts], strict=True))
        parts = [_grown(part, longest) for part in parts]
    result = list(parts)
    if padding:
        result.append(_padding(parts[-1], padding))
    return result


def _grown(tensor: Tensor, longest: tuple[int, ...]) -> Tensor:
    """Return a tensor grown to ``longest`` behind the first axis; what is new holds the tensor's first element."""
    if tensor.shape[1:] == longest:
        return tensor
    array = to_array(tensor)
    empty = b"" if tensor.dtype == STRING else 0
    grown = np.full((tensor.shape[0], *longest), array.flat[0] if array.size else empty, array.dtype)
    grown[tuple(slice(0, size) for size in array.shape)] = array
    return from_array(grown, tensor.dtype)


def _padding(tensor: Tensor, rows: int) -> Tensor:
    shape = (rows, *tensor.shape[1:])
    if tensor.shape[0]:
        return Tensor(tensor.dtype, shape, tensor.data[: len(tensor.data) // tensor.shape[0]] * rows)
    if tensor.dtype == STRING:
        return Tensor(STRING, shape, [b""] * int(np.prod(shape)))
    kind = to_array(tensor).dtype
    return Tensor(tensor.dtype, shape, bytes(int(np.prod(shape)) * kind.itemsize))
