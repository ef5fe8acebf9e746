"""Durations, rates and sizes as people write them (``5ms``, ``200/s``, ``2GiB``), read and printed exactly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Context, Decimal
from types import MappingProxyType
from typing import Final

_US_PER: Final[Mapping[str, int]] = MappingProxyType(
    {"us": 1, "µs": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "min": 60_000_000, "h": 3_600_000_000}
)
_BYTES_PER: Final[Mapping[str, int]] = MappingProxyType(
    {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    | {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
)
_TIMES: Final[Mapping[str, int]] = MappingProxyType({"": 1, "k": 10**3, "M": 10**6})
_SECONDS_PER: Final[Mapping[str, int]] = MappingProxyType({"s": 1, "m": 60, "min": 60, "h": 3600})

_LARGEST: Final = 2**63 - 1  # what the servers' own 64-bit fields hold
_EXACT: Final = Context(prec=100)  # beyond 40 digits of input times the largest unit: no product is ever rounded
_NUMBER: Final = re.compile(r"(?P<sign>[+-]?)(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*(?P<unit>.*)", re.DOTALL)

_DURATION_REMEDY: Final = "write a unit: 5ms, 2s"
_SIZE_REMEDY: Final = "write bytes or a unit: 64MiB (1024-based), 500MB (1000-based)"
_RATE_REMEDY: Final = "write a rate: 200/s, 12k/m"


class UnitError(ValueError):
    """A text that is no duration, rate or size; ``reason`` says why, ``remedy`` what to write."""

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}; {remedy}")


def parse_duration_us(text: str) -> int:
    """Return the microseconds of ``5ms``, ``250us``, ``1.5s``, ``2m`` or ``1h``; only zero needs no unit."""
    number, unit = _split(text, "duration", _DURATION_REMEDY)
    if not unit and number == 0:
        return 0
    return _scaled(text, number, _US_PER, unit, kind="duration", whole="microseconds", remedy=_DURATION_REMEDY)


def parse_size_bytes(text: str) -> int:
    """Return the bytes of ``2GiB``, ``64MiB``, ``500MB`` or ``1024``."""
    number, unit = _split(text, "size", _SIZE_REMEDY)
    return _scaled(text, number, _BYTES_PER, unit, kind="size", whole="bytes", remedy=_SIZE_REMEDY)


def parse_rate_per_s(text: str) -> float:
    """Return the events per second of ``200/s``, ``12k/m`` or ``1.5M/h``."""
    number, unit = _split(text, "rate", _RATE_REMEDY)
    times, slash, per = (part.strip() for part in unit.partition("/"))
    if not slash or times not in _TIMES or per not in _SECONDS_PER:
        raise UnitError(f"{_quoted(text)} is not a rate", _RATE_REMEDY)
    if (events := _EXACT.multiply(number, _TIMES[times])) > _LARGEST:
        raise UnitError(f"{_quoted(text)} is too large a rate", _RATE_REMEDY)
    return float(_EXACT.divide(events, Decimal(_SECONDS_PER[per])))


def format_duration(us: int) -> str:
    """Write microseconds in the largest unit that holds them exactly: ``5ms``, ``1.5s``, ``90m``."""
    for unit in ("h", "m"):
        if us and us % _US_PER[unit] == 0:
            return f"{us // _US_PER[unit]}{unit}"
    unit = "s" if us >= _US_PER["s"] else "ms" if us >= _US_PER["ms"] else "us"
    whole, rest = divmod(us, _US_PER[unit])
    decimals = f"{rest:0{len(str(_US_PER[unit])) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{decimals}{unit}" if decimals else f"{whole}{unit}"


def format_size(size: int) -> str:
    """Write bytes in the largest unit that divides them: ``2GiB``, ``500MB``, ``1025B``."""
    fitting = [unit for unit in _BYTES_PER if unit not in ("", "KB") and size and size % _BYTES_PER[unit] == 0]
    unit = max(fitting, key=_BYTES_PER.__getitem__, default="B")
    return f"{size // _BYTES_PER[unit]}{unit}"


def _split(text: str, kind: str, remedy: str) -> tuple[Decimal, str]:
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"{_quoted(text)} is not a {kind}", remedy)
    digits = match["number"].replace("_", "")
    if match["sign"] == "-":
        raise UnitError(f"{_quoted(text)} is negative", remedy)
    if len(digits) > 40:
        raise UnitError(f"{_quoted(text)} has too many digits for a {kind}", remedy)
    return Decimal(digits), match["unit"].strip()


def _scaled(
    text: str, number: Decimal, factors: Mapping[str, int], unit: str, *, kind: str, whole: str, remedy: str
) -> int:
    if unit not in factors:
        near = next((known for known in factors if known.lower() == unit.lower()), None)
        reason = f"{_quoted(text)} has no unit" if not unit else f"{_quoted(text)} has an unknown unit {_quoted(unit)}"
        raise UnitError(reason, f"did you mean {near!r}?" if near else remedy)
    scaled = _EXACT.multiply(number, factors[unit])
    if scaled != scaled.to_integral_value():
        raise UnitError(f"{_quoted(text)} is not a whole number of {whole}", remedy)
    if scaled > _LARGEST:
        raise UnitError(f"{_quoted(text)} is too large a {kind}", remedy)
    return int(scaled)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
