"""Randomised response on every bit of a mask: what threshold randomised response is compared with.

Each bit is flipped on its own with probability f. One bit then has the ratio e^eps0 = (1 - f) / f,
and d of them compose: to d * eps0 in pure differential privacy, or exactly (Kairouz, Oh &
Viswanath 2015; Murtagh & Vadhan 2016) to every (eps, delta) with
    delta(eps) = sum_l C(d, l) [(1-f)^(d-l) f^l - e^eps (1-f)^l f^(d-l)]_+ .
The flip probability is a multiple of 2^-64 rounded up, and it is this probability, not the one
before rounding, of which the bound is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedprune.privacy.mechanisms.cohort_words import (
    cohort_words,
    key_width,
    split_words,
    words_for_keys,
)
from fedprune.privacy.mechanisms.exact import ExactCategorical
from fedprune.privacy.mechanisms.mechanism import Mechanism, check_parameters
from fedprune.randomness import Randomness

_FLIP_BITS = 64
_SEARCH_STEPS = 30
_DIGITS = 80
_MARGIN = Decimal(10) ** -40  # far above what 80 digits lose over any number of units, far below 1


class BitwiseResponse(Mechanism):
    """Every bit of the mask through randomised response; a baseline for comparisons.

    With delta = 0 each bit gets epsilon / d. With delta > 0 the per-bit budget is the largest
    whose d-fold exact composition stays within (epsilon, delta).

    Attributes:
        epsilon, delta: the stated guarantee of one whole report.
        num_units: d; a report carries all of them, so block_units = d and num_blocks = 1.
        flip_weight: the flip probability in use, in units of 2^-64.
    """

    name: ClassVar[str] = "bitwise"

    def __init__(self, epsilon: float, num_units: int, *, delta: float = 0.0) -> None:
        """Find the smallest flip probability that the guarantee allows.

        Raises:
            PrivacyError: if a parameter is out of range.
        """
        check_parameters(epsilon, num_units, delta)
        super().__init__(epsilon, delta, num_units, num_units)
        self.flip_weight = flip_weight(self.epsilon, self.delta, self.num_units)
        self._flip = ExactCategorical([self.flip_weight, (1 << _FLIP_BITS) - self.flip_weight])

    def __repr__(self) -> str:
        """Name the mechanism with its parameters."""
        return (
            f"BitwiseResponse(epsilon={self.epsilon:g}, num_units={self.num_units}, "
            f"delta={self.delta:g})"
        )

    @property
    def flip_probability(self) -> Fraction:
        """f, exactly as it is drawn."""
        return Fraction(self.flip_weight, 1 << _FLIP_BITS)

    @property
    def agreement_gain(self) -> Fraction:
        """c = 1 - 2 f."""
        return 1 - 2 * self.flip_probability

    @property
    def bit_epsilon(self) -> float:
        """eps0 = ln((1 - f) / f), of one bit."""
        return math.log(float(1 / self.flip_probability - 1))

    @property
    def pure_epsilon(self) -> float:
        """d * eps0: what a whole report guarantees without any delta."""
        return self.epsilon if self.delta == 0 else self.num_units * self.bit_epsilon

    @property
    def _words_per_client(self) -> int:
        return words_for_keys(self.num_units, key_width(self.num_units, 64), 64)

    def _draw(
        self,
        masks: NDArray[np.bool_],
        rngs: Sequence[Randomness],
        blocks: NDArray[np.int64] | None,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Flip every bit on its own; the only block is block 0, assigned or not."""
        del blocks
        count, d = masks.shape
        word_bits = rngs[0].word_bits
        width = key_width(d, word_bits)
        words = cohort_words(rngs, words_for_keys(d, width, word_bits))
        first: NDArray[Any] = split_words(words, d, width, word_bits)

        def more(place: int) -> int:
            return int(rngs[place // d].words(1)[0]) & ((1 << width) - 1)

        flipped = self._flip.draw(first.reshape(-1), width, more) == 0
        return np.zeros(count, dtype=np.int64), masks ^ flipped.reshape(count, d)


@lru_cache(maxsize=256)
def flip_weight(epsilon: float, delta: float, num_units: int) -> int:
    """Find a small F such that flipping d bits with probability F / 2^64 stays in the guarantee.

    F is rounded up: for pure epsilon to the next whole number; otherwise by a step of the search,
    2^-30 of the pure one, and the exact bound was computed for the F that is returned.
    """
    high = _pure_flip(epsilon, num_units)  # the guarantee surely holds here
    if delta == 0:
        return high
    low = 0
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) // 2
        if middle == low:
            break
        if composed_delta(middle, epsilon, num_units) <= Decimal(delta):
            high = middle
        else:
            low = middle
    return high


def composed_delta(weight: int, epsilon: float, num_units: int) -> Decimal:
    """Bound delta(eps) of d bits flipped with probability weight / 2^64 each, from above.

    The worst pair of masks differs in every bit, and no other pair is worse.
    """
    with localcontext(prec=_DIGITS):
        # All rounding errors together are far below the margin, which is taken twice.
        power = Decimal(epsilon).exp() * (1 - _MARGIN)
        flip = Decimal(weight) / (1 << _FLIP_BITS)
        odds = flip / (1 - flip)
        term = (1 - flip) ** num_units  # C(d, l) (1-f)^(d-l) f^l, from l = 0
        other = odds**num_units  # the same report's probability in the other world, over this one
        total = Decimal(0)
        for flips in range(num_units + 1):
            if power * other >= 1:
                break
            total += term * (1 - power * other)
            term *= odds * (num_units - flips) / (flips + 1)
            other /= odds * odds
        return total * (1 + _MARGIN)


def _pure_flip(epsilon: float, num_units: int) -> int:
    """2^64 / (1 + e^(eps / d)), rounded up."""
    with localcontext(prec=_DIGITS):
        ratio = (Decimal(epsilon) / num_units).exp() * (1 - _MARGIN)
        return max(1, math.ceil(Decimal(1 << _FLIP_BITS) / (1 + ratio)))
