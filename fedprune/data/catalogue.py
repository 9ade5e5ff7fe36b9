"""The data sets that can be asked for by name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fedprune.data.adult import adult
from fedprune.data.cifar10 import cifar10
from fedprune.data.digits import digits
from fedprune.data.heart import heart, own_heart
from fedprune.data.mnist import fashion_mnist, mnist
from fedprune.data.own import load_own
from fedprune.data.rows import Dataset
from fedprune.errors import DataError
from fedprune.named import is_reference


class Loader(Protocol):
    """Reads a data set from files under `root`; the seed holds out test rows where none are."""

    def __call__(self, root: str | Path, *, seed: int) -> Dataset:
        """Load the data set."""
        ...


DATASETS: dict[str, Loader] = {
    "digits": digits,
    "cifar10": cifar10,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "heart": heart,
    "adult": adult,
}
# Where one client of a real federation holds a part of the files only.
OWN_PARTS: dict[str, Loader] = {"heart": own_heart}


def load(dataset: str, root: str | Path, *, seed: int, own: bool = False) -> Dataset:
    """Load the data set called `dataset` from files under `root`.

    Args:
        dataset: a key of `DATASETS`, or "package.module:function" of a user's own function that
            takes (root, *, seed) and gives a `Dataset`. It runs that code: a deployed client
            takes this name from its own settings, never from a server.
        root: the folder `data.root`; digits need none.
        seed: decides which rows are held out where the source has no test part.
        own: whether the rows under `root` are one client's own: of heart's four hospitals any
            are then enough, and each holds out the rows that it holds out among all four. The
            other data sets are the same either way.

    Raises:
        ConfigError: if a reference does not name a function.
        DataError: if the name is unknown, files are missing or malformed, or what a user's
            function gives is not a sound data set.
    """
    if is_reference(dataset):
        return load_own(dataset, root, seed=seed)
    if dataset not in DATASETS:
        raise DataError(
            f'data.dataset must be one of {", ".join(DATASETS)} or "package.module:function", '
            f"got {dataset!r}"
        )
    loaders = DATASETS | OWN_PARTS if own else DATASETS
    return loaders[dataset](root, seed=seed)
