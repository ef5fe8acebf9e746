"""From a version's folder to a servable: the SavedModel, its batching, its warm-up."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.batching import BatchedSession, BatchPool
from servewright.backends.tfserving.embedded.config import read_text_message
from servewright.backends.tfserving.embedded.disk import os_status
from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.queues import read_rules
from servewright.backends.tfserving.embedded.servable import Servable, read_signatures
from servewright.backends.tfserving.embedded.session import Session
from servewright.backends.tfserving.embedded.status import StatusError, not_found
from servewright.backends.tfserving.embedded.warmup import warm_up
from servewright.backends.tfserving.embedded.workers import Workers

PER_MODEL_FILE = "batching_params.pbtxt"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What applies to every model of a server; ``batching`` is a BatchingParameters message or ``None``."""

    tags: Sequence[str] = ("serve",)
    session_config: bytes = b""
    batching: Any = None
    per_model_batching: bool = False
    warm_up: bool = True
    warm_up_iterations: int = 1


class Loader:
    """Loads versions, with what they share: threads, the batch pool, the metrics."""

    def __init__(
        self, options: LoadOptions, *, workers: Workers, load_workers: Workers, pool: BatchPool | None, metrics: Metrics
    ) -> None:
        self.options, self.metrics, self.pool = options, metrics, pool
        self._workers, self._load_workers = workers, load_workers

    async def load(self, name: str, version: int, path: str) -> Servable:
        """Return the version in the folder ``path``, warmed up; raise `StatusError`."""
        session, meta_graph = await self._load_workers.run(lambda: self._open(path))
        servable = Servable(
            name=name,
            version=version,
            path=path,
            session=session,
            signatures=read_signatures(name, version, meta_graph),
            workers=self._workers,
        )
        try:
            self._batch(servable)
            if self.options.warm_up:
                await warm_up(servable, self.metrics, iterations=self.options.warm_up_iterations)
        except Exception:  # not when cancelled: then the server ends, and a warm-up request may still be running
            await servable.unload()
            raise
        return servable

    def _open(self, path: str) -> tuple[Session, Any]:
        try:
            names = os.listdir(path)  # noqa: PTH208
        except OSError as error:
            raise os_status(error, path) from error
        if "saved_model.pb" not in names and "saved_model.pbtxt" not in names:
            raise not_found(
                "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
                f"`saved_model.pb`)\nSpecified file path: {path}"
            )
        started = time.monotonic()
        try:
            session = Session(path, tags=self.options.tags, config=self.options.session_config)
        except StatusError:
            self.metrics.load_attempts.add(path, "fail")
            raise
        self.metrics.load_attempts.add(path, "success")
        self.metrics.load_latency.add(path, by=int((time.monotonic() - started) * 1e6))
        return session, protos.MetaGraphDef.FromString(session.meta_graph)

    def _batch(self, servable: Servable) -> None:
        parameters = self.options.batching
        if parameters is None or self.pool is None:
            return
        if self.options.per_model_batching:
            file = os.path.join(servable.path, PER_MODEL_FILE)  # noqa: PTH118
            if not os.path.exists(file):  # noqa: PTH110
                return
            parameters = read_text_message("BatchingParameters", file)
        log("I", "bundle_factory_util.cc", "Wrapping session to perform batch processing")
        rules = read_rules(parameters)
        servable.batched = BatchedSession(servable.session, rules, self.pool, self.metrics)
        log("I", "servewright", f"Batching of {servable.name} version {servable.version}: {rules}")
