"""When a new server has settled in: it gets no faster from some rounds of its load to the next."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from servewright.tuning.live import settled, until_settled

# Rounds of a second and a half of a new TorchServe with a perceptron under 64 callers, as it compiled itself.
COMPILING = (2033.0, 3096.0, 3795.0, 4041.0, 5583.0, 5946.0, 5742.0, 6047.0, 5693.0, 6117.0)


def test_a_server_that_compiles_itself_settles_as_it_gets_no_faster() -> None:
    """It was three times as fast in the end as in the beginning, and paused once on the way."""
    assert [settled(COMPILING[:rounds]) for rounds in range(1, 11)] == [False] * 9 + [True]


@given(rate=st.floats(1.0, 1e5), seed=st.integers(0, 10**6))
def test_noise_is_not_growth(rate: float, seed: int) -> None:
    """A rate that only varies, by two hundredths each way, has settled after two times three rounds, and not before."""
    noise = random.Random(seed)
    rates = [rate * noise.uniform(0.98, 1.02) for _ in range(6)]
    assert settled(rates)
    assert not settled(rates[:5])


@given(rate=st.floats(1.0, 1e5), growth=st.floats(1.03, 3.0), rounds=st.integers(1, 12))
def test_growth_is_waited_for(rate: float, growth: float, rounds: int) -> None:
    """By three hundredths from round to round is growth."""
    assert not settled([rate * growth**each for each in range(rounds)])


def test_a_server_that_answers_nothing_has_settled() -> None:
    """What is wrong with it shows when it is measured."""
    assert settled([0.0] * 6)


def test_a_server_is_loaded_until_it_has_settled() -> None:
    """The tenth round is the last: the three from there back are no faster than the three before."""
    rounds = iter((*COMPILING, 1.0))
    assert until_settled(lambda: next(rounds), within_s=60.0) == list(COMPILING)
    assert next(rounds) == 1.0


def test_a_server_that_settles_at_once_is_loaded_once() -> None:
    """As where its backend says that it takes no time."""
    assert until_settled(iter(COMPILING).__next__, within_s=0.0) == [COMPILING[0]]
