"""The search without a server: on a simulated one, its memory, and what it believes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from servewright.backends.tfserving.simulation import SCHEDULER
from servewright.tuning import recalling, tuner
from servewright.tuning.belief import Belief, places
from servewright.tuning.journal import NAME, Journal
from servewright.tuning.recalling import Recalling
from servewright.tuning.search import Question, broken, search
from servewright.tuning.study import Goal, Load, Measured, Seen, Settings
from tuning_toys import CALLERS, GRID, Simulated, found_by, goal


class TestSearch:
    """Few measurements, a good setting."""

    def test_finds_nearly_the_best(self) -> None:
        """Ten of thirty-six settings, calibration counted, and 90 % of the best that any has."""
        asked = goal()
        bench = Simulated(asked)
        found = found_by(bench, asked)
        every = [bench.truth(settings, CALLERS) for settings in GRID]  # as they are measured: one by one
        best = max(seen.rate for seen in every if not broken(asked, seen, CALLERS))
        assert found.best is not None
        assert found.best.rate >= 0.9 * best
        assert len(found.measurements) + len(found.service_times) <= asked.budget
        assert found.predictions is not None
        assert found.predictions.settings == len(GRID)

    @pytest.mark.parametrize("p99_ms", [50.0, 6.0])
    def test_finds_a_rate_that_is_borne(self, p99_ms: float) -> None:
        """Of five rates, the greatest that any setting bears, or nearly; closed loops calibrate, and answer nothing."""
        rates = tuple(Load(rate=round(800 * 1.5**step)) for step in range(5))
        asked = goal(p99_ms=p99_ms).model_copy(update={"loads": rates})
        bench = Simulated(asked)
        found = found_by(bench, asked)
        borne = [load.rate for load in rates if not all(broken(asked, each, load) for each in bench.truths(GRID, load))]
        assert found.best is not None
        assert found.best.load in rates
        assert found.best.rate >= 0.6 * max(each or 0.0 for each in borne)
        assert found.measurements[0].load == CALLERS
        assert found.predictions is not None
        assert {each.load for each in found.predictions.frontier} <= set(rates)

    def test_grows_careful_while_nothing_keeps_the_promise(self) -> None:
        """Where hardly any rate is borne, the last questions are about the least of them."""
        rates = tuple(Load(rate=round(300 * 1.5**step)) for step in range(6))
        asked = goal(p99_ms=2.3).model_copy(update={"loads": rates})
        found = found_by(Simulated(asked), asked)
        assert found.best is not None
        assert found.best.load in rates[:3]

    def test_takes_a_dead_server_for_an_answer(self) -> None:
        """A setting that kills the server is noted and never chosen, and the search goes on."""
        asked = goal()
        bench = Simulated(asked, dies=lambda settings: settings["num_batch_threads"] == 1)
        found = found_by(bench, asked)
        assert any(each.unsafe for each in found.measurements)
        assert found.best is not None
        assert found.best.settings["num_batch_threads"] == 2
        assert not found.best.unsafe

    def test_takes_no_dead_server_for_one_that_bears_a_rate(self) -> None:
        """What kills servers at the greatest rates is not risked until nothing is left."""
        rates = tuple(Load(rate=round(300 * 1.5**step)) for step in range(6))
        asked = goal(p99_ms=20.0, budget=14).model_copy(update={"loads": rates})
        bench = Simulated(asked)
        measure = bench.measure

        def overrun(question: Question) -> Measured:
            seen = measure(question)
            died = (question.load.rate or 0) > 500
            return seen.model_copy(update={"unsafe": "it ended", "rate": 0.0, "p99_ms": None}) if died else seen

        bench.measure = overrun  # type: ignore[method-assign]
        found = found_by(bench, asked)
        assert found.best is not None
        assert (found.best.load.rate or 0) <= 500

    @pytest.mark.parametrize(("callers", "p99_ms", "budget"), [(8, 18.0, 16), (4, 16.0, 14)])
    def test_turns_from_callers_that_break_the_promise_by_a_hair(
        self, callers: int, p99_ms: float, budget: int
    ) -> None:
        """However much many callers would gain, where none of them is answered in time fewer are asked for."""
        few = Load(concurrency=callers)
        asked = goal(p99_ms=p99_ms, budget=budget).model_copy(update={"loads": (few, CALLERS)})
        bench = self.late_by_a_hair(asked)
        found = found_by(bench, asked)
        loads = [each.load for each in found.measurements if each.stage == "verify"]
        assert found.best is not None
        assert found.best.rate >= 0.95 * max(each.rate for each in bench.truths(GRID, few))
        assert loads.count(CALLERS) <= len(loads) / 2

    def test_hopes_longer_while_much_is_left(self) -> None:
        """Many callers that would gain much are asked for more often before what is left to ask runs short."""
        few = Load(concurrency=8)
        tried = []
        for budget in (14, 60):
            asked = goal(p99_ms=18.0, budget=budget).model_copy(update={"loads": (few, CALLERS)})
            found = found_by(self.late_by_a_hair(asked), asked)
            verified = [each.load for each in found.measurements if each.stage == "verify"]
            tried.append(verified[:9].count(CALLERS))
        assert tried[0] < tried[1]

    @staticmethod
    def late_by_a_hair(asked: Goal) -> Simulated:
        """Return a server that answers so many callers a little later than is promised, whatever its setting."""
        bench = Simulated(asked)
        truth, least = bench.truth, 1.03 * asked.latency_ms["p99"]

        def late(settings: Settings, load: Load) -> Seen:
            seen = truth(settings, load)
            return seen.model_copy(update={"p99_ms": max(seen.p99_ms or 0.0, least)}) if load == CALLERS else seen

        bench.truth = late  # type: ignore[method-assign]
        return bench

    def test_calibrates_with_whatever_answers(self) -> None:
        """Where the settings that calibrate kill the server, others do; where all do, there is nothing to find."""
        asked = goal(budget=30)
        found = found_by(Simulated(asked, dies=lambda settings: settings["max_batch_size"] != 16), asked)
        assert found.best is not None
        assert found.best.settings["max_batch_size"] == 16
        none = found_by(Simulated(asked, dies=lambda _: True), asked)
        assert none.state == "nothing"
        assert all(each.unsafe for each in none.measurements)

    def test_says_when_no_setting_keeps_the_promise(self) -> None:
        """A promise that nothing can keep has no winner."""
        found = found_by(Simulated(asked := goal(p99_ms=0.5)), asked)
        assert found.best is None
        assert found.state == "nothing"
        assert all(each.broken for each in found.measurements)
        said = tuner.conclusion(found.state, found, None, asked)
        nearest = min(each.p99_ms or 0.0 for each in found.measurements)
        assert f"under 64 callers: p99 {nearest:.1f} ms > 0.5 ms; ask for less" in said
        assert ("--budget" in said) == (len(found.measurements) + len(found.service_times) == asked.budget)

    def test_keeps_what_there_is_when_interrupted(self) -> None:
        """Ctrl-C loses the measurement in progress alone."""
        asked = goal()
        found = found_by(Simulated(asked, until=2), asked)
        assert found.state == "interrupted"
        assert len(found.measurements) == 2

    def test_asks_the_same_again(self) -> None:
        """The same answers lead to the same questions: resuming stands on it."""
        asked = goal(seed=3)
        first, second = (found_by(Simulated(asked), asked) for _ in range(2))
        assert first.measurements == second.measurements

    def test_asks_the_same_before_it_is_given_more(self) -> None:
        """Where nothing keeps the promise yet, what is risked depends on what is left: it goes by the first budget."""
        rates = tuple(Load(rate=round(300 * 1.5**step)) for step in range(6))
        little = goal(p99_ms=1.8, budget=8).model_copy(update={"loads": rates})
        much = little.model_copy(update={"budget": 20})
        before = found_by(Simulated(little), little)
        after = search(GRID, much, SCHEDULER, Simulated(much), earlier=(8,), rounds=2)
        count = len(before.measurements)
        assert after.measurements[:count] == before.measurements
        assert count < len(after.measurements) <= 18
        assert found_by(Simulated(much), much).measurements[:count] != before.measurements


class TestMemory:
    """A journal behind a search."""

    @pytest.mark.parametrize("until", [0, 1, 3, 5])
    def test_leads_to_the_same_winner(self, tmp_path: Path, until: int) -> None:
        """Stopped after any measurement, a study ends as if it had not been, and measures nothing twice."""
        asked = goal()
        whole = found_by(Simulated(asked), asked)
        journal = Journal.create(tmp_path / NAME, {})
        found_by(Recalling(Simulated(asked, until=until), journal), asked)
        (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes() + b'{"kind": "measu')
        again = Simulated(asked)
        resumed = found_by(Recalling(again, Journal.resume(tmp_path / NAME)), asked)
        assert resumed.best == whole.best
        assert again.asked == len(whole.measurements) - until

    def test_keeps_what_an_interrupted_search_did_not_ask_for_again(self, tmp_path: Path) -> None:
        """A study that is given more and stopped at once knows all that it knew."""
        asked = goal()
        journal = Journal.create(tmp_path / NAME, {})
        whole = found_by(Recalling(Simulated(asked), journal), asked)
        again = Recalling(Simulated(asked), Journal.resume(tmp_path / NAME))
        assert again.known == whole.measurements
        assert recalling.service_times(journal) == list(whole.service_times)

    def test_times_no_request_twice(self, tmp_path: Path) -> None:
        """Each service time is on the disk before the next is sought."""
        journal = Journal.create(tmp_path / NAME, {})
        times = Simulated(goal()).service_times((1, 64))
        for each in times:
            recalling.keep_timed(journal, each)
        assert recalling.timed(Journal.resume(tmp_path / NAME)) == times
        assert recalling.service_times(journal) == []


class TestBelief:
    """What is believed of points that were not measured."""

    def test_comes_nearer_to_the_truth_near_what_was_measured(self) -> None:
        """A simulation that is off by the same everywhere is corrected everywhere, and surest where it was measured."""
        settings: list[Settings] = [{"size": size} for size in (1, 2, 4, 8, 16)]
        place = places(settings, [CALLERS] * 5)
        simulated = np.full((5, 4), 100.0)
        belief = Belief(
            place=place, simulated=simulated, regime=np.ones((5, 2)), sensitivity=np.zeros((0, 5, 4)),
            kept_up=np.zeros(5, bool), closed=np.ones(5, bool),
        )  # fmt: skip
        rate, *_ = belief.corrected([0], np.array([[80.0, 125.0, 125.0, 125.0]]))
        assert math.exp(rate.mean[0]) == pytest.approx(80, rel=0.03)
        assert 80 < math.exp(rate.mean[4]) < 100
        assert rate.deviation[0] < rate.deviation[4]
        before, *_ = belief.corrected([], np.zeros((0, 4)))
        assert np.exp(before.mean) == pytest.approx(100)

    @pytest.mark.parametrize(
        ("tails_ms", "least", "most"),
        [
            ((200.0, 190.0, 210.0, 200.0), 1.3, 2.1),  # the server's own: the simulation does not know them
            ((100.0, 400.0, 100.0, 100.0), 0.9, 1.1),  # a stall, which no other setting has
        ],
    )
    def test_tells_a_stall_from_long_tails(self, tails_ms: tuple[float, ...], least: float, most: float) -> None:
        """Tails that are all longer than simulated are believed of other settings; one alone is not."""
        *_, tail = self.line(5).corrected(range(4), np.array([[100.0, 100.0, 100.0, each] for each in tails_ms]))
        assert least < math.exp(tail.mean[4]) / 100 < most

    def test_takes_long_tails_of_many_callers_for_no_stalls(self) -> None:
        """What is usual of many callers is not of few: where there are as many calm ones, the tails are still true."""
        few, many = Load(concurrency=8), Load(concurrency=64)
        settings: list[Settings] = [{"size": 2**each} for each in range(4)]
        belief = replace(
            self.line(8), place=places([*settings, *settings], [few] * 4 + [many] * 4), closed=np.ones(8, bool)
        )
        tails = [100.0, 102.0, 98.0, 101.0, 200.0, 190.0, 210.0]
        *_, tail = belief.corrected(range(7), np.array([[100.0, 100.0, 100.0, each] for each in tails]))
        assert math.exp(tail.mean[0]) == pytest.approx(100, rel=0.1)
        assert math.exp(tail.mean[7]) > 150

    def test_is_less_sure_where_measurements_scatter(self) -> None:
        """On a machine that others use too, one measurement tells less of the next."""
        many = (130.0, 75.0, 125.0, 80.0, 130.0, 75.0, 120.0), (103.0, 97.0, 102.0, 98.0, 103.0, 97.0, 101.0)
        scattered, alike = (
            self.line(8).corrected(range(7), np.array([[each, 100.0, 100.0, 100.0] for each in rates]))[0]
            for rates in many
        )
        assert scattered.deviation[7] > 1.5 * alike.deviation[7]
        assert math.exp(scattered.mean[7]) == pytest.approx(100, rel=0.12)

    def test_tells_what_is_wrong_with_one_load(self) -> None:
        """Where the simulation is off under one load, it is so for all settings, and less under another load."""
        loads = [CALLERS, CALLERS, Load(concurrency=1)]
        belief = replace(self.line(3), place=places([{"size": 2}, {"size": 64}, {"size": 64}], loads))
        rate, *_ = belief.corrected([0], np.array([[60.0, 100.0, 100.0, 100.0]]))
        assert math.exp(rate.mean[1]) < 70 < 75 < math.exp(rate.mean[2]) < 100

    def test_tells_which_number_of_the_model_is_wrong(self) -> None:
        """A setting that is off as a number would have it tells of those in which the number matters."""
        moves = np.zeros((1, 8, 4))
        moves[0, [0, 7], 0] = 0.5
        shown = np.array([[140.0, 100.0, 100.0, 100.0]])
        told, *_ = replace(self.line(8), sensitivity=moves).corrected([0], shown)
        untold, *_ = self.line(8).corrected([0], shown)
        assert math.exp(told.mean[3]) < 120 < 130 < math.exp(told.mean[7])
        assert untold.mean[3] == pytest.approx(untold.mean[7], abs=0.01)

    def test_tells_what_is_wrong_with_settings_that_work_alike(self) -> None:
        """Where the simulation is off for batches that fill up while workers idle, it is so for all of them."""
        alike = np.array([[1.0, 0.5], [1.0, 1.0]] * 4)
        rate, *_ = replace(self.line(8), regime=alike).corrected([0], np.array([[140.0, 100.0, 100.0, 100.0]]))
        assert math.exp(rate.mean[7]) < 122 < 130 < math.exp(rate.mean[6])

    @staticmethod
    def line(count: int) -> Belief:
        """Return a belief in 100 of everything, for settings of one knob."""
        place = places([{"size": 2**each} for each in range(count)], [CALLERS] * count)
        every = np.full((count, 4), 100.0)
        return Belief(
            place=place, simulated=every, regime=np.ones((count, 2)), sensitivity=np.zeros((0, count, 4)),
            kept_up=np.zeros(count, bool), closed=np.zeros(count, bool),
        )  # fmt: skip
