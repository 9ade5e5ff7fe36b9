"""CIFAR-10 from its python batches (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedprune.data import files
from fedprune.data.batches import read_batch
from fedprune.data.groups import GroupColumn
from fedprune.data.rows import Dataset, Rows, Scaling

FOLDER = "cifar-10-batches-py"
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz and unpack it there"
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# The usual ImageNet constants, which the public CIFAR ResNet weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def cifar10(root: str | Path, *, seed: int) -> Dataset:  # noqa: ARG001 - the split is official
    """Load 50,000 training and 10,000 test images [3, 32, 32], kept as bytes.

    Raises:
        DataError: if files are missing or are not such batches.
    """
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    paths = files.require(
        root, [f"{FOLDER}/{name}" for name in names], dataset="cifar10", source=SOURCE
    )
    return Dataset(
        name="cifar10",
        num_classes=10,
        input_shape=(3, 32, 32),
        train=_rows(paths[:-1]),
        test=_rows(paths[-1:]),
        input_unit="pixel value in [0, 1]",
        input_std=STD,
    )


def _rows(paths: Sequence[Path]) -> Rows:
    batches = [read_batch(path) for path in paths]
    labels = np.concatenate([labels for _, labels in batches])
    return Rows(
        stored=np.concatenate([pixels for pixels, _ in batches]),
        labels=labels,
        scaling=Scaling(divisor=255.0, mean=MEAN, std=STD),
        groups={"class": GroupColumn(labels, CLASS_NAMES)},
    )
