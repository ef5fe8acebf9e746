"""How requests become batches: TF Serving's shared batch scheduler, with its queues, its closing rules and its words.

Nothing here knows of models, sockets or threads: time is passed in and due batches are handed out, so that every
rule can be tested by calling it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from servewright.backends.tfserving.embedded.status import Code, StatusError, failed_precondition, invalid_argument

_DEFAULT_MAX_BATCH: Final = 1000
_DEFAULT_QUEUED: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingRules:
    """The rules of one queue: BatchingParameters with the scheduler's own defaults filled in."""

    max_batch_size: int = _DEFAULT_MAX_BATCH
    timeout_us: int = 0
    max_enqueued_batches: int = _DEFAULT_QUEUED
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length: bool = False
    splitting: bool = False
    max_execution_size: int = _DEFAULT_MAX_BATCH

    def rounded(self, rows: int) -> int:
        """Return the first allowed size that holds ``rows``, or ``rows`` where none does."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


def read_rules(parameters: Any) -> BatchingRules:
    """Return the rules that a ``BatchingParameters`` message states; raise `StatusError` for those that cannot be."""

    def value(name: str, default: int) -> int:
        return int(getattr(parameters, name).value) if parameters.HasField(name) else default

    most = value("max_batch_size", _DEFAULT_MAX_BATCH)
    allowed = tuple(parameters.allowed_batch_sizes)
    if allowed and allowed[-1] != most:
        raise invalid_argument(
            f"Last entry in allowed_batch_sizes must match max_batch_size; last entry was {allowed[-1]}; "
            f"expected {most}"
        )
    timeout = value("batch_timeout_micros", 0)
    splitting = bool(parameters.enable_large_batch_splitting.value)
    # With both sizes left out the real server's execution size is 0, and no batch ever runs; the limit is meant.
    execution = value("max_execution_batch_size", most) if splitting else most
    if most == 0:
        raise invalid_argument("input_batch_size_limit must be positive; was 0")
    if timeout < 0:
        raise invalid_argument(f"batch_timeout_micros must be non-negative; was {timeout}")
    if splitting and 0 <= most < execution:
        raise invalid_argument(
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater than or equal to "
            f"max_execution_batch_size.input_batch_size_limit: {most}, max_execution_batch_size: {execution}"
        )
    if splitting and execution <= 0:
        raise invalid_argument(f"max_execution_batch_size must be positive; was {execution}")
    queued = value("max_enqueued_batches", _DEFAULT_QUEUED)
    unlimited = 1 << 62  # a negative number becomes a very large one on the real server
    return BatchingRules(
        max_batch_size=most if most > 0 else unlimited,
        timeout_us=timeout,
        max_enqueued_batches=max(queued, 1) if queued >= 0 else unlimited,
        allowed_batch_sizes=allowed,
        pad_variable_length=parameters.pad_variable_length_inputs,
        splitting=splitting,
        max_execution_size=execution if execution > 0 else unlimited,
    )


@dataclass(slots=True, eq=False)
class Task:
    """A part of a batch: the rows of one request, or a piece of them.

    ``start`` is the first row of the request that is in it.
    """

    rows: int
    request: Any
    start: int = 0
    enqueued_us: int = 0
    deadline_us: int | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Tasks that run together; ``opened_us`` is when the first of them came."""

    tasks: list[Task] = field(default_factory=list)
    rows: int = 0
    opened_us: int = 0
    closed: bool = False

    def add(self, task: Task, now_us: int) -> None:
        """Append a task."""
        if not self.tasks:
            self.opened_us = now_us
        self.tasks.append(task)
        self.rows += task.rows


class Queue:
    """The batches of one model version and one set of inputs and outputs, oldest first; the last one is open."""

    def __init__(self, rules: BatchingRules, run: Callable[[Batch], Any]) -> None:
        self.rules, self.run = rules, run
        self.batches: deque[Batch] = deque([Batch()])

    def schedule(self, task: Task, now_us: int) -> None:
        """Put a task into the open batch or the next; raise `StatusError` where it is too large or there is no room."""
        rules, opened = self.rules, self.batches[-1]
        if task.rows > rules.max_batch_size:
            raise invalid_argument(
                f"Task size {task.rows} is larger than maximum input batch size {rules.max_batch_size}"
            )
        task.enqueued_us = now_us
        if rules.splitting:
            self._schedule_split(task, now_us)
            return
        if opened.rows + task.rows > rules.max_execution_size:
            if len(self.batches) >= rules.max_enqueued_batches:
                raise StatusError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; currently "
                    f"{len(self.batches)} batches enqueued and max_enqueued_batches is {rules.max_enqueued_batches}",
                )
            opened = self._open_next()
        opened.add(task, now_us)

    def _schedule_split(self, task: Task, now_us: int) -> None:
        rules, opened = self.rules, self.batches[-1]
        most = rules.max_execution_size
        capacity = (rules.max_enqueued_batches - len(self.batches)) * most + most - opened.rows
        if task.rows > capacity:
            raise StatusError(
                Code.UNAVAILABLE,
                f"The batch scheduling queue to which this task was submitted is full; task size is {task.rows} but "
                f"scheduling capacity is only {capacity} (num_enqueued_batches={len(self.batches)}, "
                f"max_enqueued_batches={rules.max_enqueued_batches}, open_batch_size={opened.rows}, "
                f"max_execution_batch_size={most})",
            )
        for piece in split(task, most - opened.rows, most):
            if self.batches[-1].rows + piece.rows > most:
                self._open_next()
            self.batches[-1].add(piece, now_us)

    def _open_next(self) -> Batch:
        self.batches[-1].closed = True
        self.batches.append(Batch())
        return self.batches[-1]

    def due_at(self) -> int | None:
        """Return from when on a batch may run, in microseconds: 0 means now; ``None`` where there is nothing to run."""
        if len(self.batches) > 1:
            return 0
        opened = self.batches[-1]
        if not opened.tasks:
            return None
        if opened.rows >= self.rules.max_execution_size:
            return 0
        return opened.opened_us + self.rules.timeout_us

    def take(self) -> Batch:
        """Return the batch that is due, closed."""
        if len(self.batches) == 1:
            self._open_next()
        batch = self.batches.popleft()
        batch.closed = True
        return batch


def split(task: Task, room: int, most: int) -> list[Task]:
    """Return ``task`` in pieces: one of at most ``room`` rows, and then of at most ``most`` each."""
    if task.rows <= room or task.rows == 0:
        return [task]
    sizes, left = [], task.rows
    if room > 0:
        sizes.append(room)
        left -= room
    while left > 0:
        sizes.append(min(left, most))
        left -= sizes[-1]
    if len(sizes) == 1:
        return [task]
    pieces, start = [], task.start
    for size in sizes:
        pieces.append(Task(size, task.request, start, task.enqueued_us, task.deadline_us))
        start += size
    return pieces


def batch_rows(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the rows of a request from the shapes of its inputs; raise `StatusError` where they do not agree."""
    if not shapes:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    for shape in shapes:
        if not shape:
            raise invalid_argument("Batching Run() input tensors must have at least one dimension")
        if shape[0] != shapes[0][0]:
            raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return shapes[0][0]


def check_output(shape: tuple[int, ...], rows: int) -> None:
    """Raise `StatusError` unless an output of a batch has ``rows`` rows."""
    if not shape:
        raise failed_precondition("Batched output tensor has 0 dimensions")
    if shape[0] != rows:
        raise failed_precondition(
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors"
        )
