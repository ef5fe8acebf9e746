"""Values as YAML that `yamltext` reads back as they were, a line for each key where it would grow long."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# Words that readers of one version of YAML or another take for something else than text.
_WORDS: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
_NOT_PRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")
_SHORT: Final = 72


def printable(value: object) -> bool:
    """Tell whether YAML as specs have it can hold ``value``: no infinite number, no key that is no text, no date."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and printable(key) and printable(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(printable, value))
    if isinstance(value, str):
        return not re.search("[\ud800-\udfff]", value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, bool | int)


def lines(values: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """Yield the lines of a mapping; what is short stands on one line."""
    margin = " " * indent
    for key, value in values.items():
        inline = flow(value)
        if isinstance(value, Mapping) and value and len(inline) > _SHORT:
            yield f"{margin}{scalar(key)}:"
            yield from lines(value, indent + 2)
        elif isinstance(value, list) and value and len(inline) > _SHORT:
            yield f"{margin}{scalar(key)}:"
            yield from (f"{margin}- {flow(item)}" for item in value)
        else:
            yield f"{margin}{scalar(key)}: {inline}"


def flow(value: object) -> str:
    """Return a value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(str(key))}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(flow, value)) + "]"
    return scalar(value)


def scalar(value: object) -> str:
    """Return a plain value, in quotes where some reader would take it for something else."""
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS and len(value) < 1000:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return _NOT_PRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


def comment(text: str) -> str:
    """Return ``text`` as one line of comment."""
    return "# " + " ".join(_NOT_PRINTABLE.sub(" ", text).split())
