"""Handwritten digits (UCI, as they come with scikit-learn): 1,797 pictures of 8 by 8, in ten classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servewright.errors import MissingExtraError

CLASSES = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Pictures ``[n, 1, 8, 8]`` in 0 to 1, float32, and their labels ``[n]``, int64; a fifth is for testing."""

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load_digits() -> Digits:
    """Return the data, split the same way every time."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "dev", "the demonstration's data") from error
    data: Any = load()
    images = (data.images / 16.0).astype(np.float32)[:, None, :, :]
    labels = data.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    return Digits(
        train_images=images[train], train_labels=labels[train], test_images=images[test], test_labels=labels[test]
    )


def accuracy(scores: NDArray[np.generic], labels: NDArray[np.int64]) -> float:
    """Return the share of rows whose highest score is at their label."""
    return float((np.argmax(scores, axis=1) == labels).mean())


def write_samples(folder: Path, images: NDArray[np.float32], scores: NDArray[np.float32]) -> None:
    """Write ``golden/in.npz`` and ``golden/out.npz``: what a served model must repeat."""
    golden = folder / "golden"
    golden.mkdir(parents=True, exist_ok=True)
    np.savez(golden / "in.npz", image=images)
    np.savez(golden / "out.npz", scores=scores)
