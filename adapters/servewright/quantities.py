"""Durations, sizes, rates and shares as fields of a spec: texts with a unit in the file, numbers in Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from servewright import units
from servewright.complaints import complaint, refusing, shown

_DAY_US: Final = 24 * 3600 * 1_000_000  # the servers count milliseconds or seconds in 32 bits
_NUMBER: Final = r"\+?([0-9][0-9_]*(\.[0-9]+)?|\.[0-9]+)"


def _with_unit(parse: Callable[[str], Any], example: str) -> BeforeValidator:
    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise complaint(f"{shown(value)} is not a quantity", f"write it with its unit: {example}")
        try:
            return parse(str(value))
        except units.UnitError as error:
            raise complaint(error.reason, error.remedy) from error

    return BeforeValidator(read)


def _schema(pattern: str, example: str, *others: dict[str, object]) -> WithJsonSchema:
    text: dict[str, object] = {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*{pattern}\s*$", "examples": [example]}
    return WithJsonSchema({"anyOf": [text, *others]} if others else text)


def _plainly(number: Decimal) -> str:
    """Print a number without an exponent, which no quantity has."""
    return format(number.normalize(), "f")


def _parse_share(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,30})?)\s*%", text.strip())
    if not match or Decimal(match[1]) > 100:
        raise units.UnitError(f"{shown(text)} is not a share", "write a percentage: 0.1%")
    return float(Decimal(match[1]) / 100)


Duration = Annotated[
    int,
    _with_unit(units.parse_duration_us, "5ms, 250us, 30s"),
    refusing(lambda us: us > _DAY_US, "microseconds is more than a day", "write at most 24h"),
    PlainSerializer(units.format_duration, return_type=str),
    _schema("(us|µs|ms|s|m|min|h)", "5ms", {"const": 0}, {"type": "string", "pattern": r"^\s*\+?(0+(\.0+)?|\.0+)\s*$"}),
]
Size = Annotated[
    int,
    _with_unit(units.parse_size_bytes, "64MiB, 2GiB"),
    PlainSerializer(units.format_size, return_type=str),
    _schema("(|B|[kKMGT]B|[KMGT]iB)", "2GiB", {"type": "integer", "minimum": 0}),
]
Rate = Annotated[
    float,
    _with_unit(units.parse_rate_per_s, "200/s"),
    PlainSerializer(lambda rate: f"{_plainly(Decimal(repr(rate)))}/s", return_type=str),
    _schema(r"[kM]?\s*/\s*(s|m|min|h)", "200/s"),
]
Share = Annotated[
    float,
    _with_unit(_parse_share, "0.1%"),
    PlainSerializer(lambda share: f"{_plainly(Decimal(repr(share)) * 100)}%", return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\s*[0-9]{1,3}(\.[0-9]+)?\s*%\s*$", "examples": ["0.1%"]}),
]
