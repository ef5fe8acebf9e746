"""What tuning gains on the real servers at 64 callers: a multilayer perceptron 784-512-256-10, default against tuned.

    python benchmarks/tuned_over_default.py [torchserve] [tfserving]

TorchServe: the tuned setting against the default (a batch of 1, the server's default workers), in alternation. TF
Serving: the same, and the best of a grid of 30 settings, each measured once, beside what the tuner found in at most 10
measurements; both winners are then measured in alternation. Everything in one run, so that ratios hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

SPEC = """servewright: 1
name: mlp
model: {{path: {path}, format: {form}}}
signature:
  inputs: [{{name: x, dtype: float32, shape: [null, 784]}}]
  outputs: [{{name: y, dtype: float32, shape: [null, 10]}}]
"""
TORCH = """
import sys, torch
torch.manual_seed(0)
layers = [torch.nn.Linear(784, 512), torch.nn.ReLU(), torch.nn.Linear(512, 256), torch.nn.ReLU()]
torch.jit.script(torch.nn.Sequential(*layers, torch.nn.Linear(256, 10)).eval()).save(sys.argv[1])
"""
TENSORFLOW = """
import sys, numpy as np, tensorflow as tf
random = np.random.default_rng(0)

class Net(tf.Module):
    def __init__(self):
        self.w = [tf.Variable(random.normal(size=s).astype("f") * 0.05) for s in ((784, 512), (512, 256), (256, 10))]

    @tf.function(input_signature=[tf.TensorSpec([None, 784], tf.float32, name="x")])
    def __call__(self, x):
        for w in self.w[:2]:
            x = tf.nn.relu(x @ w)
        return {"y": x @ self.w[2]}

net = Net()
tf.saved_model.save(net, sys.argv[1], signatures=net.__call__)
"""
GRID = [(size, delay, threads) for size in (4, 8, 16, 32, 64) for delay in (0, 1000, 5000) for threads in (1, 2)]
BUDGET = 10


def tuned(folder: Path, backend: str, program: str, path: str, form: str) -> tuple[Path, dict[str, Any]]:
    """Write the model and its spec, tune it, and return the spec and the study."""
    folder.mkdir()
    subprocess.run([sys.executable, "-c", program, str(folder / path)], check=True, capture_output=True, timeout=300)
    spec = folder / "mlp.yaml"
    spec.write_text(SPEC.format(path=path, form=form))
    words = ["--concurrency", "64", "--slo", "p99=1s", "--budget", str(BUDGET), "--transport", "http", "--json"]
    command = [sys.executable, "-m", "servewright", "tune", str(spec), "-b", backend, "-o", str(folder / "study")]
    done = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, timeout=1800, check=True)
    found = json.loads(done.stdout)
    print(f"{backend} ({found['server']['name']} {found['server']['version']}): {found['conclusion']}")
    print(f"  {len(found['measurements']) + len(found['service_times'])} measurements, state {found['state']}")
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
    slo = Slo(latency_ms=(("p99", 1000.0),))
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
    compared = gain.compared(rounds, load, "rate")
    print(f"  best of {len(GRID)}: {best[1]} {best[0]:.0f}/s; the tuner's: {mine['settings']}")
    print(f"  the tuner's over the grid's best: {compared.gain:.3f} ({compared.low:.3f} to {compared.high:.3f})")


def main() -> None:
    wanted = sys.argv[1:] or ["torchserve", "tfserving"]
    with tempfile.TemporaryDirectory() as folder:
        if "torchserve" in wanted:
            tuned(Path(folder) / "torch", "torchserve", TORCH, "model.pt", "torchscript")
        if "tfserving" in wanted:
            beside_a_grid(*tuned(Path(folder) / "tf", "tfserving", TENSORFLOW, "saved_model", "saved_model"))


if __name__ == "__main__":
    main()
