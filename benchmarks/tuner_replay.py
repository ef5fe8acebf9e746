"""How well strategies tune on a recorded surface: the best throughput within a promise, for few measurements.

    SERVEWRIGHT_SURFACES=folder python benchmarks/tuner_replay.py --seeds 200

A surface (see `simulation_accuracy.py` for its form) is replayed: a point is a batching setting under a load, and a
strategy sees of it what was recorded. Every strategy may ask for one point in twenty; service times count as points.
The table tells in how many of the seeds a strategy's pick has at least 95 % of the best throughput that any point has
within the promise, and the mean share.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

from servewright.backends.tfserving.simulation import SCHEDULER
from servewright.tuning.search import Question, broken, search
from servewright.tuning.study import Goal, Load, Measured, Seen, ServiceTime, Settings

# Its neighbour packaging.py must not stand in for the library that Optuna imports.
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]

SLOS_MS = (10.0, 20.0, 30.0, 50.0)
SHARE = 0.05
GOOD = 0.95

Points = list[tuple[Settings, Load, Seen]]


def surface(path: Path) -> Points:
    found: Points = []
    for line in path.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        for cell in row["results"]:
            load = Load(concurrency=cell["value"]) if cell["load"] == "closed" else Load(rate=cell["value"])
            done = cell["rate"] * 2.5
            seen = Seen(
                rate=cell["rate"], p50_ms=cell["p50_ms"], p90_ms=cell["p90_ms"], p99_ms=cell["p99_ms"],
                error_share=cell["errors"] / max(done + cell["errors"], 1),
            )  # fmt: skip
            # Without batching another scheduler is at work: strategies know it as a batch of one.
            found.append((dict(row["batching"] or {}), load, seen))
    return found


class Recording:
    """Answers a search from the surface."""

    def __init__(self, points: Points, alone: dict[int, tuple[float, float]], goal: Goal) -> None:
        self.seen = {(key(settings), str(load)): seen for settings, load, seen in points}
        self.alone, self.goal, self.asked = alone, goal, 0

    def service_times(self, rows: Sequence[int]) -> list[ServiceTime]:
        self.asked += len(rows)
        return [
            ServiceTime(rows=each, ms=self.alone[each][0], low_ms=self.alone[each][0], high_ms=self.alone[each][1])
            for each in rows
        ]

    def measure(self, question: Question) -> Measured:
        self.asked += 1
        seen = self.seen[key(question.settings), str(question.load)]
        return Measured(
            **seen.model_dump(), index=question.index, stage=question.stage, settings=question.settings,
            load=question.load, predicted=question.predicted, broken=broken(self.goal, seen, question.load),
        )  # fmt: skip

    def over(self) -> bool:
        return False


def key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


def goal_of(points: Points, slo_ms: float, budget: int, seed: int) -> Goal:
    loads = list({str(load): load for _, load, _ in points}.values())
    loads.sort(key=lambda load: (load.concurrency is None, load.concurrency or load.rate))
    return Goal(maximise="rate", latency_ms={"p99": slo_ms}, errors=0.0, loads=tuple(loads), budget=budget, seed=seed)


def kept(goal: Goal, seen: Seen, load: Load) -> float:
    return 0.0 if broken(goal, seen, load) else seen.rate


def ours(points: Points, alone: dict[int, tuple[float, float]], goal: Goal) -> tuple[float, int]:
    recording = Recording(points, alone, goal)
    grid = list({key(settings): settings for settings, _, _ in points if settings}.values())
    found = search(grid, goal, SCHEDULER, recording)
    return (found.best.rate if found.best else 0.0), recording.asked


class Counted:
    """A surface that other strategies may ask so many points of."""

    def __init__(self, points: Points, goal: Goal) -> None:
        self.points, self.goal, self.best, self.left = points, goal, 0.0, goal.budget
        self.known: dict[int, float] = {}

    def ask(self, point: int) -> float:
        """Return the rate of a point within the promise, else nothing; what was asked before costs nothing."""
        if point not in self.known:
            if self.left == 0:
                raise StopIteration
            self.left -= 1
            _, load, seen = self.points[point]
            self.known[point] = kept(self.goal, seen, load)
            self.best = max(self.best, self.known[point])
        return self.known[point]


def random_search(points: Points, goal: Goal) -> tuple[float, int]:
    counted = Counted(points, goal)
    for point in np.random.default_rng(goal.seed).permutation(len(points))[: goal.budget].tolist():
        counted.ask(point)
    return counted.best, goal.budget - counted.left


def hill_climbing(points: Points, goal: Goal) -> tuple[float, int]:
    """Go to the best neighbour, one step of one knob or of the load away; start anew where there is none."""
    counted, random = Counted(points, goal), np.random.default_rng(goal.seed)
    axes = coordinates(points)
    try:
        while True:
            here = int(random.integers(len(points)))
            value = counted.ask(here)
            while True:
                near = np.flatnonzero(np.abs(axes - axes[here]).sum(axis=1) == 1)
                steps = [(counted.ask(int(point)), int(point)) for point in random.permutation(near)]
                best = max(steps, default=(0.0, here))
                if best[0] <= value:
                    break
                value, here = best
    except StopIteration:
        return counted.best, goal.budget - counted.left


def coordinates(points: Points) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return each point as ranks: of each knob's value, and of the load within its kind."""
    names = sorted({name for settings, _, _ in points for name in settings})
    columns = [[settings.get(name, -1) for settings, _, _ in points] for name in names]
    columns.append([load.concurrency or 0 for _, load, _ in points])
    columns.append([load.rate or 0 for _, load, _ in points])
    return np.array([np.unique(np.array(column, float), return_inverse=True)[1] for column in columns]).T


def tpe(points: Points, goal: Goal) -> tuple[float, int]:
    """Ask Optuna's TPE sampler: knobs and load as categories; a combination that was not recorded is the nearest."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    counted, axes = Counted(points, goal), coordinates(points)
    places = {tuple(row): index for index, row in enumerate(axes.tolist())}
    rows = [sorted(set(column)) for column in axes.T.tolist()]

    def objective(trial: Any) -> float:
        kind = trial.suggest_categorical("loop", ["closed", "open"])
        wanted = [trial.suggest_categorical(str(axis), values) for axis, values in enumerate(rows[:-2])]
        column = len(rows) - (2 if kind == "closed" else 1)
        load = trial.suggest_categorical(kind, [value for value in rows[column] if value > 0])
        wanted += [load, 0] if kind == "closed" else [0, load]
        if tuple(wanted) not in places:
            distance = np.abs(axes - np.array(wanted)).sum(axis=1)
            return counted.ask(int(distance.argmin()))
        return counted.ask(places[tuple(wanted)])

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=goal.seed))
    for _ in range(20 * goal.budget):  # a point that was asked before costs nothing, and tells nothing
        try:
            study.optimize(objective, n_trials=1)
        except StopIteration:
            break
    return counted.best, goal.budget - counted.left


def one_seed(work: tuple[Points, dict[int, tuple[float, float]], int, tuple[str, ...]]) -> list[dict[str, Any]]:
    """Run every strategy under every promise with one seed."""
    points, alone, seed, names = work
    strategies: dict[str, Callable[[Goal], tuple[float, int]]] = {
        "servewright": lambda goal: ours(points, alone, goal),
        "Optuna TPE": lambda goal: tpe(points, goal),
        "hill climbing": lambda goal: hill_climbing(points, goal),
        "random": lambda goal: random_search(points, goal),
    }
    found = []
    for slo in SLOS_MS:
        goal = goal_of(points, slo, int(SHARE * len(points)), seed)
        best = max(kept(goal, seen, load) for _, load, seen in points)
        for name in names:
            rate, asked = strategies[name](goal)
            found.append({"seed": seed, "slo": slo, "strategy": name, "share": rate / best, "asked": asked})
    return found


class OnceFitted:
    """A fit of the same measurements is the same: the promises differ, the calibration does not."""

    def __init__(self, fit: Callable[..., Any]) -> None:
        self.fit, self.known = fit, ("", None)

    def __call__(self, scheduler: Any, alone_s: Any, cells: Any, **options: Any) -> Any:
        about = repr((alone_s, cells, options))
        if self.known[0] != about:
            self.known = (about, OnceSimulated(self.fit(scheduler, alone_s, cells, **options)))
        return self.known[1]


class OnceSimulated:
    """A fitted model that remembers what it said of the grid."""

    def __init__(self, model: Any) -> None:
        self.model, self.values, self.error = model, model.values, model.error
        self.said: Any = None

    def simulated(self, asked: Any) -> Any:
        if self.said is None:
            self.said = self.model.simulated(asked)
        return self.said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--rows", type=Path, help="append each result to this file, as JSON lines; seeds in it are done"
    )
    arguments = parser.parse_args()
    folder = os.environ.get("SERVEWRIGHT_SURFACES")
    if not folder:
        print("no surfaces: set SERVEWRIGHT_SURFACES to a folder of NAME.jsonl and NAME-service-time.json")
        return 0
    names = ("servewright", "Optuna TPE", "hill climbing", "random")
    try:
        import optuna  # noqa: F401
    except ImportError:
        print("Optuna is not installed: its row is left out (pip install optuna)", file=sys.stderr)
        names = tuple(name for name in names if name != "Optuna TPE")
    for path in sorted(Path(folder).glob("*.jsonl")):
        points = surface(path)
        times = json.loads(path.with_name(f"{path.stem}-service-time.json").read_text())
        alone = {int(rows): (ms[0], ms[1]) for rows, ms in next(iter(times.values())).items()}
        replay(path.stem, points, alone, names, arguments)
    return 0


def replay(
    name: str, points: Points, alone: dict[int, tuple[float, float]], names: tuple[str, ...], arguments: Any
) -> None:
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []
    if arguments.rows and arguments.rows.exists():
        rows = [row for row in map(json.loads, arguments.rows.read_text().splitlines()) if row["surface"] == name]
    wanted = set(range(arguments.first, arguments.first + arguments.seeds)) - {row["seed"] for row in rows}
    work = [(points, alone, seed, names) for seed in sorted(wanted)]
    with Pool(arguments.processes, initializer=_prepare) as pool:
        for found in pool.imap_unordered(one_seed, work):
            rows += (new := [{"surface": name, **each} for each in found])
            if arguments.rows:
                with arguments.rows.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in new)
    seeds = len({row["seed"] for row in rows})
    budget = int(SHARE * len(points))
    print(f"{name}: {len(points)} points, at most {budget} asked, {seeds} seeds, {time.monotonic() - begin:.0f} s")
    print(f"{'p99 below':<12}{'strategy':<16}{'seeds with 95 %':>16}{'mean share':>12}{'least':>8}{'asked':>8}")
    for slo in SLOS_MS:
        for strategy in names:
            mine = [row for row in rows if row["slo"] == slo and row["strategy"] == strategy]
            shares = np.array([row["share"] for row in mine])
            asked = np.mean([row["asked"] for row in mine])
            print(
                f"{f'{slo:g} ms':<12}{strategy:<16}{np.mean(shares >= GOOD):>16.1%}{shares.mean():>12.1%}"
                f"{shares.min():>8.1%}{asked:>8.1f}"
            )


def _prepare() -> None:
    from servewright.tuning import search as module

    module.fit = OnceFitted(module.fit)  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
