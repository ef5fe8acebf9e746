"""How the time to load, render and lint a fleet grows with its number of models, on both servers.

Two fleets: `lean` says of each model its name, version and label, and the rest once under ``defaults``; `full` repeats
everything for each model. Each size is measured in a process of its own, so that no cache helps the next. Seconds are
of processor time: other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BACKENDS = ("tfserving", "torchserve")
_SHARED = """\
  model:
    tfserving: {path: saved_model, format: saved_model}
    torchserve: {path: model.pt, format: torchscript}
  signature:
    inputs: [{name: image, dtype: float32, shape: [null, 1, 8, 8]}]
    outputs: [{name: scores, dtype: float32, shape: [null, 10]}]
  batching: {max_size: 16, max_delay: 2ms, queue: 256}
"""


def fleet(count: int, kind: str) -> Iterator[str]:
    """Yield the lines of a fleet file of ``count`` models."""
    yield "servewright: 1\nfleet: many\n"
    if kind == "lean":
        yield "defaults:\n" + _SHARED
    yield "models:\n"
    for number in range(count):
        version = number % 7 + 1
        if kind == "lean":
            yield f"- {{name: model-{number:05}, version: {version}, versions: {{labels: {{stable: {version}}}}}}}\n"
        else:
            yield f"- name: model-{number:05}\n  version: {version}\n  versions: {{labels: {{stable: {version}}}}}\n"
            yield _SHARED


def measured(path: Path, backend: str) -> dict[str, float]:
    """Return the seconds that each step takes, and the most memory in MiB."""
    from servewright import pipeline, registry
    from servewright.linting import walking
    from servewright.writing import write_texts

    chosen = registry.get(backend)
    times: dict[str, float] = {}
    start = time.process_time()
    loaded = pipeline.load(path)
    times["load"] = time.process_time() - start
    start = time.process_time()
    texts = pipeline.render(loaded, chosen)
    times["render"] = time.process_time() - start
    with tempfile.TemporaryDirectory(prefix="servewright-fleet-") as folder:
        out = Path(folder)
        # What one server reads at its start; TorchServe's other texts go into archives.
        write_texts({name: text for name, text in texts.items() if "/" not in name}, out)
        start = time.process_time()
        result = walking.lint([out])
        times["lint"] = time.process_time() - start
    assert not [finding for finding in result.findings if finding.severity == "error"], result.findings[:3]
    times["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return times


def main() -> None:
    """Print a table: seconds by size, and how they grow from one size to the next."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,50000")
    parser.add_argument("--kinds", default="lean,full")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one:
        print(json.dumps(measured(Path(wanted.one[0]), wanted.one[1])))
        return
    with tempfile.TemporaryDirectory(prefix="servewright-fleet-") as folder:
        (Path(folder) / "saved_model").mkdir()
        (Path(folder) / "saved_model" / "saved_model.pb").write_bytes(b"model")
        (Path(folder) / "model.pt").write_bytes(b"model")
        print(f"{'fleet':<6}{'server':<12}{'models':>8}{'load s':>9}{'render s':>10}{'both':>8}{'lint s':>9}{'MiB':>7}")
        for kind in wanted.kinds.split(","):
            for backend in BACKENDS:
                before: tuple[int, float] | None = None
                for size in map(int, wanted.sizes.split(",")):
                    path = Path(folder) / f"{kind}-{size}.yaml"
                    if not path.exists():
                        path.write_text("".join(fleet(size, kind)))
                    command = [sys.executable, __file__, "--one", str(path), backend]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    if done.returncode:
                        print(f"{kind:<6}{backend:<12}{size:>8} {done.stderr.strip().splitlines()[-1][:150]}")
                        continue
                    found = json.loads(done.stdout)
                    both = found["load"] + found["render"]
                    growth = f"x{size / before[0]:.0f} models: x{both / before[1]:.1f}" if before else ""
                    before = size, both
                    print(
                        f"{kind:<6}{backend:<12}{size:>8}{found['load']:>9.2f}{found['render']:>10.2f}{both:>8.2f}"
                        f"{found['lint']:>9.2f}{found['MiB']:>7.0f}  {growth}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
