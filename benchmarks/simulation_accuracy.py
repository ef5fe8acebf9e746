"""How near the simulation comes to a recorded surface of TensorFlow Serving, on settings that it was not fitted to.

    python benchmarks/simulation_accuracy.py surface.jsonl service-time.json

A surface has one line per batching setting: ``{"batching": {...}, "results": [{"load": "closed"|"open", "value": ...,
"rate": ..., "p50_ms": ..., "p90_ms": ..., "p99_ms": ...}, ...]}``; the service times are ``{rows: [median_ms, ...]}``
below any one key. A twentieth of the cells, drawn by a seed, is fitted; all cells of settings that none of them is
from are predicted.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from servewright.backends.tfserving.simulation import SCHEDULER
from servewright.calibrating import Cell, fit
from servewright.load.arrivals import Arrivals
from servewright.load.workload import Closed

STALL_MS = 100.0


def cells(path: Path) -> list[Cell]:
    found = []
    for line in path.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        if row["batching"] is None:
            continue  # without batching, another scheduler is at work
        for seen in row["results"]:
            closed = seen["load"] == "closed"
            pace = Closed(concurrency=seen["value"]) if closed else Arrivals(rate=seen["value"], poisson=True, seed=5)
            percentiles = (seen["p50_ms"], seen["p90_ms"], seen["p99_ms"])
            found.append(Cell(setting=row["batching"], pace=pace, rate=seen["rate"], percentiles_ms=percentiles))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surface", type=Path)
    parser.add_argument("service_time", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", type=int, default=4, help="how many settings are measured for the fit")
    arguments = parser.parse_args()
    everything = cells(arguments.surface)
    table = next(iter(json.loads(arguments.service_time.read_text()).values()))
    alone_s = {int(rows): values[0] / 1e3 for rows, values in table.items()}
    settings = list({json.dumps(cell.setting, sort_keys=True): cell.setting for cell in everything}.values())
    for seed in range(arguments.seeds):
        random = np.random.default_rng(seed)
        fitted = [settings[at] for at in random.choice(len(settings), arguments.settings, replace=False)]
        pool = [cell for cell in everything if cell.setting in fitted]
        known = [pool[at] for at in random.choice(len(pool), max(len(everything) // 20, 4), replace=False)]
        begin = time.monotonic()
        model = fit(SCHEDULER, alone_s, known)
        rest = [cell for cell in everything if cell.setting not in fitted]
        found = model.predict([(cell.setting, cell.pace) for cell in rest])
        rates = np.array([abs(rate / cell.rate - 1) for (rate, _), cell in zip(found, rest, strict=True)])
        tails = np.array([abs(ms[2] / cell.percentiles_ms[2] - 1) for (_, ms), cell in zip(found, rest, strict=True)])
        closed = np.array([isinstance(cell.pace, Closed) for cell in rest])
        calm = np.array([cell.percentiles_ms[2] < STALL_MS for cell in rest])
        print(
            f"seed {seed}: fitted to {len(known)} cells of {len(fitted)} settings, predicted {len(rest)} of "
            f"{len(settings) - len(fitted)} in {time.monotonic() - begin:.1f} s"
        )
        for name, chosen in (
            ("all", closed | ~closed),
            ("closed loops", closed),
            ("open loops", ~closed),
            (f"open loops, measured p99 < {STALL_MS:g} ms", ~closed & calm),
        ):
            print(
                f"  {name:<36}{chosen.sum():4} cells, median error: throughput {np.median(rates[chosen]):6.1%}, "
                f"p99 {np.median(tails[chosen]):6.1%}"
            )


if __name__ == "__main__":
    main()
