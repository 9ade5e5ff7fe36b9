"""The data sets that can be asked for by name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fedprune.data.cifar10 import cifar10
from fedprune.data.digits import digits
from fedprune.data.heart import heart
from fedprune.data.rows import Dataset
from fedprune.errors import DataError


class Loader(Protocol):
    """Reads a data set from files under `root`; the seed holds out test rows where none are."""

    def __call__(self, root: str | Path, *, seed: int) -> Dataset:
        """Load the data set."""
        ...


DATASETS: dict[str, Loader] = {"digits": digits, "cifar10": cifar10, "heart": heart}


def load(dataset: str, root: str | Path, *, seed: int) -> Dataset:
    """Load the data set called `dataset` from files under `root`.

    Args:
        dataset: a key of `DATASETS`.
        root: the folder `data.root`; digits need none.
        seed: decides which rows are held out where the source has no test part.

    Raises:
        DataError: if the name is unknown, or files are missing or malformed.
    """
    if dataset not in DATASETS:
        raise DataError(f"data.dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
    return DATASETS[dataset](root, seed=seed)
