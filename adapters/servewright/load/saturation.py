"""The highest rate that a server holds within its promises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from servewright import units
from servewright.errors import InputError
from servewright.load.measurement import PERCENTILES


class Seen(Protocol):
    """What a promise is held against: a measurement, or a simulation's word."""

    @property
    def rate(self) -> float:
        """Good answers per second."""
        ...

    @property
    def error_share(self) -> float:
        """The share of requests without a good answer."""
        ...

    def percentile_ms(self, share: float) -> float:
        """Return a latency in milliseconds."""
        ...


S = TypeVar("S", bound=Seen)
KEEPS_UP: Final = 0.97  # of the rate that is asked
_SEEN_S: Final = 5.0


def least_of(asked: float, *, poisson: bool = True) -> float:
    """Return the least rate that keeps up with ``asked``: 97 % of it, or what arrivals may come to in 5 s.

    Of 9 requests a second, 45 are meant to be sent then; of Poisson arrivals it may as well be 32, of even ones 44.
    """
    meant = max(asked * _SEEN_S, 4.0)
    return asked * min(KEEPS_UP, 1.0 - (2.0 / math.sqrt(meant) if poisson else 1.0 / meant))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Promises: latencies in milliseconds by percentile, and the greatest share of errors."""

    latency_ms: tuple[tuple[str, float], ...] = ()
    errors: float = 0.0

    def broken_by(self, seen: Seen, *, asked: float | None = None, poisson: bool = True) -> str:
        """Return the first promise that ``seen`` breaks, or nothing; a rate that is asked must also be reached."""
        if seen.error_share > self.errors:
            return f"errors {seen.error_share:.2%} > {self.errors:.2%}"
        for name, limit in self.latency_ms:
            found = seen.percentile_ms(PERCENTILES[name])
            if not found <= limit:
                return f"{name} {found:.1f} ms > {limit:g} ms"
        if asked is not None and seen.rate < least_of(asked, poisson=poisson):
            return f"{seen.rate:.0f}/s of {asked:.0f}/s"
        return ""


def parse_slo(text: str) -> Slo:
    """Read ``p99=50ms,errors=0.1%``; anything else is an `InputError`."""
    latency: dict[str, float] = {}
    errors = 0.0
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            if name in PERCENTILES:
                latency[name] = units.parse_duration_us(value) / 1000
                if not latency[name]:
                    raise ValueError(f"{name}={value} is kept by no server")
            elif name == "errors":
                errors = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
                if not 0 <= errors <= 1:
                    raise ValueError(f"{value} is not a share")
            else:
                raise ValueError(f"{name!r} is none of {', '.join(PERCENTILES)}, errors")
        except ValueError as error:
            raise InputError(f"--slo: {error}; write for example p99=50ms,errors=0.1%") from error
    if not latency and "errors" not in text:
        raise InputError("--slo promises nothing; write for example p99=50ms,errors=0.1%")
    return Slo(latency_ms=tuple(latency.items()), errors=errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Generic[S]):
    """A rate that was tried, what was seen, and the promise that it broke, if any."""

    asked: float
    seen: S
    broken: str


def find_max(
    measure: Callable[[float], S],
    slo: Slo,
    *,
    first: float = 100.0,
    precision: float = 0.05,
    least: float = 1.0,
    most: float = 1e6,
    poisson: bool = False,
    on_trial: Callable[[Trial[S]], None] = lambda _: None,
) -> tuple[Trial[S] | None, list[Trial[S]]]:
    """Return the trial of the highest rate found that breaks no promise, and every trial.

    Doubles or halves from ``first`` until the answer lies between two rates, then bisects their ratio down to
    ``precision``. ``None``: even ``least`` is too much. ``poisson``: that many arrivals come only on the average.
    """
    trials: list[Trial[S]] = []

    def holds(rate: float) -> bool:
        seen = measure(rate)
        trials.append(Trial(asked=rate, seen=seen, broken=slo.broken_by(seen, asked=rate, poisson=poisson)))
        on_trial(trials[-1])
        return not trials[-1].broken

    low, high = 0.0, math.inf
    rate = min(max(first, least), most)
    while high > low * (1 + precision):
        if holds(rate):
            low = rate
            if rate >= most:
                break
        else:
            high = rate
            if rate <= least:
                break
        if math.isinf(high):
            rate = min(rate * 2, most)
        elif low == 0.0:
            reached = trials[-1].seen.rate
            rate = max(min(rate / 2, reached * 0.9) if reached > least else rate / 2, least)
        else:
            rate = math.sqrt(low * high)
    return best_of(trials), trials


def best_of(trials: Sequence[Trial[S]]) -> Trial[S] | None:
    """Return the trial of the highest rate that breaks no promise."""
    return max((trial for trial in trials if not trial.broken), key=lambda trial: trial.asked, default=None)
