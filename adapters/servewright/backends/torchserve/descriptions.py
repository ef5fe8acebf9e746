"""What TorchServe's management API tells of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from servewright.errors import ProbeError

READY = "READY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker process; ``pid`` is -1 before it has started, ``memory`` in bytes."""

    id: str
    status: str
    pid: int
    gpu: bool
    gpu_usage: str
    memory: int
    started: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """One version of a model as the running server has it; ``raw`` is the whole answer, by the server's names."""

    name: str
    version: str
    url: str
    runtime: str
    min_workers: int
    max_workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_s: int
    startup_timeout_s: int
    max_retry_timeout_s: int
    client_timeout_ms: int
    device_type: str
    device_ids: tuple[int, ...]
    parallel_type: str
    parallel_level: int
    continuous_batching: bool
    use_job_ticket: bool
    use_venv: bool
    stateful: bool
    loaded_at_startup: bool
    queue_remaining: int
    queue_pending: int
    workers: tuple[Worker, ...]
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def queue_size(self) -> int:
        """How many requests the queue holds."""
        return self.queue_remaining + self.queue_pending

    @property
    def ready_workers(self) -> int:
        """How many workers have loaded the model."""
        return sum(worker.status == READY for worker in self.workers)


def read_descriptions(answer: Any) -> tuple[ModelDescription, ...]:
    """Return the versions in an answer of ``GET /models/NAME``; `ProbeError` where it is none."""
    try:
        return tuple(_description(each) for each in answer)
    except (KeyError, TypeError, AttributeError) as error:
        raise ProbeError(f"not a description of a model: {error!r}") from error


def _description(raw: Mapping[str, Any]) -> ModelDescription:
    queue = raw.get("jobQueueStatus", {})
    return ModelDescription(
        name=raw["modelName"],
        version=raw["modelVersion"],
        url=raw["modelUrl"],
        runtime=raw["runtime"],
        min_workers=raw["minWorkers"],
        max_workers=raw["maxWorkers"],
        batch_size=raw["batchSize"],
        max_batch_delay_ms=raw["maxBatchDelay"],
        response_timeout_s=raw["responseTimeout"],
        # Since 0.12; earlier servers have one timeout for both.
        startup_timeout_s=raw.get("startupTimeout", raw["responseTimeout"]),
        max_retry_timeout_s=raw.get("maxRetryTimeoutInSec", 0),
        client_timeout_ms=raw.get("clientTimeoutInMills", 0),
        device_type=raw.get("deviceType", ""),
        device_ids=tuple(raw.get("deviceIds") or ()),
        parallel_type=raw.get("parallelType", ""),
        parallel_level=raw.get("parallelLevel", 0),
        continuous_batching=raw.get("continuousBatching", False),
        use_job_ticket=raw.get("useJobTicket", False),
        use_venv=raw.get("useVenv", False),
        stateful=raw.get("stateful", False),
        loaded_at_startup=raw.get("loadedAtStartup", False),
        queue_remaining=queue.get("remainingCapacity", 0),
        queue_pending=queue.get("pendingRequests", 0),
        workers=tuple(_worker(each) for each in raw["workers"]),
        raw=raw,
    )


def _worker(raw: Mapping[str, Any]) -> Worker:
    return Worker(
        id=raw["id"],
        status=raw["status"],
        pid=raw["pid"],
        gpu=raw["gpu"],
        gpu_usage=raw["gpuUsage"],
        memory=raw["memoryUsage"],
        started=raw["startTime"],
    )
