"""Servers as event simulations: what users would see of thousands of batching settings, in seconds.

All settings advance together, one batch each per step, in numpy: a step costs about as much for a thousand settings as
for one. What makes a server special, when a batch starts, is its backend's `Start`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_FAR = 1e9
_FALLS_ASLEEP_S = 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What a worker sees that may start a batch; one value per setting, in seconds.

    ``free``: when the worker is idle. ``last``: when the batch before this one started. ``first``: when the oldest
    request that waits came. ``full``: when the request came that fills the batch, far away where none will.
    ``chance`` is evenly spread over 0 to 1.
    """

    free: Floats
    last: Floats
    first: Floats
    full: Floats
    delay: Floats
    chance: Floats


Start = Callable[[Moment], tuple[Floats, Floats]]
"""Returns until when requests find only the queue's own room, and when the batch starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Batching settings of a server, one value per setting; ``delay`` in seconds, ``room`` in queued requests.

    ``admitted`` bounds the requests inside the server at once; ``threads`` compute one batch together; ``allowed`` are
    sizes to which batches are padded, ascending, empty where they are not.
    """

    size: Ints
    delay: Floats
    workers: Ints
    room: Ints
    admitted: Ints
    threads: Ints
    allowed: tuple[tuple[int, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True, slots=True)
class Scheduler:
    """How a server batches; ``policy`` reads settings as the server names them.

    ``usual`` tells of numbers of `Service` what they usually are on such servers, and by how much servers differ in
    them, where that is not the same for all kinds.
    """

    start: Start
    policy: Callable[[Sequence[Mapping[str, Any]]], Policy]
    usual: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How long work takes, in seconds, one row per setting; calibrated on the running server.

    ``batch_s``: of one request by its rows in ``sizes``, alone; between sizes it is linear. ``gathering_s``: what each
    further request of a batch takes the worker to unpack and to answer. ``crowding``: the factor with 1, 2, ... workers
    busy. ``company``: by how much of itself a batch takes longer where many other requests are under way, whose sending
    and receiving takes cores away. ``answer_s``: what answering one request, and receiving its successor, takes; one
    after the other. ``overlap``: the share, 0 to 1, of that time by which a batch that runs meanwhile takes longer.
    ``fixed_s``: latency that costs nobody's time. ``spread``: the standard deviation of the logarithm of a batch's
    time, whose mean it leaves alone. ``waking_s``: what a batch takes longer on a machine that was idle for some
    milliseconds. ``threading``: the factor for each doubling of the threads that compute a batch together; under 1
    where that helps. ``meeting_s``: what they wait for each other in a batch, for each doubling: long, where others
    need the cores.
    """

    sizes: Ints
    batch_s: Floats
    gathering_s: Floats
    crowding: Floats
    answer_s: Floats
    fixed_s: Floats
    spread: Floats
    company: Floats
    overlap: Floats
    waking_s: Floats
    threading: Floats
    meeting_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What users of one setting would see; ``rate`` in good answers per second, latencies in milliseconds.

    How it works, too: ``mean_batch`` in requests, and for which share of their time its workers are ``busy``.
    """

    rate: float
    error_share: float
    mean_batch: float
    busy: float
    latencies_ms: Floats

    def percentile_ms(self, share: float) -> float:
        """Return the latency in milliseconds that ``share`` of the requests did not exceed; NaN where none is."""
        return self.percentiles_ms((share,))[0]

    def percentiles_ms(self, shares: Sequence[float]) -> list[float]:
        """Return `percentile_ms` of each of ``shares``."""
        if not len(self.latencies_ms):
            return [float("nan")] * len(shares)
        found: list[float] = np.quantile(self.latencies_ms, shares, method="inverted_cdf").tolist()
        return found


def simulate_open(
    start: Start, policy: Policy, service: Service, arrivals: Floats, *, alike: int = 1, seed: int = 0
) -> list[Predicted]:
    """Return what each setting shows under ``arrivals``: moments in seconds, one row of the same length per setting.

    So many rows after each other as are ``alike`` have the same luck, and differ by their policy and service alone.
    """
    rows, count = arrivals.shape
    each = np.arange(rows)
    step = _Steps(policy, service, rows, alike, seed)
    # One sorted line for all settings: a search in it is a search in each of them at once.
    stride = float(arrivals.max()) + 1.0 if count else 1.0
    line = (arrivals + each[:, None] * stride).reshape(-1)
    queued = np.full((rows, count + 1), np.inf)  # accepted requests, by when they came
    head, tail, seen = np.zeros((3, rows), np.int64)
    rejected = np.zeros(rows, np.int64)
    # A queue that the server's own threads cannot fill turns nobody away: the rest waits outside.
    room = np.where(policy.admitted <= policy.room, np.iinfo(np.int64).max, policy.room)

    def take(until: Floats, limit: Ints) -> None:
        """Queue what came ``until`` then, up to ``limit`` in the queue, and turn the rest away."""
        nonlocal tail, seen, rejected
        reached = np.searchsorted(line, np.minimum(until, stride - 0.5) + each * stride, side="right") - each * count
        new = np.where(active, np.maximum(reached - seen, 0), 0)
        kept = np.minimum(new, np.maximum(limit - (tail - head), 0))
        total = int(kept.sum())
        if total:
            which = np.repeat(each, kept)
            offset = np.arange(total) - np.repeat(np.cumsum(kept) - kept, kept)
            queued[which, tail[which] + offset] = arrivals[which, seen[which] + offset]
        tail, seen, rejected = tail + kept, seen + new, rejected + new - kept

    while True:
        active = (head < tail) | (seen < count)
        if not active.any():
            break
        waiting = tail - head
        first = np.where(waiting > 0, queued[each, head], _at(arrivals, each, seen))
        full = np.where(
            waiting >= policy.size,
            queued[each, np.minimum(head + policy.size - 1, count)],
            _at(arrivals, each, seen + policy.size - 1 - waiting),
        )
        full = np.where(policy.size <= policy.admitted, full, _FAR)
        until, begin = step.next_start(start, first, full)
        take(until, room)
        take(begin, np.full(rows, count))
        inside = np.maximum(policy.admitted - step.executing(begin), 1)
        taken = np.where(active, np.minimum(np.minimum(policy.size, inside), tail - head), 0)
        step.run(begin, taken, tail - head - taken + step.executing(begin), active)
        head += taken
    return step.predicted(queued, rejected, arrivals)


def _at(values: Floats, each: Ints, index: Ints) -> Floats:
    """Return ``values[row, index]`` for each row, far away beyond the end."""
    last = values.shape[1] - 1
    return np.where(index <= last, values[each, np.clip(index, 0, last)], _FAR)


class _Steps:
    """The workers of every setting, and the batches that they have run."""

    def __init__(self, policy: Policy, service: Service, rows: int, alike: int, seed: int) -> None:
        self.policy, self.service, self.alike = policy, service, alike
        self.each = np.arange(rows)
        most = int(policy.workers.max())
        self.free = np.where(np.arange(most) < policy.workers[:, None], 0.0, np.inf)
        self.size = np.zeros((rows, most), np.int64)
        self.last = np.zeros(rows)
        self.io_free = np.zeros(rows)
        self.busy_until = np.zeros(rows)
        self.worked = np.zeros(rows)
        self.random = np.random.default_rng(seed)
        self.worker = np.zeros(rows, np.int64)
        self.table = _tables(policy, service)
        self.table[:, 2:] += service.gathering_s[:, None] * np.arange(1, self.table.shape[1] - 1)
        doublings = np.log2(policy.threads)
        self.table[:, 2:] *= (service.threading**doublings)[:, None]  # one row is no work to share
        self.table[:, 1:] += (service.meeting_s * doublings)[:, None]
        self.finished: list[tuple[Floats, Ints]] = []

    def next_start(self, start: Start, first: Floats, full: Floats) -> tuple[Floats, Floats]:
        """Choose the worker that is idle first, and when it starts."""
        self.worker = self.free.argmin(axis=1)
        moment = Moment(
            free=self.free[self.each, self.worker],
            last=self.last,
            first=first,
            full=full,
            delay=self.policy.delay,
            chance=np.repeat(self.random.random(len(first) // self.alike), self.alike),
        )
        return start(moment)

    def executing(self, now: Floats) -> Ints:
        """Return how many requests are in batches that run."""
        running: Ints = np.where((self.free > now[:, None]) & np.isfinite(self.free), self.size, 0).sum(axis=1)
        return running

    def run(self, begin: Floats, taken: Ints, others: Ints, active: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Run a batch of ``taken`` requests in every active setting; return when it ends, and its first answer."""
        busy = ((self.free > begin[:, None]) & np.isfinite(self.free)).sum(axis=1)
        factor = self.service.crowding[self.each, np.minimum(busy, self.service.crowding.shape[1] - 1)]
        factor = factor * (1.0 + self.service.company * (1.0 - 1.0 / (np.maximum(others, 0) + 1.0)))
        spread = self.service.spread
        luck = np.repeat(self.random.standard_normal(len(begin) // self.alike), self.alike)
        noise = np.exp(spread * luck - spread**2 / 2)
        took = self.table[self.each, np.minimum(taken, self.table.shape[1] - 1)] * factor * noise
        took += self.service.overlap * np.maximum(self.io_free - begin, 0.0)
        idle = np.maximum(begin - np.maximum(self.busy_until, self.io_free), 0.0)
        took += self.service.waking_s * (1.0 - np.exp(-idle / _FALLS_ASLEEP_S))
        end = begin + took
        self.worked += np.where(active, took, 0.0)
        self.busy_until = np.where(active, np.maximum(self.busy_until, end), self.busy_until)
        self.free[self.each, self.worker] = np.where(active, end, self.free[self.each, self.worker])
        self.size[self.each, self.worker] = np.where(active, taken, self.size[self.each, self.worker])
        self.last = np.where(active, begin, self.last)
        answers = np.maximum(end, self.io_free)
        self.io_free = np.where(active, answers + taken * self.service.answer_s, self.io_free)
        self.finished.append((answers, taken))
        return end, answers

    def busy(self) -> Floats:
        """Return for what share of their time the workers of each setting ran batches."""
        share: Floats = self.worked / np.maximum(self.busy_until * self.policy.workers, 1e-9)
        return share

    def predicted(self, queued: Floats, rejected: Ints, arrivals: Floats) -> list[Predicted]:
        """Return what users saw, without the first tenth of them."""
        answers = np.array([each[0] for each in self.finished])
        taken = np.array([each[1] for each in self.finished])
        found, busy = [], self.busy()
        for row in range(len(self.policy)):
            counts = taken[:, row]
            position = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            done = np.repeat(answers[:, row], counts) + (position + 1) * self.service.answer_s[row]
            came = queued[row, : len(done)]
            skip = len(done) // 10
            span = done[skip:].max() - came[skip] if len(done) > skip else 0.0
            offered = arrivals.shape[1]
            found.append(
                Predicted(
                    rate=float((len(done) - skip) / span) if span > 0 else 0.0,
                    error_share=float(rejected[row] / offered) if offered else 0.0,
                    mean_batch=float(counts[counts > 0].mean()) if counts.any() else 0.0,
                    busy=float(busy[row]),
                    latencies_ms=(done - came + self.service.fixed_s[row])[skip:] * 1000,
                )
            )
        return found


def simulate_closed(
    start: Start, policy: Policy, service: Service, callers: Ints, *, batches: int = 600, alike: int = 1, seed: int = 0
) -> list[Predicted]:
    """Return what each setting shows to ``callers`` that send again when they have their answer.

    Ends after ``batches``; callers that the server does not admit wait outside. ``alike``: see `simulate_open`.
    """
    rows, most = len(policy), int(callers.max())
    each = np.arange(rows)
    step = _Steps(policy, service, rows, alike, seed)
    column = np.arange(most)
    came = np.where(column < callers[:, None], 0.0, np.inf)  # when each caller's request is there
    everybody = np.ones(rows, np.bool_)
    latencies: list[tuple[Ints, Floats, Floats]] = []
    for _ in range(batches):
        came.sort(axis=1)
        full = np.where(
            policy.size <= np.minimum(callers, policy.admitted), came[each, np.minimum(policy.size, most) - 1], _FAR
        )
        _, begin = step.next_start(start, came[:, 0], np.where(np.isfinite(full), full, _FAR))
        there = (came <= begin[:, None]).sum(axis=1)
        inside = np.maximum(policy.admitted - step.executing(begin), 1)
        taken = np.minimum(np.minimum(policy.size, inside), there)
        end, answers = step.run(begin, taken, callers - taken, everybody)
        mine = column < taken[:, None]
        done = answers[:, None] + (column + 1) * service.answer_s[:, None] + service.fixed_s[:, None]
        waited = (done - came)[mine]
        latencies.append((taken, waited, np.where(taken > 0, end, 0.0)))
        came = np.where(mine, done, came)
    return _closed(latencies, batches, step.busy())


def _closed(latencies: list[tuple[Ints, Floats, Floats]], batches: int, busy: Floats) -> list[Predicted]:
    """Return what callers saw, without the first fifth of the batches."""
    skip = batches // 5
    taken = np.array([each[0] for each in latencies])
    ends = np.array([each[2] for each in latencies])
    rows = taken.shape[1]
    owner = np.concatenate([np.repeat(np.arange(rows), each[0]) for each in latencies[skip:]])
    waited = np.concatenate([each[1] for each in latencies[skip:]])
    order = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[order], np.arange(rows + 1))
    waited = waited[order]
    counted = taken[skip:]
    spans = ends[skip:].max(axis=0) - ends[:skip].max(axis=0)
    return [
        Predicted(
            rate=float(counted[:, row].sum() / spans[row]),
            error_share=0.0,
            mean_batch=float(counted[:, row].mean()),
            busy=float(busy[row]),
            latencies_ms=waited[bounds[row] : bounds[row + 1]] * 1000,
        )
        for row in range(rows)
    ]


def _tables(policy: Policy, service: Service) -> Floats:
    """Return the time of a batch of 0, 1, 2, ... requests for every setting, padded to its allowed size."""
    largest = max(int(policy.size.max()), 1)
    sizes = np.arange(largest + 1)
    found = np.empty((len(policy), largest + 1))
    for row in range(len(policy)):
        executed = sizes
        if policy.allowed and policy.allowed[row]:
            allowed = np.array(policy.allowed[row])
            at = np.searchsorted(allowed, sizes)
            executed = np.where(at < len(allowed), allowed[np.minimum(at, len(allowed) - 1)], sizes)
        found[row] = np.interp(executed, service.sizes, service.batch_s[row])
        beyond = executed > service.sizes[-1]
        found[row][beyond] = service.batch_s[row][-1] * executed[beyond] / service.sizes[-1]
    return found
