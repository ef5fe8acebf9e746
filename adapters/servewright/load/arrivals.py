"""When requests are meant to leave: constant or Poisson, the same for the same seed however many processes share it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """A schedule at ``rate`` per second, in steps of one second so that it needs no end and little memory."""

    rate: float
    poisson: bool = False
    seed: int = 0

    def during(self, second: int) -> NDArray[np.float64]:
        """Return the moments, in seconds from the start, that lie in ``[second, second + 1)``, in order."""
        if self.poisson:
            random = np.random.default_rng((self.seed, second))
            return np.sort(random.random(random.poisson(self.rate))) + second
        first = math.ceil(second * self.rate - 1e-9)
        last = math.ceil((second + 1) * self.rate - 1e-9)
        return np.arange(first, last, dtype=np.float64) / self.rate

    def share(self, part: int, of: int) -> Iterator[float]:
        """Yield the moments of one of ``of`` processes; together they have every moment once."""
        skipped = second = 0
        while True:
            moments = self.during(second)
            yield from moments[(part - skipped) % of :: of].tolist()
            skipped += len(moments)
            second += 1
