"""A recorded surface: what users saw of every batching setting under every load.

Two forms are read: that of `record.py`, one file, and an older one of ``NAME.jsonl``, a line for each setting of
TensorFlow Serving with its ``results``, beside ``NAME-service-time.json`` with the latency of one caller by rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servewright import registry
from servewright.simulating import Scheduler
from servewright.tuning import tuner
from servewright.tuning.study import Load, Seen, Settings

HERE = Path(__file__).parent
_MEASURED_S = 2.5  # of each cell in the older form


@dataclass(frozen=True)
class Point:
    """A setting under a load, what was seen, and what was seen when it was measured again."""

    settings: Settings
    load: Load
    seen: Seen
    again: Seen | None = None


@dataclass(frozen=True)
class Surface:
    """``alone_ms``: median and upper bound of a request's time by its rows, alone, computed by one thread."""

    name: str
    scheduler: Scheduler
    points: tuple[Point, ...]
    alone_ms: dict[int, tuple[float, float]]

    @property
    def settings(self) -> list[Settings]:
        """Every setting once, in the order recorded."""
        return list({key(point.settings): point.settings for point in self.points}.values())

    @property
    def loads(self) -> tuple[Load, ...]:
        """Every load once, closed loops first, each kind the least first."""
        found = {str(point.load): point.load for point in self.points}
        return tuple(
            sorted(found.values(), key=lambda load: (load.concurrency is None, load.concurrency or load.rate or 0.0))
        )


def key(settings: Settings) -> str:
    """Return settings as a text, equal where they are."""
    return json.dumps(settings, sort_keys=True)


def surfaces(names: Iterable[str] = ()) -> list[Surface]:
    """Return the whole surfaces of this folder, and those in the folder that ``SERVEWRIGHT_SURFACES`` names."""
    folders = [HERE, *(Path(each) for each in [os.environ.get("SERVEWRIGHT_SURFACES")] if each)]
    found = [read(path) for folder in folders for path in sorted(folder.glob("*.jsonl"))]
    wanted = set(names)
    return [each for each in found if each.points and (not wanted or each.name in wanted)]


def read(path: Path) -> Surface:
    """Return the surface in a file of either form; settings that lack a load yet are left out."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return _recorded(path.stem, rows) if "kind" in rows[0] else _older(path, rows)


def _scheduler(backend: str) -> Scheduler:
    return tuner.tuning_of(registry.get(backend)).scheduler


def _recorded(name: str, rows: list[dict[str, Any]]) -> Surface:
    cells: dict[tuple[str, str, int], dict[str, Any]] = {}
    alone: dict[int, tuple[float, float]] = {}
    loads = [Load(**load) for row in rows if row["kind"] == "loads" for load in row["loads"]]
    for row in rows:
        if row["kind"] == "cell":
            cells[key(row["settings"]), str(Load(**row["load"])), row["again"]] = row
        elif row["kind"] == "service_times" and row["threads"] == 1:
            alone = {each["rows"]: (each["ms"], each["high_ms"]) for each in row["found"]}
    points = []
    for (settings, load, again), row in cells.items():
        if again or any((settings, str(each), 0) not in cells for each in loads):
            continue
        second = cells.get((settings, load, 1))
        points.append(
            Point(row["settings"], Load(**row["load"]), Seen(**_seen(row)), Seen(**_seen(second)) if second else None)
        )
    return Surface(name, _scheduler(name.partition("-")[0]), tuple(points), alone)


def _seen(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("rate", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "error_share")}


def _older(path: Path, rows: list[dict[str, Any]]) -> Surface:
    times = json.loads(path.with_name(f"{path.stem}-service-time.json").read_text())
    alone = {int(count): (ms[0], ms[1]) for count, ms in next(iter(times.values())).items()}
    points = [
        Point(
            row["batching"],
            Load(concurrency=cell["value"]) if cell["load"] == "closed" else Load(rate=cell["value"]),
            Seen(
                rate=cell["rate"], p50_ms=cell["p50_ms"], p90_ms=cell["p90_ms"], p99_ms=cell["p99_ms"],
                error_share=cell["errors"] / max(cell["rate"] * _MEASURED_S + cell["errors"], 1),
            ),
        )
        for row in rows
        if row["batching"] is not None  # without batching, another scheduler is at work
        for cell in row["results"]
    ]  # fmt: skip
    return Surface(path.stem, _scheduler("tfserving"), tuple(points), alone)
