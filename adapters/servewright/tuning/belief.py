"""What is believed of settings that were not measured: the simulation's word, corrected by what was measured near them.

The correction is a Gaussian process over the logarithm of measured by simulated. What the simulation gets wrong it gets
wrong for all settings, for all under one load, for those that have one knob's value in common, for neighbours, one
step of a knob apart, and for those that work alike: whose callers come in step and fill batch after batch, whose queue
never empties, or whose batches wait for their time. And the numbers of the model may be wrong, for few measurements do
not tell them: one setting that is off by what a number would do tells of all others in which that number matters. It
says how sure it is, too: a search needs both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from servewright.calibrating import Model
from servewright.load.saturation import least_of
from servewright.simulating import Floats, Ints
from servewright.tuning.study import Load, Settings, Value


@dataclass(frozen=True, slots=True)
class _Scales:
    """Standard deviations of log ratios: of all settings together, of neighbours, of one measurement, of a regime."""

    everywhere: float
    near: float
    noise: float
    regime: float = 0.0

    def doubted(self, doubt: float, noisier: float) -> _Scales:
        """Return those of a simulation that is worse than usual, and of a machine that is noisier."""
        return _Scales(self.everywhere * doubt, self.near * doubt, self.noise * noisier, self.regime * doubt)


_RATE: Final = _Scales(everywhere=0.15, near=0.10, noise=0.04, regime=0.20)
_LATENCY: Final = _Scales(everywhere=0.05, near=0.2, noise=0.15)
_KEPT_UP: Final = 0.01  # an open loop that keeps up has the rate that was asked of it
_REACH: Final = 1.3
_OF_ONE_KNOB, _KNOB_REACH = 0.5, 0.7  # beside the deviation of neighbours; in steps of the knob
_OF_ONE_LOAD: Final = 1.5  # beside that deviation, too
_OF_NUMBERS: Final = 0.5  # of what servers differ in a number of the model: so far it may be wrong
_REGIME_REACH: Final = 0.3  # of the share that a batch is full, and of the share of their time that workers are busy
_LOADS: Final = 2  # columns of a place that tell of the load
_MOST_OFF: Final = 1.5
_STALL: Final = 0.3
_TELL_USUAL: Final = 3  # measurements under one load tell how long its tails usually are
_DOUBTS: Final = (1.0, 1.5, 2.0, 3.0)
_NOISES: Final = (1.0, 2.0, 4.0)  # a machine that others use too does not answer twice alike
_TELL_NOISE: Final = 4  # fewer measurements do not tell noise from a simulation that is off


@dataclass(frozen=True, slots=True)
class Guess:
    """A normal distribution of a logarithm for each point: its mean and its standard deviation."""

    mean: Floats
    deviation: Floats

    def chance_below(self, limit: float | Floats) -> Floats:
        """Return the probability that each value lies below ``limit``, itself a logarithm."""
        return _normal((limit - self.mean) / self.deviation)

    def gain_over(self, best: float) -> Floats:
        """Return by how much each value is expected to exceed ``best``, nothing where it does not."""
        step = (self.mean - best) / self.deviation
        density = np.exp(-0.5 * step**2) / math.sqrt(2 * math.pi)
        gain: Floats = self.deviation * (step * _normal(step) + density)
        return gain


_erf = np.vectorize(math.erf, otypes=[float])


def _normal(value: Floats) -> Floats:
    found: Floats = 0.5 * (1.0 + _erf(value / math.sqrt(2)))
    return found


def places(settings: Sequence[Settings], loads: Sequence[Load]) -> Floats:
    """Return where each setting under its load lies: neighbouring values of a knob are one apart."""
    steps: dict[str, dict[Value, int]] = {}
    for name in sorted({name for each in settings for name in each}):
        steps[name] = {value: rank for rank, value in enumerate(sorted({each[name] for each in settings}, key=_order))}
    found = [
        [*(float(steps[name][each[name]]) for name in steps), *_load_place(load)]
        for each, load in zip(settings, loads, strict=True)
    ]
    return np.array(found)


def _order(value: Value) -> tuple[int, ...]:
    if isinstance(value, tuple):
        return (len(value), *value)
    return (value,) if isinstance(value, int) else (0,)


def _load_place(load: Load) -> tuple[float, float]:
    if load.concurrency is not None:
        return 0.0, 0.5 * math.log2(load.concurrency)
    assert load.rate is not None
    return 3.0, 0.5 * math.log2(load.rate)


def _without_stalls(seen: Floats, simulated: Floats, loads: Floats, closed: NDArray[np.bool_]) -> Floats:
    """Return what was seen, less the stalls, which no other setting has.

    A stall is a tail far beyond what the rest of it explains, and farther than such tails usually are: where all tails
    are longer than the simulation's, that is the server's doing, or its machine's. Many callers have longer ones than
    few, so what is usual is told by measurements under the same load, where there are enough, else by all of its kind.
    """
    off = seen - simulated
    excess = off[:, -1] - off[:, -2]
    usual = np.zeros(len(seen))
    for each in range(len(seen)):
        alike = (loads == loads[each]).all(axis=1)
        among = alike if alike.sum() >= _TELL_USUAL else closed == closed[each]
        usual[each] = max(float(np.median(excess[among])), 0.0)
    explained = simulated[:, -1] + off[:, -2] + usual
    found = seen.copy()
    found[:, -1] = np.where(excess > usual + _STALL, explained, seen[:, -1])
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """Every point, a setting under a load: what the simulation says, and where it lies.

    ``simulated`` has a row per point: the rate, then latencies in milliseconds by `calibrating.PERCENTILES`.
    ``sensitivity`` has a block like that for each number of the model: by how much the logarithms change with it.
    ``regime`` has a row per point too: how full its batches are, and its workers' busy share, as simulated; both from 0
    to 1. ``kept_up`` tells of which points the rate is known before, ``closed`` those of closed loops.
    """

    place: Floats
    simulated: Floats
    regime: Floats
    sensitivity: Floats
    kept_up: NDArray[np.bool_]
    closed: NDArray[np.bool_]

    @classmethod
    def of(cls, model: Model, points: Sequence[tuple[Settings, Load]]) -> Belief:
        """Return what ``model`` says of ``points``."""
        asked_for = [(settings, load.pace) for settings, load in points]
        said = model.simulated(asked_for)
        size = model.scheduler.policy([settings for settings, _ in points]).size
        asked = np.array([load.rate or 0.0 for _, load in points])
        least = np.array([least_of(load.rate) if load.rate else 0.0 for _, load in points])
        return cls(
            place=places([settings for settings, _ in points], [load for _, load in points]),
            simulated=said.shown, kept_up=(asked > 0) & (said.shown[:, 0] > least),
            regime=np.column_stack([said.mean_batch / size, said.busy]), closed=asked == 0,
            sensitivity=model.sensitivity(asked_for),
        )  # fmt: skip

    def corrected(self, measured: Sequence[int], seen_there: Floats) -> list[Guess]:
        """Return what is believed of the rate and of each latency: rows of both were seen at points ``measured``."""
        guesses: list[Guess] = []
        at = np.array(measured, np.int64)
        simulated = np.log(self.simulated)
        seen = _without_stalls(np.log(seen_there), simulated[at], self.place[at, -_LOADS:], self.closed[at])
        # So many callers, each waiting for an answer: rate times latency is nearly theirs, and steadier than either.
        simulated[:, 1:] += np.where(self.closed, simulated[:, 0], 0.0)[:, None]
        seen[:, 1:] += np.where(self.closed[at], seen[:, 0], 0.0)[:, None]
        sensitivity = _OF_NUMBERS * self.sensitivity
        sensitivity[:, :, 1:] += np.where(self.closed, sensitivity[:, :, 0], 0.0)[:, :, None]
        for column in range(simulated.shape[1]):
            prior = simulated[:, column]
            scales = _RATE if column == 0 else _LATENCY
            off = np.clip(seen[:, column] - prior[at], -_MOST_OFF, _MOST_OFF) if len(at) else np.zeros(0)
            mean, deviation = self._carried(at, off, scales, sensitivity[:, :, column].T)
            if column == 0:
                mean = np.where(self.kept_up, np.clip(mean, -0.02, 0.0), mean)
                deviation = np.where(self.kept_up, _KEPT_UP, deviation)
            else:
                mean = mean - np.where(self.closed, guesses[0].mean, 0.0)
                deviation = np.hypot(deviation, np.where(self.closed, guesses[0].deviation, 0.0))
            guesses.append(Guess(prior + mean, deviation))
        return guesses

    def _carried(self, at: Ints, off: Floats, scales: _Scales, numbers: Floats) -> tuple[Floats, Floats]:
        """Return mean and deviation of the error of every point, where those ``at`` are ``off``.

        ``numbers`` has a column per number of the model: what its being wrong would do to each point.
        """
        if not len(at):
            whole = self._prior(scales) + (numbers**2).sum(axis=1)
            return np.zeros(len(self.place)), np.sqrt(whole + scales.noise**2)
        every = np.arange(len(self.place))
        in_common = numbers @ numbers[at].T
        scales = self._doubted(at, off, scales, in_common[at])
        among = self._alike(at, at, scales) + in_common[at] + scales.noise**2 * np.eye(len(at))
        across = self._alike(every, at, scales) + in_common
        weights = np.linalg.solve(among, np.column_stack([off, across.T]))
        mean = across @ weights[:, 0]
        before = self._prior(scales) + (numbers**2).sum(axis=1)
        variance = before - (across * weights[:, 1:].T).sum(axis=1)
        return mean, np.sqrt(np.maximum(variance, 0.0) + scales.noise**2)

    def _doubted(self, at: Ints, off: Floats, scales: _Scales, in_common: Floats) -> _Scales:
        """Return the scales that make the errors which were seen most likely.

        The simulation may be worse than usual, and so may be the machine, on which one measurement then tells less.
        """

        def likely(scales: _Scales) -> float:
            among = self._alike(at, at, scales) + in_common + scales.noise**2 * np.eye(len(off))
            return float(-0.5 * off @ np.linalg.solve(among, off) - 0.5 * np.linalg.slogdet(among)[1])

        noises = _NOISES if len(off) >= _TELL_NOISE else _NOISES[:1]
        return max((scales.doubted(doubt, noisier) for doubt in _DOUBTS for noisier in noises), key=likely)

    def _prior(self, scales: _Scales) -> float:
        """Return the variance of a point of which nothing is known."""
        knobs: int = self.place.shape[1] - _LOADS
        near = scales.near**2 * (1 + knobs * _OF_ONE_KNOB**2 + _OF_ONE_LOAD**2)
        return scales.everywhere**2 + near + scales.regime**2

    def _alike(self, here: Ints, there: Ints, scales: _Scales) -> Floats:
        """Return the covariance of points ``here`` with those ``there``."""
        squares = (self.place[here, None] - self.place[None, there]) ** 2
        close = np.exp(-squares.sum(axis=2) / (2 * _REACH**2))
        in_one = np.exp(-squares[:, :, :-_LOADS] / (2 * _KNOB_REACH**2)).sum(axis=2)
        in_load = squares[:, :, -_LOADS:].sum(axis=2) == 0
        near: Floats = scales.near**2 * (close + _OF_ONE_KNOB**2 * in_one + _OF_ONE_LOAD**2 * in_load)
        if scales.regime:
            apart = ((self.regime[here, None] - self.regime[None, there]) ** 2).sum(axis=2)
            near += scales.regime**2 * in_load * np.exp(-apart / (2 * _REGIME_REACH**2))
        return scales.everywhere**2 + near
