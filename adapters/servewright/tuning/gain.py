"""How much better one setting is than another: rounds in alternation, and an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

from servewright.errors import LaunchError, ProbeError, ServewrightError
from servewright.tuning.search import Found, worth
from servewright.tuning.study import Comparison, Goal, Load, Measured, Round, Seen

# Two-sided 95 % of Student's distribution, by degrees of freedom.
_STUDENT: Final = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
ROUNDS: Final = 4
CONFIRMED: Final = 3  # how many settings are compared with the default until one keeps the promises

Side = Literal["default", "tuned"]


def alternate(
    measure: Callable[[Side], Seen],
    known: Sequence[Round],
    *,
    rounds: int = ROUNDS,
    on_round: Callable[[Round], None] = lambda _: None,
) -> list[Round]:
    """Measure both sides in turn, the one first that was second before; ``known`` rounds are not measured again."""
    found = list(known[:rounds])
    for index in range(len(found), rounds):
        order: tuple[Side, Side] = ("tuned", "default") if index % 2 else ("default", "tuned")
        seen = {side: measure(side) for side in order}
        found.append(Round(index=index, first=order[0], default=seen["default"], tuned=seen["tuned"]))
        on_round(found[-1])
    return found


def compared(rounds: Sequence[Round], load: Load, goal: Goal) -> Comparison:
    """Return the gain of the tuned side with its interval, and who kept the promises; it takes two rounds at least.

    An open loop is answered at the rate that is asked by whoever keeps the promises: there, keeping them alone is all
    that beats the default where the rate is maximised.
    """
    of = goal.maximise
    ratios = [math.log(max(_worth(each.tuned, of), 1e-9) / max(_worth(each.default, of), 1e-9)) for each in rounds]
    count = len(ratios)
    mean = sum(ratios) / count
    spread = math.sqrt(sum((each - mean) ** 2 for each in ratios) / (count - 1))
    half = half_width(spread, count)
    found = Comparison(
        load=load, of=of, rounds=tuple(rounds), gain=math.exp(mean), low=math.exp(mean - half),
        high=math.exp(mean + half), beats=False,
        default_broke=sum(bool(goal.slo.broken_by(each.default, asked=load.rate)) for each in rounds),
        tuned_broke=sum(bool(goal.slo.broken_by(each.tuned, asked=load.rate)) for each in rounds),
    )  # fmt: skip
    tells = of == "latency" or load.rate is None
    beats = found.keeps_alone or (tells and found.low > 1 and not found.tuned_fails)
    return found.model_copy(update={"beats": beats})


def confirmed(
    found: Found, goal: Goal, compare: Callable[[Measured], Comparison | None], *,
    proven: Callable[[Measured], Comparison | None] = lambda _: None, at_most: int = CONFIRMED,
) -> Comparison | None:  # fmt: skip
    """Return how the best compares with the default; where it fails beside it, the `runner_up` becomes the best.

    One measurement may keep by luck what the next ones break, and a server may die beside another. ``proven`` tells of
    a measurement what was compared before: where nothing that is compared now beats the default, one that did becomes
    the best. Where everything fails, the best stays what it was, with its own comparison; where nothing is known and no
    server lived to be compared, its error is raised. ``compare`` returns nothing where there is nothing to compare by.
    """
    first, tried, died = found.best, list[tuple[Measured, Comparison]](), list[ServewrightError]()
    best = first
    while best is not None and len(tried) + len(died) < at_most:
        try:
            comparison = compare(best)
        except (LaunchError, ProbeError) as error:
            died.append(error)
        else:
            if comparison is None:
                break
            tried.append((best, comparison))
            if not comparison.tuned_fails:
                break
        best = runner_up(found, best, goal)
    settled = next((each for each in tried if not each[1].tuned_fails), tried[0] if tried else None)
    if settled is None or not settled[1].beats:
        before = [(each, known) for each in kept(found, goal) if (known := proven(each)) is not None]
        settled = next((each for each in before if each[1].beats), settled)
    if settled is None:
        if died:
            raise died[0]
        return None
    found.best, comparison = settled
    return comparison


def runner_up(found: Found, failed: Measured, goal: Goal) -> Measured | None:
    """Return the best measurement that promises less than one that failed: a lesser rate, or a smaller p99 at it."""

    def safer(each: Measured) -> bool:
        if each.load != failed.load:
            return (each.load.rate or math.inf) < (failed.load.rate or 0.0)
        return each.percentile_ms(0.99) < failed.percentile_ms(0.99)

    return next(filter(safer, kept(found, goal)), None)


def kept(found: Found, goal: Goal) -> list[Measured]:
    """Return the measurements that keep every promise under a load that was asked for, the best first."""
    kept = [each for each in found.measurements if each.load in goal.loads and not each.broken and not each.unsafe]
    return sorted(kept, key=lambda each: worth(goal, each), reverse=True)


def half_width(deviation: float, count: int) -> float:
    """Return half of the 95 % interval of a mean of ``count`` values, two at least, that deviate so."""
    return _STUDENT[min(count - 2, len(_STUDENT) - 1)] * deviation / math.sqrt(count)


def _worth(seen: Seen, of: Literal["rate", "latency"]) -> float:
    if of == "rate":
        return seen.rate
    tail = seen.percentile_ms(0.99)
    return 1.0 / tail if tail == tail and tail > 0 else 1e-9
