"""From a few measurements of a running server to a model of it, and from that to every other setting.

The shape of the model is `Service`; its numbers are those with which the simulation shows what was measured. What it
still gets wrong is for `tuning.belief`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from servewright.load.arrivals import Arrivals
from servewright.load.workload import Closed, Pace
from servewright.simulating import Floats, Ints, Policy, Predicted, Scheduler, Service, simulate_closed, simulate_open

PERCENTILES: Final = (0.5, 0.9, 0.99)


class _Number(NamedTuple):
    """A number of the model: between what it is looked for, what is usual, and by how much servers differ in it."""

    least: float
    greatest: float
    usual: float
    differs: float


# A few measurements do not tell every number, and what is usual fills in: for a server of which nothing else is known,
# about what early fits to seven recorded surfaces have in common (`benchmarks/surfaces`). A scheduler tells better of
# its kind of server; those of both backends tell all.
_RANGES: Final[Mapping[str, _Number]] = {
    "fixed_s": _Number(5e-5, 8e-4, 2.5e-4, 2e-4),
    "answer_s": _Number(1e-6, 4e-4, 2e-4, 1e-4),
    "gathering_s": _Number(0.0, 6e-4, 5e-5, 1.5e-4),
    "scale": _Number(0.5, 1.7, 1.0, 0.25),
    "crowding": _Number(1.0, 3.0, 1.8, 0.4),
    "spread": _Number(0.02, 0.8, 0.45, 0.15),
    "company": _Number(0.0, 2.5, 0.3, 0.5),
    "overlap": _Number(0.0, 1.0, 0.15, 0.2),
    "waking_s": _Number(0.0, 3e-3, 1.2e-3, 1e-3),
    "threading": _Number(0.5, 2.0, 1.0, 0.3),
    "meeting_s": _Number(0.0, 3e-3, 2e-4, 3e-4),
    "carrying": _Number(0.0, 0.9, 0.4, 0.25),
}
LIMITS: Final = {name: (number.least, number.greatest) for name, number in _RANGES.items()}
_LEAST, _GREATEST = np.array(list(LIMITS.values())).T
_PULL: Final = 0.1
_AVERAGED: Final = 12  # candidates: the luckiest is not the best, a simulation of a second is noisy too
_FITS: Final = 4  # one ranks the settings by the luck of its start
NUMBERS: Final = tuple(_RANGES)
_WEIGHTS: Final = np.array([1.0, 0.6, 0.4, 0.4])  # of the rate and of PERCENTILES
_MOST_OFF: Final = 0.5  # one measurement with a stall in it must not bend the model
_ROWS: Final = 500  # settings that are simulated together: more do not fit into the processor's cache
_SCORED_S, _PREDICTED_S = 1.2, 5.0
_MOST_ARRIVALS: Final = 8000  # a tail is known from so many, and a step for each is what costs time
_LEAST_ARRIVALS: Final = 50
_NOTHING: Final = 1e-9  # whose logarithm can be taken
_CHANGED_S: Final = 0.4  # before and after come the same arrivals, so that less shows a difference
_SCORED_BATCHES, _PREDICTED_BATCHES, _CHANGED_BATCHES = 200, 500, 100

Setting: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A measurement: a setting under a load; ``percentiles_ms`` are those of `PERCENTILES`."""

    setting: Setting
    pace: Pace
    rate: float
    percentiles_ms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A server as it was measured; ``error`` is how far it is off on what it was fitted to, as a weighted log ratio.

    ``fits`` has the numbers of several fits, a row each. A few measurements do not tell all of them, so fits that start
    elsewhere end elsewhere; what they say on average is nearer than what one of them says, or their average numbers.
    ``crowded`` is with how many busy workers they crowd each other by the whole of ``crowding``.
    """

    scheduler: Scheduler
    sizes: Ints
    alone_s: Floats
    fits: Floats
    error: float
    crowded: int = 2

    @property
    def values(self) -> Floats:
        """The numbers, averaged over the fits."""
        found: Floats = self.fits.mean(axis=0)
        return found

    def simulated(self, asked: Sequence[tuple[Setting, Pace]]) -> Said:
        """Return the simulation's bare word on each of ``asked``."""
        values = np.repeat(self.fits, len(asked), axis=0)
        every = list(asked) * len(self.fits)
        predicted = _simulated(self, every, values, seconds=_PREDICTED_S, batches=_PREDICTED_BATCHES)
        by_fit = len(self.fits), len(asked)
        return Said(
            shown=np.exp(np.log(np.maximum(_shown(predicted), _NOTHING)).reshape(*by_fit, -1).mean(axis=0)),
            mean_batch=np.reshape([each.mean_batch for each in predicted], by_fit).mean(axis=0),
            busy=np.reshape([each.busy for each in predicted], by_fit).mean(axis=0),
        )

    def sensitivity(self, asked: Sequence[tuple[Setting, Pace]]) -> Floats:
        """Return by how much the logarithms of what is shown change with each number of the model: a block for each.

        A number is changed by as much as servers differ in it.
        """
        _, differs = _expected(self.scheduler)
        steps = np.where(self.values + differs <= _GREATEST, differs, -differs)
        values = np.vstack([self.values, np.clip(self.values + np.diag(steps), _LEAST, _GREATEST)])
        changed = _simulated(
            self, [each for each in asked for _ in values], np.tile(values, (len(asked), 1)), seconds=_CHANGED_S,
            batches=_CHANGED_BATCHES, alike=len(values),
        )  # fmt: skip
        logs = np.log(np.maximum(_shown(changed), _NOTHING)).reshape(len(asked), len(values), -1)
        found: Floats = np.clip(logs[:, 1:] - logs[:, :1], -_MOST_OFF, _MOST_OFF)
        return found.swapaxes(0, 1)


class Said(NamedTuple):
    """What a simulation says of points, a row or a value for each.

    ``shown``: the rate, and latencies by `PERCENTILES` in milliseconds. ``mean_batch`` in requests; ``busy``: for which
    share of their time workers are.
    """

    shown: Floats
    mean_batch: Floats
    busy: Floats


def _shown(predicted: Sequence[Predicted]) -> Floats:
    return np.array([(each.rate, *each.percentiles_ms(PERCENTILES)) for each in predicted])


def fit(
    scheduler: Scheduler, alone_s: Mapping[int, float], cells: Sequence[Cell], *,
    beside_s: Mapping[int, float] | None = None, rounds: int = 30, seed: int = 0,
) -> Model:  # fmt: skip
    """Return the model that shows ``cells`` best.

    ``alone_s`` is what one caller waits for a request of so many rows, ``beside_s`` what so many callers wait for one
    row, each with a worker of its own. Differential evolution: candidates are moved along the differences of good ones,
    and the mean of the best is taken. Several such evolutions, which do not mix, go side by side.
    """
    random = np.random.default_rng(seed)
    low, high = _LEAST, _GREATEST
    sizes = np.array(sorted(alone_s))
    beside_s, fits = beside_s or {}, np.arange(_FITS)[:, None]
    model = Model(
        scheduler=scheduler, sizes=sizes, alone_s=np.array([alone_s[size] for size in sizes.tolist()]), fits=low[None],
        error=float("inf"), crowded=max(beside_s, default=2),
    )  # fmt: skip
    found = low + (high - low) * random.random((_FITS, 240, len(low)))
    errors = _errors(model, cells, beside_s, found)
    for _ in range(rounds):
        best = np.argsort(errors)[:, :24]
        elite, kept = found[fits, best], errors[fits, best]
        parent, first, second = random.integers(24, size=(3, _FITS, 72))
        moved = elite[fits, parent]
        moved += random.uniform(0.4, 0.9, (_FITS, 72, 1)) * (elite[fits, first] - elite[fits, second])
        moved += 0.3 * (elite[:, :1] - elite[fits, parent]) * (random.random((_FITS, 72, 1)) < 0.5)
        moved += random.normal(size=moved.shape) * (high - low) * 0.01
        moved = np.clip(moved, low, high)
        found = np.concatenate([elite, moved], axis=1)
        errors = np.concatenate([kept, _errors(model, cells, beside_s, moved)], axis=1)
    values = found[fits, np.argsort(errors)[:, :_AVERAGED]].mean(axis=1)
    return replace(model, fits=values, error=float(_errors(model, cells, beside_s, values).mean()))


def _expected(scheduler: Scheduler) -> tuple[Floats, Floats]:
    """Return what is usual of each number on such a server, and by how much servers differ in it."""
    found = [scheduler.usual.get(name, (number.usual, number.differs)) for name, number in _RANGES.items()]
    usual, differs = np.array(found).T
    return usual, differs


def _errors(model: Model, cells: Sequence[Cell], beside_s: Mapping[int, float], found: Floats) -> Floats:
    """Return how far each candidate is off; the last axis of ``found`` has its numbers."""
    candidates = found.reshape(-1, found.shape[-1])
    asked = [(cell.setting, cell.pace) for cell in cells] * len(candidates)
    values = np.repeat(candidates, len(cells), axis=0)
    simulated = _shown(_simulated(model, asked, values, seconds=_SCORED_S, batches=_SCORED_BATCHES))
    off = np.abs(np.log(simulated / np.tile(_measured(cells), (len(candidates), 1))))
    of_cells = (np.minimum(off, _MOST_OFF) * _WEIGHTS).sum(axis=1).reshape(len(candidates), -1)
    of_busy = [_WEIGHTS[1] * _off_beside(model, busy, seconds, candidates) for busy, seconds in beside_s.items()]
    errors: Floats = np.column_stack([of_cells, *of_busy]).mean(axis=1)
    usual, differs = _expected(model.scheduler)
    pull: Floats = (((candidates - usual) / differs) ** 2).sum(axis=1)
    return (errors + _PULL * pull / len(cells)).reshape(found.shape[:-1])


def _off_beside(model: Model, busy: int, seconds: float, candidates: Floats) -> Floats:
    """Return how far each candidate is off where so many workers are busy with one row each, as a log ratio."""
    ones = np.ones(len(candidates), np.int64)
    policy = Policy(
        size=ones, delay=np.zeros(len(candidates)), workers=ones * busy, room=ones * busy, admitted=ones * busy,
        threads=ones,
    )  # fmt: skip
    service = _service(model, candidates)
    found = simulate_closed(model.scheduler.start, policy, service, ones * busy, batches=_SCORED_BATCHES)
    off: Floats = np.abs(np.log([each.percentile_ms(0.5) / 1e3 / seconds for each in found]))
    return np.minimum(off, _MOST_OFF)


def _measured(cells: Sequence[Cell]) -> Floats:
    return np.array([(cell.rate, *cell.percentiles_ms) for cell in cells])


def _simulated(
    model: Model, asked: Sequence[tuple[Setting, Pace]], values: Floats, *, seconds: float, batches: int, alike: int = 1
) -> list[Predicted]:
    """Simulate each of ``asked`` with its row of ``values``; those under the same kind of load go together.

    So many rows after each other as are ``alike`` have the same luck: they differ by their values alone.
    """
    found: dict[int, Predicted] = {}
    groups: dict[Pace, list[int]] = {}
    for index, (_, pace) in enumerate(asked):
        groups.setdefault(pace, []).append(index)
    together = max(_ROWS // alike, 1) * alike
    for pace, members in groups.items():
        for begin in range(0, len(members), together):
            part = members[begin : begin + together]
            policy = model.scheduler.policy([asked[index][0] for index in part])
            service = _service(model, values[part])
            if isinstance(pace, Closed):
                callers = np.full(len(part), pace.concurrency)
                results = simulate_closed(model.scheduler.start, policy, service, callers, batches=batches, alike=alike)
            else:
                moments = _arrivals(pace, seconds)
                arrivals = np.tile(moments, (len(part), 1))
                results = simulate_open(model.scheduler.start, policy, service, arrivals, alike=alike)
            found.update(zip(part, results, strict=True))
    return [found[index] for index in range(len(asked))]


def _arrivals(pace: Arrivals, seconds: float) -> Floats:
    seconds = min(max(seconds, _LEAST_ARRIVALS / pace.rate), _MOST_ARRIVALS / pace.rate)
    whole = int(np.ceil(seconds))
    moments = np.concatenate([pace.during(second) for second in range(whole)])
    return moments[moments < seconds]


def _service(model: Model, values: Floats) -> Service:
    """Return the service that ``values`` make of the times of requests alone.

    These are of one request of many rows, and batches are of many requests: of what it takes longer for its rows, the
    share ``carrying`` is sending and unpacking them, which each request of a batch does for itself, and not by the
    worker. ``scale`` is how much longer batches compute than what is left. Between one busy worker and as many as crowd
    each other by all of ``crowding``, each further one adds as much.
    """
    given = dict(zip(_RANGES, values.T, strict=True))
    outside = np.minimum(given["fixed_s"] + given["answer_s"], 0.7 * model.alone_s[0])
    carried = given["carrying"][:, None] * np.maximum(model.alone_s - model.alone_s[0], 0.0)
    computed = model.alone_s - outside[:, None] - carried
    batch_s = np.maximum(computed, 0.2 * model.alone_s[0]) * given["scale"][:, None]
    share = np.linspace(0.0, 1.0, model.crowded)
    return Service(
        sizes=model.sizes, batch_s=batch_s, gathering_s=given["gathering_s"],
        crowding=1.0 - share + share * given["crowding"][:, None],
        answer_s=given["answer_s"], company=given["company"], overlap=given["overlap"], fixed_s=given["fixed_s"],
        spread=given["spread"], waking_s=given["waking_s"], threading=given["threading"],
        meeting_s=given["meeting_s"],
    )  # fmt: skip
