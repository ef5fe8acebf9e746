"""What can be tuned on TensorFlow Serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from servewright import units
from servewright.backends.tfserving import keys
from servewright.backends.tfserving.settings import BatchingOptions, options
from servewright.backends.tfserving.simulation import SCHEDULER
from servewright.spec import ModelSpec
from servewright.tuning.knobs import Demand, Tuning, beyond, powers
from servewright.tuning.study import Knob, Settings

_LARGEST: Final = 256
_ALONE: Final = 64  # rows of the largest request that is timed
_TIMEOUTS_US: Final = (0, 500, 1000, 2000, 5000, 10_000)


def knobs(spec: ModelSpec, demand: Demand) -> list[Knob]:
    """Return every knob: a batch that the load can never fill is not tried, nor are threads that only crowd."""
    now = default(spec, demand)
    sizes = powers(min(demand.waiting, _LARGEST), least=min(2, demand.waiting))
    capped = let_in(spec, demand)
    padded = spec.device != "cpu" or bool(spec.batching.allowed_sizes)
    return [
        Knob(
            name="max_batch_size", key="batching.max_size", unit="rows", values=sizes, default=now["max_batch_size"],
            left_out=beyond(sizes[-1], demand, largest=_LARGEST),
        ),
        Knob(
            name="batch_timeout_micros", key="batching.max_delay", unit="us", values=_TIMEOUTS_US,
            default=now["batch_timeout_micros"],
        ),
        Knob(
            name="num_batch_threads", key="batching.threads", unit="", values=powers(demand.cores),
            default=now["num_batch_threads"] or None,
            left_out=f"above {demand.cores}: the machine has no more cores",
        ),
        Knob(
            name="max_enqueued_batches", key="batching.queue", unit="batches", values=(),
            default=now["max_enqueued_batches"],
            left_out="one value for each size: as many as the load can have waiting, so that none is turned away",
        ),
        Knob(
            name="allowed_batch_sizes", key="batching.allowed_sizes", unit="rows",
            values=((), powers(sizes[-1])) if padded else (), default=spec.batching.allowed_sizes or None,
            left_out="" if padded else "on a CPU, padding a batch only adds work",
        ),
        Knob(
            name="intra_op_parallelism", key="threads.intra_op", unit="", values=powers(demand.cores),
            default=spec.threads.intra_op, left_out="with batch threads: more threads than twice the cores",
        ),
        Knob(
            name="inter_op_parallelism", key="threads.inter_op", unit="", values=(), default=spec.threads.inter_op,
            left_out="batches run beside each other by num_batch_threads already",
        ),
        Knob(
            name="server_threads", key="server.threads", unit="", values=(capped,) if capped else (), default=capped,
            left_out="the spec's flags give them" if capped else "rendering raises them so that every batch can fill",
        ),
    ]  # fmt: skip


def let_in(spec: ModelSpec, demand: Demand) -> int | None:
    """Return how many requests the spec's own flags let into the server at once; ``None`` where rendering gives enough.

    gRPC keeps one thread to listen, REST one for its event loop.
    """
    threads = options(spec).flags.get("grpc_max_threads" if demand.transport == "grpc" else "rest_api_num_threads")
    return threads - 1 if isinstance(threads, int) else None


def default(spec: ModelSpec, demand: Demand) -> Settings:
    """Return the settings that ``spec`` has; 0 threads where it leaves them to the server."""
    return {
        "max_batch_size": spec.batching.max_size,
        "batch_timeout_micros": spec.batching.max_delay,
        "num_batch_threads": spec.batching.threads or demand.cores,
        "max_enqueued_batches": keys.enqueued_batches(spec.batching),
        "intra_op_parallelism": spec.threads.intra_op or 0,
    }


def complete(settings: Settings, demand: Demand) -> Settings | None:
    """Return a combination that could matter, its queue long enough: no core has more than two threads."""
    size, threads, each = (settings[name] for name in ("max_batch_size", "num_batch_threads", "intra_op_parallelism"))
    assert isinstance(size, int)
    assert isinstance(threads, int)
    assert isinstance(each, int)
    queue = max(keys.DEFAULT_ENQUEUED_BATCHES, -(-2 * demand.waiting // size))
    return settings | {"max_enqueued_batches": queue} if threads * each <= 2 * demand.cores else None


def spec_keys(settings: Settings) -> Mapping[str, Any]:
    """Return the spec's keys for ``settings``."""
    size, wait = settings["max_batch_size"], settings["batch_timeout_micros"]
    assert isinstance(size, int)
    assert isinstance(wait, int)
    found: dict[str, Any] = {
        "batching.max_size": size,
        "batching.max_delay": units.format_duration(wait) if wait and size > 1 else "0ms",
        "batching.threads": settings["num_batch_threads"],
    }
    if queue := settings.get("max_enqueued_batches"):
        assert isinstance(queue, int)
        found["batching.queue"] = queue * size
    if each := settings["intra_op_parallelism"]:
        found["threads.intra_op"] = each
    allowed = settings.get("allowed_batch_sizes")
    if isinstance(allowed, tuple):
        found["batching.allowed_sizes"] = [*(each for each in allowed if each < size), size] if allowed else []
    return found


def alone(spec: ModelSpec, demand: Demand) -> Settings:
    """Return settings under which a request is computed by itself, by the thread that took it.

    Where the spec tells how batches are made, batching cannot be off: then a batch waits for nobody.
    """
    batching = options(spec).batching
    off = batching == BatchingOptions()
    return {
        "max_batch_size": 1 if off else max(_ALONE, batching.max_execution_batch_size or 0),
        "batch_timeout_micros": 0, "num_batch_threads": demand.cores, "intra_op_parallelism": 1,
        "max_enqueued_batches": keys.DEFAULT_ENQUEUED_BATCHES, "allowed_batch_sizes": (),
    }  # fmt: skip


TUNING = Tuning(scheduler=SCHEDULER, knobs=knobs, default=default, keys=spec_keys, complete=complete, alone=alone)
