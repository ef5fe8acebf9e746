"""How the benchmarks read recorded surfaces: which measurements of a cell count, and which cells decide."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Behind all others: the folder has a packaging.py, which must not stand in for a library that others import.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from surfaces import surface

LOADS = [{"concurrency": 8}, {"concurrency": 64}]


def settings(size: int) -> dict[str, int]:
    return {"max_batch_size": size, "batch_timeout_micros": 0, "num_batch_threads": 1, "max_enqueued_batches": 10}


def cell(size: int, load: dict[str, int], rate: float, again: int, **more: Any) -> dict[str, Any]:
    seen = {"p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 5.0, "p999_ms": 9.0, "error_share": 0.0, "seconds": 1.0}
    return {"kind": "cell", "settings": settings(size), "load": load, "again": again, "rate": rate} | seen | more


def recorded(folder: Path, *rows: dict[str, Any], middling: float = 102.0) -> Any:
    """Write a surface of three settings whose first pass is whole, and ``rows`` after it; return what is read."""
    rates = {2: 100.0, 4: middling, 8: 200.0}
    times = {"kind": "service_times", "threads": 1, "found": [{"rows": 1, "ms": 1.0, "high_ms": 1.1}]}
    first = [cell(size, load, rate, 0) for size, rate in rates.items() for load in LOADS]
    path = folder / "tfserving-toy.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"kind": "loads", "loads": LOADS}, times, *first, *rows])))
    return surface.read(path)


def rate_of(read: Any, size: int, callers: int) -> tuple[float, int]:
    (found,) = (
        each for each in read.points if (each.settings, each.load.concurrency) == (settings(size), callers)
    )  # fmt: skip
    return found.seen.rate, len(found.measured)


def chosen(passes: int, lacking: int = 0) -> list[dict[str, Any]]:
    """Return a round in which the best cell is measured again, less ``lacking`` of its measurements."""
    about = {
        "kind": "deciding", "passes": list(range(1000, 1000 + passes)), "cells": [[settings(8), LOADS[1]]],
        "beside": [[settings(2), LOADS[0]]],
    }  # fmt: skip
    beside = [cell(2, LOADS[0], 100.0, again) for again in about["passes"]]
    best = [cell(8, LOADS[1], 150.0, again, chosen=True) for again in about["passes"]]
    return [about, *beside, *best[: passes - lacking]]


def test_what_was_chosen_is_known_by_what_it_showed_since(tmp_path: Path) -> None:
    """Luck chose it: the measurement that did so does not count, nor does it make the machine slower since."""
    read = recorded(tmp_path, *chosen(3))
    assert rate_of(read, 8, 64) == (pytest.approx(150.0), 3)
    assert rate_of(read, 2, 8) == (pytest.approx(100.0), 4)
    assert rate_of(read, 8, 8) == (pytest.approx(200.0), 1)


def test_a_pass_under_way_does_not_count(tmp_path: Path) -> None:
    """Of three passes over what decides the last lacks a cell."""
    read = recorded(tmp_path, *chosen(3, lacking=1))
    assert rate_of(read, 8, 64) == (pytest.approx(150.0), 2)
    assert rate_of(read, 2, 8) == (pytest.approx(100.0), 3)
    begun = recorded(tmp_path, {"kind": "pass", "again": 1, "cells_before": 6}, cell(2, LOADS[0], 300.0, 1))
    assert rate_of(begun, 2, 8)[1] == 1


def test_a_reference_tells_how_fast_the_machine_was(tmp_path: Path) -> None:
    """A cell that is measured in fast and slow minutes varies less where a server beside it varied alike."""
    spells = [1.0, 0.7, 1.0, 0.7, 1.0, 0.7]
    about, *cells = chosen(len(spells))
    timed = [
        row | {"at": 1e4 + 60.0 * (row["again"] - 1000), "rate": row["rate"] * spells[row["again"] - 1000]}
        for row in cells
        if row.get("chosen")
    ]
    alone = [about | {"beside": []}, *timed]
    beside = [about | {"beside": []}, *(row | {"speed": 1000.0 * spells[row["again"] - 1000]} for row in timed)]
    varied = []
    for rows in (alone, beside):
        (point,) = (each for each in recorded(tmp_path, *rows).points if len(each.measured) == len(spells))
        varied.append(float(np.std(np.log([each.rate for each in point.measured]))))
    assert varied[1] < varied[0] < np.std(np.log(spells))


def test_what_may_be_good_decides(tmp_path: Path) -> None:
    """Half of the best is not: a cell that was measured once is known to a fifth."""
    read = recorded(tmp_path)
    assert read.promises_ms == [5.0] * 4
    assert {each.settings["max_batch_size"] for each in read.deciding} == {8}
    close = recorded(tmp_path, middling=170.0)
    assert {each.settings["max_batch_size"] for each in close.deciding} == {4, 8}


def test_a_surface_tells_which_settings_a_tuner_would_try(tmp_path: Path) -> None:
    """More threads than cores are recorded, and never tried: they collapse."""
    times = {"kind": "service_times", "threads": 1, "found": [{"rows": 1, "ms": 1.0, "high_ms": 1.1}]}
    fits, does_not = (
        {"batchSize": 4, "maxBatchDelay": 1, "workers": 2, "OMP_NUM_THREADS": threads, "jobQueueSize": 128}
        for threads in (1, 2)
    )
    cells = [cell(4, load, 100.0, 0) | {"settings": each} for each in (fits, does_not) for load in LOADS]
    study = {"kind": "study", "machine": {"cores": 2}}
    path = tmp_path / "torchserve-toy.jsonl"
    path.write_text("\n".join(map(json.dumps, [study, {"kind": "loads", "loads": LOADS}, times, *cells])))
    read = surface.read(path)
    assert read.settings == [fits, does_not]
    assert read.tried == (fits,)
