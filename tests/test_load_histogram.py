"""Histograms and schedules of load: what they promise, for any values."""

from __future__ import annotations

import json
from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servewright.load.arrivals import Arrivals
from servewright.load.histogram import RELATIVE_ERROR, Histogram

DURATIONS = st.lists(st.integers(0, 10**12), min_size=1, max_size=200)


def of(values: list[int]) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


@settings(deadline=None)
@given(DURATIONS, st.floats(0, 1))
def test_a_percentile_is_off_by_less_than_half_a_bucket(values: list[int], share: float) -> None:
    """A percentile differs from the sorted list's own by no more than the stated share of it."""
    rank = min(max(int(np.ceil(share * len(values) - 1e-9)), 1), len(values))
    exact = sorted(values)[rank - 1]
    assert abs(of(values).percentile(share) - exact) <= exact * RELATIVE_ERROR + 0.5


@settings(deadline=None)
@given(DURATIONS, DURATIONS)
def test_merging_is_counting_together(first: list[int], second: list[int]) -> None:
    """A merged histogram equals the one of both lists in one."""
    merged = of(first)
    merged.merge(of(second))
    assert merged == of(first + second)


@settings(deadline=None)
@given(DURATIONS)
def test_survives_json(values: list[int]) -> None:
    """A histogram comes back from JSON as it was, with its exact extremes."""
    found = Histogram.from_json(json.loads(json.dumps(of(values).as_json())))
    assert found == of(values)
    assert (found.percentile(0), found.percentile(1)) == pytest.approx((min(values), max(values)), rel=RELATIVE_ERROR)
    assert found.most_ns == max(values)


def test_an_empty_one_has_no_percentile() -> None:
    """Nothing measured is not a latency of zero."""
    assert np.isnan(Histogram().percentile(0.5))
    assert np.isnan(Histogram().mean())


@settings(deadline=None)
@given(st.floats(0.3, 500), st.booleans(), st.integers(1, 5), st.integers(0, 99))
def test_processes_share_a_schedule(rate: float, poisson: bool, processes: int, seed: int) -> None:
    """The parts of a schedule hold each of its moments once, whatever their number."""
    arrivals = Arrivals(rate=rate, poisson=poisson, seed=seed)
    whole = np.concatenate([arrivals.during(second) for second in range(3)]).tolist()
    # A schedule too slow to have a moment in every second would be searched for its next one for long.
    until = 3.0
    parts = [
        list(takewhile(lambda moment: moment < until, arrivals.share(part, processes))) for part in range(processes)
    ]
    assert sorted(moment for part in parts for moment in part) == whole


def test_constant_arrivals_are_evenly_spaced() -> None:
    """At 4 per second a request leaves every 250 ms, also over the seam between seconds."""
    first = list(takewhile(lambda moment: moment < 2.5, Arrivals(rate=4).share(0, 1)))
    assert np.diff(first) == pytest.approx(np.full(9, 0.25))


def test_poisson_arrivals_have_their_rate_and_spread() -> None:
    """Gaps of a Poisson schedule average to 1/rate and vary as much as they average."""
    arrivals = Arrivals(rate=1000, poisson=True, seed=1)
    gaps = np.diff(np.concatenate([arrivals.during(second) for second in range(20)]))
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)
