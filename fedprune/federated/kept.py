"""What several runs of one process may share in memory: rows, who holds them, scores, answers.

A value is found again by everything that it was computed from (the exact bits of a model, the
places of the rows and the order in which they were batched), so a run that finds it has the very
numbers that it would have computed itself. Nothing here outlives the process, and the values that
were not used for longest make room for new ones.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fedprune import study
from fedprune.config import Config
from fedprune.data import Dataset, Federation, Rows

T = TypeVar("T")
Key = tuple[Hashable, ...]

MOST_BYTES = 1 << 30


class Kept:
    """Values by what they were computed from, at most so many bytes of them.

    Attributes:
        found, made: how often a value was there, and how often it had to be computed.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        """Keep nothing yet."""
        self._most = most_bytes
        self._values: OrderedDict[Key, tuple[object, int]] = OrderedDict()
        self.found = self.made = 0

    @property
    def bytes(self) -> int:
        """What the values take together."""
        return sum(size for _, size in self._values.values())

    def get(self, key: Key, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Give the value of a key, computed if it is not there.

        Args:
            key: what kind of value, and everything that it depends on.
            make: computes it; nobody may change what it returns.
            size: its bytes; a value larger than the bound is handed out but not kept.
        """
        if key in self._values:
            self.found += 1
            self._values.move_to_end(key)
            return cast(T, self._values[key][0])
        self.made += 1
        value = make()
        taken = size(value)
        if taken <= self._most:
            self._values[key] = (value, taken)
            while self.bytes > self._most:
                self._values.popitem(last=False)
        return value

    def dataset(self, config: Config) -> Dataset:
        """Load the configured rows, once.

        Raises:
            DataError: if files are missing or damaged.
        """
        return self.get(
            ("dataset", *rows_key(config)), lambda: study.load_dataset(config), _dataset_bytes
        )

    def federation(self, config: Config) -> Federation:
        """Divide the configured rows, once.

        Raises:
            DataError: if the rows cannot be divided so.
        """
        own = config.data
        return self.get(
            ("federation", *rows_key(config), own.partition, own.clients, own.alpha,
             own.shards_per_client),
            lambda: study.divide(config, self.dataset(config)),
            _federation_bytes,
        )  # fmt: skip

    def of_rows(self, config: Config) -> KeptOfRows:
        """What is computed from the configured rows alone."""
        return KeptOfRows(self, rows_key(config))

    def rows_digest(self, config: Config) -> str:
        """SHA-256 of the configured rows, inputs, labels, groups and sites."""
        return self.get(
            ("digest", *rows_key(config)), lambda: _rows_digest(self.dataset(config)), len
        )


@dataclass(frozen=True)
class KeptOfRows:
    """The part of `Kept` that belongs to one data set."""

    _kept: Kept
    _rows: Key

    def get(self, key: Key, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Give what was computed from these rows and from `key`."""
        return self._kept.get((self._rows, *key), make, size)


def rows_key(config: Config) -> Key:
    """Everything that `study.load_dataset` depends on."""
    return config.data.dataset, config.data.root, config.seed, config.evaluate.split


def array_digest(*arrays: NDArray[np.generic]) -> str:
    """SHA-256 of arrays, their shapes and types."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


def _rows_digest(dataset: Dataset) -> str:
    arrays: list[NDArray[np.generic]] = []
    for rows in (dataset.train, dataset.test):
        arrays += _columns(rows)
    scaling = repr((dataset.train.scaling, dataset.test.scaling, sorted(dataset.train.groups)))
    return hashlib.sha256(f"{array_digest(*arrays)} {scaling}".encode()).hexdigest()


def _columns(rows: Rows) -> list[NDArray[np.generic]]:
    columns: list[NDArray[np.generic]] = [rows.stored, rows.labels]
    columns += [rows.groups[name].codes for name in sorted(rows.groups)]
    return columns if rows.sites is None else [*columns, rows.sites]


def _dataset_bytes(dataset: Dataset) -> int:
    return sum(array.nbytes for rows in (dataset.train, dataset.test) for array in _columns(rows))


def _federation_bytes(federation: Federation) -> int:
    parts = (federation.train, federation.test)
    return sum(part.order.nbytes + part.offsets.nbytes for part in parts)
