"""Carrying a load out: start its processes, gather their windows, know when to stop."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Literal

from servewright.errors import InputError, LoadError, ProbeError
from servewright.load.arrivals import Arrivals
from servewright.load.measurement import Measurement, Window, point, stable
from servewright.load.watching import Saturated, client_bound
from servewright.load.worker import Job, main
from servewright.load.workload import Workload

if TYPE_CHECKING:  # Windows has no fork
    from multiprocessing.context import ForkServerContext, SpawnContext

OnWindow = Callable[[Window], None]
Headers = Callable[[], Mapping[str, str]]
StartMethod = Literal["spawn", "forkserver"]

_HEAD_START_S = 0.05
_READY_WITHIN_S = 60.0
_HEADERS_EVERY_S = 30.0


def measure(
    workload: Workload,
    *,
    headers: Headers = dict,
    saturated: Saturated = lambda: lambda: False,
    on_window: OnWindow = lambda _: None,
    start_method: StartMethod = "spawn",
) -> Measurement:
    """Send ``workload`` and return what came of it; Ctrl-C ends it early and returns what there is.

    ``headers`` is asked again and again, so that requests are let in for as long as it lasts. With ``forkserver``, a
    process of a load starts in 0.03 s instead of 0.5, as long as the folder for temporary files stays where it is.
    """
    current = dict(headers())
    with _processes(workload, current, start_method) as pipes:
        run, busy = _Run(workload, pipes, headers, on_window), saturated()
        try:
            run.follow(current)
        except KeyboardInterrupt:
            run.ended = "interrupted"
        run.saturated = busy()
        try:
            run.finish()
        except KeyboardInterrupt:  # also a second one: it waits for no answer
            run.ended = "interrupted"
    return run.measurement()


class _Run:
    """A load under way: every window as far as the processes have reported it."""

    def __init__(self, workload: Workload, pipes: list[Connection], headers: Headers, on_window: OnWindow) -> None:
        self._workload, self._pipes, self._headers, self._on_window = workload, pipes, headers, on_window
        self._partial: dict[int, Window] = defaultdict(Window)
        self._reports: dict[int, int] = defaultdict(int)
        self._windows: list[Window] = []
        self._rest = Window()
        self._left = list(pipes)
        self.ended, self.saturated = "duration", False

    def follow(self, current: dict[str, str]) -> None:
        """Gather windows until the load is stable or over."""
        asked = time.monotonic()
        while self._left:
            self._gather(1.0)
            if self._workload.settle and len(self._windows) < 6 and stable(self._windows):
                self.ended = "stable"
                return
            if time.monotonic() - asked > _HEADERS_EVERY_S:
                asked = time.monotonic()
                if (fresh := dict(self._headers())) != current:
                    current = fresh
                    self._tell(fresh)

    def finish(self) -> None:
        """Stop every process, and gather what they have left."""
        self._tell("stop")
        end = time.monotonic() + self._workload.timeout_s + 10
        while self._left and time.monotonic() < end:
            self._gather(0.5)

    def measurement(self) -> Measurement:
        """Return everything in one."""
        windows = [self._partial[index] for index in sorted(self._partial)]
        whole = Window()
        for window in (*windows, self._rest):
            whole.latency.merge(window.latency)
            whole.lag.merge(window.lag)
            whole.errors.update(window.errors)
        seconds = sum(window.seconds for window in windows)
        pace = self._workload.pace
        # The last window of a load that is stopped is a stump, and full of what the windows before it left over.
        long = [window for window in windows if window.seconds >= self._workload.window_s / 2] or windows
        due = pace.rate * seconds if isinstance(pace, Arrivals) else 0.0
        busiest = max((window.busiest for window in long), default=0.0)
        return Measurement(
            asked=pace.rate if isinstance(pace, Arrivals) else None,
            concurrency=None if isinstance(pace, Arrivals) else pace.concurrency,
            rate=sum(window.answered for window in windows) / seconds if seconds else 0.0,
            seconds=seconds,
            latency=whole.latency,
            lag=whole.lag,
            errors=dict(whole.errors.most_common()),
            ended=self.ended,
            client_bound=client_bound(whole.latency, whole.lag, busiest, saturated=self.saturated, due=due),
            busiest=busiest,
            timeline=tuple(point(window) for window in windows),
        )

    def _tell(self, order: object) -> None:
        for pipe in self._left:
            try:
                pipe.send(order)
            except OSError:
                continue  # it has ended; what it reported is still to be read

    def _gather(self, within_s: float) -> None:
        for pipe in wait(self._left, within_s):
            assert isinstance(pipe, Connection)
            try:
                self._take(pipe, pipe.recv())
            except (EOFError, OSError) as error:
                raise LoadError("a process of the load died; look for a lack of memory") from error

    def _take(self, pipe: Connection, report: dict[str, Any]) -> None:
        _refuse_crashed(report)
        if report.get("done"):
            self._rest.add(report)
            self._left.remove(pipe)
            return
        if report.get("refused"):
            pipe.send(dict(self._headers()))
            return
        index = report["window"]
        self._partial[index].add(report)
        self._reports[index] += 1
        if self._reports[index] == len(self._pipes):
            self._windows.append(self._partial[index])
            self._on_window(self._partial[index])


@contextmanager
def _processes(workload: Workload, headers: Mapping[str, str], start_method: StartMethod) -> Iterator[list[Connection]]:
    """Start the processes of a load, connected and with one clock, and end them."""
    context: SpawnContext | ForkServerContext = multiprocessing.get_context("spawn")
    if start_method == "forkserver":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([main.__module__])
    pipes: list[Connection] = []
    started = []
    count = workload.processes
    if not isinstance(workload.pace, Arrivals):
        count = min(count, workload.pace.concurrency)
    try:
        for part in range(count):
            ours, theirs = context.Pipe()
            pipes.append(ours)
            job = Job(workload=workload, part=part, of=count, headers=headers)
            process = context.Process(target=main, args=(theirs, job), daemon=True)
            with _no_ctrl_c():
                process.start()
            started.append(process)
            theirs.close()
        for pipe in pipes:
            if not pipe.poll(_READY_WITHIN_S):
                raise LoadError("a process of the load did not start in time; see what else the machine does")
            try:
                answer = pipe.recv()
            except EOFError as error:
                raise LoadError("a process of the load ended at its start; look for a lack of memory") from error
            _refuse_crashed(answer)
            if why := answer.get("unable"):
                raise InputError(why)
            if why := answer.get("failed"):
                raise ProbeError(f"{workload.endpoint.address}: {why}")
        begin = time.monotonic() + _HEAD_START_S
        for pipe in pipes:
            pipe.send(begin)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join(1.0)
            if process.is_alive():
                process.kill()
                process.join()


def _refuse_crashed(report: Mapping[str, Any]) -> None:
    if why := report.get("crashed"):
        raise LoadError(f"a process of the load failed ({why}); report it as a defect of servewright")


@contextmanager
def _no_ctrl_c() -> Iterator[None]:
    """Keep SIGINT away from what is started here: a new process would die of it before it can say otherwise."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
