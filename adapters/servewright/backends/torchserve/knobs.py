"""What can be tuned on TorchServe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from servewright.backends.torchserve import keys
from servewright.backends.torchserve.simulation import SCHEDULER
from servewright.spec import ModelSpec
from servewright.tuning.knobs import Demand, Tuning, beyond, powers
from servewright.tuning.study import Knob, Settings

_LARGEST: Final = 256
_DELAYS_MS: Final = (1, 2, 5, 10, 20)  # 0 means 100 ms to this server


def knobs(spec: ModelSpec, demand: Demand) -> list[Knob]:
    """Return every knob: a batch that the load can never fill is not tried, nor are more workers than cores."""
    now = default(spec, demand)
    sizes = powers(min(demand.waiting, _LARGEST))
    workers = powers(min(demand.cores, max(demand.waiting, 1)))
    bounded = f"the machine has {demand.cores} cores"
    if workers[-1] < demand.cores:
        bounded = "no more requests wait at once"
    queue = max(keys.queue(spec), 2 * demand.waiting, 2 * sizes[-1])
    return [
        Knob(
            name="batchSize", key="batching.max_size", unit="requests", values=sizes, default=now["batchSize"],
            left_out=beyond(sizes[-1], demand, largest=_LARGEST),
        ),
        Knob(
            name="maxBatchDelay", key="batching.max_delay", unit="ms", values=_DELAYS_MS, default=now["maxBatchDelay"],
            left_out="0: the server takes it for 100 ms",
        ),
        Knob(
            name="workers", key="workers", unit="", values=workers, default=now["workers"],
            left_out=f"above {workers[-1]}: {bounded}",
        ),
        Knob(
            name="OMP_NUM_THREADS", key="threads.intra_op", unit="", values=powers(demand.cores),
            default=now["OMP_NUM_THREADS"] or None, left_out="with workers: more threads than cores",
        ),
        Knob(
            name="jobQueueSize", key="batching.queue", unit="requests", values=(queue,), default=now["jobQueueSize"],
            left_out="one value: as many as the load can have waiting, so that none is turned away",
        ),
    ]  # fmt: skip


def default(spec: ModelSpec, demand: Demand) -> Settings:
    """Return the settings that ``spec`` has; 0 threads where it leaves them to the server."""
    del demand
    return {
        "batchSize": spec.batching.max_size,
        "maxBatchDelay": spec.batching.max_delay // 1000 or 1,
        "workers": spec.workers,
        "OMP_NUM_THREADS": spec.threads.intra_op or 0,
        "jobQueueSize": keys.queue(spec),
    }


def complete(settings: Settings, demand: Demand) -> Settings | None:
    """Return a combination that could matter: single requests wait for no batch, threads fit the cores."""
    if settings["batchSize"] == 1 and settings["maxBatchDelay"] != _DELAYS_MS[0]:
        return None
    workers, threads = settings["workers"], settings["OMP_NUM_THREADS"]
    assert isinstance(workers, int)
    assert isinstance(threads, int)
    return settings if workers * threads <= demand.cores else None


def spec_keys(settings: Settings) -> Mapping[str, Any]:
    """Return the spec's keys for ``settings``."""
    size = settings["batchSize"]
    found: dict[str, Any] = {
        "batching.max_size": size,
        "batching.max_delay": "0ms" if size == 1 else f"{settings['maxBatchDelay']}ms",
        "batching.queue": settings["jobQueueSize"],
        "workers": settings["workers"],
    }
    return found | ({"threads.intra_op": settings["OMP_NUM_THREADS"]} if settings["OMP_NUM_THREADS"] else {})


def alone(spec: ModelSpec, demand: Demand) -> Settings:
    """Return settings under which a request is computed by itself."""
    del spec
    return {
        "batchSize": 1, "maxBatchDelay": _DELAYS_MS[0], "workers": demand.cores, "OMP_NUM_THREADS": 1,
        "jobQueueSize": 100,
    }  # fmt: skip


# Java compiles what runs often: a new server answered 64 callers 3,364, 4,308, 5,665, 5,941 times a second in the first
# four times five seconds, on two cores.
_SETTLES_WITHIN_S = 30.0

TUNING = Tuning(
    scheduler=SCHEDULER, knobs=knobs, default=default, keys=spec_keys, complete=complete, alone=alone,
    settles_within_s=_SETTLES_WITHIN_S,
)  # fmt: skip
