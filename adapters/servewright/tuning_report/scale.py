"""Axes: from a figure to a place, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

_WIDE: Final = 8.0  # the ratio of the greatest to the smallest figure above which an axis is logarithmic
_DEEP: Final = 1e-6  # of the greatest figure: what a logarithmic axis does not go below
_LEAST: Final = 1e-9  # below, a figure is nothing
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """An axis from ``low`` to ``high``, drawn from ``start`` to ``end``; figures beyond are drawn at its ends."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the place of ``value``."""
        low, high, found = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, found = math.log(low), math.log(high), math.log(found)
        return round(self.start + (found - low) / (high - low) * (self.end - self.start), 2)


def axis(values: Iterable[float], start: float, end: float, *, zero: bool = True, count: int = 6) -> Scale:
    """Return the axis that shows ``values``: from 0 with ``zero``, logarithmic where they are far apart."""
    found = sorted(value if value > _LEAST else 0.0 for value in values if math.isfinite(value))
    positive = [value for value in found if value > _DEEP * found[-1]]
    if zero and positive and positive[-1] > _WIDE * positive[0]:
        return _logarithmic(positive[0], positive[-1], start, end, count)
    low, high = (0.0 if zero or not found else found[0]), (found[-1] if found else 1.0)
    if high - low <= 1e-9 * max(high, 1e-300):
        high, low = (high * 1.1 or 1.0), (0.0 if zero else low * 0.9)
    step = _step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{each * step:.12g}") for each in range(first, last + 1))
    return Scale(low=ticks[0], high=ticks[-1], start=start, end=end, ticks=ticks)


def _step(least: float) -> float:
    size = 10.0 ** math.floor(math.log10(max(least, 1e-300)))
    return next(size * each for each in _STEPS if size * each >= least * (1 - 1e-9))


def _logarithmic(low: float, high: float, start: float, end: float, count: int) -> Scale:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / count))
    steps = (1, 2, 5) if last - first <= count // 2 else (1,)
    ticks = [float(f"{each}e{power}") for power in range(first, last + 1, every) for each in steps]
    below = max((tick for tick in ticks if tick <= low), default=ticks[0])
    above = min((tick for tick in ticks if tick >= high), default=max(high, ticks[-1]))
    shown = tuple(tick for tick in ticks if below <= tick <= above)
    return Scale(low=min(below, low), high=max(above, high), start=start, end=end, ticks=shown, log=True)
