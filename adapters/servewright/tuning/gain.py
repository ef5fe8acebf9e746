"""How much better one setting is than another: rounds in alternation, and an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Literal

from servewright.tuning.study import Comparison, Goal, Load, Round, Seen

# Two-sided 95 % of Student's distribution, by degrees of freedom.
_STUDENT: Final = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
ROUNDS: Final = 4

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
    """Return the gain of the tuned side with its interval, and who kept the promises; it takes two rounds at least."""
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
    beats = found.keeps_alone or (found.low > 1 and not found.tuned_fails)
    return found.model_copy(update={"beats": beats})


def half_width(deviation: float, count: int) -> float:
    """Return half of the 95 % interval of a mean of ``count`` values, two at least, that deviate so."""
    return _STUDENT[min(count - 2, len(_STUDENT) - 1)] * deviation / math.sqrt(count)


def _worth(seen: Seen, of: Literal["rate", "latency"]) -> float:
    if of == "rate":
        return seen.rate
    tail = seen.percentile_ms(0.99)
    return 1.0 / tail if tail == tail and tail > 0 else 1e-9
