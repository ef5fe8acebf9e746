"""TensorFlow Serving's shared batch scheduler, for a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from servewright.simulating import Floats, Moment, Policy, Scheduler

# A batch thread that finds nothing due looks again after at most this (SharedBatchScheduler::ThreadLogic): nobody
# wakes it when a batch's time is over.
_LOOKS_EVERY_S = 1e-3
_DEFAULT_THREADS = 4
_UNBOUNDED = 1 << 40
# What fits to recorded surfaces of the server and of its stand-in have in common, two to sixty cells of each of the
# four: the median, and one to two times as much as the fits differ. Answering takes the server's other threads, and a
# batch that runs meanwhile takes longer by two fifths of that.
_USUAL: Final = {
    "fixed_s": (1.3e-4, 6e-5),
    "answer_s": (1e-4, 7e-5),
    "gathering_s": (4e-5, 4e-5),
    "scale": (1.15, 0.25),
    "crowding": (1.4, 0.25),
    "spread": (0.43, 0.12),
    "company": (0.1, 0.2),
    "overlap": (0.42, 0.15),
    "waking_s": (1.4e-3, 7e-4),
    "threading": (1.15, 0.3),
    "meeting_s": (1.5e-4, 1.5e-4),
    "carrying": (0.43, 0.2),
}


def start(moment: Moment) -> tuple[Floats, Floats]:
    """Return when a batch starts: full, or as old as the timeout and noticed, and not before a thread is idle.

    Requests that come while it waits find only what the queue has room for.
    """
    noticed = np.where(moment.delay > 0, moment.chance * _LOOKS_EVERY_S, 0.0)
    # A thread that becomes idle when the batch is overdue takes it at once.
    overdue = moment.first + moment.delay
    begin = np.maximum(
        np.minimum(moment.full, np.where(moment.free >= overdue, overdue, overdue + noticed)), moment.free
    )
    return begin, begin


def policy(settings: Sequence[Mapping[str, Any]]) -> Policy:
    """Return settings, named as the server names them, for requests of one row each.

    ``server_threads`` is what bounds the requests inside the server: one less than ``grpc_max_threads``, or than
    ``rest_api_num_threads``.
    """

    def column(name: str, default: int) -> Any:
        return np.array([each.get(name, default) for each in settings], np.int64)

    size = column("max_batch_size", 1000)
    return Policy(
        size=size,
        delay=column("batch_timeout_micros", 0) / 1e6,
        workers=column("num_batch_threads", _DEFAULT_THREADS),
        room=size * np.maximum(column("max_enqueued_batches", 10), 1),
        admitted=column("server_threads", _UNBOUNDED),
        threads=np.maximum(column("intra_op_parallelism", 1), 1),
        allowed=tuple(tuple(each.get("allowed_batch_sizes", ())) for each in settings),
    )


SCHEDULER = Scheduler(start, policy, _USUAL)
