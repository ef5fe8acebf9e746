"""JSON as the real server prints it: 1e7 is ``1e+07``, whole floats end in ``.0``, doubles have 17 digits.

Numbers of one tensor are formatted by one format operation, not one by one.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from servewright.backends.tfserving.embedded.status import invalid_argument
from servewright.backends.tfserving.embedded.tensor import STRING, Tensor, to_array, type_name

_INTEGERS: Final = {3, 4, 5, 6, 9, 22, 23}
_DOUBLE, _FLOAT, _BOOL = 2, 1, 10
_SPECIAL = re.compile(r'["\\\x00-\x1f]')
_SHORT = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quoted(text: str) -> str:
    """Return ``text`` as RapidJSON writes a string: control characters escaped, everything else as it is."""
    return '"' + _SPECIAL.sub(lambda found: _SHORT.get(found[0]) or f"\\u{ord(found[0]):04X}", text) + '"'


def error_page(message: str) -> bytes:
    """Return the body of an error answer."""
    return f'{{\n    "error": {quoted(message)}\n}}'.encode("utf-8", "surrogateescape")


def number_formats(values: NDArray[Any], *, double: bool) -> list[str]:
    """Return a ``%`` format for each of ``values``, float32 or float64: the shorter one if it reads back equal."""
    short, long, limit = (15, 17, 1e15) if double else (6, 9, 1e6)
    wide = values.astype(np.float64)
    listed = wide.tolist()
    text = (f"%.{short}g " * len(listed)) % tuple(listed)
    again = np.array(text.split(), np.float64).astype(values.dtype)
    exact = (again == values) | ~np.isfinite(values)
    size = np.abs(wide)
    # What %g prints without a point or an exponent gets a ".0".
    whole = (wide == np.trunc(wide)) & ((size < limit) | (~exact & (size < 10.0**long)))
    return np.where(whole, "%.1f", np.where(exact, f"%.{short}g", f"%.{long}g")).tolist()  # type: ignore[no-any-return]


def number_tokens(tensor: Tensor) -> tuple[list[str], Sequence[Any]]:
    """Return a ``%`` format and a value for every element of a tensor."""
    if tensor.dtype in (_FLOAT, _DOUBLE):
        flat = to_array(tensor).reshape(-1)
        if tensor.dtype == _FLOAT:  # the real server's REST threads flush denormals to zero
            flat = np.where(np.abs(flat) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), flat), flat)
        with np.errstate(over="ignore"):
            formats = number_formats(flat, double=tensor.dtype == _DOUBLE)
        values: list[Any] = flat.astype(np.float64).tolist()
        if not np.isfinite(flat).all():
            for at in np.flatnonzero(~np.isfinite(flat)).tolist():
                formats[at], values[at] = "%s", _not_finite(values[at])
        return formats, values
    if tensor.dtype in _INTEGERS:
        values = to_array(tensor).reshape(-1).tolist()
        return ["%d"] * len(values), values
    if tensor.dtype == _BOOL:
        values = ["true" if value else "false" for value in to_array(tensor).reshape(-1).tolist()]
        return ["%s"] * len(values), values
    if tensor.size:
        raise invalid_argument(f"Failed to write JSON value for tensor type: {type_name(tensor.dtype)}")
    return [], []


def _not_finite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _tokens(name: str, tensor: Tensor, indent: int) -> tuple[list[str], Sequence[Any]]:
    if tensor.dtype != STRING:
        return number_tokens(tensor)
    values = tensor.data
    if not name.endswith("_bytes"):
        return ["%s"] * len(values), [quoted(value.decode("utf-8", "surrogateescape")) for value in values]
    inner, outer = " " * (indent + 4), " " * indent
    encoded = [base64.b64encode(value).decode() for value in values]
    return ["%s"] * len(values), [f'{{\n{inner}"b64": "{value}"\n{outer}}}' for value in encoded]


def rows(outputs: Mapping[str, Tensor]) -> bytes:
    """Return the answer to a request in row form: one entry per row, an object where there are several outputs."""
    size = -1
    for name, tensor in outputs.items():
        if not tensor.shape:
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if size not in (-1, tensor.shape[0]):
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {tensor.shape[0]} expecting: {size}"
            )
        size = tensor.shape[0]
    if size == 0:
        return b'{\n    "predictions": []\n}'
    if len(outputs) == 1:
        ((name, tensor),) = outputs.items()
        formats, values = _tokens(name, tensor, 8)
        body = ", ".join(_lines(formats, tensor.shape)) % tuple(values)
        return f'{{\n    "predictions": [{body}\n    ]\n}}'.encode("utf-8", "surrogateescape")
    columns, all_values = [], []
    for name, tensor in outputs.items():
        formats, values = _tokens(name, tensor, 12)
        label = quoted(name).replace("%", "%%")
        columns.append([f"            {label}: {line}" for line in _lines(formats, tensor.shape)])
        width = len(values) // size
        all_values.append([values[at * width : (at + 1) * width] for at in range(size)])
    entries = ["        {\n" + ",\n".join(parts) + "\n        }" for parts in zip(*columns, strict=True)]
    flat = [value for row in zip(*all_values, strict=True) for part in row for value in part]
    body = ",\n".join(entries) % tuple(flat)
    return f'{{\n    "predictions": [\n{body}\n    ]\n}}'.encode("utf-8", "surrogateescape")


def _lines(formats: list[str], shape: tuple[int, ...]) -> list[str]:
    """Return the formats of each row as nested lists on a single line."""
    parts = formats
    for size in reversed(shape[1:]):
        if not size:
            parts = ["[]"] * math.prod(shape[: shape.index(0)])
            continue
        parts = ["[" + ", ".join(parts[at : at + size]) + "]" for at in range(0, len(parts), size)]
    return parts


def columns(outputs: Mapping[str, Tensor]) -> bytes:
    """Return the answer to a request in column form: a tensor, or an object of tensors where there are several."""
    if len(outputs) == 1:
        ((name, tensor),) = outputs.items()
        return ('{\n    "outputs": ' + _pretty(name, tensor, 4) + "\n}").encode("utf-8", "surrogateescape")
    parts = [f"        {quoted(name)}: {_pretty(name, tensor, 8)}" for name, tensor in outputs.items()]
    return ('{\n    "outputs": {\n' + ",\n".join(parts) + "\n    }\n}").encode("utf-8", "surrogateescape")


def _pretty(name: str, tensor: Tensor, indent: int) -> str:
    depth = len(tensor.shape)
    formats, values = _tokens(name, tensor, indent + 4 * depth)
    parts = formats
    for axis in range(depth - 1, -1, -1):
        size, inner, outer = tensor.shape[axis], " " * (indent + 4 * (axis + 1)), " " * (indent + 4 * axis)
        if not size:
            parts = ["[]"] * math.prod(tensor.shape[:axis])
            continue
        parts = [
            "[\n" + inner + (",\n" + inner).join(parts[at : at + size]) + "\n" + outer + "]"
            for at in range(0, len(parts), size)
        ]
    return (parts[0] if parts else "[]") % tuple(values)


def decimals(values: Sequence[float]) -> list[str]:
    """Return 32-bit floats as the server prints each of them."""
    formats, numbers = number_tokens(Tensor(_FLOAT, (len(values),), np.asarray(values, np.float32).tobytes()))
    return [pattern % number for pattern, number in zip(formats, numbers, strict=True)]


def classifications(results: Sequence[Sequence[tuple[str, float]]]) -> bytes:
    """Return the answer of a classification: for each example its classes as label and score."""
    scores = iter(decimals([score for classes in results for _, score in classes]))
    entries = [
        "[" + ", ".join(f"[{quoted(label)}, {next(scores)}]" for label, _ in classes) + "]" for classes in results
    ]
    body = ", ".join(entries)
    return f'{{\n    "results": [{body}\n    ]\n}}'.encode("utf-8", "surrogateescape")


def regressions(values: Sequence[float]) -> bytes:
    """Return the answer of a regression: one number for each example."""
    return ('{\n    "results": [' + ", ".join(decimals(values)) + "]\n}").encode()


def shown(value: Any) -> str:
    """Return a JSON value as error texts show it."""
    if isinstance(value, float):
        double = not abs(value) <= float(np.finfo(np.float32).max)
        data = np.array([value], np.float64 if double else np.float32)
        formats, numbers = number_tokens(Tensor(_DOUBLE if double else _FLOAT, (1,), data.tobytes()))
        return str(formats[0] % numbers[0])
    return _shown(value, 0)


def _shown(value: Any, indent: int) -> str:
    inner, outer = " " * (indent + 4), " " * indent
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return shortest(value)
    if isinstance(value, dict):
        members = [f"{inner}{quoted(key)}: {_shown(item, indent + 4)}" for key, item in value.items()]
        return "{\n" + ",\n".join(members) + "\n" + outer + "}" if members else "{}"
    items = [inner + _shown(item, indent + 4) for item in value]
    return "[\n" + ",\n".join(items) + "\n" + outer + "]" if items else "[]"


def shortest(value: float) -> str:
    """Return a double in RapidJSON's own form: the fewest digits that read back equal; 1e21 has no plus sign."""
    if not math.isfinite(value):
        return ""  # RapidJSON stops here; what follows is missing in the real server's text, too
    sign = "-" if math.copysign(1, value) < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction.removesuffix("0" if fraction == "0" else "")).lstrip("0")
    point = (
        len(whole) + int(exponent or 0)
        if whole != "0"
        else int(exponent or 0) - (len(fraction) - len(fraction.lstrip("0")))
    )
    digits = digits.rstrip("0")
    if not digits:
        return f"{sign}0.0"
    if len(digits) <= point <= 21:
        return f"{sign}{digits.ljust(point, '0')}.0"
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1}"
