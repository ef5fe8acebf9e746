"""How fast the machine was while each cell of a surface was measured, as all cells tell it together.

The processors are rented, and what others do on them slows every setting alike, for seconds or for minutes. Each cell
is measured in several passes that lie far apart, so its rates tell two things: how fast the setting is, which is the
same in every pass, and how fast the machine was, which is the same for what was measured just before and after it.
Later passes have a reference beside them, one server that stays up and is loaded before and after each turn: it tells
the same. The machine's part is a Gaussian process of time, one part of seconds and one of an hour; the settings' parts
are free.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

Floats = NDArray[np.float64]

# Standard deviation of a logarithm, and how many seconds it lasts: what the surfaces of both servers make most likely.
_SPELLS: Final = ((0.10, 8.0), (0.12, 1500.0))
_NOISES: Final = (0.04, 0.06, 0.08, 0.11, 0.15, 0.2)  # of a rate that was measured for a second
_APART_S: Final = 1e6  # of passes: nothing is common to them
_STARTED_S: Final = 3.5  # a server of its own for each setting
_REFERENCE_S: Final = 1.2  # of a turn, together
_BESIDE_S: Final = 0.4  # of what was measured: warm-up, and processes that start


class _Told(NamedTuple):
    """A rate that tells how fast the machine was: of what, when, and measured for how long."""

    of: str
    at: float
    rate: float
    seconds: float


def log_speeds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the logarithm of the machine's speed at each ``cell`` of ``rows``, which are a surface's, in order."""
    when = list(_times(rows))
    told = [*_cells(rows, when), *_references(rows, when)]
    repeated = Counter(each.of for each in told)
    told = [each for each in told if repeated[each.of] > 1]  # only what was measured again tells of the machine
    if not told:
        return [0.0] * len(when)
    at = np.array([each.at for each in told])
    which = np.unique([each.of for each in told], return_inverse=True)[1]
    pull = _most_likely(
        _common(at, at), np.eye(which.max() + 1)[which], np.log([each.rate for each in told]),
        np.array([each.seconds for each in told]),
    )  # fmt: skip
    speeds: list[float] = (_common(np.array(when), at) @ pull).tolist()
    return speeds


def _cells(rows: Sequence[Mapping[str, Any]], when: Sequence[float]) -> Iterator[_Told]:
    """Yield what waits for answers, and so goes as fast as the machine."""
    for row, at in zip((row for row in rows if row["kind"] == "cell"), when, strict=True):
        if "concurrency" in row["load"] and row["rate"] > 0:
            # What was chosen by what it showed was lucky then: that it shows less since is not the machine's doing.
            name = json.dumps([row["settings"], row["load"], row.get("chosen", False)])
            yield _Told(name, at, row["rate"], row["seconds"])


def _references(rows: Sequence[Mapping[str, Any]], when: Sequence[float]) -> Iterator[_Told]:
    """Yield how fast the server was that ran beside those of some settings, before and after each turn of theirs."""
    times, server, turn = iter(when), 0, None
    for row in rows:
        server += row["kind"] in ("pass", "deciding")  # another program, and another server
        if row["kind"] != "cell":
            continue
        at = next(times)
        if "speed" in row and (row["load"], row["again"], row["speed"]) != turn:
            turn = row["load"], row["again"], row["speed"]
            yield _Told(f"reference {server}", at, row["speed"], _REFERENCE_S)


def _times(rows: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """Yield when each cell was measured; the first surfaces do not say so, and then their order does."""
    now, last = 0.0, None
    for row in rows:
        if row["kind"] == "pass":
            now += _APART_S
        elif row["kind"] == "cell":
            side_by_side = "speed" in row
            now += row["seconds"] + _BESIDE_S
            now += 0.0 if side_by_side or row["settings"] == last else _STARTED_S
            last = row["settings"]
            yield row.get("at", now)


def _common(one: Floats, other: Floats) -> Floats:
    apart = np.abs(one[:, None] - other[None])
    found: Floats = np.sum([deviation**2 * np.exp(-apart / lasts) for deviation, lasts in _SPELLS], axis=0)
    return found


def _most_likely(common: Floats, of: Floats, logs: Floats, seconds: Floats) -> Floats:
    """Return what carries the settings' residuals to other times, with the noise that makes them most likely."""
    found: tuple[float, Floats] = (-np.inf, logs)
    for noise in _NOISES:
        root = cholesky(common + np.diag(noise**2 / seconds), lower=True)
        whitened = solve_triangular(root, np.column_stack([of, logs]), lower=True)
        settings, values = whitened[:, :-1], whitened[:, -1]
        among = settings.T @ settings
        left = values - settings @ np.linalg.solve(among, settings.T @ values)
        likely = -0.5 * left @ left - np.log(np.diag(root)).sum() - 0.5 * np.linalg.slogdet(among)[1]
        if likely > found[0]:
            found = float(likely), solve_triangular(root, left, lower=True, trans="T")
    return found[1]
