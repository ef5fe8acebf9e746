"""Batches form, close, wait and overflow as in TF Serving's shared batch scheduler."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.queues import (
    BatchingRules,
    Queue,
    Task,
    batch_rows,
    check_output,
    read_rules,
    split,
)
from servewright.backends.tfserving.embedded.status import Code, StatusError


def queue(**rules: int | bool | tuple[int, ...]) -> Queue:
    """Return a queue with these rules; the execution size is the batch size unless told otherwise."""
    most = rules.setdefault("max_batch_size", 8)
    rules.setdefault("max_execution_size", most)
    return Queue(BatchingRules(**rules), run=lambda _: None)  # type: ignore[arg-type]


def add(queue: Queue, *sizes: int, now: int = 0) -> None:
    """Schedule tasks of these sizes."""
    for size in sizes:
        queue.schedule(Task(size, None), now)


def sizes(queue: Queue) -> list[list[int]]:
    """Return the rows of the tasks of every batch that is due or open."""
    return [[task.rows for task in batch.tasks] for batch in queue.batches if batch.tasks]


class TestClosing:
    """A batch runs when it is full, when another one waits behind it, or when it is old enough."""

    def test_an_open_batch_waits_for_its_timeout(self) -> None:
        """A batch that is not full is due when its first task is as old as the timeout."""
        waiting = queue(timeout_us=200)
        add(waiting, 1, now=1000)
        add(waiting, 1, now=1100)
        assert waiting.due_at() == 1200

    def test_a_full_batch_is_due_at_once(self) -> None:
        """No timeout is waited for when the batch is full."""
        waiting = queue(timeout_us=200)
        add(waiting, 4, 4, now=1000)
        assert waiting.due_at() == 0

    def test_a_task_that_does_not_fit_opens_the_next_batch(self) -> None:
        """The earlier batch is then due although it is not full."""
        waiting = queue(timeout_us=200)
        add(waiting, 7, 2, 1)
        assert sizes(waiting) == [[7], [2, 1]]
        assert waiting.due_at() == 0
        assert [task.rows for task in waiting.take().tasks] == [7]
        assert waiting.due_at() == 200

    def test_a_task_without_rows_is_a_batch(self) -> None:
        """A request of no rows waits for the timeout like any other."""
        waiting = queue(timeout_us=200)
        add(waiting, 0, now=5)
        assert waiting.due_at() == 205

    def test_an_empty_queue_is_never_due(self) -> None:
        """There is nothing to wait for."""
        assert queue().due_at() is None


class TestOverflow:
    """A queue that is full says so at once."""

    def test_the_open_batch_counts(self) -> None:
        """With two batches allowed, a third is refused with the real server's words."""
        full = queue(max_batch_size=4, max_enqueued_batches=2)
        add(full, 4, 4)
        with pytest.raises(StatusError) as error:
            add(full, 1)
        assert error.value.code is Code.UNAVAILABLE
        assert error.value.message.endswith("currently 2 batches enqueued and max_enqueued_batches is 2")

    def test_a_task_larger_than_a_batch_is_refused(self) -> None:
        """No batch could ever hold it."""
        with pytest.raises(StatusError, match="Task size 9 is larger than maximum input batch size 8"):
            add(queue(), 9)

    def test_splitting_counts_rows(self) -> None:
        """With splitting the free rows of all batches count, and are named."""
        full = queue(max_batch_size=16, max_execution_size=4, max_enqueued_batches=2, splitting=True)
        add(full, 8)
        full.take()
        with pytest.raises(
            StatusError, match=r"task size is 8 but scheduling capacity is only 4 \(num_enqueued_batches=1"
        ):
            add(full, 8)


class TestSplitting:
    """Large tasks are cut to fill what is open, and then into whole batches."""

    @given(st.integers(1, 100), st.integers(0, 8), st.integers(1, 8))
    def test_pieces_are_the_whole_in_order(self, rows: int, room: int, most: int) -> None:
        """Pieces follow each other without a gap, the first fits the room, the others a batch."""
        pieces = split(Task(rows, "request"), min(room, most), most)
        assert [piece.start for piece in pieces] == [sum(p.rows for p in pieces[:at]) for at in range(len(pieces))]
        assert sum(piece.rows for piece in pieces) == rows
        assert all(piece.rows <= most for piece in pieces)

    def test_an_open_batch_is_filled_first(self) -> None:
        """Five rows and five rows are a batch of eight and one of two."""
        waiting = queue(max_batch_size=16, max_execution_size=8, splitting=True)
        add(waiting, 5, 5)
        assert sizes(waiting) == [[5, 3], [2]]


class TestRules:
    """BatchingParameters become rules, with the scheduler's defaults and complaints."""

    def test_defaults_are_the_schedulers(self) -> None:
        """Nothing stated means 1000 rows, no waiting and ten batches."""
        assert read_rules(protos.BatchingParameters()) == BatchingRules()

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            ({"max_batch_size": {"value": 8}, "allowed_batch_sizes": [2, 4]}, "last entry was 4; expected 8"),
            ({"max_batch_size": {"value": 0}}, "input_batch_size_limit must be positive; was 0"),
            ({"batch_timeout_micros": {"value": -1}}, "batch_timeout_micros must be non-negative; was -1"),
            (
                {
                    "max_batch_size": {"value": 4},
                    "enable_large_batch_splitting": {"value": True},
                    "max_execution_batch_size": {"value": 8},
                },
                "must be greater than or equal to max_execution_batch_size",
            ),
        ],
    )  # fmt: skip
    def test_what_cannot_be_is_refused(self, fields: dict[str, object], complaint: str) -> None:
        """The load of a model fails with the real server's words, also where that one crashes."""
        with pytest.raises(StatusError, match=complaint):
            read_rules(protos.BatchingParameters(**fields))

    def test_odd_numbers_mean_what_they_mean_there(self) -> None:
        """Zero batches are one; negative numbers are no limit."""
        assert read_rules(protos.BatchingParameters(max_enqueued_batches={"value": 0})).max_enqueued_batches == 1
        assert read_rules(protos.BatchingParameters(max_batch_size={"value": -1})).max_batch_size > 1 << 40

    def test_the_first_allowed_size_that_holds_the_rows_is_taken(self) -> None:
        """The order of the list counts, as on the real server."""
        rules = BatchingRules(allowed_batch_sizes=(4, 2, 8))
        assert [rules.rounded(rows) for rows in (0, 1, 2, 5, 9)] == [4, 4, 4, 8, 9]


def test_inputs_of_a_request_agree_in_rows() -> None:
    """Scalars, no inputs, and inputs of different sizes cannot be batched."""
    assert batch_rows([(3, 2), (3,)]) == 3
    for shapes, complaint in (([], "at least one input"), ([()], "one dimension"), ([(1,), (2,)], "equal 0th")):
        with pytest.raises(StatusError, match=complaint):
            batch_rows(shapes)


def test_outputs_of_a_batch_have_its_rows() -> None:
    """An output that cannot be split between the requests fails all of them."""
    check_output((4, 2), 4)
    for shape in ((), (3,)):
        with pytest.raises(StatusError) as error:
            check_output(shape, 4)
        assert error.value.code is Code.FAILED_PRECONDITION
