"""Handwritten digits of 8x8 pixels, shipped with scikit-learn (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from fedprune.data.groups import GroupColumn
from fedprune.data.holdout import hold_out
from fedprune.data.rows import Dataset, Rows, Scaling
from fedprune.randomness import SimulationRandomness

DARKEST = 16.0  # a stored pixel counts the dark bits of a 4x4 block: 0 to 16
CLASS_NAMES = tuple(str(digit) for digit in range(10))


def digits(root: str | Path, *, seed: int) -> Dataset:  # noqa: ARG001 - all loaders look alike
    """Load 1,797 digits [1, 8, 8] in [0, 1]; a fifth is held out by the seed."""
    bunch = load_digits()
    labels = np.asarray(bunch.target, dtype=np.int64)
    rows = Rows(
        stored=np.asarray(bunch.images, dtype=np.uint8)[:, None],
        labels=labels,
        scaling=Scaling(divisor=DARKEST),
        groups={"class": GroupColumn(labels, CLASS_NAMES)},
    )
    train, test = hold_out(rows, SimulationRandomness(seed).stream("hold out", "digits"))
    return Dataset(
        name="digits",
        num_classes=10,
        input_shape=(1, 8, 8),
        train=train,
        test=test,
        input_unit="pixel value in [0, 1]",
    )
