"""MNIST (LeCun, Cortes & Burges 1998) and Fashion-MNIST (Xiao, Rasul & Vollgraf 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedprune.data.groups import GroupColumn
from fedprune.data.idx import read_idx
from fedprune.data.rows import Dataset, Rows, Scaling
from fedprune.errors import DataError

PIXELS = (28, 28)
STEMS = ("train-images", "train-labels", "t10k-images", "t10k-labels")


@dataclass(frozen=True)
class Collection:
    """One of the data sets that come as these four files.

    `mean` and `std` are the usual constants for pixels in [0, 1], published for the whole
    collection.
    """

    name: str
    folders: tuple[str, ...]
    source: str
    class_names: tuple[str, ...]
    mean: float
    std: float


MNIST = Collection(
    name="mnist",
    folders=("mnist", "MNIST/raw"),
    source="https://ossci-datasets.s3.amazonaws.com/mnist/",
    class_names=tuple(str(digit) for digit in range(10)),
    mean=0.1307,
    std=0.3081,
)
FASHION_MNIST = Collection(
    name="fashion-mnist",
    folders=("fashion-mnist", "FashionMNIST/raw"),
    source="https://github.com/zalandoresearch/fashion-mnist",
    class_names=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    mean=0.2860,
    std=0.3530,
)


def mnist(root: str | Path, *, seed: int) -> Dataset:  # noqa: ARG001 - the split is official
    """Load handwritten digits [1, 28, 28], kept as bytes.

    Raises:
        DataError: if files are missing or are not such files.
    """
    return _load(MNIST, root)


def fashion_mnist(root: str | Path, *, seed: int) -> Dataset:  # noqa: ARG001 - as above
    """Load pictures of clothes [1, 28, 28], kept as bytes.

    Raises:
        DataError: if files are missing or are not such files.
    """
    return _load(FASHION_MNIST, root)


def _load(collection: Collection, root: str | Path) -> Dataset:
    paths = _find(collection, root)
    return Dataset(
        name=collection.name,
        num_classes=len(collection.class_names),
        input_shape=(1, *PIXELS),
        train=_rows(collection, paths[0], paths[1]),
        test=_rows(collection, paths[2], paths[3]),
        input_unit="pixel value in [0, 1]",
        input_std=(collection.std,),
    )


def _find(collection: Collection, root: str | Path) -> list[Path]:
    """Give the four files of the first folder that has them all."""
    found_at_all = []
    for folder in collection.folders:
        under = Path(root).expanduser() / folder
        found = [next(_files(under, stem), None) for stem in STEMS]
        paths = [path for path in found if path is not None]
        if len(paths) == len(STEMS):
            return paths
        found_at_all += [f"{folder}/{path.name}" for path in paths]
    names = ", ".join(f"{stem}-{_kind(stem)}[.gz]" for stem in STEMS)
    raise DataError(
        f"dataset {collection.name!r} needs {names} in {' or '.join(collection.folders)} under "
        f"data.root = {str(root)!r}, where there is {', '.join(found_at_all) or 'none of them'}; "
        f"get them from {collection.source}"
    )


def _files(folder: Path, stem: str) -> Iterator[Path]:
    """Give the file under each name in use that is there: with a dash or a dot, gzipped or not."""
    for separator in "-.":
        for ending in ("", ".gz"):
            path = folder / f"{stem}{separator}{_kind(stem)}{ending}"
            if path.is_file():
                yield path


def _kind(stem: str) -> str:
    return "idx3-ubyte" if stem.endswith("images") else "idx1-ubyte"


def _rows(collection: Collection, images: Path, labels: Path) -> Rows:
    pixels = read_idx(images, PIXELS)
    codes = read_idx(labels, ()).astype(np.int64)
    if len(pixels) != len(codes):
        raise DataError(
            f"{images} holds {len(pixels)} images, but {labels} holds {len(codes)} labels"
        )
    most = len(collection.class_names) - 1
    wrong = np.flatnonzero(codes > most)
    if len(wrong):
        raise DataError(
            f"labels must be in 0 to {most}, got {codes[wrong[0]]} ({labels}, label {wrong[0]})"
        )
    return Rows(
        stored=pixels[:, None],
        labels=codes,
        scaling=Scaling(divisor=255.0, mean=(collection.mean,), std=(collection.std,)),
        groups={"class": GroupColumn(codes, collection.class_names)},
    )
