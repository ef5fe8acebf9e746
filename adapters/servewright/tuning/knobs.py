"""What a backend lets a tuner turn: its own names for settings, the spec's keys for them, and how it schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

from servewright.backend import Transport
from servewright.simulating import Scheduler
from servewright.spec import ModelSpec
from servewright.tuning.study import Knob, Load, Settings

_AT_ONCE_S: Final = 1.0  # what an open loop can have waiting before no promise is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What shapes the grid: the most requests that can be waiting, how they come, and the server's machine's cores."""

    waiting: int
    cores: int
    transport: Transport = "http"

    @classmethod
    def of(cls, loads: Sequence[Load], cores: int, transport: Transport = "http") -> Demand:
        """Return what ``loads`` can have waiting: callers, or a second's arrivals."""
        most = max((load.concurrency or math.ceil((load.rate or 1.0) * _AT_ONCE_S) for load in loads), default=1)
        return cls(waiting=max(most, 1), cores=cores, transport=transport)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """A backend's declaration.

    ``knobs`` returns every knob with what is worth trying, or why it is left out; ``default`` the settings that a spec
    has now; ``keys`` the spec's keys, dotted, with their values as YAML has them; ``complete`` adds what follows from a
    combination of values, and is ``None`` for one that could not matter. Under ``alone`` no request waits for another,
    there is a worker for each core, and one thread computes a request: how long requests of many rows take then is how
    long batches take. A server that compiles itself as it runs gets faster for up to ``settles_within_s`` of load.
    """

    scheduler: Scheduler
    knobs: Callable[[ModelSpec, Demand], Sequence[Knob]]
    default: Callable[[ModelSpec, Demand], Settings]
    keys: Callable[[Settings], Mapping[str, Any]]
    complete: Callable[[Settings, Demand], Settings | None]
    alone: Callable[[ModelSpec, Demand], Settings]
    settles_within_s: float = 0.0


def grid(tuning: Tuning, knobs: Sequence[Knob], demand: Demand) -> list[Settings]:
    """Return every combination of the knobs' values that could matter."""
    turned = [knob for knob in knobs if knob.values]
    combined = (
        dict(zip((knob.name for knob in turned), values, strict=True))
        for values in product(*(knob.values for knob in turned))
    )
    completed = (tuning.complete(settings, demand) for settings in combined)
    return [settings for settings in completed if settings is not None]


def powers(most: int, *, least: int = 1) -> tuple[int, ...]:
    """Return the powers of two from ``least`` up to ``most``, and ``most`` itself."""
    found = [least << turn for turn in range(32) if least << turn <= most]
    return tuple(found if not found or found[-1] == most else [*found, most])


def beyond(tried: int, demand: Demand, *, largest: int) -> str:
    """Return why batches above ``tried`` are left out; none above ``largest`` ever is tried."""
    why = "larger ones are never tried" if tried >= largest else f"no more than {demand.waiting} requests wait at once"
    return f"above {tried}: {why}"
