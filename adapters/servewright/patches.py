"""JSON Merge Patch (RFC 7386): values laid over values, and the patch that makes one of another.

A mapping is merged key by key, anything else replaces what was there, and ``None`` removes a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def patched(target: object, patch: object) -> Any:
    """Return ``target`` with ``patch`` laid over it."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patched(result.get(key), value)
    return result


def patch_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch that makes ``after`` of ``before``, where a patch can: see `holdable`.

    Numbers and truth values of one value are different here: 1, 1.0 and true.
    """
    patch: dict[str, Any] = {}
    for key, value in after.items():
        if key not in before:
            patch[key] = value
        elif isinstance(value, Mapping) and isinstance(before[key], Mapping):
            if inner := patch_between(before[key], value):
                patch[key] = inner
        elif not same(before[key], value):
            patch[key] = value
    return patch | {key: None for key in before if key not in after}


def same(one: object, two: object) -> bool:
    """Tell whether two values are equal and of one kind, all the way down."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def holdable(value: object) -> bool:
    """Tell whether a patch can make ``value``: no key is anything but text, and no key's value is null."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and holdable(inner) for key, inner in value.items())
    return value is not None
