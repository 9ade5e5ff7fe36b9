"""Poisson sampling as it is accounted: every record is in a batch by an exact coin of its own.

The coin compares a uniform binary expansion with an integer threshold over 2^64; a floating-point
uniform has too few values for that (Mironov 2012). An expansion is read one word at a time until
it differs from the threshold's, so that the probability is the threshold's for words of any width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError
from fedprune.randomness import Randomness

THRESHOLD_BITS = 64


@dataclass(frozen=True)
class PoissonSampling:
    """Each record joins each batch with probability `threshold / 2^64`, independently.

    Attributes:
        rate: the probability that was asked for; the one really used is less than 2^-64 above it.
    """

    rate: float

    def __post_init__(self) -> None:
        """Refuse what is no probability above 0.

        Raises:
            PrivacyError: if the rate is not in (0, 1].
        """
        number = isinstance(self.rate, int | float) and not isinstance(self.rate, bool)
        if not number or not 0 < self.rate <= 1:
            raise PrivacyError(f"a sampling rate must be in (0, 1], got {self.rate!r}")

    @property
    def threshold(self) -> int:
        """The coin's probability times 2^64, a whole number in [1, 2^64]."""
        return math.ceil(Fraction(self.rate) * (1 << THRESHOLD_BITS))

    @property
    def exact_rate(self) -> Fraction:
        """The probability that is really used."""
        return Fraction(self.threshold, 1 << THRESHOLD_BITS)

    @property
    def accounted_rate(self) -> float:
        """The smallest float that is not below the probability really used."""
        nearest = float(self.exact_rate)
        return nearest if Fraction(nearest) >= self.exact_rate else math.nextafter(nearest, 2.0)

    def draw(self, num_records: int, rng: Randomness) -> NDArray[np.bool_]:
        """Toss one coin for each record: [num_records] bool, True = in the batch."""
        if self.threshold == 1 << THRESHOLD_BITS:
            return np.ones(num_records, dtype=np.bool_)
        first, rest = _split(self.threshold, THRESHOLD_BITS, rng.word_bits)
        words = rng.words(num_records)
        chosen = words < np.uint64(first)
        if rest:  # only then can a record whose word equals the threshold's still be in
            for record in np.flatnonzero(words == np.uint64(first)):
                chosen[record] = _below(rest, max(0, THRESHOLD_BITS - rng.word_bits), rng)
        return chosen


def _split(threshold: int, bits: int, word_bits: int) -> tuple[int, int]:
    """Cut a threshold of `bits` bits into its first word and what is left of it."""
    if bits <= word_bits:
        return threshold << (word_bits - bits), 0
    shift = bits - word_bits
    return threshold >> shift, threshold & ((1 << shift) - 1)


def _below(threshold: int, bits: int, rng: Randomness) -> bool:
    """Tell whether a fresh uniform of `bits` bits is below the threshold."""
    while threshold:
        first, rest = _split(threshold, bits, rng.word_bits)
        word = int(rng.words(1)[0])
        if word != first:
            return word < first
        threshold, bits = rest, bits - rng.word_bits
    return False
