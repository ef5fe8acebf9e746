"""One process of a load: it sends what falls to it, and reports a window at a time."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from servewright.load.arrivals import Arrivals
from servewright.load.histogram import Histogram
from servewright.load.http1 import why
from servewright.load.selecting import new_event_loop
from servewright.load.workload import Workload

_CONNECT_AHEAD = 8
# How a server turns a key away that holds no longer: TorchServe answers 400 over HTTP.
_REFUSALS = frozenset({"HTTP 400", "HTTP 401", "HTTP 403", "PERMISSION_DENIED", "UNAUTHENTICATED"})
_NO_OTHER_KEY_S = 1.0
_CHUNK = 256  # requests sent between two looks at the answers, where the schedule is behind
_FOLDED = 1024  # times kept as they are, so that a window's end keeps no answer waiting
_OTHER_FILES = 64  # that are open beside the connections


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one of the ``of`` processes of a load does; ``headers`` let its requests in."""

    workload: Workload
    part: int
    of: int
    headers: Mapping[str, str]

    @property
    def callers(self) -> int:
        """How many callers of a closed loop fall to this process; 0 in an open loop."""
        if isinstance(self.workload.pace, Arrivals):
            return 0
        whole, rest = divmod(self.workload.pace.concurrency, self.of)
        return whole + (self.part < rest)


def main(pipe: Connection, job: Job) -> None:
    """Do a job: say "ready", wait for ``("go", start)`` on the monotonic clock, report windows, say "done"."""
    # Ctrl-C reaches every process of the terminal; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A broken pipe: nobody waits for the result any more.
    with (
        suppress(EOFError, BrokenPipeError, ConnectionResetError),
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        try:
            runner.run(_work(pipe, job))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001  (whatever it is, the parent is to say it)
            pipe.send({"crashed": f"{type(error).__name__}: {error}"})


class _Tally:
    """What came of the requests since the last window."""

    def __init__(self, start: float, *, closed: bool) -> None:
        self._start, self._closed = start, closed
        self.answered = 0
        self.latencies: list[float] = []
        self.lags: list[float] = []
        self.errors: Counter[str] = Counter()
        self._latency, self._lag = Histogram(), Histogram()
        self._begun = start
        self._cpu = time.process_time()

    def done(self, started: float, error: str) -> float:
        """Count a request that has ended, unless it belongs to the warm-up; return when its caller may go on."""
        now = time.monotonic()
        if not error:
            self.answered += 1
            if started >= self._start:
                self.latencies.append(now - started)
        # A caller that waited since the warm-up in vain has sent nothing else.
        elif started >= self._start or (self._closed and error == "timeout" and now >= self._start):
            self.errors[error] += 1
            if error == "timeout":  # it took this long at least: a percentile without it would flatter the server
                self.latencies.append(now - started)
        if len(self.latencies) >= _FOLDED:
            self._fold()
            return time.monotonic()
        return now

    def begin(self) -> None:
        """Count the answers of another window; those of the warm-up are forgotten so."""
        self.answered, self._begun, self._cpu = 0, time.monotonic(), time.process_time()

    def late(self, seconds: float) -> None:
        """Count by how much a request left late."""
        self.lags.append(seconds)
        if len(self.lags) >= _FOLDED:
            self._fold()

    def _fold(self) -> None:
        for values, histogram in ((self.latencies, self._latency), (self.lags, self._lag)):
            histogram.add(np.rint(np.array(values) * 1e9).astype(np.int64))
            values.clear()

    def flush(self, window: int, *, waiting: int) -> dict[str, Any]:
        """Return what there is as plain values, and begin anew."""
        answered, seconds, cpu = self.answered, time.monotonic() - self._begun, time.process_time() - self._cpu
        self.begin()  # what a report costs belongs to the next window
        self._fold()
        found = {
            "window": window,
            "seconds": seconds,
            "answered": answered,
            "errors": dict(self.errors),
            "latency": self._latency.as_json(),
            "lag": self._lag.as_json(),
            "cpu_s": cpu,
            "waiting": waiting,
        }
        self._latency, self._lag = Histogram(), Histogram()
        self.errors.clear()
        return found


class _Keys:
    """Requests that were turned away may hold a key that somebody has renewed: they are sent again with the new one.

    A renewal ends the old key at once, also for requests that are under way. ``ask`` asks for headers; ``send`` and
    ``count``, which are set before the first request, take one that is sent again, and one that has ended for good.
    Latency still counts from when it was meant to leave.
    """

    send: Callable[[float], None]
    count: Callable[[float, str], object]

    def __init__(self, headers: Mapping[str, str], *, ask: Callable[[], None]) -> None:
        self._headers, self._ask = headers, ask
        self._held: list[tuple[float, str]] = []
        self._again: set[float] = set()
        self._changed = self._deaf_until = 0.0

    def done(self, started: float, error: str) -> None:
        """Count a request that has ended, or hold it until there is another key."""
        if error not in _REFUSALS or not self._headers or started in self._again:
            if self._again:
                self._again.discard(started)
            self.count(started, error)
        elif started < self._changed:
            self._again.add(started)
            self.send(started)
        elif time.monotonic() < self._deaf_until:
            self.count(started, error)
        else:
            if not self._held:
                self._ask()
            self._held.append((started, error))

    def held(self) -> list[float]:
        """Return when each request was meant to leave that waits for another key."""
        return [started for started, _ in self._held]

    def use(self, headers: Mapping[str, str]) -> None:
        """Go on with ``headers``: other ones free the requests that wait, the same ones are the server's last word."""
        held, self._held = self._held, []
        if headers == self._headers:
            self._deaf_until = time.monotonic() + _NO_OTHER_KEY_S
            for started, error in held:
                self.count(started, error)
            return
        self._headers, self._changed = headers, time.monotonic()
        for started, _ in held:
            self._again.add(started)
            self.send(started)


def _files() -> int:
    """Return how many files this process may have open: as many as the system lets it have."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 16
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 16 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # macOS bears no more than OPEN_MAX
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return most if soft == resource.RLIM_INFINITY else soft


async def _work(pipe: Connection, job: Job) -> None:
    if job.workload.endpoint.transport == "grpc":
        from servewright.load.http2 import Sender
    else:
        from servewright.load.http1 import Sender  # type: ignore[assignment]

    loop = asyncio.get_running_loop()
    workload = job.workload
    connections = min(max(workload.connections, job.callers), _files() - _OTHER_FILES)
    if workload.endpoint.transport == "http" and job.callers > connections:
        why_not = f"{job.callers} callers in one process need as many open files; raise ulimit -n, or load with more "
        pipe.send({"unable": why_not + "--processes"})
        return
    over = asyncio.Event()
    keys = _Keys(job.headers, ask=lambda: pipe.send({"refused": True}))
    sender = Sender(
        workload.endpoint, workload.payloads, keys.done, timeout_s=workload.timeout_s, connections=connections,
        headers=job.headers,
    )  # fmt: skip
    keys.send = sender.send

    def counting(count: Callable[[float, str], object]) -> None:
        keys.count = count
        if not job.headers:  # no key, none to be renewed
            sender.done = count

    try:
        await sender.connect(job.callers or _CONNECT_AHEAD)
    except OSError as error:
        pipe.send({"failed": why(error)})
        return
    pipe.send({"ready": True})
    begin: float = await loop.run_in_executor(None, pipe.recv)
    start = begin + workload.warm_up_s
    tally = _Tally(start, closed=job.callers > 0)

    def obey() -> None:
        try:
            order = pipe.recv()
        except (EOFError, OSError):
            over.set()
            return
        if order == "stop":
            over.set()
        else:
            sender.use(order)
            keys.use(order)

    def pending() -> list[float]:
        return sender.pending() + keys.held()

    loop.add_reader(pipe.fileno(), obey)
    if isinstance(workload.pace, Arrivals):
        counting(tally.done)
        _keep_schedule(workload.pace, job, sender.send, tally, begin, over)
    else:
        counting(_again(sender.send, tally, over))
        await asyncio.sleep(max(begin - time.monotonic(), 0))
        for _ in range(job.callers):
            sender.send(time.monotonic())
    await _either(over, start - time.monotonic())
    tally.begin()
    window = 0
    while not over.is_set() and window < 6:
        end = start + (window + 1) * workload.window_s
        await _either(over, end - time.monotonic())
        pipe.send(tally.flush(window, waiting=len(pending())))
        window += 1
    over.set()
    await _drained(pending, workload.timeout_s)
    now = time.monotonic()
    for started in pending():
        if started >= start or job.callers:
            tally.errors["unanswered"] += 1
            tally.latencies.append(now - started)
    sender.close()
    loop.remove_reader(pipe.fileno())
    pipe.send({**tally.flush(-1, waiting=0), "done": True})


def _keep_schedule(
    arrivals: Arrivals,
    job: Job,
    send: Callable[[float], None],
    tally: _Tally,
    begin: float,
    over: asyncio.Event,
) -> None:
    """Send each request when it is due, or as soon after as this process gets to it."""
    loop = asyncio.get_running_loop()
    moments = arrivals.share(job.part, job.of)
    measured_from, end = begin + job.workload.warm_up_s, begin + job.workload.ends_s
    due = begin + next(moments)

    def tick() -> None:
        nonlocal due
        if over.is_set():
            return
        now = time.monotonic()
        for _ in range(_CHUNK):
            if due > now:
                now = time.monotonic()
                if due > now:
                    break
            if due >= end:
                return
            if due >= measured_from:
                tally.late(time.monotonic() - due)
            send(due)
            due = begin + next(moments)
        loop.call_at(due, tick)

    loop.call_at(due, tick)


def _again(send: Callable[[float], None], tally: _Tally, over: asyncio.Event) -> Callable[[float, str], None]:
    """Return what a caller of a closed loop does with an answer: count it, and send the next request."""
    loop = asyncio.get_running_loop()
    count, is_over = tally.done, over.is_set

    def next_one() -> None:
        if not is_over():
            send(time.monotonic())

    def done(started: float, error: str) -> None:
        now = count(started, error)
        if error:
            # A server that refuses at once would otherwise be asked in a loop without an end.
            loop.call_later(0.001, next_one)
        elif not is_over():
            send(now)

    return done


async def _either(over: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(over.wait(), max(seconds, 0))
    except TimeoutError:
        return


async def _drained(pending: Callable[[], list[float]], timeout_s: float) -> None:
    """Wait for the answers that are still to come, for as long as a request may take."""
    end = time.monotonic() + timeout_s
    while pending() and time.monotonic() < end:
        await asyncio.sleep(0.01)
