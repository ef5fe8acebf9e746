"""Calibration: a model fitted to a few measurements tells what other settings show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from servewright.backends.tfserving import simulation as tfserving
from servewright.backends.torchserve import simulation as torchserve
from servewright.calibrating import LIMITS, NUMBERS, PERCENTILES, Cell, fit
from servewright.load.arrivals import Arrivals
from servewright.load.workload import Closed, Pace
from servewright.simulating import Predicted, Service, simulate_closed, simulate_open
from servewright.tuning.belief import Belief
from servewright.tuning.study import Load

SCHEDULER = tfserving.SCHEDULER

ALONE_S = {1: 1.0e-3, 4: 1.6e-3, 16: 3.0e-3, 64: 8.0e-3}


def server(setting: dict[str, int], pace: Pace) -> Predicted:
    """Return what a made-up server shows, one whose numbers the fit does not know."""
    one = np.ones(1)
    service = Service(
        sizes=np.array(list(ALONE_S)), batch_s=np.array([list(ALONE_S.values())]) - 2.5e-4,
        crowding=np.array([[1.0, 1.6]]), answer_s=one * 1e-4, company=one * 0.8, overlap=one * 0.4,
        fixed_s=one * 1.5e-4, spread=one * 0.15, waking_s=one * 4e-4, threading=one, gathering_s=one * 3e-5,
        meeting_s=one * 0,
    )  # fmt: skip
    policy = SCHEDULER.policy([setting])
    if isinstance(pace, Closed):
        return simulate_closed(SCHEDULER.start, policy, service, np.array([pace.concurrency]), seed=7)[0]
    moments = np.concatenate([pace.during(second) for second in range(4)])
    return simulate_open(SCHEDULER.start, policy, service, moments[None], seed=7)[0]


def cell(setting: dict[str, int], pace: Pace) -> Cell:
    seen = server(setting, pace)
    percentiles = tuple(seen.percentile_ms(share) for share in PERCENTILES)
    return Cell(setting=setting, pace=pace, rate=seen.rate, percentiles_ms=percentiles)


def setting(size: int, delay_us: int, threads: int) -> dict[str, int]:
    return {
        "max_batch_size": size, "batch_timeout_micros": delay_us, "num_batch_threads": threads,
        "max_enqueued_batches": 100,
    }  # fmt: skip


def test_predicts_settings_that_were_not_measured() -> None:
    """From eight measurements, the rates of other settings are within 10 % and p99 within 20 %, as medians."""
    busy, calm = Arrivals(rate=600, poisson=True, seed=2), Closed(concurrency=64)
    known = [
        cell(setting(4, 0, 1), calm), cell(setting(64, 0, 1), calm), cell(setting(64, 0, 1), Closed(concurrency=8)),
        cell(setting(16, 2000, 2), calm), cell(setting(16, 2000, 2), busy), cell(setting(4, 0, 1), busy),
        cell(setting(4, 0, 1), Closed(concurrency=1)), cell(setting(8, 5000, 2), calm),
    ]  # fmt: skip
    model = fit(SCHEDULER, ALONE_S, known, rounds=10)
    asked = [
        (setting(size, delay, threads), pace)
        for size in (8, 32) for delay in (0, 1000) for threads in (1, 2) for pace in (busy, calm)
    ]  # fmt: skip
    truth = [server(*each) for each in asked]
    points = [(found.setting, Load.of(found.pace)) for found in known]
    points += [(asked_for, Load.of(pace)) for asked_for, pace in asked]
    shown = np.array([(found.rate, *found.percentiles_ms) for found in known])
    rate, *_, tail = Belief.of(model, points).corrected(range(len(known)), shown)
    rates = np.exp(rate.mean[len(known) :]) / [each.rate for each in truth] - 1
    tails = np.exp(tail.mean[len(known) :]) / [each.percentile_ms(0.99) for each in truth] - 1
    assert np.median(np.abs(rates)) < 0.10
    assert np.median(np.abs(tails)) < 0.20


def test_workers_crowd_each_other_the_more_the_more_are_busy() -> None:
    """What was measured with every core busy is not what two of them do to each other."""
    known = [cell(setting(1, 0, 1), Closed(concurrency=1))]
    model = fit(SCHEDULER, ALONE_S, known, beside_s={4: 2e-3}, rounds=1)
    numbers = model.values.copy()
    numbers[[NUMBERS.index("crowding"), NUMBERS.index("waking_s"), NUMBERS.index("company")]] = 3.0, 0.0, 0.0
    model = replace(model, fits=numbers[None])
    asked = [(setting(1, 0, count), Closed(concurrency=count)) for count in (1, 2, 4)]
    one, two, four = (each[1] for each in model.simulated(asked).shown)
    assert one < two < four
    assert two - one < 0.6 * (four - one)
    of_two = replace(model, crowded=2).simulated(asked).shown
    assert of_two[1][1] > one + 0.8 * (four - one)


def test_takes_what_carries_many_rows_for_no_part_of_a_batch() -> None:
    """Of a request of 64 rows, a share is sending and unpacking them: a batch of 64 requests computes the rest."""
    model = fit(SCHEDULER, ALONE_S, [cell(setting(4, 0, 1), Closed(concurrency=8))], rounds=1)
    asked = [(setting(1, 0, 1), Closed(concurrency=8)), (setting(64, 0, 1), Closed(concurrency=64))]
    number = NUMBERS.index("carrying")
    shares = [np.where(np.arange(len(NUMBERS)) == number, share, model.values) for share in (0.0, 0.8)]
    (one, many), (one_less, many_less) = (
        replace(model, fits=each[None]).simulated(asked).shown[:, 0] for each in shares
    )
    assert one_less == pytest.approx(one)
    assert many_less > 1.4 * many


def test_says_what_several_fits_say_on_average() -> None:
    """Few measurements do not tell every number: fits that start elsewhere differ, and none is taken for the truth."""
    known = [cell(setting(4, 0, 1), Closed(concurrency=8))]
    model = fit(SCHEDULER, ALONE_S, known, rounds=1)
    asked = [(setting(16, 0, 2), Closed(concurrency=64)), (setting(64, 0, 1), Closed(concurrency=64))]
    each = np.array([replace(model, fits=one[None]).simulated(asked).shown[:, 0] for one in model.fits])
    said = model.simulated(asked)
    assert len(model.fits) > 1
    assert np.ptp(each, axis=0).min() > 0.02 * each.mean()
    assert said.shown[:, 0] == pytest.approx(np.exp(np.log(each).mean(axis=0)), rel=0.02)
    assert (said.mean_batch <= [16, 64]).all()
    assert ((said.busy > 0) & (said.busy <= 1)).all()
    assert model.values == pytest.approx(model.fits.mean(axis=0))


def test_is_the_same_for_the_same_seed() -> None:
    """A fit can be repeated."""
    known = [cell(setting(4, 0, 1), Closed(concurrency=8))]
    first, second = (fit(SCHEDULER, ALONE_S, known, rounds=1) for _ in range(2))
    assert first.values.tolist() == second.values.tolist()
    assert first.error == pytest.approx(second.error)


def test_tells_which_settings_depend_on_a_number() -> None:
    """How much two busy workers slow each other matters to settings that have two."""
    known = [cell(setting(4, 0, 1), Closed(concurrency=8)), cell(setting(16, 0, 2), Closed(concurrency=64))]
    model = fit(SCHEDULER, ALONE_S, known, rounds=2)
    asked = [(setting(16, 0, threads), Closed(concurrency=64)) for threads in (1, 2)]
    changes = model.sensitivity(asked)
    assert changes.shape == (len(NUMBERS), 2, 1 + len(PERCENTILES))
    one, two = np.abs(changes[NUMBERS.index("crowding"), :, 0])
    assert two > 0.05
    assert one == 0  # before and after have the same luck


def test_what_no_measurement_tells_is_what_is_usual_of_such_a_server() -> None:
    """One thread shows nothing of what two cost each other: there the scheduler's word counts."""
    known = [cell(setting(4, 0, 1), Closed(concurrency=8))]
    number = NUMBERS.index("crowding")
    for usual in (1.2, 2.4):
        scheduler = replace(SCHEDULER, usual={"crowding": (usual, 0.05)})
        assert fit(scheduler, ALONE_S, known, rounds=6).values[number] == pytest.approx(usual, abs=0.2)


@pytest.mark.parametrize("backend", [tfserving, torchserve])
def test_schedulers_tell_of_numbers_that_there_are(backend: Any) -> None:
    """A name that the model does not have would be passed over, and a value that it may not have never be found."""
    for name, (usual, differs) in backend.SCHEDULER.usual.items():
        least, greatest = LIMITS[name]
        assert least <= usual <= greatest
        assert 0 < differs < greatest - least
