"""Whether a load measured the server, or itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

from servewright import processors
from servewright.load.histogram import Histogram

MOST_LAG = 0.05
MOST_CPU = 0.9
LEAST_SENT = 0.9

Saturated = Callable[[], Callable[[], bool]]
"""Called as a load begins; what it returns tells whether the server has used all that this machine left to it since."""


def client_bound(latency: Histogram, lag: Histogram, busiest: float, *, saturated: bool, due: float = 0.0) -> str:
    """Return why the numbers are the client's own, or nothing.

    Late sending counts as the server's latency, so it must be small beside it. A process that is always busy may have
    held its load back, unless the server had nothing left to give. So many requests were ``due``; what is not sent is
    late too, and seen by nobody.
    """
    if len(lag) < LEAST_SENT * due - 3 * math.sqrt(due):
        return f"only {len(lag)} of {due:.0f} requests left that were due; use more --processes or a lower --rate"
    late, seen = lag.percentile(0.99), latency.percentile(0.99)
    if late > MOST_LAG * seen:
        return (
            f"requests left up to {late / 1e6:.3g} ms late (p99), more than {MOST_LAG:.0%} of the measured p99 of "
            f"{seen / 1e6:.3g} ms; use more --processes or a lower --rate"
        )
    if busiest > MOST_CPU and not saturated:
        return f"a client process was busy {busiest:.0%} of the time and the server was not; use more --processes"
    return ""


def server_of(pid: int | None) -> Saturated:
    """Return the `Saturated` of a server's process tree on this machine; one that is elsewhere never counts as such."""
    if pid is None:
        return lambda: lambda: False
    import psutil

    def used() -> float:
        try:
            tree = psutil.Process(pid)
            times = [each.cpu_times() for each in (tree, *tree.children(recursive=True))]
        except psutil.Error:
            return 0.0
        return sum(each.user + each.system for each in times)

    most = MOST_CPU * (processors.usable() - 1)

    def begin() -> Callable[[], bool]:
        before, begun = used(), monotonic()
        # The clients live on the same cores: what they use is not the server's to use.
        return lambda: used() - before > most * (monotonic() - begun)

    return begin
