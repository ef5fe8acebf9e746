"""The simulated schedulers, held against small scenarios worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servewright.backends.tfserving import simulation as tfserving
from servewright.backends.torchserve import simulation as torchserve
from servewright.simulating import Policy, Predicted, Service, Start, simulate_closed, simulate_open

MS = 1e-3
Settings = Mapping[str, Any]


def service(settings: int, *, batch_ms: Sequence[float] = (10.0, 10.0), crowding: Sequence[float] = (1.0,)) -> Service:
    """Return batches of exactly so many milliseconds, for sizes 1 to 64, and answers that take no time."""
    flat = np.zeros(settings)
    sizes = np.array([1, 64]) if len(batch_ms) == 2 else np.arange(1, len(batch_ms) + 1)
    return Service(
        sizes=sizes, batch_s=np.tile(np.array(batch_ms) * MS, (settings, 1)),
        crowding=np.tile(np.array(crowding, np.float64), (settings, 1)), answer_s=flat, company=flat, overlap=flat,
        fixed_s=flat, spread=flat, waking_s=flat, threading=flat + 1, gathering_s=flat, meeting_s=flat,
    )  # fmt: skip


def opened(
    start: Start,
    policy: Callable[[Sequence[Settings]], Policy],
    setting: Settings,
    arrivals_ms: Sequence[float],
    **kind: Any,
) -> Predicted:
    """Return what a few requests see, none of them left out as warm-up."""
    arrivals = np.array([arrivals_ms], np.float64) * MS
    assert arrivals.size < 10
    return simulate_open(start, policy([setting]), service(1, **kind), arrivals)[0]


def latencies(found: Predicted) -> list[float]:
    return [round(float(value), 3) for value in found.latencies_ms]


class TestTensorFlowServing:
    """One queue, a pool of threads."""

    @staticmethod
    def see(arrivals_ms: Sequence[float], *, kind: Mapping[str, Any] | None = None, **setting: Any) -> Predicted:
        setting = {"num_batch_threads": 1, **setting}
        return opened(tfserving.start, tfserving.policy, setting, arrivals_ms, **(kind or {}))

    def test_no_timeout_runs_what_is_there(self) -> None:
        """The first request goes alone; those that came meanwhile go together when the thread is idle."""
        found = self.see([0, 1, 2], max_batch_size=8)
        assert latencies(found) == [10, 19, 18]
        assert found.mean_batch == 1.5

    def test_a_full_batch_does_not_wait_for_its_timeout(self) -> None:
        """The second request fills the batch, which starts then."""
        assert latencies(self.see([0, 3], max_batch_size=2, batch_timeout_micros=50_000)) == [13, 10]

    def test_a_batch_that_is_not_full_waits_and_is_noticed_within_a_millisecond(self) -> None:
        """An idle thread looks every millisecond whether a batch is old enough."""
        found = self.see([0], max_batch_size=2, batch_timeout_micros=50_000)
        assert 60 <= found.latencies_ms[0] <= 61

    def test_the_timeout_runs_while_the_thread_is_busy(self) -> None:
        """A batch that grew old behind another starts as soon as the thread is idle."""
        found = self.see([0, 0, 1], max_batch_size=2, batch_timeout_micros=5_000)
        assert latencies(found) == [10, 10, 19]

    def test_two_threads_run_two_batches(self) -> None:
        """Requests that one thread would queue run side by side, each slower where the cores are shared."""
        assert latencies(self.see([0, 1], max_batch_size=1, num_batch_threads=2)) == [10, 10]
        shared = self.see([0, 1], max_batch_size=1, num_batch_threads=2, kind={"crowding": (1.0, 1.5)})
        assert latencies(shared) == [10, 15]

    def test_a_full_queue_turns_away(self) -> None:
        """One batch runs, one is queued; what comes then is refused at once."""
        found = self.see([0, 1, 2, 3], max_batch_size=1, max_enqueued_batches=1)
        assert latencies(found) == [10, 19]
        assert found.error_share == 0.5

    def test_batches_are_padded_to_an_allowed_size(self) -> None:
        """Three rows take the time of four."""
        sizes = (1.0, 2.0, 3.0, 4.0)
        found = self.see([0, 0, 0], max_batch_size=4, allowed_batch_sizes=(2, 4), kind={"batch_ms": sizes})
        assert latencies(found) == [4, 4, 4]

    def test_tells_how_a_server_works(self) -> None:
        """One caller whose request waits for company leaves the thread idle; many callers never do."""
        setting = {"max_batch_size": 8, "num_batch_threads": 1, "batch_timeout_micros": 10_000}
        policy = tfserving.policy([setting, setting])
        idle, busy = simulate_closed(tfserving.start, policy, service(2), np.array([1, 64]))
        assert (idle.mean_batch, busy.mean_batch) == (1, 8)
        assert idle.busy == pytest.approx(10 / 20.5, rel=0.02)
        assert busy.busy == pytest.approx(1.0)
        opened = self.see([0, 50, 100], max_batch_size=8)
        assert opened.busy == pytest.approx(30 / 110)

    def test_the_servers_own_threads_cap_the_batch(self) -> None:
        """Eight server threads never hold more than eight requests, whatever the batch might take."""
        policy = tfserving.policy([{"max_batch_size": 64, "num_batch_threads": 1, "server_threads": 8}])
        found = simulate_closed(tfserving.start, policy, service(1), np.array([64]))[0]
        assert found.mean_batch == 8
        assert found.rate == pytest.approx(800, rel=0.01)


class TestTorchServe:
    """Workers that collect their batches one after the other."""

    @staticmethod
    def see(arrivals_ms: Sequence[float], *, kind: Mapping[str, Any] | None = None, **setting: Any) -> Predicted:
        return opened(torchserve.start, torchserve.policy, setting, arrivals_ms, **(kind or {}))

    def test_batches_of_one_never_wait(self) -> None:
        """Without a batch size, the delay means nothing."""
        assert latencies(self.see([0, 20])) == [10, 10]

    def test_a_batch_that_is_not_full_waits_the_whole_delay(self) -> None:
        """A lone request takes the delay and the service time."""
        assert latencies(self.see([0], batchSize=8, maxBatchDelay=5)) == [15]

    def test_a_delay_of_zero_is_100_ms(self) -> None:
        """The server counts 0 as unset."""
        assert latencies(self.see([0], batchSize=8, maxBatchDelay=0)) == [110]

    def test_the_delay_begins_when_the_worker_collects(self) -> None:
        """A request that waited behind a batch waits the delay on top: its age does not count."""
        assert latencies(self.see([0, 5], batchSize=2, maxBatchDelay=1)) == [11, 17]

    def test_one_worker_at_a_time_collects(self) -> None:
        """The second worker begins to collect when the first has its batch, and not before."""
        assert latencies(self.see([0, 1, 2], batchSize=2, maxBatchDelay=20, workers=2)) == [11, 10, 30]

    def test_what_comes_while_a_worker_collects_needs_no_room(self) -> None:
        """The queue's size turns requests away only while every worker is busy."""
        found = self.see([0, 0.1, 0.2, 1, 2, 3], batchSize=3, maxBatchDelay=5, jobQueueSize=1)
        assert found.error_share == pytest.approx(2 / 6)
        assert len(found.latencies_ms) == 4

    def test_a_batch_that_callers_cannot_fill_is_slow(self) -> None:
        """Eight callers: a batch size of 8 fills at once, one of 32 always waits the delay."""
        both = torchserve.policy([{"batchSize": 8, "maxBatchDelay": 100}, {"batchSize": 32, "maxBatchDelay": 100}])
        fitting, waiting = simulate_closed(torchserve.start, both, service(2), np.array([8, 8]))
        assert fitting.rate == pytest.approx(800, rel=0.01)
        assert waiting.rate == pytest.approx(8 / 0.110, rel=0.01)

    def test_threads_that_compute_together_wait_for_each_other(self) -> None:
        """Two threads halve what a batch takes, and meet for a time that its size does not change; also for one row."""
        times = replace(service(2), threading=np.full(2, 0.5), meeting_s=np.full(2, 3 * MS))
        policy = torchserve.policy([{"batchSize": 8, "OMP_NUM_THREADS": threads} for threads in (1, 2)])
        one, two = simulate_closed(torchserve.start, policy, times, np.array([8, 8]))
        assert one.rate == pytest.approx(8 / 0.010, rel=0.01)
        assert two.rate == pytest.approx(8 / 0.008, rel=0.01)
        policy = torchserve.policy([{"batchSize": 1, "OMP_NUM_THREADS": threads} for threads in (1, 2)])
        one, two = simulate_closed(torchserve.start, policy, times, np.array([8, 8]))
        assert one.rate == pytest.approx(1 / 0.010, rel=0.01)
        assert two.rate == pytest.approx(1 / 0.013, rel=0.01)


class TestAnyScheduler:
    """What holds for every setting."""

    @settings(deadline=None, max_examples=40)
    @given(
        st.sampled_from([tfserving, torchserve]),
        st.integers(1, 16), st.integers(0, 20), st.integers(1, 3), st.integers(1, 30),
        st.lists(st.floats(0, 300), min_size=1, max_size=60),
    )  # fmt: skip
    def test_every_request_is_answered_once_or_turned_away(
        self, server: Any, size: int, delay_ms: int, workers: int, queue: int, gaps: list[float]
    ) -> None:
        """No request is lost or answered before it could be, and batches are no larger than allowed."""
        setting = {
            "max_batch_size": size, "batch_timeout_micros": delay_ms * 1000, "num_batch_threads": workers,
            "max_enqueued_batches": queue, "batchSize": size, "maxBatchDelay": delay_ms, "workers": workers,
            "jobQueueSize": queue,
        }  # fmt: skip
        arrivals = np.sort(np.array([gaps])) * MS
        found = simulate_open(server.start, server.policy([setting]), service(1), arrivals)[0]
        answered = round(len(gaps) * (1 - found.error_share))
        assert len(found.latencies_ms) == answered - answered // 10
        assert found.latencies_ms.min() >= 10 - 1e-6
        assert 0 < found.mean_batch <= size

    def test_settings_do_not_touch_each_other(self) -> None:
        """A setting shows the same alone and among hundreds."""
        many = [{"max_batch_size": 1 + at % 32, "batch_timeout_micros": 0, "num_batch_threads": 1} for at in range(200)]
        arrivals = np.sort(np.random.default_rng(3).random(300))
        together = simulate_open(
            tfserving.start, tfserving.policy(many), service(200, batch_ms=(2, 30)), np.tile(arrivals, (200, 1))
        )
        alone = simulate_open(
            tfserving.start, tfserving.policy(many[7:8]), service(1, batch_ms=(2, 30)), arrivals[None]
        )
        assert together[7].latencies_ms.tolist() == pytest.approx(alone[0].latencies_ms.tolist())
        assert together[7].rate == pytest.approx(alone[0].rate)
