"""What a load has shown, for people and for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from servewright.load.histogram import Histogram

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
AGREEMENT = 0.1
_IN_A_ROW = 3


@dataclass(slots=True, kw_only=True)
class Window:
    """A stretch of a load: ``waiting`` requests had no answer yet at its end, ``busiest`` is a share of a core."""

    seconds: float = 0.0
    answered: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    lag: Histogram = field(default_factory=Histogram)
    busiest: float = 0.0
    waiting: int = 0

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.answered / self.seconds if self.seconds else 0.0

    def add(self, report: Mapping[str, Any]) -> None:
        """Take in what one process reports of this stretch."""
        self.seconds = max(self.seconds, report["seconds"])
        self.answered += report["answered"]
        self.errors.update(report["errors"])
        self.latency.merge(Histogram.from_json(report["latency"]))
        self.lag.merge(Histogram.from_json(report["lag"]))
        self.busiest = max(self.busiest, report["cpu_s"] / report["seconds"] if report["seconds"] else 0.0)
        self.waiting += report["waiting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A finished load.

    ``asked`` is the rate in requests per second, ``None`` in a closed loop of ``concurrency``. ``ended`` says why it
    ended: "stable", "duration" or "interrupted"; ``client_bound`` why its numbers are the client's own, else empty.
    """

    asked: float | None
    concurrency: int | None
    rate: float
    seconds: float
    latency: Histogram
    lag: Histogram
    errors: Mapping[str, int]
    ended: str
    client_bound: str
    busiest: float
    timeline: tuple[Mapping[str, float | None], ...] = ()

    @property
    def error_share(self) -> float:
        """The share of requests, 0 to 1, that got no good answer."""
        failed = sum(self.errors.values())
        good = len(self.latency) - self.errors.get("timeout", 0) - self.errors.get("unanswered", 0)
        return failed / (failed + good) if failed + good else 0.0

    def percentile_ms(self, share: float) -> float:
        """Return the latency in milliseconds that ``share`` of the requests did not exceed."""
        return self.latency.percentile(share) / 1e6

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "ok": not self.client_bound and self.ended != "interrupted" and self.rate > 0,
            "asked_rate": self.asked,
            "concurrency": self.concurrency,
            "rate": round(self.rate, 2),
            "seconds": round(self.seconds, 3),
            "latency_ms": {
                **{name: _ms(self.latency.percentile(share)) for name, share in PERCENTILES.items()},
                "max": _ms(self.latency.most_ns) if len(self.latency) else None,
                "mean": _ms(self.latency.mean()),
            },
            "requests": len(self.latency) + sum(self.errors.values())
            - self.errors.get("timeout", 0) - self.errors.get("unanswered", 0),
            "errors": dict(self.errors),
            "error_share": round(self.error_share, 6),
            "ended": self.ended,
            "client": {
                "bound": self.client_bound or None,
                "send_lag_p99_ms": _ms(self.lag.percentile(0.99)),
                "busiest_process": round(self.busiest, 3),
            },
            "timeline": [dict(each) for each in self.timeline],
        }  # fmt: skip


def _ms(nanoseconds: float) -> float | None:
    """Return milliseconds, or None for NaN, which JSON does not have."""
    return round(nanoseconds / 1e6, 4) if nanoseconds == nanoseconds else None


def point(window: Window) -> dict[str, float | None]:
    """Return a window as a point of a timeline; one in which nothing was answered has no latencies."""
    return {
        "seconds": round(window.seconds, 3),
        "rate": round(window.rate, 2),
        **{
            f"{name}_ms": _ms(window.latency.percentile(share))
            for name, share in PERCENTILES.items()
            if name != "p99.9"
        },
        "errors": float(sum(window.errors.values())),
        "waiting": float(window.waiting),
        "busy": round(window.busiest, 4),
    }


def stable(windows: Sequence[Window]) -> bool:
    """Tell whether the last three windows agree within 10 % of their mean on rate, p50 and p90, p99 within 50 %."""
    if len(windows) < _IN_A_ROW:
        return False
    last = windows[-_IN_A_ROW:]
    if any(not len(window.latency) for window in last):
        return False
    if not _agree([window.rate for window in last], AGREEMENT):
        return False
    # A tail has few requests in it: to ask 10 % of it would be to wait for luck.
    return all(
        _agree([window.latency.percentile(share) for window in last], within)
        for share, within in ((0.5, AGREEMENT), (0.9, AGREEMENT), (0.99, 0.5))
    )


def _agree(values: Sequence[float], within: float) -> bool:
    middle = sum(values) / len(values)
    return all(abs(value - middle) <= within * middle for value in values)
