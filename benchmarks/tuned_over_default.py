"""What tuning gains on the real servers at 64 callers: the default against the tuned setting, in alternation.

    python benchmarks/tuned_over_default.py [torchserve-mlp] [torchserve-cnn] [tfserving-mlp]

The models are those of ``surfaces/``. The default of TorchServe is a batch of 1 and its own number of workers, one for
each CPU. TF Serving: also the best of a grid of 30 settings, each measured once, beside what the tuner found in at most
10 measurements; both winners are then measured in alternation. Everything in one run, so that ratios hold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GOALS = {"torchserve-mlp": 3.0, "torchserve-cnn": 8.0, "tfserving-mlp": 1.0}
GRID = [(size, delay, threads) for size in (4, 8, 16, 32, 64) for delay in (0, 1000, 5000) for threads in (1, 2)]
BUDGET = 10


def tuned(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Write the model and its spec, tune it, and return the spec and the study."""
    backend, _, model = name.partition("-")
    command = [sys.executable, str(HERE / "surfaces" / "models.py"), model, backend, str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    spec = folder / f"{model}.yaml"
    if backend == "torchserve":
        spec.write_text(spec.read_text() + f"workers: {os.cpu_count()}\n")
    words = ["--concurrency", "64", "--slo", "p99=10s", "--budget", str(BUDGET), "--transport", "http", "--json"]
    command = [sys.executable, "-m", "servewright", "tune", str(spec), "-b", backend, "-o", str(folder / "study")]
    done = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, timeout=1800, check=True)
    found = json.loads(done.stdout)
    print(f"{name} ({found['server']['name']} {found['server']['version']}): {found['conclusion']}")
    asked = len(found["measurements"]) + len(found["service_times"])
    print(f"  {asked} measurements, state {found['state']}; the aim is {GOALS[name]:g} times the default", flush=True)
    return spec, found


def beside_a_grid(spec: Path, found: dict[str, Any]) -> None:
    """Measure 30 settings, and the best of them beside the tuner's, in alternation."""
    from servewright import pipeline, registry
    from servewright.load.saturation import Slo
    from servewright.tuning import gain, tuner
    from servewright.tuning.live import LiveBench, Subject
    from servewright.tuning.search import Question
    from servewright.tuning.study import Goal, Load, Settings

    fleet = pipeline.load(spec)
    backend = registry.get("tfserving")
    subject = Subject(
        fleet=fleet, backend=backend, choice=pipeline.choice_for(fleet, backend, "auto", None),
        tuning=tuner.tuning_of(backend), text=spec.read_text(),
    )  # fmt: skip
    load = Load(concurrency=64)
    slo = Slo(latency_ms=(("p99", 10_000.0),))
    goal = Goal(maximise="rate", latency_ms=dict(slo.latency_ms), errors=0.0, loads=(load,), budget=len(GRID))
    bench = LiveBench(subject=subject, goal=goal, backends=registry.names(), each_s=3.0)
    best: tuple[float, Settings] = (0.0, {})
    try:
        for index, (size, delay, threads) in enumerate(GRID):
            settings: Settings = {
                "max_batch_size": size, "batch_timeout_micros": delay, "num_batch_threads": threads,
                "intra_op_parallelism": 0, "max_enqueued_batches": max(10, 128 // size),
            }  # fmt: skip
            seen = bench.measure(Question(index=index, stage="calibrate", settings=settings, load=load))
            if not seen.broken and not seen.unsafe:
                best = max(best, (seen.rate, settings), key=lambda each: each[0])
        bench.close()
        mine = max((each for each in found["measurements"] if not each["broken"]), key=lambda each: each["rate"])
        with ExitStack() as held:
            sides = {
                "default": held.enter_context(bench.running(best[1])),
                "tuned": held.enter_context(bench.running(mine["settings"])),
            }
            rounds = gain.alternate(lambda side: bench.once(sides[side], load), [], rounds=5)
    finally:
        bench.close()
    compared = gain.compared(rounds, load, goal)
    print(f"  best of {len(GRID)}: {best[1]} {best[0]:.0f}/s; the tuner's: {mine['settings']}")
    print(f"  the tuner's over the grid's best: {compared.gain:.3f} ({compared.low:.3f} to {compared.high:.3f})")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or GOALS:
            spec, found = tuned(Path(folder) / name, name)
            if name.startswith("tfserving"):
                beside_a_grid(spec, found)


if __name__ == "__main__":
    main()
