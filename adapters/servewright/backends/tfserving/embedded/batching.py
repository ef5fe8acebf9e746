"""The batch threads: they take due batches from the queues in turn and run each with one call of TensorFlow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from servewright.backends.tfserving.embedded.merging import check_mergeable, joined, merge_parts
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.queues import Batch, BatchingRules, Queue, Task, batch_rows, check_output
from servewright.backends.tfserving.embedded.session import Names, Session
from servewright.backends.tfserving.embedded.status import Code, StatusError
from servewright.backends.tfserving.embedded.tensor import Tensor
from servewright.backends.tfserving.embedded.workers import Workers

_THREAD_POOL = ""  # the label of the queueing latency: always empty on the path that serves requests


def now_us() -> int:
    """Return the monotonic clock in microseconds."""
    return time.monotonic_ns() // 1000


class BatchPool:
    """The one pool of batch threads of a server, and every queue that it serves."""

    def __init__(self, threads: int, loop: asyncio.AbstractEventLoop) -> None:
        self.workers = Workers(threads, "batch", loop)
        self._loop = loop
        self._queues: list[Queue] = []
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None

    def add_queue(self, rules: BatchingRules, run: Callable[[Batch], Any]) -> Queue:
        """Return a new queue whose batches are given to ``run``."""
        queue = Queue(rules, run)
        self._queues.append(queue)
        return queue

    def remove_queue(self, queue: Queue) -> None:
        """Forget a queue that is empty."""
        self._queues.remove(queue)
        self._next = 0

    def submit(self, queue: Queue, task: Task) -> None:
        """Queue a task; raise `StatusError` where the queue does not take it."""
        queue.schedule(task, now_us())
        self.dispatch()

    def dispatch(self) -> None:
        """Start every batch that is due, one to an idle thread, the queues in turn; set a timer for the next."""
        while self.workers.idle > 0:
            now, soonest, found = now_us(), None, None
            for step in range(len(self._queues)):
                queue = self._queues[(self._next + step) % len(self._queues)]
                due = queue.due_at()
                if due is None:
                    continue
                if due <= now:
                    found = queue
                    self._next = (self._next + step + 1) % len(self._queues)
                    break
                soonest = due if soonest is None else min(soonest, due)
            if found is None:
                self._wait_until(soonest, now)
                return
            found.run(found.take())

    def _wait_until(self, due: int | None, now: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._loop.call_later((due - now) / 1e6, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.dispatch()


@dataclass(slots=True, eq=False)
class _Request:
    """One Run() call that waits for its rows."""

    inputs: tuple[Tensor, ...]
    answer: asyncio.Future[list[Tensor]]
    missing: int = 0
    pieces: dict[int, list[Tensor]] = field(default_factory=dict)


class BatchedSession:
    """A session whose runs are grouped by the names of their inputs and outputs."""

    def __init__(self, session: Session, rules: BatchingRules, pool: BatchPool, metrics: Metrics) -> None:
        self.rules = rules
        self._session, self._pool, self._metrics = session, pool, metrics
        self._queues: dict[tuple[Names, Names], Queue] = {}

    async def run(
        self, inputs: Sequence[tuple[str, Tensor]], fetches: Names, deadline_us: int | None = None
    ) -> list[Tensor]:
        """Return the outputs in the order of ``fetches``, computed together with those of other requests."""
        ordered = sorted(inputs)
        feeds: Names = tuple([name for name, _ in ordered])
        outputs: Names = tuple(sorted(set(fetches)))
        tensors = tuple([tensor for _, tensor in ordered])
        rows = batch_rows([tensor.shape for tensor in tensors])
        for _ in tensors:
            self._metrics.input_batch_size.add(rows)
        queue = self._queues.get((feeds, outputs))
        if queue is None:
            queue = self._queues[feeds, outputs] = self._pool.add_queue(
                self.rules, lambda batch: self._start(batch, feeds, outputs)
            )
        request = _Request(tensors, asyncio.get_running_loop().create_future())
        self._pool.submit(queue, Task(rows, request, deadline_us=deadline_us))
        found = await request.answer
        if fetches == outputs:
            return found
        by_name = dict(zip(outputs, found, strict=True))
        return [by_name[name] for name in fetches]

    def close(self) -> None:
        """Give the queues back; no request may be waiting."""
        for queue in self._queues.values():
            self._pool.remove_queue(queue)
        self._queues.clear()

    def _start(self, batch: Batch, feeds: Names, outputs: Names) -> None:
        now, metrics, tasks = now_us(), self._metrics, batch.tasks
        for task in tasks:
            metrics.queuing_latency.add(now - task.enqueued_us, _THREAD_POOL)
        deadlines = [task.deadline_us for task in tasks]
        alive = [due for due in deadlines if due is None or due > now]
        if not alive:
            error = StatusError(Code.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue")
            self._fail(tasks, error)
            return
        latest = None if None in alive else max(due for due in alive if due is not None)
        timeout_ms = 0 if latest is None else max(1, (latest - now) // 1000)
        rows = self.rules.rounded(batch.rows)
        metrics.padding_size.add(rows - batch.rows, str(rows))
        metrics.processed_batch_size.add(rows)
        try:
            parts = [
                [merge_parts(task.request.inputs[at], task.start, task.rows) for task in tasks]
                for at in range(len(feeds))
            ]
            for name, column in zip(feeds, parts, strict=True):
                check_mergeable(name, column, pad=self.rules.pad_variable_length)
            runner = self._session.runner(feeds, outputs)
        except StatusError as error:
            self._fail(tasks, error)
            return
        sizes = [task.rows for task in tasks]
        padding = rows - batch.rows
        pad = self.rules.pad_variable_length

        def job() -> list[list[Tensor]]:
            columns = [joined(column, padding, pad=pad) for column in parts]
            shapes, split = runner.merged(columns, [*sizes, padding] if padding else sizes, timeout_ms)
            for shape in shapes:
                check_output(shape, rows)
            return split

        def done(split: list[list[Tensor]] | None, error: BaseException | None) -> None:
            metrics.wrapped_runs.add()
            if split is None:
                self._fail(tasks, error or StatusError(Code.INTERNAL, "a batch without a result"))
            else:
                for at, task in enumerate(tasks):
                    _give(task, [column[at] for column in split])
            self._pool.dispatch()

        self._pool.workers.submit(job, done)

    @staticmethod
    def _fail(tasks: Sequence[Task], error: BaseException) -> None:
        for task in tasks:
            answer = task.request.answer
            if not answer.done():
                answer.set_exception(error)


def _give(task: Task, outputs: list[Tensor]) -> None:
    """Hand a task's outputs to its request; a split request answers when all of its pieces are there."""
    request: _Request = task.request
    if request.answer.done():
        return
    whole = request.inputs[0].shape[0]
    if task.rows == whole:
        request.answer.set_result(outputs)
        return
    request.pieces[task.start] = outputs
    request.missing += task.rows
    if request.missing == whole:
        ordered = [request.pieces[start] for start in sorted(request.pieces)]
        try:
            request.answer.set_result([_concatenated(column) for column in zip(*ordered, strict=True)])
        except StatusError as error:
            request.answer.set_exception(error)


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
        raise StatusError(Code.INTERNAL, "Tensor concat operation failed: pieces of a request differ in shape")
    rows = sum(part.shape[0] for part in parts)
    data = (
        [value for part in parts for value in part.data]
        if isinstance(parts[0].data, list)
        else b"".join([part.data for part in parts])
    )
    return Tensor(parts[0].dtype, (rows, *parts[0].shape[1:]), data)
