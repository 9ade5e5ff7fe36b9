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
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError

Words = NDArray[np.uint64]

_KEY_BYTES = 16
_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_WEYL = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], dtype=np.uint64)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


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
        self._key = hashlib.sha256(repr((seed, *labels)).encode()).digest()[:_KEY_BYTES]
        self._generator: np.random.Generator | None = None  # made when it is first drawn from
        self._drawn = 0  # words that were drawn for many streams at once

    def stream(self, *labels: str | int) -> SimulationRandomness:
        """Derive the child stream that the further labels name."""
        return SimulationRandomness(self.seed, *self.labels, *labels)

    def words(self, count: int) -> Words:
        """Draw `count` uniform 64-bit words: [count] uint64."""
        return self.generator.integers(0, 2**64, size=count, dtype=np.uint64)

    @staticmethod
    def words_of_each(streams: Sequence[SimulationRandomness], count: int) -> Words:
        """Draw `count` words from each stream, the very ones that it would draw by itself.

        Streams that nothing was drawn from yet cost a twentieth of what they cost one by one.

        Args:
            streams: different objects.
            count: words from each.

        Returns:
            [len(streams), count] uint64.
        """
        if any(stream._generator is not None or stream._drawn for stream in streams):
            return np.stack([stream.words(count) for stream in streams])
        keys = np.frombuffer(b"".join(stream._key for stream in streams), dtype="<u8")
        for stream in streams:
            stream._drawn = count
        return philox_words(keys.astype(np.uint64).reshape(-1, 2), count)

    @property
    def generator(self) -> np.random.Generator:
        """The underlying numpy generator, for partitions, cohorts and initial weights."""
        if self._generator is None:
            key = np.frombuffer(self._key, dtype="<u8").astype(np.uint64)
            self._generator = np.random.Generator(np.random.Philox(key=key))
            self._generator.integers(0, 2**64, size=self._drawn, dtype=np.uint64)
        return self._generator

    def torch_seed(self) -> int:
        """Draw a seed for `torch.Generator` or `torch.manual_seed`."""
        return int(self.generator.integers(0, 2**63))


def philox_words(keys: Words, count: int) -> Words:
    """Draw the first words of many Philox4x64-10 generators at once.

    Args:
        keys: [n, 2] uint64.
        count: words from each generator.

    Returns:
        [n, count] uint64: row i as `numpy.random.Philox(key=keys[i])` gives it.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3, section 3.
    """
    blocks = -(-count // 4)
    zeros: Words = np.zeros((len(keys), blocks), dtype=np.uint64)
    first_part: Words = np.add(zeros, np.arange(1, blocks + 1, dtype=np.uint64))
    counter = [first_part, zeros, zeros, zeros]
    for number in range(_ROUNDS):
        first, second = (keys + np.uint64(number) * _WEYL)[:, None, :].transpose(2, 0, 1)
        high, low = _product(_MULTIPLIERS[0], counter[0])
        other_high, other_low = _product(_MULTIPLIERS[1], counter[2])
        counter = [other_high ^ counter[1] ^ first, other_low, high ^ counter[3] ^ second, low]
    return np.stack(counter, axis=2).reshape(len(keys), -1)[:, :count]


def _product(factor: np.uint64, words: Words) -> tuple[Words, Words]:
    """Multiply 64-bit words in full: the high and the low 64 bits of the products."""
    high, low = words >> _HALF, words & _LOW
    factor_high, factor_low = factor >> _HALF, factor & _LOW
    middle = high * factor_low + (low * factor_low >> _HALF)
    other = low * factor_high + (middle & _LOW)
    return high * factor_high + (middle >> _HALF) + (other >> _HALF), words * factor
