"""How well strategies tune on recorded surfaces: the best throughput within a promise, for few measurements.

    python benchmarks/tuner_replay.py --seeds 200
    python benchmarks/tuner_replay.py torchserve-mlp --seeds 20 --rows rows.jsonl

A surface (``surfaces/``, and what lies in ``SERVEWRIGHT_SURFACES``) is replayed: a point is a batching setting under a
load, and a strategy sees of it what was recorded. Ours asks only for settings that a tuner tries, as it does on a
server; the best is sought among all. Every strategy may ask for one point in twenty; service times count as points. The
promises of a surface are four p99 that a tenth, three, five and seven tenths of its points keep. The table tells in how
many of the seeds a strategy's pick has at least 95 % of the best throughput that any point has within the promise, and
the mean share. Its last row, "all else known", is what nobody can do: it reads every point but one before it says what
that one shows, and asks for the most promising. What it misses is luck, of one measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from surfaces.surface import GOOD, Point, Surface, key, surfaces

from servewright.load.saturation import KEEPS_UP
from servewright.tuning.belief import Guess
from servewright.tuning.search import Question, broken, search
from servewright.tuning.study import Goal, Load, Measured, Seen, ServiceTime

# Its neighbour packaging.py must not stand in for the library that Optuna imports.
sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]

SHARE = 0.05
INFORMED = "all else known"

Points = Sequence[Point]


class Recording:
    """Answers a search from the surface."""

    def __init__(self, surface: Surface, goal: Goal) -> None:
        self.seen = {(key(point.settings), str(point.load)): point.seen for point in surface.points}
        self.alone, self.goal, self.asked = surface.alone_ms, goal, 0

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


def goal_of(surface: Surface, slo_ms: float, budget: int, seed: int) -> Goal:
    return Goal(
        maximise="rate", latency_ms={"p99": slo_ms}, errors=0.0, loads=surface.loads, budget=budget, seed=seed
    )  # fmt: skip


def kept(goal: Goal, seen: Seen, load: Load) -> float:
    return 0.0 if broken(goal, seen, load) else seen.rate


def ours(surface: Surface, goal: Goal) -> tuple[float, int]:
    recording = Recording(surface, goal)
    found = search(surface.tried, goal, surface.scheduler, recording)
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
            found = self.points[point]
            self.known[point] = kept(self.goal, found.seen, found.load)
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
    names = sorted({name for point in points for name in point.settings})
    columns = [[point.settings.get(name, -1) for point in points] for name in names]
    columns.append([point.load.concurrency or 0 for point in points])
    columns.append([point.load.rate or 0 for point in points])
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


def informed(points: Points, goal: Goal) -> tuple[float, int]:
    """Do what no strategy can: read all points but one before saying what that one shows, and ask for the best so said.

    What it misses is luck: how a single measurement came out.
    """
    counted, axes = Counted(points, goal), coordinates(points)
    said = [from_the_others(axes, np.log([seen(point) for point in points])) for seen in (_rate, _tail)]
    (rate, _), (tail, off) = said
    asked = np.array([point.load.rate or 0.0 for point in points])
    holds = Guess(tail, off).chance_below(np.log(goal.latency_ms["p99"])) * (np.exp(rate) > KEEPS_UP * asked)
    for point in np.argsort(-holds * np.exp(rate))[: goal.budget].tolist():
        counted.ask(point)
    return counted.best, goal.budget - counted.left


def _rate(point: Point) -> float:
    return max(point.seen.rate, 1e-3)


def _tail(point: Point) -> float:
    return min(point.seen.percentile_ms(0.99), 1e5)


def from_the_others(axes: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return the mean and the deviation of each value as all the others tell it: a Gaussian process, one left out.

    Values are alike at neighbours, and where one knob, or the load, is the same; how alike, and how noisy they are, is
    what makes the values most likely.
    """
    steps = (axes[:, None] - axes[None]).astype(float) ** 2
    same_load = (steps[:, :, -2:].sum(axis=2) == 0).astype(float)
    close = np.exp(-steps[:, :, :-2].sum(axis=2) / (2 * 1.5**2)) * same_load
    in_one = np.exp(-steps[:, :, :-2] / (2 * 0.7**2)).sum(axis=2) * same_load
    found: tuple[float, Any, Any] = (-np.inf, None, None)
    for near in (0.1, 0.2, 0.4, 0.8):
        for noise in (0.03, 0.06, 0.12, 0.25, 0.5):
            among = 4.0 * (0.25 + same_load) + near**2 * (close + in_one) + noise**2 * np.eye(len(axes))
            inverse = np.linalg.inv(among)
            pull, spread = inverse @ values, np.diag(inverse)
            likely = -0.5 * values @ pull - 0.5 * np.linalg.slogdet(among)[1]
            if likely > found[0]:
                found = (likely, values - pull / spread, np.sqrt(1.0 / spread))
    return found[1], found[2]


def one_seed(work: tuple[Surface, int, tuple[str, ...]]) -> list[dict[str, Any]]:
    """Run every strategy under every promise with one seed."""
    surface, seed, names = work
    points = surface.points
    strategies: dict[str, Callable[[Goal], tuple[float, int]]] = {
        "servewright": lambda goal: ours(surface, goal),
        "Optuna TPE": lambda goal: tpe(points, goal),
        "hill climbing": lambda goal: hill_climbing(points, goal),
        "random": lambda goal: random_search(points, goal),
    }
    found = []
    for slo in surface.promises_ms:
        goal = goal_of(surface, slo, int(SHARE * len(points)), seed)
        best = max(kept(goal, point.seen, point.load) for point in points)
        for name in names:
            rate, asked = strategies[name](goal)
            found.append({"seed": seed, "slo": slo, "strategy": name, "share": rate / best, "asked": asked})
    return found


def bound(surface: Surface) -> list[dict[str, Any]]:
    """Return what is found under every promise by whoever knows all points but the one that is asked for."""
    found = []
    for slo in surface.promises_ms:
        goal = goal_of(surface, slo, int(SHARE * len(surface.points)), 0)
        best = max(kept(goal, point.seen, point.load) for point in surface.points)
        rate, asked = informed(surface.points, goal)
        found.append({"seed": 0, "slo": slo, "strategy": INFORMED, "share": rate / best, "asked": asked})
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
    """A fitted model that remembers what it said of the grid; for all else it is that model."""

    def __init__(self, model: Any) -> None:
        self.model, self.said, self.changes = model, None, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def simulated(self, asked: Any) -> Any:
        if self.said is None:
            self.said = self.model.simulated(asked)
        return self.said

    def sensitivity(self, asked: Any) -> Any:
        if self.changes is None:
            self.changes = self.model.sensitivity(asked)
        return self.changes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surfaces", nargs="*", metavar="SURFACE", help="all that there are for none")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--rows", type=Path, help="append each result to this file, as JSON lines; seeds in it are done"
    )
    arguments = parser.parse_args()
    names = ("servewright", "Optuna TPE", "hill climbing", "random")
    try:
        import optuna  # noqa: F401
    except ImportError:
        print("Optuna is not installed: its row is left out (pip install -e '.[bench]')", file=sys.stderr)
        names = tuple(name for name in names if name != "Optuna TPE")
    rows: list[dict[str, Any]] = []
    for surface in surfaces(arguments.surfaces):
        rows += replay(surface, names, arguments)
    print(f"{'all':<12}{'strategy':<16}{'seeds with 95 %':>16}{'mean share':>12}{'least':>8}{'asked':>8}")
    _shown("all", rows, (*names, INFORMED))
    return 0


def replay(surface: Surface, names: tuple[str, ...], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Replay one surface with every seed that is not done yet, and print its table."""
    begin = time.monotonic()
    rows: list[dict[str, Any]] = []
    if arguments.rows and arguments.rows.exists():
        known = map(json.loads, arguments.rows.read_text().splitlines())
        rows = [row for row in known if row["surface"] == surface.name]
    wanted = set(range(arguments.first, arguments.first + arguments.seeds)) - {row["seed"] for row in rows}
    work = [(surface, seed, names) for seed in sorted(wanted)]
    with Pool(arguments.processes, initializer=_prepare) as pool:
        for found in pool.imap_unordered(one_seed, work):
            rows += (new := [{"surface": surface.name, **each} for each in found])
            if arguments.rows:
                with arguments.rows.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in new)
    seeds = len({row["seed"] for row in rows})
    if not any(row["strategy"] == INFORMED for row in rows):
        rows += [{"surface": surface.name, **each} for each in bound(surface)]
    count, budget = len(surface.points), int(SHARE * len(surface.points))
    print(f"{surface.name}: {count} points, at most {budget} asked, {seeds} seeds, {time.monotonic() - begin:.0f} s")
    print(f"{'p99 below':<12}{'strategy':<16}{'seeds with 95 %':>16}{'mean share':>12}{'least':>8}{'asked':>8}")
    for slo in surface.promises_ms:
        _shown(f"{slo:g} ms", [row for row in rows if row["slo"] == slo], (*names, INFORMED))
    return rows


def _shown(title: str, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    for strategy in names:
        mine = [row for row in rows if row["strategy"] == strategy]
        if not mine:
            continue
        shares = np.array([row["share"] for row in mine])
        asked = np.mean([row["asked"] for row in mine])
        print(
            f"{title:<12}{strategy:<16}{np.mean(shares >= GOOD):>16.1%}{shares.mean():>12.1%}{shares.min():>8.1%}"
            f"{asked:>8.1f}",
            flush=True,
        )


def _prepare() -> None:
    from servewright.tuning import search as module

    module.fit = OnceFitted(module.fit)  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
