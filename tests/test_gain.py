"""The winner of a study against the default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from servewright.errors import LaunchError
from servewright.tuning import gain, recalling, tuner
from servewright.tuning.journal import NAME, Journal
from servewright.tuning.search import Found
from servewright.tuning.study import Comparison, Load, Measured, Round, Seen
from tuning_toys import CALLERS, Simulated, found_by, goal


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
