"""Norms that were computed before, found again by what they depend on.

A bound of a network is asked for after every pruning step, for the same network by several
callers, and by several runs of one process; most of its time goes into the norms of layers, each a
function of its weights and geometry alone. The key is a SHA-256 digest of both, so a layer that
did not change is not bounded again, and one that did can never be mistaken for another. Nothing is
kept on disk: a bound read from a file would be a claim to be trusted, and the largest networks
are bounded anew in seconds.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from fedprune.errors import RobustnessError
from fedprune.robustness.rounding import Floats
from fedprune.robustness.spectral import Norm


class NormCache:
    """The norms used last, up to a number of entries; safe to use from several threads.

    Attributes:
        hits: how often a norm was found.
        misses: how often one had to be computed.
    """

    def __init__(self, max_entries: int = 16_384) -> None:
        """Make an empty cache of at most `max_entries` norms (some 200 bytes each).

        Raises:
            RobustnessError: if the number is negative; 0 keeps nothing.
        """
        if max_entries < 0:
            raise RobustnessError(f"max_entries must be at least 0, got {max_entries}")
        self.max_entries = max_entries
        self.hits = self.misses = 0
        self._norms: OrderedDict[bytes, Norm] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many norms are held."""
        return len(self._norms)

    def norm(self, what: str, weight: Floats, compute: Callable[[], Norm]) -> Norm:
        """Find the norm of a weight, or compute and keep it.

        Two threads that miss at once both compute; neither waits for the other.

        Args:
            what: everything but the weight that the norm depends on, in words.
            weight: [...] float64.
            compute: gives the norm.
        """
        key = fingerprint(what, weight)
        with self._lock:
            found = self._norms.get(key)
            if found is not None:
                self._norms.move_to_end(key)
                self.hits += 1
                return found
            self.misses += 1
        computed = compute()
        with self._lock:
            self._norms[key] = computed
            self._norms.move_to_end(key)
            while len(self._norms) > self.max_entries:
                self._norms.popitem(last=False)
        return computed

    def clear(self) -> None:
        """Forget every norm and count from 0."""
        with self._lock:
            self._norms.clear()
            self.hits = self.misses = 0


def fingerprint(what: str, weight: Floats) -> bytes:
    """Give the SHA-256 digest of a description, a shape and the bytes of all entries."""
    digest = hashlib.sha256(repr((what, weight.shape, weight.dtype.str)).encode())
    digest.update(np.ascontiguousarray(weight).data)
    return digest.digest()


NORMS = NormCache()
"""The norms of convolutions and linear maps of this process."""
