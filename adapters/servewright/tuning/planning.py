"""How many replicas a rate needs: the winner's knee, with head-room, and the p99 that the simulation tells of each.

Simulated, not measured: replicas are taken to share nothing, and the load to be spread evenly, at random.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from servewright.calibrating import NUMBERS, Model
from servewright.errors import InputError
from servewright.simulating import Scheduler
from servewright.tuning.belief import Belief
from servewright.tuning.study import Fleet, Load, Measured, Settings, Study

HEAD_ROOM: Final = 0.3
_MOST: Final = 1_000_000


def plan(study: Study, scheduler: Scheduler, *, rate: float, head_room: float = HEAD_ROOM) -> Fleet:
    """Return how many replicas of the study's best setting ``rate`` needs, so that each keeps ``head_room`` free.

    Where the p99 that is simulated breaks its promise, there are more of them, until it keeps it or a replica has a
    tenth of the knee. Fewer requests may wait longer, for batches that never fill: where no number keeps the promise,
    it is the one that the rate and the head-room ask for.
    """
    if not 0 <= head_room < 1:
        raise InputError(f"a head-room of {head_room:g} leaves nothing; give a share below 1, such as 0.3")
    if not rate > 0:
        raise InputError(f"a rate of {rate:g}/s needs no replica; give a positive one")
    settings, knee = planned_with(study)
    limit = study.goal.latency_ms.get("p99", math.inf)
    tried: list[Fleet] = []
    replicas = max(1, math.ceil(rate / (knee * (1.0 - head_room)) - 1e-9))
    while True:
        if replicas > _MOST:
            raise InputError(f"{rate:g}/s would need {replicas} replicas of {knee:g}/s each; correct the rate")
        each = rate / replicas
        tail = _tail_ms(study, scheduler, settings, each)
        found = Fleet(
            rate=rate, head_room=head_room, knee=knee, replicas=replicas, each=round(each, 3), p99_ms=tail,
            keeps=tail is None or tail <= limit,
        )  # fmt: skip
        tried.append(found)
        if found.keeps or each <= 0.1 * knee:
            return found if found.keeps else tried[0]
        replicas += max(1, replicas // 10)


def planned_with(study: Study) -> tuple[Settings, float]:
    """Return the setting to plan with, and its knee: the rate that it bears within the promises.

    The best of many measurements was lucky too, and the rounds of a comparison were not chosen for being good: where
    there are such, the knee is the median of those that kept the promises.
    """
    best, comparison = study.best, study.comparison
    if best is None:
        raise InputError("the study has no setting that keeps its promises; tune again with others")
    if comparison is None:
        mine = [each for each in study.measurements if each.settings == best.settings and study.answers(each)]
        return best.settings, max(each.rate for each in mine)
    if comparison.tuned_fails:
        raise InputError(
            f"the best setting of the study broke a promise in {comparison.tuned_broke} of {len(comparison.rounds)} "
            "rounds of its comparison; tune again with a tighter --slo, which leaves room"
        )
    kept = [
        each.tuned.rate
        for each in comparison.rounds
        if not study.goal.slo.broken_by(each.tuned, asked=comparison.load.rate)
    ]
    return best.settings, float(np.median(kept))


def _tail_ms(study: Study, scheduler: Scheduler, settings: Settings, each: float) -> float | None:
    """Return the p99 of one replica under Poisson arrivals, corrected by what was measured of the same setting."""
    if study.model is None or not study.alone:
        return None
    lacking = {name for values in study.model.fits for name in NUMBERS if name not in values}
    if lacking or not study.model.fits:
        raise InputError(
            f"the study's model lacks {', '.join(sorted(lacking)) or 'any fit'}, so no p99 can be simulated: another "
            "version of servewright made it; tune again with this one"
        )
    sizes = np.array([time.rows for time in study.alone])
    model = Model(
        scheduler=scheduler, sizes=sizes, alone_s=np.array([time.ms / 1e3 for time in study.alone]),
        fits=np.array([[values[name] for name in NUMBERS] for values in study.model.fits]), error=study.model.error,
        crowded=max((time.busy for time in study.service_times if time.busy > 1), default=2),
    )  # fmt: skip
    known = [found for found in study.measurements if found.settings == settings and found.p99_ms and found.rate]
    loads = [Load(rate=each), *(found.load for found in known)]
    belief = Belief.of(model, [(settings, load) for load in loads])
    shown = np.array([_shown(found) for found in known]).reshape(len(known), 4)
    guess = belief.corrected(list(range(1, len(loads))), shown)[-1]
    return round(float(np.exp(guess.mean[0])), 3)


def _shown(found: Measured) -> list[float]:
    return [found.rate, *(found.percentile_ms(share) for share in (0.5, 0.9, 0.99))]
