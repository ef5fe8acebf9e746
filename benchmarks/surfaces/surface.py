"""A recorded surface: what users saw of every batching setting under every load.

Two forms are read: that of `record.py`, one file, and an older one of ``NAME.jsonl``, a line for each setting of
TensorFlow Serving with its ``results``, beside ``NAME-service-time.json`` with the latency of one caller by rows.

What decides is measured more often than the rest: a cell that was chosen by what it showed, in which luck had a part,
is known by what it has shown since.
"""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from surfaces.drift import log_speeds

from servewright import registry
from servewright.load.saturation import KEEPS_UP, Slo
from servewright.simulating import Scheduler
from servewright.tuning import tuner
from servewright.tuning.knobs import Demand, Tuning
from servewright.tuning.study import Load, Seen, Settings

HERE = Path(__file__).parent
Cell = tuple[str, str]  # settings as a text, and a load
Cells = defaultdict[Cell, dict[int, Seen]]  # by pass
KEPT_BY = (0.1, 0.3, 0.5, 0.7)
GOOD = 0.95
_NUMBERS = ("rate", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "error_share")
_MEASURED_S = 2.5  # of each cell in the older form
_JUST_AFTER = 20  # cells: requests alone are timed before them, in one go
_UNSURE = (0.2, 0.5)  # two standard deviations of one measurement: of the logarithms of a rate and of a p99


@dataclass(frozen=True)
class Point:
    """A setting under a load, what was seen, and what each of the measurements that count showed."""

    settings: Settings
    load: Load
    seen: Seen
    measured: tuple[Seen, ...]

    def may_reach(self, rate: float, slo: Slo) -> bool:
        """Tell whether it may have that rate and keep the promise, as surely as it is known."""
        rate_off, tail_off = (math.exp(each / math.sqrt(len(self.measured))) for each in _UNSURE)
        luckier = self.seen.model_copy(update={"p99_ms": self.seen.percentile_ms(0.99) / tail_off})
        return self.seen.rate * rate_off >= rate and not slo.broken_by(luckier, asked=self.load.rate)


@dataclass(frozen=True)
class Surface:
    """``alone_ms``: median and upper bound of a request's time by its rows, alone, computed by one thread.

    ``tried`` are the settings that a tuner of its backend would try on that machine; some more are recorded.
    """

    name: str
    scheduler: Scheduler
    points: tuple[Point, ...]
    alone_ms: dict[int, tuple[float, float]]
    tried: tuple[Settings, ...]

    @property
    def settings(self) -> list[Settings]:
        """Every setting once, in the order recorded."""
        return _distinct(self.points)

    @property
    def loads(self) -> tuple[Load, ...]:
        """Every load once, closed loops first, each kind the least first."""
        found = {str(point.load): point.load for point in self.points}
        return tuple(
            sorted(found.values(), key=lambda load: (load.concurrency is None, load.concurrency or load.rate or 0.0))
        )

    @property
    def promises_ms(self) -> list[float]:
        """The p99, to two digits, that a tenth, three, five and seven tenths of the points keep."""
        tails = [point.seen.percentile_ms(0.99) for point in self.points]
        return [float(f"{np.quantile(tails, share):.2g}") for share in KEPT_BY]

    @property
    def deciding(self) -> list[Point]:
        """The points that may be among the good ones within a promise, as surely as they are known."""
        least: list[tuple[Slo, float]] = []
        for promise in self.promises_ms:
            slo = Slo(latency_ms=(("p99", promise),))
            kept = [each.seen.rate for each in self.points if not slo.broken_by(each.seen, asked=each.load.rate)]
            least.append((slo, GOOD * max(kept)))
        return [point for point in self.points if any(point.may_reach(rate, slo) for slo, rate in least)]


def key(settings: Settings) -> str:
    """Return settings as a text, equal where they are."""
    return json.dumps(settings, sort_keys=True)


def _distinct(points: Sequence[Point]) -> list[Settings]:
    return list({key(point.settings): point.settings for point in points}.values())


def surfaces(names: Iterable[str] = ()) -> list[Surface]:
    """Return the whole surfaces of this folder, and those in the folder that ``SERVEWRIGHT_SURFACES`` names."""
    folders = [HERE, *(Path(each) for each in [os.environ.get("SERVEWRIGHT_SURFACES")] if each)]
    wanted = set(names)
    paths = [path for folder in folders for path in sorted(folder.glob("*.jsonl"))]
    found = [read(path) for path in paths if not wanted or path.stem in wanted]
    return [each for each in found if each.points]


def read(path: Path) -> Surface:
    """Return the surface in a file of either form; settings that lack a load yet are left out."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return _recorded(path.stem, rows) if "kind" in rows[0] else _older(path, rows)


def _tuning(backend: str) -> Tuning:
    return tuner.tuning_of(registry.get(backend))


def _tried(tuning: Tuning, rows: Iterable[dict[str, Any]], points: Sequence[Point]) -> tuple[Settings, ...]:
    """Return the settings that could matter, as the backend tells; all, where nothing tells of the machine."""
    settings = _distinct(points)
    cores = next((row["machine"]["cores"] for row in rows if row["kind"] == "study"), None)
    if cores is None:
        return tuple(settings)
    demand = Demand.of([point.load for point in points], cores)
    return tuple(each for each in settings if tuning.complete(each, demand) is not None)


def _recorded(name: str, rows: list[dict[str, Any]]) -> Surface:
    loads = [Load(**load) for row in rows if row["kind"] == "loads" for load in row["loads"]]
    known = {key(row["settings"]): row["settings"] for row in rows if row["kind"] == "cell"}
    speeds = log_speeds(rows)
    seen, since = _seen_of(rows, speeds)
    whole = [settings for settings in known if all(0 in seen[settings, str(load)] for load in loads)]
    count = _whole_passes(rows, seen, since, [(settings, str(load)) for settings in whole for load in loads])
    points = []
    for settings in whole:
        for load in loads:
            cell = settings, str(load)
            found = [one for again, one in sorted(since[cell].items()) if again in count]
            found = found or [one for again, one in sorted(seen[cell].items()) if again in count]
            points.append(Point(known[settings], load, middle(found), tuple(found)))
    faster = float(np.exp(np.mean(speeds[:_JUST_AFTER])))
    alone = {
        each["rows"]: (each["ms"] * faster, each["high_ms"] * faster)
        for row in rows
        if row["kind"] == "service_times" and row["threads"] == 1
        for each in row["found"]
    }
    tuning = _tuning(name.partition("-")[0])
    return Surface(name, tuning.scheduler, tuple(points), alone, _tried(tuning, rows, points))


def _seen_of(rows: list[dict[str, Any]], log_speeds: Iterable[float]) -> tuple[Cells, Cells]:
    """Return what was seen of each cell by pass: as every other cell was measured, and since it was chosen."""
    seen: tuple[Cells, Cells] = defaultdict(dict), defaultdict(dict)
    speeds = iter(log_speeds)
    for row in rows:
        if row["kind"] == "cell":
            load, faster = Load(**row["load"]), float(np.exp(next(speeds)))
            found = at_usual_speed(Seen(**{name: row[name] for name in _NUMBERS}), load, faster)
            seen[row.get("chosen", False)][key(row["settings"]), str(load)][row["again"]] = found
    return seen


def _whole_passes(rows: list[dict[str, Any]], seen: Cells, since: Cells, cells: list[Cell]) -> set[int]:
    """Return the passes over all cells, and those over what decides, that are complete.

    Of a pass that is under way nothing counts: it may have found the machine faster than the others did.
    """
    begun = {0, *(row["again"] for row in rows if row["kind"] == "pass")}
    whole = {again for again in begun if all(again in seen[cell] for cell in cells)}
    for row in rows:
        if row["kind"] == "deciding":
            found = [since[key(settings), str(Load(**load))] for settings, load in row["cells"]]
            found += [seen[key(settings), str(Load(**load))] for settings, load in row["beside"]]
            whole |= {again for again in row["passes"] if all(again in each for each in found)}
    return whole


def at_usual_speed(seen: Seen, load: Load, faster: float) -> Seen:
    """Return what would have been seen at the machine's usual speed, where it was ``faster`` by so much.

    What waits for answers, and an open loop that overruns its server, goes as fast as the machine; an open loop that is
    answered in time is answered at its own rate, and how its latency depends on the speed is not known.
    """
    if load.rate is not None and seen.rate >= KEEPS_UP * load.rate:
        return seen
    latencies = {
        name: getattr(seen, name) * faster
        for name in ("p50_ms", "p90_ms", "p99_ms", "p999_ms")
        if getattr(seen, name) is not None
    }
    rate = seen.rate / faster
    return seen.model_copy(update=latencies | {"rate": rate if load.rate is None else min(rate, load.rate)})


def middle(passes: Sequence[Seen]) -> Seen:
    """Return the mean of each number, from four on without the least and the greatest.

    What is missing in half of the passes is missing.
    """
    rows = [seen.model_dump() for seen in passes]
    known = {name: sorted(row[name] for row in rows if row[name] is not None) for name in rows[0]}
    return Seen(**{
        name: float(np.mean(values[1:-1] if len(values) > 3 else values)) if 2 * len(values) > len(rows) else None
        for name, values in known.items()
    })  # fmt: skip


def _older(path: Path, rows: list[dict[str, Any]]) -> Surface:
    times = json.loads(path.with_name(f"{path.stem}-service-time.json").read_text())
    alone = {int(count): (ms[0], ms[1]) for count, ms in next(iter(times.values())).items()}
    points = []
    for row in rows:
        if row["batching"] is None:  # without batching, another scheduler is at work
            continue
        for cell in row["results"]:
            load = Load(concurrency=cell["value"]) if cell["load"] == "closed" else Load(rate=cell["value"])
            seen = Seen(
                rate=cell["rate"], p50_ms=cell["p50_ms"], p90_ms=cell["p90_ms"], p99_ms=cell["p99_ms"],
                error_share=cell["errors"] / max(cell["rate"] * _MEASURED_S + cell["errors"], 1),
            )  # fmt: skip
            points.append(Point(row["batching"], load, seen, (seen,)))
    tuning = _tuning("tfserving")
    return Surface(path.stem, tuning.scheduler, tuple(points), alone, _tried(tuning, (), points))
