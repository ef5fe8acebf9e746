"""Latencies in buckets that grow with the value: small, mergeable, and never off by more than a known share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRECISION_BITS = 7
RELATIVE_ERROR = 2.0 ** -(PRECISION_BITS + 1)
"""How far a percentile can be from the true one, as a share of it: half a bucket."""

_HALF = 1 << PRECISION_BITS
_LARGEST_BIT = 43  # 2.4 hours in nanoseconds
_LARGEST = (1 << _LARGEST_BIT) - 1
_BUCKETS = (_LARGEST_BIT - PRECISION_BITS + 1) * _HALF


def _empty() -> NDArray[np.int64]:
    return np.zeros(_BUCKETS, np.int64)


@dataclass(slots=True, eq=False)
class Histogram:
    """Counts of durations in nanoseconds, from 0 to 2.4 hours; longer ones count as that."""

    counts: NDArray[np.int64] = field(default_factory=_empty)
    total_ns: int = 0
    least_ns: int = _LARGEST
    most_ns: int = 0

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.as_json() == other.as_json()

    def add(self, durations_ns: ArrayLike) -> None:
        """Count every duration of an array."""
        values = np.clip(np.asarray(durations_ns, np.int64).reshape(-1), 0, _LARGEST)
        if not values.size:
            return
        self.counts += np.bincount(_buckets(values), minlength=_BUCKETS)
        self.total_ns += int(values.sum())
        self.least_ns = min(self.least_ns, int(values.min()))
        self.most_ns = max(self.most_ns, int(values.max()))

    def merge(self, other: Histogram) -> None:
        """Count what ``other`` has counted."""
        self.counts += other.counts
        self.total_ns += other.total_ns
        self.least_ns = min(self.least_ns, other.least_ns)
        self.most_ns = max(self.most_ns, other.most_ns)

    def percentile(self, share: float) -> float:
        """Return the nanoseconds that ``share`` (0 to 1) of the durations do not exceed; NaN where there are none."""
        count = len(self)
        if not count:
            return float("nan")
        rank = min(max(int(np.ceil(share * count - 1e-9)), 1), count)
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank))
        low, high = _bounds(bucket)
        return float(min(max((low + high) / 2, self.least_ns), self.most_ns))

    def mean(self) -> float:
        """Return the mean in nanoseconds; NaN where there are none."""
        count = len(self)
        return self.total_ns / count if count else float("nan")

    def as_json(self) -> dict[str, object]:
        """Return plain values from which `from_json` makes an equal histogram."""
        filled = np.flatnonzero(self.counts)
        return {
            "precision_bits": PRECISION_BITS,
            "buckets": filled.tolist(),
            "counts": self.counts[filled].tolist(),
            "total_ns": self.total_ns,
            "least_ns": self.least_ns,
            "most_ns": self.most_ns,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Histogram:
        """Return the histogram that `as_json` described; `ValueError` for one with other buckets."""
        if document["precision_bits"] != PRECISION_BITS:
            raise ValueError(f"a histogram of {document['precision_bits']} bits, not {PRECISION_BITS}")
        found = cls(
            total_ns=int(str(document["total_ns"])),
            least_ns=int(str(document["least_ns"])),
            most_ns=int(str(document["most_ns"])),
        )
        found.counts[np.asarray(document["buckets"], np.int64)] = np.asarray(document["counts"], np.int64)
        return found


def _buckets(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each value's bucket: one per value up to 255, then 128 for every doubling."""
    _, exponents = np.frexp(values.astype(np.float64))  # exact: the largest value has fewer than 53 bits
    shifts = np.maximum(exponents.astype(np.int64) - (PRECISION_BITS + 1), 0)
    found: NDArray[np.int64] = shifts * _HALF + (values >> shifts)
    return found


def _bounds(bucket: int) -> tuple[int, int]:
    """Return the least and the greatest value of a bucket."""
    shift = max(bucket // _HALF - 1, 0)
    low = (bucket - shift * _HALF) << shift
    return low, low + (1 << shift) - 1
