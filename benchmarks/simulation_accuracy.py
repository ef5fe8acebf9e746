"""How near the simulation comes to recorded surfaces, on settings that it was not calibrated with.

    python benchmarks/simulation_accuracy.py
    python benchmarks/simulation_accuracy.py torchserve-mlp --seeds 3

The model is calibrated with a twentieth of the cells, drawn by a seed from a tenth of the settings that a tuner would
try, and predicts the cells of all its other settings as a search does: what the simulation says, corrected by the
Gaussian process with those same few cells (`tuning.belief`). Cells with more than 1 % of errors, or without a p99, are
neither calibrated with nor predicted; how many they are is printed. Beside the errors stands the spread: by how much a
cell differs that was measured again, where the surface has such. A prediction cannot be nearer than a measurement
repeats.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence

import numpy as np
from surfaces.surface import Point, Surface, key, surfaces

from servewright.calibrating import PERCENTILES, Cell, fit
from servewright.simulating import Floats
from servewright.tuning.belief import Belief

STALL_MS = 100.0
MOST_ERRORS = 0.01  # a server that turns requests away tells latencies of the lucky ones


def shown(point: Point) -> list[float]:
    return [point.seen.rate, *(point.seen.percentile_ms(share) for share in PERCENTILES)]


def cell_of(point: Point) -> Cell:
    rate, *percentiles = shown(point)
    return Cell(setting=point.settings, pace=point.load.pace, rate=rate, percentiles_ms=tuple(percentiles))


def off(found: Sequence[float] | Floats, true: Sequence[float] | Floats) -> Floats:
    """Return by which share each value is off."""
    return np.abs(np.asarray(found) / np.asarray(true) - 1)


def predicted(surface: Surface, seed: int) -> None:
    """Calibrate with a few settings, predict the rest, and print the errors."""
    random = np.random.default_rng(seed)
    settings = surface.tried
    tried = {key(each) for each in settings}
    every = [point for point in surface.points if key(point.settings) in tried]
    points = [point for point in every if point.seen.p99_ms and point.seen.error_share <= MOST_ERRORS]
    chosen = random.choice(len(settings), max(len(settings) // 10, 4), replace=False)
    calibrated = {key(settings[at]) for at in chosen.tolist()}
    pool = [point for point in points if key(point.settings) in calibrated]
    known = random.choice(len(pool), min(max(len(surface.points) // 20, 4), len(pool)), replace=False)
    begin = time.monotonic()
    alone_s = {rows: values[0] / 1e3 for rows, values in surface.alone_ms.items()}
    model = fit(surface.scheduler, alone_s, [cell_of(pool[at]) for at in known.tolist()])
    rest = [point for point in points if key(point.settings) not in calibrated]
    measured = [pool[at] for at in known.tolist()]
    belief = Belief.of(model, [(point.settings, point.load) for point in [*measured, *rest]])
    rate, *_, tail = belief.corrected(range(len(measured)), np.array([shown(point) for point in measured]))
    rates = off(np.exp(rate.mean[len(measured) :]), [point.seen.rate for point in rest])
    tails = off(np.exp(tail.mean[len(measured) :]), [point.seen.percentile_ms(0.99) for point in rest])
    closed = np.array([point.load.concurrency is not None for point in rest])
    calm = np.array([point.seen.percentile_ms(0.99) < STALL_MS for point in rest])
    print(
        f"  seed {seed}: calibrated with {len(known)} cells of {len(calibrated)} settings, predicted {len(rest)} of "
        f"{len({key(point.settings) for point in rest})} in {time.monotonic() - begin:.1f} s; "
        f"{len(every) - len(points)} of {len(every)} cells are left out for their errors"
    )
    for name, among in (
        ("all", closed | ~closed),
        ("closed loops", closed),
        ("open loops", ~closed),
        (f"open loops, measured p99 < {STALL_MS:g} ms", ~closed & calm),
    ):
        if among.any():
            print(
                f"    {name:<36}{among.sum():4} cells, median error: throughput {np.median(rates[among]):6.1%}, "
                f"p99 {np.median(tails[among]):6.1%}",
                flush=True,
            )


def spread(surface: Surface) -> None:
    """Print by how much a cell differs from one measurement to the next."""
    pairs = [
        (first, again)
        for point in surface.points
        for first, again in itertools.pairwise(point.measured)
        if first.p99_ms and again.p99_ms
    ]
    if not pairs:
        print("  no cell was measured twice")
        return
    rates = off([again.rate for _, again in pairs], [first.rate for first, _ in pairs])
    tails = off(
        [again.percentile_ms(0.99) for _, again in pairs], [first.percentile_ms(0.99) for first, _ in pairs]
    )  # fmt: skip
    print(
        f"  {len(pairs)} times a cell was measured again, and differed by (median): throughput {np.median(rates):.1%}, "
        f"p99 {np.median(tails):.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surfaces", nargs="*", metavar="SURFACE", help="all that there are for none")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for surface in surfaces(arguments.surfaces):
        print(f"{surface.name}: {len(surface.tried)} settings, {len(surface.loads)} loads", flush=True)
        spread(surface)
        for seed in range(arguments.seeds):
            predicted(surface, seed)


if __name__ == "__main__":
    main()
