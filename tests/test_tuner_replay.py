"""How strategies are replayed on a surface: what is remembered between promises changes nothing that is found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from servewright.tuning import search
from servewright.tuning.study import Load
from tuning_toys import ALONE_MS, GRID, SCHEDULER, Simulated, goal

# Behind all others: the folder has a packaging.py, which must not stand in for a library that others import.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import tuner_replay
from surfaces.surface import Point, Surface

LOADS = (Load(concurrency=8), Load(concurrency=64))


@pytest.fixture(scope="module")
def surface() -> Surface:
    """Record a server that exists as a simulation alone."""
    server = Simulated(goal())
    seen = {load: server.truths(GRID, load) for load in LOADS}
    points = [Point(each, load, seen[load][at], (seen[load][at],)) for at, each in enumerate(GRID) for load in LOADS]
    alone = {rows: (ms, 1.1 * ms) for rows, ms in ALONE_MS.items()}
    return Surface("toy", SCHEDULER, tuple(points), alone, tuple(GRID))


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fit for one round, which is done in no time; return all fits that are made. A replay's own patch ends with it."""
    made: list[Any] = []
    fit = search.fit

    def shortly(*about: Any, **options: Any) -> Any:
        made.append(fit(*about, **{**options, "rounds": 1}))
        return made[-1]

    monkeypatch.setattr(search, "fit", shortly)
    monkeypatch.setattr(tuner_replay, "SHARE", 0.15)  # of few points: a search needs some to calibrate with
    return made


def test_promises_share_a_fit(surface: Surface, fits: list[Any]) -> None:
    """Every strategy keeps to its budget under every promise, and the model is fitted once for all of them."""
    tuner_replay._prepare()
    names = ("servewright", "hill climbing", "random")
    rows = tuner_replay.one_seed((surface, 0, names))
    assert [row["slo"] for row in rows] == [slo for slo in surface.promises_ms for _ in names]
    assert {row["strategy"] for row in rows} == set(names)
    budget = int(tuner_replay.SHARE * len(surface.points))
    assert all(0 < row["asked"] <= budget and 0 <= row["share"] <= 1 for row in rows)
    assert all(row["share"] > 0 for row in rows if row["strategy"] == "servewright")
    assert len(fits) == 1


def test_a_remembered_fit_finds_the_same(surface: Surface, fits: list[Any]) -> None:
    """A replay is of the search as it is: whatever it reads of a model is there, also the second time."""
    asked = tuner_replay.goal_of(surface, surface.promises_ms[1], 9, 3)
    alone = tuner_replay.ours(surface, asked)
    tuner_replay._prepare()
    assert [tuner_replay.ours(surface, asked) for _ in range(2)] == [alone, alone]
    assert len(fits) == 2
