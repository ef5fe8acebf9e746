"""Replicas for a rate, from a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from servewright.backends.tfserving.simulation import SCHEDULER
from servewright.errors import InputError
from servewright.tuning import gain, planning, study
from servewright.tuning.study import Load, Round
from tuning_toys import CALLERS, Simulated, found_by, goal

if TYPE_CHECKING:
    from conftest import Cli


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
        assert full.p99_ms is not None
        soon = made.model_copy(update={"goal": goal(p99_ms=full.p99_ms * 0.7)})
        sooner = planning.plan(soon, SCHEDULER, rate=calm.knee * 2.97, head_room=0.0)
        many = planning.plan(made, SCHEDULER, rate=9000.0, head_room=0.9)
        assert calm.replicas == 1
        assert sooner.replicas > full.replicas >= 3  # who waits less needs more
        assert many.replicas > 10
        for plan in (calm, full, sooner, many):
            assert plan.each <= plan.knee * (1 - plan.head_room) + 1e-3
            assert plan.simulated
            assert plan.p99_ms is not None
            assert plan.p99_ms <= (50.0 if plan is not sooner else full.p99_ms * 0.7)  # promised

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

    def test_asks_every_fit(self, tmp_path: Path) -> None:
        """What the fits say on average is nearer than what one says; a study lets each say it again."""
        made = self.study(tmp_path)
        assert made.model is not None
        assert len(made.model.fits) > 1
        calm, late = (made.model.fits[0] | {"spread": spread} for spread in (0.02, 0.8))

        def tail(*fits: dict[str, float]) -> float:
            assert made.model is not None
            asked = made.model_copy(update={"model": made.model.model_copy(update={"fits": fits})})
            found = planning.plan(asked, SCHEDULER, rate=500.0).p99_ms
            assert found is not None
            return found

        assert tail(calm) < tail(calm, late) < tail(late)

    def test_of_another_version_is_refused(self, tmp_path: Path, cli: Cli) -> None:
        """Without a number of the model no p99 can be told, and a plan without one would keep no promise."""
        made = self.study(tmp_path)
        assert made.model is not None
        first, *others = made.model.fits
        lacking = {name: value for name, value in first.items() if name != "carrying"}
        for fits, said in (((lacking, *others), "lacks carrying"), ((), "lacks any fit")):
            study.save(made.model_copy(update={"model": made.model.model_copy(update={"fits": fits})}), tmp_path)
            code, _, err = cli("plan", tmp_path, "--rate", "500/s")
            assert code == 2
            assert said in err
            assert "tune again" in err

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
