"""What the tests of tuning share: a server that exists as a simulation alone, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from servewright import pipeline
from servewright.backend import Backend
from servewright.backends.tfserving.simulation import SCHEDULER
from servewright.load.workload import Closed
from servewright.simulating import Service, simulate_closed, simulate_open
from servewright.tuning import tuner
from servewright.tuning.live import Subject
from servewright.tuning.search import Found, Question, broken, search
from servewright.tuning.study import Goal, Load, Measured, Seen, ServiceTime, Settings

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
            meeting_s=one * 0,
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


def subject_of(path: Path, backend: Backend, text: str = "") -> Subject:
    """Return what is tuned: the spec of one model."""
    fleet = pipeline.load(path)
    return Subject(
        fleet=fleet, backend=backend, choice=pipeline.choice_for(fleet, backend, "auto", None),
        tuning=tuner.tuning_of(backend), text=text or path.read_text(),
    )  # fmt: skip
