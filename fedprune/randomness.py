"""Two sources of randomness that are never confused.

`SecureRandomness` draws from the operating system's CSPRNG: the only source that a deployed
client may use. `SimulationRandomness` gives seeded streams: the same seed and labels give the
same bits on every machine, engine and worker count, and whatever it produces is NOT PRIVATE.

Both hand out words of `word_bits` random bits. Mechanisms compare words with integers and never
touch floating-point uniforms, whose finite resolution is not private (Mironov 2012).
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError

Words = NDArray[np.uint64]


class Randomness(Protocol):
    """What a mechanism asks of a source: independent uniform words."""

    @property
    def word_bits(self) -> int:
        """Random bits in each word, 1 to 64."""
        ...

    @property
    def is_private(self) -> bool:
        """True only where nobody can know or repeat the draws."""
        ...

    def words(self, count: int) -> Words:
        """Draw `count` independent words, uniform on [0, 2**word_bits): [count] uint64."""
        ...


class SecureRandomness:
    """The operating system's CSPRNG. It takes no seed."""

    word_bits = 64
    is_private = True

    def words(self, count: int) -> Words:
        """Draw `count` uniform 64-bit words: [count] uint64."""
        return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)


class SimulationRandomness:
    """Seeded, labelled streams for simulation; nothing drawn from them is private.

    `stream(*labels)` derives an independent child from SHA-256 of the seed and the labels, so a
    client's draws depend on who it is and what it is asked, never on the order of the calls.
    """

    word_bits = 64
    is_private = False

    def __init__(self, seed: int, *labels: str | int) -> None:
        """Make the stream that `seed` and `labels` name.

        Raises:
            PrivacyError: if the seed is not a non-negative integer.
        """
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise PrivacyError(f"seed must be a non-negative integer, got {seed!r}")
        self.seed = seed
        self.labels = labels
        text = repr((seed, *labels)).encode()
        key = np.frombuffer(hashlib.sha256(text).digest()[:16], dtype="<u8").astype(np.uint64)
        self._generator = np.random.Generator(np.random.Philox(key=key))

    def stream(self, *labels: str | int) -> SimulationRandomness:
        """Derive the child stream that the further labels name."""
        return SimulationRandomness(self.seed, *self.labels, *labels)

    def words(self, count: int) -> Words:
        """Draw `count` uniform 64-bit words: [count] uint64."""
        return self._generator.integers(0, 2**64, size=count, dtype=np.uint64)

    @property
    def generator(self) -> np.random.Generator:
        """The underlying numpy generator, for partitions, cohorts and initial weights."""
        return self._generator

    def torch_seed(self) -> int:
        """Draw a seed for `torch.Generator` or `torch.manual_seed`."""
        return int(self._generator.integers(0, 2**63))
