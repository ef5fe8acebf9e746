"""The tuner without a server: its search on a simulated one, its memory, its sums, and the specs that it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import pipeline, registry, yamltext
from servewright.backend import Backend
from servewright.backends.tfserving.simulation import SCHEDULER
from servewright.errors import InputError, LaunchError
from servewright.load.workload import Closed
from servewright.rendering import render
from servewright.simulating import Service, simulate_closed, simulate_open
from servewright.tuning import gain, planning, recalling, spec_text, study, tuner
from servewright.tuning.belief import Belief, places
from servewright.tuning.journal import NAME, Journal
from servewright.tuning.knobs import Demand, grid
from servewright.tuning.live import Subject
from servewright.tuning.machine import machine
from servewright.tuning.recalling import Recalling
from servewright.tuning.search import Found, Question, broken, search
from servewright.tuning.study import Comparison, Goal, Load, Measured, Round, Seen, ServiceTime, Settings

if TYPE_CHECKING:
    from conftest import Cli, Workshop

ALONE_MS = {1: 1.0, 64: 8.0}
CALLERS = Load(concurrency=64)
GRID: list[Settings] = [
    {"max_batch_size": size, "batch_timeout_micros": delay, "num_batch_threads": threads, "max_enqueued_batches": 100}
    for size in (2, 4, 8, 16, 32, 64) for delay in (0, 1000, 5000) for threads in (1, 2)
]  # fmt: skip


class Simulated:
    """A server that exists as a simulation alone; ``dies`` under settings that it cannot bear."""

    def __init__(self, goal: Goal, *, dies: Callable[[Settings], bool] = lambda _: False, until: int = 1000) -> None:
        self.goal, self.dies, self.until, self.asked = goal, dies, until, 0

    def service_times(self, rows: Sequence[int]) -> list[ServiceTime]:
        return [
            ServiceTime(rows=each, ms=ALONE_MS[each], low_ms=ALONE_MS[each], high_ms=ALONE_MS[each]) for each in rows
        ]

    def measure(self, question: Question) -> Measured:
        self.asked += 1
        if self.asked > self.until:
            raise KeyboardInterrupt
        head = {
            "index": question.index, "stage": question.stage, "settings": question.settings, "load": question.load,
            "predicted": question.predicted,
        }  # fmt: skip
        if self.dies(question.settings):
            return Measured(rate=0.0, p50_ms=None, p90_ms=None, p99_ms=None, unsafe="the server ended", **head)
        seen = self.truth(question.settings, question.load)
        return Measured(**seen.model_dump(), broken=broken(self.goal, seen, question.load), **head)

    def truth(self, settings: Settings, load: Load) -> Seen:
        return self.truths([settings], load)[0]

    def truths(self, settings: Sequence[Settings], load: Load) -> list[Seen]:
        one = np.ones(len(settings))
        service = Service(
            sizes=np.array(list(ALONE_MS)), batch_s=np.outer(one, list(ALONE_MS.values())) / 1e3 - 2e-4,
            crowding=np.outer(one, [1.0, 1.5]), answer_s=one * 1e-4, company=one * 0.6, overlap=one * 0.3,
            fixed_s=one * 2e-4, spread=one * 0.1, waking_s=one * 3e-4, threading=one, gathering_s=one * 3e-5,
        )  # fmt: skip
        policy = SCHEDULER.policy(settings)
        if isinstance(load.pace, Closed):
            callers = np.full(len(settings), load.pace.concurrency)
            found = simulate_closed(SCHEDULER.start, policy, service, callers, batches=200, seed=3)
        else:
            found = simulate_open(SCHEDULER.start, policy, service, np.outer(one, load.pace.during(0)), seed=3)
        return [
            Seen(
                rate=each.rate, error_share=each.error_share,
                p50_ms=each.percentile_ms(0.5), p90_ms=each.percentile_ms(0.9), p99_ms=each.percentile_ms(0.99),
            )
            for each in found
        ]  # fmt: skip

    def over(self) -> bool:
        return False


def goal(*, p99_ms: float = 50.0, budget: int = 10, seed: int = 0) -> Goal:
    return Goal(maximise="rate", latency_ms={"p99": p99_ms}, errors=0.0, loads=(CALLERS,), budget=budget, seed=seed)


def found_by(bench: Any, asked: Goal) -> Found:
    return search(GRID, asked, SCHEDULER, bench, rounds=2)


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
        little = goal(p99_ms=2.3, budget=7).model_copy(update={"loads": rates})
        much = little.model_copy(update={"budget": 12})
        before = found_by(Simulated(little), little)
        after = search(GRID, much, SCHEDULER, Simulated(much), earlier=(7,), rounds=2)
        count = len(before.measurements)
        assert after.measurements[:count] == before.measurements
        assert count < len(after.measurements) <= 10
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
        belief = Belief(place=place, simulated=simulated, kept_up=np.zeros(5, bool), closed=np.ones(5, bool))
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

    def test_is_less_sure_where_measurements_scatter(self) -> None:
        """On a machine that others use too, one measurement tells less of the next."""
        many = (130.0, 75.0, 125.0, 80.0, 130.0, 75.0, 120.0), (103.0, 97.0, 102.0, 98.0, 103.0, 97.0, 101.0)
        scattered, alike = (
            self.line(8).corrected(range(7), np.array([[each, 100.0, 100.0, 100.0] for each in rates]))[0]
            for rates in many
        )
        assert scattered.deviation[7] > 1.5 * alike.deviation[7]
        assert math.exp(scattered.mean[7]) == pytest.approx(100, rel=0.12)

    @staticmethod
    def line(count: int) -> Belief:
        """Return a belief in 100 of everything, for settings of one knob."""
        place = places([{"size": 2**each} for each in range(count)], [CALLERS] * count)
        every = np.full((count, 4), 100.0)
        return Belief(place=place, simulated=every, kept_up=np.zeros(count, bool), closed=np.zeros(count, bool))


class TestGain:
    """The winner against the default."""

    @staticmethod
    def rounds(*pairs: tuple[float, float]) -> list[Round]:
        def seen(rate: float) -> Seen:
            return Seen(rate=rate, p50_ms=1.0, p90_ms=2.0, p99_ms=1000 / rate)

        return [
            Round(index=index, first="default", default=seen(default), tuned=seen(tuned))
            for index, (default, tuned) in enumerate(pairs)
        ]

    def test_has_an_interval(self) -> None:
        """Rounds that agree are sure, rounds that do not prove nothing."""
        sure = gain.compared(self.rounds((100, 300), (101, 301), (99, 298)), CALLERS, goal())
        assert sure.beats
        assert sure.low < 3.0 < sure.high
        late = goal().model_copy(update={"maximise": "latency"})
        unsure = gain.compared(self.rounds((100, 130), (100, 80), (100, 110)), CALLERS, late)
        assert not unsure.beats

    def test_alternates(self) -> None:
        """Neither side always goes first, and rounds that are known are not measured again."""
        asked: list[str] = []
        known = self.rounds((100, 300))

        def measure(side: gain.Side) -> Seen:
            asked.append(side)
            return known[0].tuned

        found = gain.alternate(measure, known, rounds=3)
        assert asked == ["tuned", "default", "default", "tuned"]
        assert found[0] == known[0]

    @pytest.mark.parametrize(
        ("default_ms", "tuned_ms", "beats", "verdict"),
        [
            ((9, 9, 9), (9, 9, 80), False, "it keeps the promises under 500/s too"),
            ((80, 90, 9), (9, 9, 9), True, "which the default breaks in 2 of 3 rounds"),
            ((80, 90, 99), (9, 80, 9), False, "nothing beats the default within noise"),
            ((80, 90, 99), (70, 9, 80), False, "broke a promise in 2 of 3 rounds beside the default"),
        ],
    )
    def test_looks_at_promises_first(
        self, default_ms: tuple[int, ...], tuned_ms: tuple[int, ...], beats: bool, verdict: str
    ) -> None:
        """Under an open loop both rates are what was asked: who keeps the promises tells one from the other."""
        rounds = [
            each.model_copy(
                update={
                    "default": each.default.model_copy(update={"p99_ms": default}),
                    "tuned": each.tuned.model_copy(update={"p99_ms": tuned}),
                }
            )
            for each, default, tuned in zip(
                self.rounds((500, 501), (500, 499), (501, 500)), default_ms, tuned_ms, strict=True
            )
        ]
        asked = goal().model_copy(update={"loads": (Load(rate=500.0),)})
        compared = gain.compared(rounds, Load(rate=500.0), asked)
        assert compared.beats is beats
        found = found_by(Simulated(goal()), goal())
        assert verdict in tuner.conclusion("spent", found, compared, asked)
        told = tuner.not_kept(compared)
        assert ("in 1 of 3 rounds" in told) is (tuned_ms.count(80) == 1 and tuned_ms.count(9) == 2)

    @pytest.mark.parametrize(
        ("failing", "settled", "compared"),
        [((), 900, [900]), ((900,), 700, [900, 700]), ((900, 700, 500), 900, [900, 700, 500])],
    )
    def test_falls_back_where_the_best_fails(
        self, failing: tuple[int, ...], settled: float, compared: list[float]
    ) -> None:
        """To the greatest rate below; where three fail, the best stays what it was, and is not said to win."""
        rates = [Load(rate=float(each)) for each in (900, 700, 500, 300)]
        asked = goal().model_copy(update={"loads": tuple(rates)})
        kept = [
            Measured(
                rate=load.rate or 0.0, p50_ms=1, p90_ms=2, p99_ms=40, index=index, stage="verify", load=load,
                settings={"a": index},
            )
            for index, load in enumerate(rates)
        ]  # fmt: skip
        unsafe = kept[0].model_copy(update={"load": rates[1], "rate": 800.0, "unsafe": "it ended"})
        found = Found(measurements=[unsafe, *kept], best=kept[0])
        asked_for: list[float] = []

        def compare(best: Measured) -> Comparison:
            asked_for.append(best.rate)
            fails = best.rate in failing
            rounds = self.rounds((100, 300), (100, 301))
            found = gain.compared(rounds, best.load, goal().model_copy(update={"loads": tuple(rates)}))
            return found.model_copy(update={"tuned_broke": 2 * fails, "beats": not fails})

        comparison = gain.confirmed(found, asked, compare)
        assert asked_for == compared
        assert found.best is not None
        assert found.best.rate == settled
        assert comparison is not None
        assert comparison.load == found.best.load
        assert comparison.beats is (len(failing) < 3)

    def test_survives_servers_that_die_beside_the_default(self) -> None:
        """What dies gives way too; what is known of the others is kept, and where all die, the first error is told."""
        best, safe = self.two()
        found = Found(measurements=[best, safe], best=best)
        fails = gain.compared(self.rounds((100, 300), (100, 301)), CALLERS, goal()).model_copy(
            update={"tuned_broke": 2}
        )

        def dies(*rates: float) -> Callable[[Measured], Comparison]:
            def compare(each: Measured) -> Comparison:
                if each.rate in rates:
                    raise LaunchError(f"died at {each.rate:g}")
                return fails.model_copy(update={"measurement": each.index, "tuned_broke": 2 * (each is best)})

            return compare

        comparison = gain.confirmed(found, goal(), dies(900))
        assert (found.best, comparison and comparison.measurement) == (safe, 1)
        found.best = best
        comparison = gain.confirmed(found, goal(), dies(700))
        assert (found.best, comparison and comparison.measurement) == (best, 0)
        with pytest.raises(LaunchError, match="died at 900"):
            gain.confirmed(found, goal(), dies(900, 700))

    def test_forgets_no_winner(self) -> None:
        """A better measurement that does not beat the default takes nothing from one that was seen to."""
        best, safe = self.two()
        found = Found(measurements=[best, safe], best=best)
        won = gain.compared(self.rounds((100, 300), (100, 301)), CALLERS, goal()).model_copy(update={"measurement": 1})
        drawn = gain.compared(self.rounds((100, 130), (100, 80)), CALLERS, goal())

        def proven(each: Measured) -> Comparison | None:
            return won if each == safe else None

        def dies(_: Measured) -> Comparison:
            raise LaunchError("died")

        for compare in (lambda _: drawn, lambda _: None, dies):
            found.best = best
            assert gain.confirmed(found, goal(), compare, proven=proven) == won
            assert found.best == safe

    def test_is_told_though_what_comes_next_was_not_compared(self) -> None:
        """An interrupted study knows that its best failed, and nothing of the next."""
        best, safe = self.two()
        found = Found(measurements=[best, safe], best=best)
        fails = gain.compared(self.rounds((100, 300), (100, 301)), CALLERS, goal()).model_copy(
            update={"tuned_broke": 2}
        )
        assert gain.confirmed(found, goal(), lambda each: fails if each == best else None) == fails
        assert found.best == best

    def test_of_a_rate_that_was_asked_is_none(self) -> None:
        """Who keeps the promises answers what comes: arrivals differ by luck, and always by the same."""
        load = Load(rate=500.0)
        asked = goal(p99_ms=5.0).model_copy(update={"loads": (load,)})
        compared = gain.compared(self.rounds((500, 510), (501, 511), (500, 510)), load, asked)
        assert compared.low > 1
        assert not compared.beats
        found = found_by(Simulated(goal()), goal())
        assert "nothing beats the default: it keeps the promises under 500/s too" in tuner.conclusion(
            "spent", found, compared, asked
        )

    @staticmethod
    def two() -> tuple[Measured, Measured]:
        """Return a measurement, and one that answers less and keeps its promise by more."""
        head = {"p50_ms": 1, "p90_ms": 2, "stage": "verify", "load": CALLERS}
        best = Measured(rate=900, p99_ms=40, index=0, settings={"a": 0}, **head)
        return best, Measured(rate=700, p99_ms=30, index=1, settings={"a": 1}, **head)

    def test_has_no_runner_up_that_promises_as_much(self) -> None:
        """At one load only what kept its promise by more is worth a second look."""
        best, safe = self.two()
        near = best.model_copy(update={"rate": 800, "p99_ms": 41})
        assert gain.runner_up(Found(measurements=[best, near, safe]), best, goal()) == safe
        assert gain.runner_up(Found(measurements=[best, near]), best, goal()) is None

    def test_is_not_taken_from_another_winner(self, tmp_path: Path) -> None:
        """A study that goes on may find a better setting: what was compared before is nothing to that one."""
        first, second = found_by(Simulated(goal()), goal()).measurements[:2]
        journal = Journal.create(tmp_path / NAME, {})
        for each in self.rounds((100, 300), (101, 301)):
            recalling.keep(journal, first, each)
        journal = Journal.resume(tmp_path / NAME)
        assert len(recalling.rounds(journal, first)) == 2
        assert recalling.rounds(journal, second) == []


KEYS = {"batching.max_size": 32, "batching.max_delay": "5ms", "workers": 2, "batching.allowed_sizes": [8, 32]}
TEXTS = (
    "servewright: 1\nname: x\n",
    "servewright: 1\nbatching: {max_size: 4, queue: 100} # here\nworkers: 1   # one\n# end\n",
    "servewright: 1\nbatching:\n  # sizes\n  max_size: 4  # rows\n  allowed_sizes:\n  - 2\n  # two\n  - 4\nname: x\n",
    "servewright: 1\nbatching: {}\nworkers: 4",
    "servewright: 1\nbatching:\nname: x\n",
    "batching: {allowed_sizes: [1, 4], max_size: 4, max_delay: '1ms'}\nservewright: 1\n",
    'batching: {max_size: 4,\n  queue: 8}  # two lines\nservewright: 1\n',
    '{\n  "servewright": 1,\n  "batching": {"max_size": 4}\n}\n',
    "servewright: 1\nbatching:\n    max_delay: 1ms\n    max_size: 4\n\nworkers: 3\n",
)  # fmt: skip


class TestSpecText:
    """A spec with new values for some keys."""

    @pytest.mark.parametrize("text", TEXTS)
    def test_means_the_new_values_and_keeps_the_rest(self, text: str) -> None:
        """Every comment and every other line stay as they were."""
        found = spec_text.changed(text, KEYS, file="x.yaml")
        values = yamltext.parse(found.encode(), file="x.yaml").value
        assert values == spec_text.expected(yamltext.parse(text.encode(), file="x.yaml").value, KEYS)
        assert values["batching"]["max_size"] == 32
        for line in text.splitlines():
            if "#" in line:
                assert line[line.index("#") :] in found
            elif line.startswith(("servewright", "name")):
                assert line in found.splitlines()

    def test_keeps_the_ends_of_lines(self) -> None:
        """A spec from Windows stays one."""
        text = "servewright: 1\r\nbatching:\r\n  max_size: 4 # rows\r\n"
        found = spec_text.changed(text, {"batching.max_size": 8, "workers": 2}, file="x")
        assert found == "servewright: 1\r\nbatching:\r\n  max_size: 8 # rows\r\nworkers: 2\r\n"

    def test_says_what_to_write_where_it_cannot(self) -> None:
        """A layout beyond its reach is left alone."""
        with pytest.raises(InputError, match=r"batching\.max_size: 32"):
            spec_text.changed("servewright: 1\nbatching: &b {max_size: 4}\nother: *b\n", KEYS, file="x.yaml")

    @given(
        st.dictionaries(
            st.sampled_from(["max_size", "max_delay", "queue", "threads"]), st.integers(1, 99), max_size=4
        ),
        st.booleans(), st.booleans(),
    )  # fmt: skip
    def test_is_right_or_refused(self, batching: dict[str, int], flow: bool, comment: bool) -> None:
        """Whatever is there, the text means what is wanted."""
        note = "  # why" if comment else ""
        if flow or not batching:
            body = f"batching: {json.dumps(batching)}{note}\n"
        else:
            body = f"batching:{note}\n" + "".join(f"  {name}: {value}{note}\n" for name, value in batching.items())
        text = f"servewright: 1\n{body}name: x{note}\n"
        found = spec_text.changed(text, KEYS, file="x.yaml")
        wanted = spec_text.expected(yamltext.parse(text.encode(), file="x.yaml").value, KEYS)
        assert yamltext.parse(found.encode(), file="x.yaml").value == wanted
        assert found.count("# why") == text.count("# why")


def _subject(path: Path, backend: Backend, text: str = "") -> Subject:
    fleet = pipeline.load(path)
    return Subject(
        fleet=fleet, backend=backend, choice=pipeline.choice_for(fleet, backend, "auto", None),
        tuning=tuner.tuning_of(backend), text=text or path.read_text(),
    )  # fmt: skip


class TestKnobs:
    """What each backend declares."""

    def test_lead_to_specs_that_render(self, backend: Backend, workshop: Workshop) -> None:
        """Every setting of a grid is a spec that the renderer takes, and changes what is rendered."""
        assert backend.tuning is not None
        tuning = backend.tuning()
        path = workshop.write(workshop.values(backend))
        text = path.read_text()
        from servewright import pipeline, specfile

        fleet = pipeline.load(path)
        demand = Demand(waiting=64, cores=2)
        knobs = tuning.knobs(fleet.models[0].spec, demand)
        settings = grid(tuning, knobs, demand)
        assert len(settings) >= 30
        seen = set()
        for each in settings[:: len(settings) // 8]:
            changed = spec_text.changed(text, tuning.keys(each), file=str(path)).encode()
            document = specfile.parse(changed, folder=path.parent, file=str(path), backends=registry.names())
            seen.add(str(render(type(fleet)(name=fleet.name, models=(document,)), backend)))
        assert len(seen) > 4
        tuning.scheduler.policy(settings)

    def test_go_with_the_sizes_that_a_spec_allows(self, backend: Backend, workshop: Workshop) -> None:
        """They end with the greatest batch, whatever that is, or rendering refuses it."""
        batching = {"max_size": 32, "max_delay": "5ms", "allowed_sizes": [8, 16, 32]}
        subject = _subject(workshop.write(workshop.values(backend) | {"batching": batching}), backend)
        demand, spec = Demand(waiting=64, cores=2), subject.document.spec
        every = grid(subject.tuning, subject.tuning.knobs(spec, demand), demand)
        alone = subject.tuning.alone(spec, demand)
        found, left_out = tuner.accepted(subject, [*every, alone], backends=registry.names())
        assert (len(found), left_out) == (len(every) + 1, "")
        for each in (every[0], every[-1], alone):
            batching = subject.with_settings(each, backends=registry.names()).models[0].spec.batching
            assert not batching.allowed_sizes or batching.allowed_sizes[-1] == batching.max_size

    @pytest.mark.parametrize(
        ("options", "least", "greatest"),
        [({"flags": {"grpc_max_threads": 32}}, 2, 16),
         ({"batching": {"enable_large_batch_splitting": True, "max_execution_batch_size": 32}}, 32, 64),
         ({"batching": {"pad_variable_length_inputs": True}}, 2, 64)],
    )  # fmt: skip
    def test_go_with_what_else_a_spec_says(
        self, options: dict[str, Any], least: int, greatest: int, workshop: Workshop
    ) -> None:
        """What rendering refuses beside it is not tried; batches are timed alone also where batching cannot be off."""
        backend = registry.get("tfserving")
        subject = _subject(workshop.write(workshop.values(backend) | {"tfserving": options}), backend)
        demand, spec = Demand(waiting=64, cores=2), subject.document.spec
        every = grid(subject.tuning, subject.tuning.knobs(spec, demand), demand)
        found, left_out = tuner.accepted(subject, every, backends=registry.names())
        sizes = sorted({int(str(each["max_batch_size"])) for each in found})
        assert (sizes[0], sizes[-1]) == (least, greatest)
        assert bool(left_out) == (len(found) < len(every))
        alone = subject.tuning.alone(spec, demand)
        assert tuner.accepted(subject, [alone], backends=registry.names()) == ([alone], "")

    def test_of_one_caller_are_accepted(self, backend: Backend, workshop: Workshop) -> None:
        """Without batches no delay is written, and that is no file laid over it."""
        subject = _subject(workshop.write(workshop.values(backend)), backend)
        demand = Demand(waiting=1, cores=2)
        every = grid(subject.tuning, subject.tuning.knobs(subject.document.spec, demand), demand)
        assert tuner.accepted(subject, every, backends=registry.names()) == (every, "")

    def test_that_do_nothing_are_refused(self, workshop: Workshop) -> None:
        """A spec whose batching parameters are a text of their own cannot be tuned, and says so."""
        backend = registry.get("tfserving")
        text = "max_batch_size { value: 8 }\n"
        values = workshop.values(backend) | {"tfserving": {"files": {"batching_parameters.pbtxt": text}}}
        subject = _subject(workshop.write(values), backend)
        demand = Demand(waiting=64, cores=1)
        every = grid(subject.tuning, subject.tuning.knobs(subject.document.spec, demand), demand)
        with pytest.raises(InputError, match="lays files over"):
            tuner.accepted(subject, every, backends=registry.names())

    @pytest.mark.parametrize(
        ("waiting", "why"), [(8, "no more than 8 requests"), (5000, "larger ones are never tried")]
    )
    def test_say_what_bounds_the_batch(self, waiting: int, why: str, backend: Backend, workshop: Workshop) -> None:
        """The load, or what is tried at all."""
        spec = pipeline.load(workshop.write(workshop.values(backend))).models[0].spec
        demand = Demand(waiting=waiting, cores=4)
        size = next(each for each in tuner.tuning_of(backend).knobs(spec, demand) if each.key == "batching.max_size")
        assert why in size.left_out

    def test_are_bounded_by_the_load(self, backend: Backend, workshop: Workshop) -> None:
        """A batch that the callers can never fill is not tried, and each knob says what it leaves out."""
        assert backend.tuning is not None
        from servewright import pipeline

        spec = pipeline.load(workshop.write(workshop.values(backend))).models[0].spec
        tuning = backend.tuning()
        for waiting in (1, 8, 64):
            knobs = tuning.knobs(spec, Demand(waiting=waiting, cores=2))
            sizes = next(knob.values for knob in knobs if knob.key == "batching.max_size")
            assert max(size for size in sizes if isinstance(size, int)) == waiting
            assert all(knob.values or knob.left_out for knob in knobs)


class TestPlan:
    """Replicas for a rate."""

    @staticmethod
    def study(tmp_path: Path) -> study.Study:
        """Return a study as a search on the simulated server makes it."""
        asked = goal(budget=8)
        found = found_by(Simulated(asked), asked)
        assert found.best is not None
        example = study.load(Path(__file__).parent / "study.json")
        winner = study.Winner(settings=found.best.settings, keys={}, measurement=found.best.index)
        made = example.model_copy(
            update={
                "goal": asked, "service_times": found.service_times, "model": found.model, "winner": winner,
                "predictions": found.predictions, "measurements": tuple(found.measurements), "comparison": None,
            }
        )  # fmt: skip
        study.save(made, tmp_path)
        return made

    def test_keeps_head_room_at_any_size(self, tmp_path: Path) -> None:
        """More rate never needs fewer replicas, none is filled beyond its head-room, and more of it waits no longer."""
        made = self.study(tmp_path)
        calm = planning.plan(made, SCHEDULER, rate=500.0, head_room=0.3)
        full = planning.plan(made, SCHEDULER, rate=calm.knee * 2.97, head_room=0.0)
        many = planning.plan(made, SCHEDULER, rate=9000.0, head_room=0.9)
        assert calm.replicas == 1
        assert full.replicas > 3  # at the knee of three, nobody would wait so little
        assert many.replicas > 10
        for plan in (calm, full, many):
            assert plan.each <= plan.knee * (1 - plan.head_room) + 1e-3
            assert plan.simulated
            assert plan.p99_ms is not None
            assert plan.p99_ms <= 50.0  # promised

    def test_takes_the_knee_from_the_rounds(self, tmp_path: Path) -> None:
        """The best of many was lucky too; the rounds that kept the promises were not chosen."""
        made = self.study(tmp_path)
        assert made.best is not None
        seen = made.best.model_copy(update={"p99_ms": 20.0})
        late = seen.model_copy(update={"rate": 9999.0, "p99_ms": 80.0})
        tuned = [late, *(seen.model_copy(update={"rate": rate}) for rate in (400.0, 500.0, 430.0))]
        rounds = [Round(index=at, first="tuned", default=seen, tuned=each) for at, each in enumerate(tuned)]
        compared = gain.compared(rounds, CALLERS, made.goal)
        settings, knee = planning.planned_with(made.model_copy(update={"comparison": compared}))
        assert (settings, knee) == (made.best.settings, 430.0)
        broken = gain.compared([rounds[0]] * 3, CALLERS, made.goal)
        with pytest.raises(InputError, match="in 3 of 3 rounds"):
            planning.plan(made.model_copy(update={"comparison": broken, "winner": None}), SCHEDULER, rate=500.0)

    def test_says_where_no_number_keeps_the_promise(self, tmp_path: Path, cli: Cli) -> None:
        """A batch that never fills waits its whole delay, and the less comes the longer: more replicas do not help."""
        made = self.study(tmp_path)
        asked = made.goal.model_copy(update={"latency_ms": {"p99": 0.5}})
        assert made.best is not None
        winner = made.best.model_copy(update={"broken": ""})
        made = made.model_copy(update={"goal": asked, "measurements": (winner,)})
        study.save(made, tmp_path)
        plan = planning.plan(made, SCHEDULER, rate=10 * made.best.rate, head_room=0.5)
        assert not plan.keeps
        assert plan.replicas == 20
        code, out, _ = cli("plan", tmp_path, "--rate", "5000/s", "--head-room", "0.5")
        assert (code, "no number of replicas" in out) == (0, True)

    def test_takes_no_knee_from_a_load_that_only_calibrated(self, tmp_path: Path) -> None:
        """Callers that wait for their answers bear more than the open loop that was asked for."""
        made = self.study(tmp_path)
        asked = made.goal.model_copy(update={"loads": (Load(rate=900.0),)})
        made = made.model_copy(update={"goal": asked, "winner": None})
        assert any(not each.broken for each in made.measurements)
        with pytest.raises(InputError, match="no setting that keeps its promises"):
            planning.plan(made, SCHEDULER, rate=500.0)

    def test_is_kept_in_the_study(self, tmp_path: Path, cli: Cli) -> None:
        """A report shows the plan that was made last; it is marked as simulated."""
        self.study(tmp_path)
        code, out, err = cli("plan", tmp_path, "--rate", "500/s", "--json")
        assert code == 0, err
        assert json.loads(out)["simulated"]
        kept = study.load(tmp_path).plan
        assert kept is not None
        assert kept.rate == 500
        printed = cli("plan", tmp_path, "--rate", "500/s")[1]
        assert printed.count("simulated") == 1

    def test_needs_a_study_and_a_rate(self, tmp_path: Path, cli: Cli) -> None:
        """What cannot be planned is said in one line."""
        for words in (("nowhere", "--rate", "5/s"), (tmp_path, "--rate", "5/s")):
            code, _, err = cli("plan", *words)
            assert code == 2
            assert "does not exist" in err
        self.study(tmp_path)
        for rate in ("fast", "0/s"):
            code, _, err = cli("plan", tmp_path, "--rate", rate)
            assert code == 2
            assert "--rate" in err


class TestCommand:
    """`servewright tune`, as far as it goes without a server."""

    def test_names_a_tuned_spec_by_its_server_where_there_are_two(self, workshop: Workshop) -> None:
        """Tuning one does not overwrite what was found for the other."""
        backends = [registry.get(name) for name in ("torchserve", "tfserving")]
        values = workshop.values(backends[0])
        spec = workshop.write(values)
        assert tuner.tuned_name(_subject(spec, backends[0])) == f"{spec.stem}.tuned{spec.suffix}"
        models = {each.name: workshop.values(each)["model"] for each in backends}
        both = workshop.write(values | {"model": models})
        names = [tuner.tuned_name(_subject(both, each)) for each in backends]
        assert names == [f"{both.stem}.{each.name}.tuned{both.suffix}" for each in backends]

    def test_refuses_what_makes_no_sense(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """Goals that contradict each other, odd promises, and a study that is not there end with exit code 2."""
        spec = workshop.write(workshop.values(backend))
        for words, said in (
            (("--rate", "5/s", "--concurrency", "4"), "give one of them"),
            (("--max-throughput",), "needs a promise"),
            (("--slo", "p98=5ms"), "--slo"),
            (("--time", "soon"), "--time"),
            (("--each", "0s"), "--each"),
            (("--budget", "6"), "budget"),
            (("--runtime", "nowhere"), "no runtime"),
        ):
            code, _, err = cli("tune", spec, "-b", backend.name, "-o", workshop.folder / "study", *words)
            assert (code, said in err) == (2, True), err
        assert not (workshop.folder / "study").exists()

    def test_knows_a_model_by_its_files(self, backend: Backend, workshop: Workshop) -> None:
        """The spec only names them, and they may have been written anew."""
        subject = _subject(workshop.write(workshop.values(backend)), backend)
        before = subject.files_digest()
        source = subject.document.spec.source(backend.name)
        assert source is not None
        model = subject.document.resolve(source.path)
        file = next(each for each in model.rglob("*") if each.is_file()) if model.is_dir() else model
        file.write_bytes(file.read_bytes() + b"more")
        assert subject.files_digest() != before

    def test_refuses_fleets(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """Tuned keys go to the spec of a model, which must have a file of its own."""
        values = workshop.values(backend)
        spec = workshop.write(values)
        for model, said in ((spec.name, f"tune the spec of its model, {spec}"), (values, "a file of its own")):
            fleet = workshop.folder / "fleet.yaml"
            fleet.write_text(json.dumps({"servewright": 1, "fleet": "all", "models": [model]}))
            code, _, err = cli("tune", fleet, "-b", backend.name, "-o", workshop.folder / "study")
            assert (code, "is a fleet" in err, said in err) == (2, True, True), err

    def test_begins_no_study_that_cannot_be_measured(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """The corrected command needs no other -o."""
        spec, study_folder = workshop.write(workshop.values(backend)), workshop.folder / "study"
        np.savez(workshop.folder / "wrong.npz", other=np.zeros((4, 2), np.float32))
        words = ("tune", spec, "-b", backend.name, "-o", study_folder)
        code, _, err = cli(*words, "--data", workshop.folder / "wrong.npz")
        assert (code, "the signature names" in err) == (2, True), err
        assert not study_folder.exists()
        journal = Journal.create(study_folder / NAME, {})
        journal.append("server", {})
        journal.forget()
        assert not journal.path.exists()
        journal = Journal.create(study_folder / NAME, {})
        journal.append("service_times", {"found": []})
        journal.forget()
        assert journal.path.exists()

    def test_goes_on_as_it_began(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """Options that a study did not begin with are refused with --resume, not passed over."""
        spec = workshop.write(workshop.values(backend))
        begun = goal(budget=9).model_dump(mode="json")
        head = {
            "goal": begun, "most": False, "each_s": 5.0, "rounds": 4, "backend": backend.name, "transport": "http",
            "digest": pipeline.load(spec).models[0].digest, "began": study.now(), "cores": machine().cores,
            "files": _subject(spec, backend).files_digest(),
        }  # fmt: skip
        head["runtime"] = pipeline.choice_for(pipeline.load(spec), backend, "auto", None).runtime
        journal = Journal.create(workshop.folder / "study" / NAME, head)
        for words, said in (
            (("--budget", "8"), "has 9 for its --budget"),
            (("--rounds", "3"), "has 4 for its --rounds"),
            (("--rate", "5/s"), "began with another --rate"),
            (("--slo", "p99=1ms"), "began with another --slo"),
        ):
            code, _, err = cli("tune", spec, "-b", backend.name, "-o", workshop.folder / "study", "--resume", *words)
            assert (code, said in err) == (2, True), err
        assert journal.path.exists()
        about = {"backend": backend.name, "title": "x", "name": "a stand-in", "version": "1", "runtime": "embedded"}
        journal.append("server", {"server": about | {"stand_in": True}})
        more = ("tune", spec, "-b", backend.name, "-o", workshop.folder / "study", "--resume", "--require-real")
        for words in (("--budget", "12"), ("--rounds", "6"), ("--time", "1h"), ("--budget", "12"), ()):
            code, _, err = cli(*more, *words)
            assert (code, "is a stand-in" in err) == (1, True), err
        for key, value, said in (
            ("files", "x", "the model's files or the golden samples"),
            ("cores", 999, "cores was 999"),
        ):
            Journal.create(workshop.folder / key / NAME, head | {key: value})
            code, _, err = cli("tune", spec, "-b", backend.name, "-o", workshop.folder / key, "--resume")
            assert (code, said in err) == (2, True), err
        given = [(each["budget"], each["rounds"]) for each in Journal.resume(journal.path).all("more")]
        assert given == [(12, 4), (12, 6)]
        (workshop.folder / "other.npz").write_bytes(b"other")
        data = ("--data", workshop.folder / "other.npz")
        words = ("tune", spec, "-b", backend.name, "-o", workshop.folder / "study", "--resume")
        code, _, err = cli(*words, *data)
        assert (code, "other --data was sent" in err) == (2, True), err
