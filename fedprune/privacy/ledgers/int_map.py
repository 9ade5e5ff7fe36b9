"""A map from whole numbers to whole numbers for a ledger's clients: single ones, or many at once.

Many keys at once are kept as sorted arrays that are merged as they grow (a logarithmic method:
every key is copied O(log n) times), single ones in a dictionary on top.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

_FEW = 16  # keys that are put and found faster one by one


class IntMap:
    """Maps int64 to int64; a key that was never put has the default value."""

    def __init__(self, default: int) -> None:
        """Make an empty map."""
        self._default = default
        self._recent: dict[int, int] = {}  # newer than all arrays
        self._sorted: list[tuple[Numbers, Numbers]] = []  # oldest and largest first

    def get(self, key: int) -> int:
        """Look one key up."""
        found = self._recent.get(key)
        if found is not None:
            return found
        for keys, values in reversed(self._sorted):
            place = int(np.searchsorted(keys, key))
            if place < len(keys) and keys[place] == key:
                return int(values[place])
        return self._default

    def put(self, key: int, value: int) -> None:
        """Set one key."""
        self._recent[key] = value

    def get_many(self, keys: Numbers) -> Numbers:
        """Look keys [n] up: [n]."""
        if len(keys) <= _FEW:
            return np.array([self.get(key) for key in keys.tolist()], dtype=np.int64)
        found = np.full(len(keys), self._default, dtype=np.int64)
        for known, values in self._sorted:
            places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
            found = np.where(known[places] == keys, values[places], found)
        if self._recent:
            recent = self._recent.get
            pairs = zip(keys.tolist(), found.tolist(), strict=True)
            found = np.array([recent(key, value) for key, value in pairs], dtype=np.int64)
        return found

    def put_many(self, keys: Numbers, values: Numbers) -> None:
        """Set different keys [n] to values [n]."""
        if len(keys) <= _FEW:
            self._recent.update(zip(keys.tolist(), values.tolist(), strict=True))
            return
        if self._recent:
            for key in keys.tolist():
                self._recent.pop(key, None)
        order = np.argsort(keys, kind="stable")
        newest = keys[order], values[order]
        while self._sorted and len(self._sorted[-1][0]) <= 2 * len(newest[0]):
            newest = _merged(self._sorted.pop(), newest)
        self._sorted.append(newest)

    def items(self) -> tuple[Numbers, Numbers]:
        """All keys that were put, ascending, and their values: [n] and [n]."""
        everything = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        for part in self._sorted:
            everything = _merged(everything, part)
        keys = np.array(sorted(self._recent), dtype=np.int64)
        values = np.array([self._recent[key] for key in keys.tolist()], dtype=np.int64)
        return _merged(everything, (keys, values))


def _merged(old: tuple[Numbers, Numbers], new: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
    """Merge two sorted maps; where both have a key, the new one's value stays."""
    keys = np.concatenate([old[0], new[0]])
    values = np.concatenate([old[1], new[1]])
    order = np.argsort(keys, kind="stable")  # of equal keys the new one comes last
    keys, values = keys[order], values[order]
    last = np.ones(len(keys), dtype=np.bool_)
    last[:-1] = keys[1:] != keys[:-1]
    return keys[last], values[last]
