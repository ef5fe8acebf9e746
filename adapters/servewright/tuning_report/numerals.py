"""Figures as people read them: three digits that matter, units always beside."""

from __future__ import annotations

from typing import Final

from servewright.tuning.study import Settings, Value

NOTHING: Final = "\u2013"  # an en dash
TIMES: Final = "\u00d7"  # the multiplication sign


def number(value: float) -> str:
    """Return about three digits that matter: ``3,434``, ``27.8``, ``1.05``, ``0.0021``."""
    if value == 0 or value != value:
        return "0" if value == 0 else "unknown"
    size = abs(value)
    if size >= 1e15 or size < 1e-4:
        return f"{value:.2e}"
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}" if size >= 0.0995 else f"{value:.2g}"


def exact(value: float) -> str:
    """Return a figure that somebody chose, as it was chosen: ``50``, ``0.25``, ``1,000``."""
    return f"{value:,.10g}"


def rate(value: float) -> str:
    """Return a rate in good answers per second."""
    return f"{number(value)}/s"


def ms(value: float | None) -> str:
    """Return a latency given in milliseconds; a dash where nothing was answered."""
    return NOTHING if value is None or value != value else f"{number(value)} ms"


def bare(value: float | None) -> str:
    """Return a figure whose unit stands above it; a dash where there is none."""
    return NOTHING if value is None or value != value else number(value)


def share(value: float) -> str:
    """Return a share as percents, two digits of it."""
    return f"{float(f'{100 * value:.2g}'):g} %"


def span(seconds: float) -> str:
    """Return a length of time: ``4 min 10 s``."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def setting(value: Value | None) -> str:
    """Return one setting's value."""
    if value is None:
        return "not set"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def settings(values: Settings) -> str:
    """Return settings in one line."""
    return ", ".join(f"{name} {setting(value)}" for name, value in values.items())
