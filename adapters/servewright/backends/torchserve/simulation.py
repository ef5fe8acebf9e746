"""TorchServe's aggregation of batches by its workers, for a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from servewright.simulating import Floats, Moment, Policy, Scheduler

_DEFAULT_DELAY_MS = 100
_DEFAULT_QUEUE = 100
_UNBOUNDED = 1 << 40
# What fits to recorded surfaces have in common, two to sixty cells of each of the three: the median, and one to two
# times as much as the fits differ. Workers are processes, which share no lock, and unpack each request of a batch in
# Python; OpenMP's threads wait for each other, and for a core.
_USUAL: Final = {
    "fixed_s": (1.7e-4, 1e-4),
    "answer_s": (5e-5, 4e-5),
    "gathering_s": (1.5e-4, 8e-5),
    "scale": (1.05, 0.25),
    "crowding": (1.2, 0.2),
    "spread": (0.42, 0.1),
    "company": (0.08, 0.15),
    "overlap": (0.4, 0.2),
    "waking_s": (2e-3, 8e-4),
    "threading": (1.05, 0.2),
    "meeting_s": (8e-4, 5e-4),
    "carrying": (0.3, 0.2),
}


def start(moment: Moment) -> tuple[Floats, Floats]:
    """Return when a worker's batch starts: full, or the delay after its first request was taken from the queue.

    One worker at a time collects (Model.pollBatch holds the lock of the queue), and what comes while it collects
    goes into its batch, whatever room the queue has.
    """
    collects = np.maximum(np.maximum(moment.free, moment.last), moment.first)
    return collects, np.maximum(collects, np.minimum(moment.full, collects + moment.delay))


def policy(settings: Sequence[Mapping[str, Any]]) -> Policy:
    """Return settings, named as the server names them."""

    def column(name: str, default: int) -> Any:
        return np.array([each.get(name, default) for each in settings], np.int64)

    delay = column("maxBatchDelay", _DEFAULT_DELAY_MS)
    return Policy(
        size=np.maximum(column("batchSize", 1), 1),
        delay=np.where(delay == 0, _DEFAULT_DELAY_MS, delay) / 1e3,  # 0 counts as unset
        workers=column("workers", 1),
        room=column("jobQueueSize", _DEFAULT_QUEUE),
        admitted=np.full(len(settings), _UNBOUNDED),
        threads=np.maximum(column("OMP_NUM_THREADS", 1), 1),
        allowed=(),
    )


SCHEDULER = Scheduler(start, policy, _USUAL)
