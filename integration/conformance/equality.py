"""What counts as equal."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np

_NODES = re.compile(r"\[\[(?:\{\{[^}]*\}\})+\]\]")
_NUMBER = re.compile(r"-?(?:[0-9.]+(?:[eE][+-]?[0-9]+)?|Infinity|inf)|NaN|nan")


def same_text(ours: str, theirs: str) -> bool:
    """Compare texts; the names of nodes and functions of a graph may differ by TensorFlow's version."""
    return _NODES.sub("[[]]", ours) == _NODES.sub("[[]]", theirs)


class Token(str):
    """A number as it was printed."""

    __slots__ = ()


def read_json(text: str) -> Any:
    """Return a JSON document with every number as it is printed; raise `ValueError`."""
    return json.loads(text, parse_float=Token, parse_int=Token, parse_constant=Token)


def same_json(ours: Any, theirs: Any, approx: float | None = None) -> bool:
    """Compare documents: the order of keys is free, numbers are as printed unless ``approx`` gives a tolerance."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same_json(ours[key], theirs[key], approx) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(
            same_json(one, other, approx) for one, other in zip(ours, theirs, strict=True)
        )
    if isinstance(ours, Token) and isinstance(theirs, Token):
        return ours == theirs or (approx is not None and _near(float(ours), float(theirs), approx))
    if isinstance(ours, Token) != isinstance(theirs, Token):
        return False
    if isinstance(ours, str) and isinstance(theirs, str):
        return same_text(ours, theirs)
    return bool(ours == theirs)


def same_message(ours: Any, theirs: Any, approx: float | None = None) -> bool:
    """Compare two proto messages as dictionaries; floats are equal as 32-bit numbers, or within ``approx``."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(same_message(ours[key], theirs[key], approx) for key in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(
            same_message(one, other, approx) for one, other in zip(ours, theirs, strict=True)
        )
    if isinstance(ours, float) or isinstance(theirs, float):
        try:
            one, other = float(str(ours)), float(str(theirs))
        except (TypeError, ValueError):
            return False
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        if one == other or (approx is not None and _near(one, other, approx)):
            return True
        return approx is None and bool(np.float32(one) == np.float32(other))
    if isinstance(ours, str) and isinstance(theirs, str):
        return same_text(ours, theirs)
    return bool(ours == theirs)


def _near(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
