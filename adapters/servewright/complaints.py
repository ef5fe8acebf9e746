"""What is wrong in a value, in our words: the reason, and what to write instead."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from servewright.yamltext import Path_

_OURS: Final = "servewright"
# The branches of unions, which pydantic lists among the keys of a path. No key of a spec holds a blank.
ONE, EACH, NUMBER, TEXT, ALL, LATEST, SPECIFIC = (
    f"branch {name}" for name in ("one", "each", "number", "text", "all", "latest", "specific")
)
_BRANCHES: Final = frozenset({ONE, EACH, NUMBER, TEXT, ALL, LATEST, SPECIFIC, "[key]"})

# What pydantic calls an error, what we say after the value, and the remedy; both may use its context.
_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "int_type": ("is not a whole number", "write a whole number"),
    "int_from_float": ("is not a whole number", "write a whole number"),
    "float_type": ("is not a number", "write a number"),
    "finite_number": ("is not a finite number", "write a number"),
    "bool_type": ("is neither true nor false", "write true or false"),
    "string_type": ("is not a text", "put it in quotes"),
    "string_too_short": ("is too short", "write at least {min_length} character(s)"),
    "string_too_long": ("is too long", "write at most {max_length} characters"),
    "string_pattern_mismatch": ("is not of the form {pattern}", "correct it"),
    "tuple_type": ("is not a list", "write a list: [...]"),
    "list_type": ("is not a list", "write a list: [...]"),
    "dict_type": ("is not a mapping", "write key: value pairs"),
    "model_type": ("is not a mapping", "write key: value pairs"),
    "model_attributes_type": ("is not a mapping", "write key: value pairs"),
    "greater_than_equal": ("is too small", "write at least {ge}"),
    "greater_than": ("is too small", "write more than {gt}"),
    "less_than_equal": ("is too large", "write at most {le}"),
    "less_than": ("is too large", "write less than {lt}"),
    "too_short": ("is empty", "write at least {min_length}"),
    "too_long": ("is too long", "write at most {max_length}"),
}


def complaint(reason: str, remedy: str = "") -> PydanticCustomError:
    """Return an error that a validator raises, with what to do about it."""
    return PydanticCustomError(_OURS, "{reason}", {"reason": reason, "remedy": remedy})


def refusing(wrong: Callable[[Any], bool], reason: str, remedy: str) -> AfterValidator:
    """Return a validator that refuses a value, shown before ``reason``, where ``wrong`` says so."""
    return AfterValidator(_check(wrong, reason, remedy))


def refusing_before(wrong: Callable[[Any], bool], reason: str, remedy: str) -> BeforeValidator:
    """Do as `refusing` does, before the type of the value is looked at."""
    return BeforeValidator(_check(wrong, reason, remedy))


def _check(wrong: Callable[[Any], bool], reason: str, remedy: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if wrong(value):
            raise complaint(f"{shown(value)} {reason}", remedy)
        return value

    return check


def described(
    error: ValidationError, model: type[BaseModel], keys: Collection[str] = ()
) -> list[tuple[Path_, str, str]]:
    """Return (path, reason, remedy) for each complaint of pydantic about ``model``.

    ``keys`` are the keys that a user may write at the top, where these are not the model's own.
    """
    return [_described(found, model, keys) for found in error.errors(include_url=False)]


def _described(found: ErrorDetails, model: type[BaseModel], keys: Collection[str]) -> tuple[Path_, str, str]:
    path = tuple(part for part in found["loc"] if part not in _BRANCHES)
    kind, context, value = found["type"], found.get("ctx", {}), found["input"]
    if kind == "extra_forbidden":
        siblings = keys if len(path) == 1 and keys else _keys_at(model, path[:-1])
        return path, f"unknown key {shown(path[-1])}", choose(str(path[-1]), siblings)
    if kind == "missing":
        return path, "is missing", "add it"
    if kind == _OURS:
        return path, str(context["reason"]), str(context["remedy"])
    if kind == "literal_error":
        return path, f"{shown(value)} is not allowed", choose(str(value), _allowed(str(context["expected"])))
    if kind in _WORDS:
        reason, remedy = (text.format_map(context) for text in _WORDS[kind])
        if kind == "string_type" and isinstance(value, int | float) and not isinstance(value, bool):
            remedy = f'put it in quotes: "{value}"'
        return path, f"{shown(value)} {reason}", remedy
    return path, f"{shown(value)}: {found['msg'][0].lower()}{found['msg'][1:]}", "correct the value"


def _allowed(expected: str) -> list[str]:
    """Return the words of pydantic's list: ``'a', 'b' or 'c'``."""
    return [word.strip().strip("'") for part in expected.split(" or ") for word in part.split(",")]


def shown(value: object) -> str:
    """Print a value of a spec, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def choose(word: str, known: Iterable[str]) -> str:
    """Return the remedy for a word that is not ``known``: the nearest, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word[:100], names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(names)}" if names else "remove it"


def _keys_at(model: Any, path: Sequence[str | int]) -> list[str]:
    """Return the keys that are allowed at ``path`` below ``model``."""
    kinds = [model]
    for part in path:
        kinds = [inner for kind in kinds for inner in _step(kind, part)]
    return sorted({key for kind in kinds for key in _fields(kind)})


def _step(kind: Any, part: str | int) -> list[Any]:
    if get_origin(kind) in (Annotated, Union, UnionType):
        return [inner for choice in _choices(kind) for inner in _step(choice, part)]
    if get_origin(kind) in (dict, tuple):
        return [get_args(kind)[1] if get_origin(kind) is dict else get_args(kind)[0]]
    if isinstance(kind, type) and issubclass(kind, BaseModel) and part in kind.model_fields:
        return [kind.model_fields[str(part)].annotation]
    return []


def _fields(kind: Any) -> list[str]:
    if get_origin(kind) in (Annotated, Union, UnionType):
        return [key for choice in _choices(kind) for key in _fields(choice)]
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _choices(kind: Any) -> list[Any]:
    choices = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
    return [choice for choice in choices if choice is not NoneType]
