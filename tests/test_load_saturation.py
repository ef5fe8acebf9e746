"""Promises, and the greatest rate that keeps them."""

from __future__ import annotations

import pytest

from servewright.errors import InputError
from servewright.load.saturation import Slo, find_max, parse_slo


class TestPromises:
    """Promises as users write them."""

    def test_reads_them(self) -> None:
        """Latencies by percentile, and a share of errors."""
        assert parse_slo("p99=50ms, errors=0.1%") == Slo(latency_ms=(("p99", 50.0),), errors=0.001)

    @pytest.mark.parametrize(
        "text", ["", "p99", "p99=50", "p98=1ms", "p99=0ms", "p99=nan", "errors=200%", "errors=many", "errors=nan"]
    )
    def test_refuses_what_is_none(self, text: str) -> None:
        """What is no promise is said, with an example of one."""
        with pytest.raises(InputError, match="p99=50ms"):
            parse_slo(text)


class Knee:
    """What a server would show that holds a rate up to its capacity."""

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate = min(rate, capacity)
        self.error_share = 0.0
        self._p99 = 1000.0 if rate > capacity else 10.0 / (1 - rate / (capacity * 1.2))

    def percentile_ms(self, share: float) -> float:
        return self._p99


class Slow(Knee):
    """A server whose queue is deep: it answers everything in time, but not all of a rate."""

    def percentile_ms(self, share: float) -> float:
        return 10.0


class TestFindingTheHighestRate:
    """The search for a server's knee."""

    @pytest.mark.parametrize("capacity", [3.0, 40.0, 100.0, 730.0, 12_345.0])
    def test_comes_within_its_precision(self, capacity: float) -> None:
        """The rate found holds, and one 5 % above it does not."""
        best, trials = find_max(lambda rate: Knee(rate, capacity), Slo(latency_ms=(("p99", 500.0),)))
        assert best is not None
        assert capacity / 1.05 <= best.asked <= capacity
        assert len(trials) < 20

    def test_no_rate_may_be_the_answer(self) -> None:
        """Where even the least rate breaks a promise, none is returned."""
        best, trials = find_max(lambda rate: Knee(rate, 100.0), Slo(latency_ms=(("p99", 1.0),)))
        assert best is None
        assert trials[-1].asked == 1.0
        assert trials[-1].broken.startswith("p99")

    def test_a_rate_that_is_not_reached_is_not_the_answer(self) -> None:
        """Where only errors are promised against, even arrivals show a backlog; random ones are given their luck."""
        best, _ = find_max(lambda rate: Slow(rate, 7.2), Slo())
        assert best is not None
        assert best.asked < 7.2 * 1.1
        assert Slo().broken_by(Slow(10.0, 7.2), asked=10.0, poisson=False)
        assert not Slo().broken_by(Slow(10.0, 7.5), asked=10.0)

    def test_what_was_tried_is_told_as_it_goes(self) -> None:
        """A search that is ended early has its trials."""
        told: list[float] = []

        def measured(rate: float) -> Knee:
            if len(told) == 3:
                raise KeyboardInterrupt
            return Knee(rate, 1000.0)

        with pytest.raises(KeyboardInterrupt):
            find_max(measured, Slo(latency_ms=(("p99", 500.0),)), on_trial=lambda trial: told.append(trial.asked))
        assert told == [100.0, 200.0, 400.0]
