"""What `record.py` does: see there."""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil
from surfaces import models
from surfaces.surface import Point, read

from servewright import pipeline, registry
from servewright.errors import InputError, ProbeError, ServewrightError
from servewright.load.measurement import Measurement
from servewright.tuning import spec_text, study, tuner
from servewright.tuning.journal import Journal
from servewright.tuning.knobs import Demand
from servewright.tuning.live import LiveBench, Serving, Subject, seen_of
from servewright.tuning.machine import machine, versions
from servewright.tuning.study import Goal, Load, ServiceTime, Settings

HERE = Path(__file__).parent
SURFACES = tuple(f"{backend}-{model}" for model in models.NAMES for backend in models.BACKENDS)
ROWS = (1, 2, 4, 8, 16, 32, 64)
CALLERS = (8, 64)
SHARES = (0.3, 0.7)  # of the greatest rate: the open loops
TRANSPORT = {"torchserve": "http", "tfserving": "grpc"}
PACKAGES = ("torch", "torchserve", "tensorflow", "numpy")
CALM, TRIES = 0.08, 3
FEW, FEW_LONGER = 200, 2.5  # a tail is not known from fewer answers: then the cell is measured for so much longer
REFERENCE: dict[str, Settings] = {  # strong settings that use both cores, as most do
    "torchserve": {"batchSize": 16, "maxBatchDelay": 2, "workers": 1, "OMP_NUM_THREADS": 1, "jobQueueSize": 128},
    "tfserving": {
        "max_batch_size": 16, "batch_timeout_micros": 2000, "num_batch_threads": 1, "intra_op_parallelism": 1,
        "max_enqueued_batches": 10,
    },
}  # fmt: skip
REFERENCE_S = 0.6
FIRST_DECIDING = 1000  # whole passes count from nothing, those over what decides from here
BETWEEN = 8  # cells, at most, from one look at the reference to the next
BESIDE = 6  # cells that are measured beside what decides, chosen by chance
UNLIKE, TRIES_UNLIKE, USUAL_OF = 0.2, 2, 20  # in natural logarithms of the reference's rate
T = TypeVar("T")


def grid(backend: str) -> list[Settings]:
    """Return the settings that are recorded: those of the tuner's grid, and some that it leaves out."""
    if backend == "torchserve":
        return [
            {
                "batchSize": size, "maxBatchDelay": delay, "workers": workers, "OMP_NUM_THREADS": threads,
                "jobQueueSize": 128,
            }
            for size in (1, 2, 4, 8, 16, 32, 64)
            for delay in ((1,) if size == 1 else (1, 2, 5, 10, 20))
            for workers, threads in ((1, 1), (1, 2), (2, 1), (2, 2))
            if (workers, threads) != (2, 2) or delay in (1, 5)
        ]  # fmt: skip
    return [
        {
            "max_batch_size": size, "batch_timeout_micros": delay, "num_batch_threads": batches,
            "intra_op_parallelism": each, "max_enqueued_batches": max(10, 128 // size),
        }
        for size in (2, 4, 8, 16, 32, 64)
        for delay in (0, 500, 1000, 2000, 5000, 10_000)
        for batches, each in ((1, 1), (1, 2), (2, 1))
    ]  # fmt: skip


def bench_of(name: str, options: argparse.Namespace, folder: Path) -> LiveBench:
    """Write a surface's model into ``folder``, and return what measures it."""
    backend_name, _, model = name.partition("-")
    # In a process of its own: TensorFlow's threads and memory are not to lie beside what is measured.
    command = [sys.executable, str(HERE / "models.py"), model, backend_name, str(folder / name)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    spec = folder / name / f"{model}.yaml"
    fleet, backend = pipeline.load(spec), registry.get(backend_name)
    subject = Subject(
        fleet=fleet, backend=backend, choice=pipeline.choice_for(fleet, backend, "auto", None),
        tuning=tuner.tuning_of(backend), text=spec.read_text(), transport=TRANSPORT[backend_name],  # type: ignore[arg-type]
    )  # fmt: skip
    goal = Goal(maximise="rate", latency_ms={}, errors=1.0, loads=(Load(concurrency=64),), budget=1)
    return LiveBench(
        subject=subject, goal=goal, backends=registry.names(), warm_up_s=options.warm_up,
        settle_in_s=options.settle_in, start_method="forkserver",  # thousands of loads are started
    )  # fmt: skip


def begun(path: Path, about: dict[str, Any]) -> Journal:
    """Return a surface's journal, a new one where there is none; `InputError` for one of another machine.

    All that is recorded counts as its first line's: what another processor, or another release, shows must not be.
    """
    if not path.exists() or b"\n" not in path.read_bytes():  # killed before its first line was whole
        return Journal.create(path, about)
    journal = Journal.resume(path)
    was, here = _traits(journal.head), _traits(about)
    other = [
        f"{name} was {was.get(name, 'absent')}, is {here.get(name, 'absent')}"
        for name in sorted(was | here)
        if was.get(name) != here.get(name)
    ]
    if other:
        raise InputError(
            f"{path} was recorded on another machine or with other versions ({'; '.join(other)}); go on as it was "
            "begun, or record all of it anew with another --folder"
        )
    return journal


def _traits(head: dict[str, Any]) -> dict[str, Any]:
    """Return what must stay the same: a rented machine has another kernel and some pages less on another day."""
    return {name: head["machine"][name] for name in ("cpu", "cores")} | head["versions"]


class Wanted(NamedTuple):
    """A cell to be measured, in which pass; whether it was chosen by what it showed."""

    settings: Settings
    again: int
    load: Load
    chosen: bool = False


class Recorder:
    """One surface under way."""

    def __init__(self, name: str, options: argparse.Namespace, journal: Journal, bench: LiveBench) -> None:
        self.name, self.options, self.journal, self.bench = name, options, journal, bench
        self.grid = grid(name.partition("-")[0])
        self.speeds: list[float] = [fact["speed"] for fact in self.journal.all("cell") if "speed" in fact]

    def run(self) -> None:
        """Record what is missing, and then what decides, again and again.

        Of a few settings at a time the servers run side by side, one load after another. All passes of these settings
        are measured before the next ones start, each cell in turn: a slow spell of the machine falls on all alike.
        """
        self._service_times()
        loads = self._loads()
        rounds = self.journal.all("deciding")
        begun = {0: 0} | {fact["again"]: fact["cells_before"] for fact in self.journal.all("pass")}
        begun |= {again: 0 for fact in rounds for again in fact["passes"]}
        cells = self.journal.all("cell")
        done = {
            (_key(fact["settings"]), str(Load(**fact["load"])), fact["again"])
            for place, fact in enumerate(cells)
            if place >= begun.get(fact["again"], len(cells))  # some were repeated before there were whole passes
        }
        work = self._missing(
            Wanted(settings, again, load)
            for settings in self.grid
            for again in range(self.options.passes)
            for load in loads
            if (_key(settings), str(load), again) not in done
        )
        for again in sorted({wanted.again for each in work for wanted in each} - set(begun)):
            about = {"again": again, "cells_before": len(cells), "began": study.now(), **_lengths(self.options)}
            self.journal.append("pass", about)
        self._measure(work)
        for fact in rounds:
            self._measure(self._deciding(fact, done))
        while self.options.deciding and (found := self._undecided()):
            self._measure(self._deciding(found, set()))

    def _undecided(self) -> dict[str, Any] | None:
        """Write down which cells decide and are not known well, with some that stand for the machine, and return it."""
        surface = read(self.journal.path)
        deciding = surface.deciding
        chosen = [point for point in deciding if len(point.measured) < self.options.deciding]
        if not chosen:
            return None
        # What they show is held against what the same machine shows of others, which nobody chose.
        closed = [point for point in surface.points if point.load.concurrency and point not in deciding]
        random = np.random.default_rng(len(self.journal.all("cell")))
        count = min(BESIDE, 2 * len(chosen), len(closed))
        beside = [closed[at] for at in random.choice(len(closed), count, replace=False).tolist()]

        def named(points: list[Point]) -> list[Any]:
            return [[point.settings, point.load.model_dump(exclude_none=True)] for point in points]

        first = max(FIRST_DECIDING, 1 + max(fact["again"] for fact in self.journal.all("cell")))
        fact = {
            "passes": list(range(first, first + self.options.deciding)), "cells": named(chosen),
            "beside": named(beside), "began": study.now(), **_lengths(self.options),
        }  # fmt: skip
        self.journal.append("deciding", fact)
        return fact

    def _deciding(self, fact: dict[str, Any], done: set[tuple[str, str, int]]) -> list[list[Wanted]]:
        chosen = [(True, *each) for each in fact["cells"]] + [(False, *each) for each in fact["beside"]]
        return self._missing(
            Wanted(settings, again, load, chosen=by_what_it_showed)
            for by_what_it_showed, settings, about in chosen
            for again in fact["passes"]
            for load in [Load(**about)]
            if (_key(settings), str(load), again) not in done
        )

    def _missing(self, wanted: Iterable[Wanted]) -> list[list[Wanted]]:
        """Return the cells that are wanted by their settings, in random order."""
        by_settings: dict[str, list[Wanted]] = {}
        for each in wanted:
            by_settings.setdefault(_key(each.settings), []).append(each)
        order = np.random.default_rng(7).permutation(len(self.grid)).tolist()
        return [by_settings[key] for key in (_key(self.grid[at]) for at in order) if key in by_settings]

    def _measure(self, work: list[list[Wanted]]) -> None:
        if not work:
            return
        # It stays up beside all others: how fast it is just then is how fast the machine is.
        with self._serving(REFERENCE[self.name.partition("-")[0]]) as reference:
            # It must show the machine, and nothing of its own youth.
            settles_s = max(REFERENCE_S, self.bench.subject.tuning.settles_within_s)
            self.bench.loaded(reference, Load(concurrency=64).pace, seconds=settles_s)
            begin, together = time.monotonic(), self.options.side_by_side
            for place in range(0, len(work), together):
                self._side_by_side(work[place : place + together], reference)
                measured = min(place + together, len(work))
                left = (time.monotonic() - begin) / measured * (len(work) - measured)
                print(f"{self.name}: {measured} of {len(work)} settings, {left / 60:.0f} min left", flush=True)

    def _side_by_side(self, group: list[list[Wanted]], reference: Serving) -> None:
        with ExitStack() as stack:
            servers = stack.enter_context(self._all_serving([each[0].settings for each in group]))
            before = self._speed(reference)
            turns: dict[tuple[int, str], list[Wanted]] = {}
            for each in sorted((each for those in group for each in those), key=lambda each: each.again):
                turns.setdefault((each.again, str(each.load)), []).append(each)
            for (again, _), turn in turns.items():
                load = turn[0].load
                for place in range(0, len(turn), BETWEEN):
                    wanted = turn[place : place + BETWEEN]
                    serving = [servers[_key(each.settings)] for each in wanted]
                    found, before = self._beside(reference, before, serving, load)
                    for each, cell in zip(wanted, found, strict=True):
                        about = {"settings": each.settings, "load": load.model_dump(exclude_none=True), "again": again}
                        self.journal.append("cell", about | ({"chosen": True} if each.chosen else {}) | cell)

    def _service_times(self) -> None:
        """Record how long requests of many rows take alone, for each number of threads."""
        known = {fact["threads"] for fact in self.journal.all("service_times")}
        for settings in self.grid:
            name = "OMP_NUM_THREADS" if "OMP_NUM_THREADS" in settings else "intra_op_parallelism"
            threads = settings[name]
            if threads in known:
                continue
            known.add(threads)
            subject = self.bench.subject
            alone = subject.tuning.alone(subject.document.spec, Demand(waiting=1, cores=1)) | {name: threads}
            with self._serving(alone) as serving:
                found, others = calmest(partial(self._timed, serving))
            said = self.bench.identity
            assert said is not None
            server = {"name": said.name, "version": said.version, "stand_in": said.stand_in}
            times = [each.model_dump() for each in found]
            self.journal.append("service_times", {"threads": threads, "server": server, "found": times} | others)

    def _timed(self, serving: Serving) -> list[ServiceTime]:
        return [self.bench.timed(serving, rows) for rows in ROWS]

    def _loads(self) -> list[Load]:
        """Return the loads: callers that wait, and shares of the greatest rate that a few settings reach."""
        facts = self.journal.all("loads")
        if not facts:
            likely = [each for each in self.grid if (each.get("batchSize") or each.get("max_batch_size")) in (16, 32)]
            with self._all_serving(likely[:: max(1, len(likely) // 4)]) as servers:
                tops = [self._cell(serving, Load(concurrency=64))["rate"] for serving in servers.values()]
            rates = [float(f"{share * max(tops):.2g}") for share in SHARES]
            loads = [Load(concurrency=each) for each in CALLERS] + [Load(rate=each) for each in rates]
            self.journal.append("loads", {"loads": [each.model_dump(exclude_none=True) for each in loads]})
            return loads
        return [Load(**each) for each in facts[0]["loads"]]

    @contextmanager
    def _all_serving(self, many: list[Settings]) -> Iterator[dict[str, Serving]]:
        """Start what serves each of the settings; where batching is a model's own, one server for many of them.

        A server that compiles itself has to do so once, then.
        """
        together: defaultdict[str, list[Settings]] = defaultdict(list)
        for each in many:
            together[str(each.get("OMP_NUM_THREADS", _key(each)))].append(each)
        with ExitStack() as stack:
            found: dict[str, Serving] = {}
            for those in together.values():
                found |= zip(map(_key, those), stack.enter_context(self._one_server(those)), strict=True)
            yield found

    @contextmanager
    def _one_server(self, many: list[Settings]) -> Iterator[tuple[Serving, ...]]:
        """Start one server that has the model once with each of the settings."""
        subject = self.bench.subject
        documents = []
        for place, settings in enumerate(many):
            name = {"name": f"{subject.document.spec.name}-{place}"}
            named = replace(subject, text=spec_text.changed(subject.text, name, file=subject.document.file))
            documents += named.with_settings(settings, backends=self.bench.backends).models
        with self.bench.serving(replace(subject.fleet, models=tuple(documents))) as serving:
            try:
                yield serving
            finally:
                # Nothing of it is needed any more: TorchServe's orderly end takes two seconds.
                if (handle := serving[0].server.handle) is not None:
                    handle.stop(0.0)

    @contextmanager
    def _serving(self, settings: Settings) -> Iterator[Serving]:
        with self._one_server([settings]) as (serving,):
            yield serving

    def _speed(self, reference: Serving) -> float:
        """Return how many requests per second the server that stays up answers just now."""
        seen = self.bench.loaded(reference, Load(concurrency=64).pace, seconds=REFERENCE_S)
        if not seen.rate:
            raise ProbeError("the reference server no longer answers; run it again to go on")
        return float(seen.rate)

    def _beside(
        self, reference: Serving, before: float, servers: list[Serving], load: Load
    ) -> tuple[list[dict[str, Any]], float]:  # fmt: skip
        """Return a cell of each server with how fast the reference was around them; anew where that was unusual."""
        tried: list[tuple[float, list[dict[str, Any]]]] = []
        while len(tried) < TRIES_UNLIKE:
            cells = [self._cell(serving, load) for serving in servers]
            after = self._speed(reference)
            speed = math.sqrt(before * after)
            before = after
            usual = statistics.median(self.speeds) if len(self.speeds) >= USUAL_OF else speed
            self.speeds.append(speed)
            unlike = abs(math.log(speed / usual))
            tried.append((unlike, [cell | {"speed": round(speed, 1)} for cell in cells]))
            if unlike <= UNLIKE:
                break
        return min(tried, key=lambda each: each[0])[1], before

    def _cell(self, serving: Serving, load: Load) -> dict[str, Any]:
        for seconds in (self.options.seconds, FEW_LONGER * self.options.seconds):
            seen, others = calmest(partial(self.bench.loaded, serving, load.pace, seconds=seconds))
            if len(seen.latency) >= FEW:
                break
        return _shown(seen) | others | {"at": round(time.time(), 1)}


def _about(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the first line of a surface says."""
    backend = name.partition("-")[0]
    return {
        "surface": name, "machine": machine().model_dump(), "versions": versions(PACKAGES), "began": study.now(),
        **_lengths(options), "transport": TRANSPORT[backend], "settings": len(grid(backend)),
    }  # fmt: skip


def _lengths(options: argparse.Namespace) -> dict[str, float]:
    """Return how long a server is loaded before it counts, and how long each of its cells is."""
    return {"seconds": options.seconds, "warm_up_s": options.warm_up, "settle_in_s": options.settle_in}


def calmest(measure: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Measure, again where it was disturbed, and return the calmest, with what others took of the processors."""
    tried: list[tuple[float, T, dict[str, float]]] = []
    while len(tried) < TRIES:
        before = Used.now()
        found = measure()
        foreign, stolen = Used.now().since(before)
        tried.append((foreign + stolen, found, {"foreign": round(foreign, 3), "stolen": round(stolen, 3)}))
        if foreign + stolen <= CALM:
            break
    _, found, others = min(tried, key=lambda each: each[0])
    return found, others


def _shown(seen: Measurement) -> dict[str, Any]:
    return {
        **seen_of(seen).model_dump(), "answers": len(seen.latency), "seconds": round(seen.seconds, 2),
        "client_busy": round(seen.busiest, 3), "client_bound": bool(seen.client_bound),
    }  # fmt: skip


class Used:
    """Processor seconds so far: of this program, its servers and its loads, of everybody, of the host."""

    def __init__(self, own: float, everybody: float, host: float, at: float) -> None:
        self.own, self.everybody, self.host, self.at = own, everybody, host, at

    @classmethod
    def now(cls) -> Used:
        """Read the system's clocks; a load's processes have ended by then and count to what started them."""
        mine = psutil.Process().cpu_times()
        own = mine.user + mine.system + mine.children_user + mine.children_system
        for each in psutil.Process().children(recursive=True):
            try:
                times = each.cpu_times()
            except psutil.Error:
                continue
            own += times.user + times.system + times.children_user + times.children_system
        whole = psutil.cpu_times()
        busy = (
            whole.user
            + getattr(whole, "nice", 0.0)
            + whole.system
            + getattr(whole, "irq", 0.0)
            + getattr(whole, "softirq", 0.0)
        )
        return cls(own, busy, getattr(whole, "steal", 0.0), time.monotonic())

    def since(self, before: Used) -> tuple[float, float]:
        """Return which shares of all processors strangers and the host took."""
        whole = (self.at - before.at) * (os.cpu_count() or 1)
        foreign = (self.everybody - before.everybody) - (self.own - before.own)
        return max(foreign, 0.0) / whole, (self.host - before.host) / whole


def _key(settings: Settings) -> str:
    return repr(sorted(settings.items()))


def main(about: str | None = None) -> int:
    """Record the surfaces that the command line names; ``about`` is what --help says."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surfaces", nargs="*", metavar="SURFACE", help=f"of {', '.join(SURFACES)}; all for none")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long a cell is measured")
    parser.add_argument("--warm-up", type=float, default=0.4)
    parser.add_argument("--settle-in", type=float, default=1.5, help="how long a new server is loaded before it counts")
    parser.add_argument("--passes", type=int, default=1, help="how many times every cell is measured")
    parser.add_argument("--deciding", type=int, default=0, help="how often the cells that decide are measured anew")
    parser.add_argument("--side-by-side", type=int, default=8, help="how many settings are served at a time")
    parser.add_argument(
        "--folder", type=Path, default=HERE, help="where the surfaces are (default: beside this program)"
    )
    options = parser.parse_args()
    if options.side_by_side < 1:
        parser.error("--side-by-side takes at least one")
    if unknown := set(options.surfaces) - set(SURFACES):
        parser.error(f"no surface {', '.join(sorted(unknown))}; choose from {', '.join(SURFACES)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.surfaces or SURFACES:
            try:
                journal = begun(options.folder / f"{name}.jsonl", _about(name, options))
                Recorder(name, options, journal, bench_of(name, options, Path(folder))).run()
            except KeyboardInterrupt:
                print(f"{name}: interrupted; run it again to go on", file=sys.stderr)
                return 130
            except ServewrightError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return int(error.exit_code)
    return 0
