"""Recordings on a server that answers at once; for each line on stdin one, which a signal of its own making ends.

    python tests/recording_toys.py SPEC FOLDER

A line is how many measurements are answered before the signal, and its number: it comes while the next one is made.
What the server was asked is in ``asked``, a line for each, and what a recording said in ``said``. Printed are the exit
codes. Imports take longer than a recording: each is a child that has them already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from servewright import registry
from servewright.load.histogram import Histogram
from servewright.load.measurement import Measurement
from servewright.tuning.study import ServiceTime, Settings
from tuning_toys import subject_of

# Behind all others: the folder has a packaging.py, which must not stand in for a library that others import.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from surfaces import recording

NAME = "tfserving-toy"
RATES = {8: 4000.0, 32: 3900.0, 64: 1500.0}
GRID: list[Settings] = [
    {
        "max_batch_size": size, "batch_timeout_micros": 0, "num_batch_threads": threads, "intra_op_parallelism": 1,
        "max_enqueued_batches": 100,
    }
    for size in RATES for threads in (1, 2)
]  # fmt: skip


class Bench:
    """Serves and measures in no time, and ends its process while it does."""

    backends = ("tfserving",)
    identity = SimpleNamespace(name="toy", version="1", stand_in=True)

    def __init__(self, spec: Path, asked: Path, answers: int, signal: int) -> None:
        self.subject = subject_of(spec, registry.get("tfserving"))
        self.asked, self.left, self.signal = asked, answers, signal

    @contextmanager
    def serving(self, fleet: Any) -> Iterator[tuple[Any, ...]]:
        server = SimpleNamespace(handle=None)
        yield tuple(SimpleNamespace(batching=each.spec.batching, server=server) for each in fleet.models)

    def timed(self, serving: Any, rows: int) -> ServiceTime:
        self._ask(f"alone {rows}")
        return ServiceTime(rows=rows, ms=1.0, low_ms=1.0, high_ms=1.0)

    def loaded(self, serving: Any, pace: Any, *, seconds: float) -> Measurement:
        load = getattr(pace, "concurrency", None) or f"{pace.rate:g}/s"
        self._ask(f"{serving.batching.max_size} {serving.batching.threads} {load}")
        latency = Histogram()
        latency.add(np.full(1000, 5_000_000))
        rate = getattr(pace, "rate", None) or RATES.get(serving.batching.max_size, 1000.0)
        return Measurement(
            asked=None, concurrency=None, rate=rate, seconds=seconds, latency=latency, lag=Histogram(), errors={},
            ended="duration", client_bound="", busiest=0.1,
        )  # fmt: skip

    def _ask(self, what: str) -> None:
        with self.asked.open("a") as file:
            file.write(what + "\n")
        if self.left == 0:
            os.kill(os.getpid(), self.signal)
        self.left -= 1


def record(spec: Path, folder: Path, answers: int, signal: int) -> None:
    """Record, and end this process."""
    recording.bench_of = lambda *_: Bench(spec, folder / "asked", answers, signal)
    os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    os.dup2(1, 2)
    sys.argv[1:] = [NAME, "--passes", "2", "--deciding", "3", "--side-by-side", "4", "--folder", str(folder)]
    os._exit(recording.main())


def main(spec: Path, folder: Path) -> None:
    """Record for each line."""
    recording.SURFACES = (NAME,)
    recording.grid = lambda _: GRID
    recording.CALM = float("inf")  # what else runs meanwhile is not to decide how often anything is asked
    recording.REFERENCE = {"tfserving": GRID[0] | {"max_batch_size": 16}}
    for line in sys.stdin:
        answers, signal = map(int, line.split())
        child = os.fork()
        if not child:
            record(spec, folder, answers, signal)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
