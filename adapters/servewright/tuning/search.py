"""The search: calibrate, simulate the whole grid, verify the promising few; a function of a function that measures.

It knows no server and touches nothing, so the same code tunes a running server and replays a recorded surface, and a
study is resumed by asking it again: the same answers lead to the same questions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np

from servewright.calibrating import NUMBERS, PERCENTILES, Cell, fit
from servewright.calibrating import Model as Fitted
from servewright.load.measurement import PERCENTILES as NAMED
from servewright.load.saturation import least_of
from servewright.simulating import Floats, Scheduler
from servewright.tuning.belief import Belief, Guess, places
from servewright.tuning.study import Goal, Load, Measured, Model, Predicted, Predictions, Seen, ServiceTime, Settings

ROWS: Final = (1, 64)  # of the requests by which a batch's time is calibrated
_CALIBRATED: Final = 3  # settings that are measured before the model is fitted
ROUNDS: Final = 12
_ENOUGH: Final = 1e-4  # the greatest chance of winning by more than the margin that is let go
_CALLERS: Final = 64  # of the closed loop that calibrates where only open loops are asked for
# In measurements: as if so many had kept a promise as they were hoped to. Times the square of what is left to ask by
# the whole budget. Of 256 replays of recorded surfaces as many succeed with half as much again, and with twice as much.
_TRUST: Final = 2.0
_LEAST_TRUST: Final = 0.1
_TAIL: Final = 1.25  # of p99.9 over p99, where only this is simulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be measured next, and what the model says of it."""

    index: int
    stage: Any
    settings: Settings
    load: Load
    predicted: Seen | None = None


class Bench(Protocol):
    """What answers questions: a running server, or a recording of one."""

    def service_times(self, rows: Sequence[int]) -> Sequence[ServiceTime]:
        """Return how long a request of each number of rows takes alone, and, where that is known, beside others."""
        ...

    def measure(self, question: Question) -> Measured:
        """Return what users see; a server that fails under the setting is an answer too."""
        ...

    def over(self) -> bool:
        """Tell whether the time is spent."""
        ...


@dataclass(slots=True, kw_only=True)
class Found:
    """What a search has found, whenever it ended; ``best`` is a measurement that keeps every promise.

    ``hopeless``: nothing has, and nothing that was left had a chance to.
    """

    service_times: tuple[ServiceTime, ...] = ()
    model: Model | None = None
    predictions: Predictions | None = None
    measurements: list[Measured] = field(default_factory=list)
    best: Measured | None = None
    state: str = "spent"
    hopeless: bool = False


def worth(goal: Goal, seen: Seen) -> float:
    """Return the logarithm of what is maximised."""
    found = seen.rate if goal.maximise == "rate" else 1.0 / max(seen.percentile_ms(0.99), 1e-6)
    return float(np.log(max(found, 1e-9)))


def broken(goal: Goal, seen: Seen, load: Load) -> str:
    """Return the first promise that ``seen`` breaks, or nothing."""
    return goal.slo.broken_by(seen, asked=load.rate)


def search(
    grid: Sequence[Settings], goal: Goal, scheduler: Scheduler, bench: Bench, *, earlier: Sequence[int] = (),
    rounds: int = ROUNDS,
) -> Found:  # fmt: skip
    """Return the best of ``grid`` under the goal's loads, in at most the goal's budget of measurements.

    What is risked depends on what is left, so a search that was given more asks as it did under each ``earlier``
    budget before it goes on. ``rounds`` is how long the model is fitted. Ctrl-C ends the search with what there is.
    """
    state = Found()
    try:
        _Search(grid, goal, scheduler, bench, state, rounds).run((*earlier, goal.budget))
    except KeyboardInterrupt:
        state.state = "interrupted"
    if state.best is None and state.state != "interrupted":
        state.hopeless = state.state == "complete"
        state.state = "nothing"
    return state


class _Search:
    """One search under way; points are all settings under all loads, in one order.

    Where several open loops are asked for, a closed one comes after them: it is calibrated with, and is no answer. How
    late an open loop is that overruns the server depends on how long it lasts, and tells little of anything else.
    """

    def __init__(
        self, grid: Sequence[Settings], goal: Goal, scheduler: Scheduler, bench: Bench, found: Found, rounds: int
    ) -> None:
        self.grid, self.goal, self.scheduler, self.bench, self.found = grid, goal, scheduler, bench, found
        self.rounds, self.seconds, self.budget = rounds, 0.0, goal.budget
        closed = any(load.concurrency is not None for load in goal.loads)
        beside = () if closed or len(goal.loads) == 1 else (Load(concurrency=_CALLERS),)
        self.loads = (*goal.loads, *beside)
        self.points = [(settings, load) for load in self.loads for settings in grid]
        self.place = places([each for each, _ in self.points], [load for _, load in self.points])
        self.measured: list[int] = []
        self.hoped: dict[int, float] = {}  # with which chance each was verified, by the number of its measurement
        self.asked_for = np.array([load not in beside for _, load in self.points])
        self.harmful = np.zeros(len(self.points), np.bool_)
        self.closed = ~self.asked_for  # also what was measured, or harms the server

    def run(self, budgets: Sequence[int]) -> None:
        """Ask until nothing can win any more, or nothing is left to ask with."""
        self.found.service_times = tuple(self.bench.service_times(ROWS))
        for count, point in enumerate(self._spread()):
            if count >= _CALIBRATED and self.measured:
                break
            if self._left() < 1:
                return
            if not self.harmful[point]:
                self._ask("calibrate", point, None)
        if not self.measured:
            return
        belief = self._simulated()
        for self.budget in budgets:
            if self._verified(belief):
                self.found.state = "complete"
                return
        self._keep(belief.corrected(*self._known()))

    def _verified(self, belief: Belief) -> bool:
        """Measure what is promising while the budget lasts, and tell whether nothing else can win."""
        while self._left() >= 1:
            guesses = belief.corrected(*self._known())
            holds = self._holds(guesses)
            point, chance = self._next(guesses, holds)
            self._keep(guesses)
            if chance < _ENOUGH:
                return True
            self.hoped[len(self.found.measurements)] = float(holds[point])
            self._ask("verify", point, self._seen(guesses, point))
        return False

    def _left(self) -> int:
        if self.bench.over():
            return 0
        return self.budget - len(self.found.service_times) - len(self.found.measurements)

    def _ask(self, stage: str, point: int, predicted: Seen | None) -> None:
        settings, load = self.points[point]
        index = len(self.found.measurements)
        seen = self.bench.measure(Question(index=index, stage=stage, settings=settings, load=load, predicted=predicted))
        self.found.measurements.append(seen)
        self.closed[point] = True
        if seen.unsafe:
            self.harmful |= np.array([each == settings for each, _ in self.points])
            self.closed |= self.harmful
            return
        if seen.p99_ms is not None and seen.rate > 0:
            self.measured.append(point)
        best = self.found.best
        answers = self.asked_for[point] and not seen.broken
        if answers and (best is None or worth(self.goal, seen) > worth(self.goal, best)):
            self.found.best = seen

    def _known(self) -> tuple[list[int], Floats]:
        usable = [each for each in self.found.measurements if not each.unsafe and each.p99_ms is not None and each.rate]
        shown = [[each.rate, *(each.percentile_ms(share) for share in PERCENTILES)] for each in usable]
        return self.measured, np.array(shown).reshape(len(usable), 1 + len(PERCENTILES))

    def _spread(self) -> Iterator[int]:
        """Return points to calibrate on, far from each other, in turn under the greatest load and a middling one.

        The first fills the largest batches one after the other: it shows what answering costs. The rest is the seed's.
        """
        random = np.random.default_rng(self.goal.seed)
        closed = [load for load in self.goal.loads if load.concurrency is not None]
        busy = sorted(closed or self.goal.loads, key=lambda load: load.concurrency or load.rate or 0.0)
        greatest = busy[-1] if closed else self.loads[-1]
        turns = [self.loads.index(load) for load in (greatest, busy[(len(busy) - 1) // 2])]
        count = len(self.grid)
        place = self.place[:count]
        place = place / np.maximum(np.ptp(place, axis=0), 1e-9)  # a knob of two values matters as much as one of six
        policy = self.scheduler.policy(self.grid)
        picked = [int(np.lexsort((-policy.workers, policy.delay, policy.size))[-1])]
        yield turns[0] * count + picked[0]
        while len(picked) < count:
            distance = ((place[:, None] - place[picked][None]) ** 2).sum(axis=2).min(axis=1)
            farthest = np.flatnonzero(distance >= 0.8 * distance.max())
            picked.append(int(random.choice(farthest)))
            yield turns[(len(picked) - 1) % 2] * count + picked[-1]

    def _simulated(self) -> Belief:
        """Fit the model to what was measured, and ask it of every point."""
        begin = time.monotonic()
        times = {each.rows: each.ms / 1e3 for each in self.found.service_times if each.busy == 1}
        beside = {each.busy: each.ms / 1e3 for each in self.found.service_times if each.busy > 1}
        cells = [
            Cell(
                setting=each.settings, pace=each.load.pace, rate=each.rate,
                percentiles_ms=tuple(each.percentile_ms(share) for share in PERCENTILES),
            )
            for each in self.found.measurements
            if not each.unsafe and each.p99_ms is not None and each.rate > 0
        ]  # fmt: skip
        fitted: Fitted = fit(self.scheduler, times, cells, beside_s=beside, rounds=self.rounds, seed=self.goal.seed)
        fits = tuple(dict(zip(NUMBERS, values, strict=True)) for values in fitted.fits.tolist())
        self.found.model = Model(fits=fits, error=fitted.error, rounds=self.rounds)
        belief = Belief.of(fitted, self.points)
        self.seconds = time.monotonic() - begin
        return belief

    def _holds(self, guesses: Sequence[Guess]) -> Floats:
        """Return the chance of each point to keep every promise on latency, and the rate that is asked."""
        chance: Floats = np.ones(len(self.points))
        columns = {share: column for column, share in enumerate(PERCENTILES, 1)}
        for name, limit in self.goal.latency_ms.items():
            share = NAMED[name]
            column, factor = (columns[share], 1.0) if share in columns else (columns[0.99], _TAIL)
            chance = np.minimum(chance, guesses[column].chance_below(float(np.log(limit / factor))))
        least = np.array([max(least_of(load.rate or 0.0), 1e-9) for _, load in self.points])
        return np.minimum(chance, 1.0 - guesses[0].chance_below(np.log(least))) * self._bears(guesses[0])

    def _bears(self, rates: Guess) -> Floats:
        """Return the chance of each point that its setting bears the rate that is asked of it.

        What a setting answers under the most callers is about what it can do. That it, or its client, is too slow for
        a rate before is only seen: of the settings that were measured at that rate, or kept the promises at a greater
        one, or broke them at a lesser one, so many kept them, and one more that might have.
        """
        count = len(self.grid)
        callers = [load.concurrency or 0 for load in self.loads]
        most = callers.index(max(callers)) * count
        able = Guess(rates.mean[most : most + count], rates.deviation[most : most + count])
        chances: list[Floats] = []
        for load in self.loads:
            chance = np.ones(count)
            if load.rate is not None:
                kept = self._kept_at(load.rate)
                chance *= sum(kept) / len(kept)
                if max(callers):
                    chance *= 1.0 - able.chance_below(float(np.log(max(least_of(load.rate), 1e-9))))
            chances.append(chance)
        return np.concatenate(chances)

    def _borne_out(self) -> Floats:
        """Return, for each point, what hopes are worth under its load if that is a closed loop.

        Whether so many callers are answered in time is alike for more settings than the belief takes for neighbours: if
        fewer of those that were measured did than was hoped, others will too. Else a promise that many callers break by
        a hair is asked of them again and again, for the much that it would gain. A hope that fails costs little while
        much is left to ask, so the less is left, the more weighs what was seen. What is believed of a setting, and
        reported, it does not touch.
        """
        trust = _TRUST * (self._left() - 1) ** 2 / self.budget + _LEAST_TRUST
        shares: list[float] = []
        for load in self.loads:
            kept = hoped = trust
            for index, chance in self.hoped.items():
                seen = self.found.measurements[index]
                if seen.load == load:
                    kept += not seen.broken and not seen.unsafe
                    hoped += chance
            shares.append(min(kept / hoped, 1.0) if load.rate is None else 1.0)
        return np.repeat(shares, len(self.grid))

    def _kept_at(self, rate: float) -> list[bool]:
        """Tell of each measurement that says something of ``rate`` whether the promises were kept; of one more."""
        kept = [True]
        for seen in self.found.measurements:
            asked, keeps = seen.load.rate, not seen.broken and not seen.unsafe
            if asked is not None and (asked == rate or keeps == (asked > rate)):
                kept.append(keeps)
        return kept

    def _worth(self, guesses: Sequence[Guess]) -> Guess:
        if self.goal.maximise == "rate":
            return guesses[0]
        tail = guesses[1 + PERCENTILES.index(0.99)]
        return Guess(-tail.mean, tail.deviation)

    def _next(self, guesses: Sequence[Guess], holds: Floats) -> tuple[int, float]:
        """Return the point to measure next, and the greatest chance of any to win by more than the margin."""
        value, holds = self._worth(guesses), np.where(self.closed, 0.0, holds * self._borne_out())
        if self.found.best is None:
            # The less is left, the less may be risked: the last question is what most likely holds.
            daring = (self._left() - 1) / self.budget
            promise = holds * np.exp(daring * (value.mean - value.mean.max()))
            return int(promise.argmax()), float(holds.max())
        best = worth(self.goal, self.found.best)
        wins = holds * (1.0 - value.chance_below(best + np.log1p(self.goal.margin)))
        promise = holds * value.gain_over(best)
        return int(promise.argmax()), float(wins.max())

    def _seen(self, guesses: Sequence[Guess], point: int) -> Seen:
        rate, *latencies = (float(np.exp(guess.mean[point])) for guess in guesses)
        return Seen(rate=rate, p50_ms=latencies[0], p90_ms=latencies[1], p99_ms=latencies[2])

    def _keep(self, guesses: Sequence[Guess]) -> None:
        """Keep the frontier of what is believed, and the best of it."""
        value, holds = self._worth(guesses), np.where(self.asked_for, self._holds(guesses), 0.0)
        rates, tails = guesses[0].mean, guesses[1 + PERCENTILES.index(0.99)].mean
        frontier, least = [], np.inf
        for point in np.lexsort((tails, -rates)).tolist():
            if self.asked_for[point] and tails[point] < least:
                least = tails[point]
                frontier.append(point)
        best = np.argsort(-np.where(holds > 0.5, value.mean, -np.inf))[:10].tolist()
        self.found.predictions = Predictions(
            settings=len(self.grid), seconds=round(self.seconds, 2),
            frontier=tuple(self._predicted(guesses, holds, point) for point in frontier),
            best=tuple(self._predicted(guesses, holds, point) for point in best),
        )  # fmt: skip

    def _predicted(self, guesses: Sequence[Guess], holds: Floats, point: int) -> Predicted:
        settings, load = self.points[point]
        return Predicted(settings=settings, load=load, seen=self._seen(guesses, point), holds=bool(holds[point] > 0.5))
