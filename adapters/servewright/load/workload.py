"""What is asked of a load: to whom, what, how fast, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

from servewright import processors
from servewright.backend import Payload, Transport
from servewright.errors import InputError
from servewright.load.arrivals import Arrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A closed loop: each of ``concurrency`` callers sends when it has its answer. It hides what waiting users see."""

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InputError(f"a concurrency of {self.concurrency} sends nothing; give 1 or more")


Pace: TypeAlias = Arrivals | Closed

_PER_PROCESS: Final = 4000.0  # requests per second that one process sends in time with ease
_MOST_PER_CORE: Final = 8  # processes; more of them only wait for each other
_LEAST_RATE, _MOST_RATE = 1 / 3600, 1e6  # a schedule is made a second at a time


def senders(pace: Pace, cores: int) -> int:
    """Return how many processes send: as few as can, since they may share the server's ``cores``.

    The callers of a closed loop wait for answers, and nobody knows how many come before they are asked: one process
    serves them, and says so where it was too slow.
    """
    return min(1 + int(pace.rate // _PER_PROCESS), cores) if isinstance(pace, Arrivals) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where requests go: ``address`` is ``host:port``, over TLS where ``secure``."""

    transport: Transport
    address: str
    secure: bool = False

    @property
    def host(self) -> str:
        """The name or the address, an IPv6 one without its brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port."""
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests, sent in turn at a pace.

    ``duration_s`` bounds what is measured, after ``warm_up_s``. With ``settle``, it ends when three windows in a row
    agree; a window is a sixth of the duration, so that half of it is always seen. ``timeout_s`` is each request's.
    """

    endpoint: Endpoint
    payloads: tuple[Payload, ...]
    pace: Pace
    duration_s: float = 30.0
    warm_up_s: float = 2.0
    timeout_s: float = 30.0
    processes: int = 1
    settle: bool = True
    connections: int = 1024

    def __post_init__(self) -> None:
        if not self.payloads:
            raise InputError("a load needs at least one request to send")
        if self.duration_s <= 0 or self.timeout_s <= 0 or self.warm_up_s < 0:
            raise InputError("a load's duration and timeout are positive, its warm-up at least zero")
        if isinstance(self.pace, Arrivals) and not self.pace.rate > 0:
            raise InputError(f"a rate of {self.pace.rate:g}/s sends nothing; give a positive one")
        if isinstance(self.pace, Arrivals) and not _LEAST_RATE <= self.pace.rate <= _MOST_RATE:
            raise InputError(f"a rate of {self.pace.rate:g}/s cannot be sent; give one from 1/h to 1M/s")
        most = _MOST_PER_CORE * processors.usable()
        if not 1 <= self.processes <= most:
            cores = f"{_MOST_PER_CORE} for each processor that this program may use"
            raise InputError(f"{self.processes} processes cannot send a load; give 1 to {most}, {cores}")

    @property
    def ends_s(self) -> float:
        """How long after its begin nothing more is due; rounded, since 0.1 and 0.6 may be a hair more than 0.7."""
        return round(self.warm_up_s + self.duration_s, 9)

    @property
    def window_s(self) -> float:
        """How long one window is."""
        return self.duration_s / 6
