"""Exact samples of the discrete Gaussian and the discrete Laplace, from uniform words alone.

The discrete Gaussian (Canonne, Kamath & Steinke 2020, "The discrete Gaussian for differential
privacy", Definition 1) gives an integer k with probability proportional to exp(-k^2/(2 sigma^2));
the discrete Laplace with probability proportional to exp(-|k|/t). Both are members of
exp(-(a |k| + b k^2)) with rational a and b, and are sampled here by inversion of that family's
cumulative distribution F without any rounding: a draw is the integer k with F(k-1) <= U < F(k),
where U is an infinite binary expansion that is read one word at a time. F(k) has no finite
expansion, so it is held between two integers over 2^bits that are proved to enclose it. As long as
an enclosure touches the interval of expansions with the prefix that was read, or the prefix reaches
into a tail beyond the enclosures that were computed, another word is read and the enclosures are
computed anew with as many more bits. Nothing is cut off: the tails go as far as the words do, and
the probabilities are exactly those of the definition.

The paper's own sampler (its Algorithm 3) rejects from a discrete Laplace; inversion has the same
output law and costs one word and one binary search a draw, over whole arrays.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedprune.errors import PrivacyError
from fedprune.privacy.mechanisms.cohort_words import cohort_words
from fedprune.privacy.mechanisms.exact import MoreWords
from fedprune.randomness import Randomness, Words

MAX_DEVIATION = 2**16  # tables of cumulative probabilities grow with the deviation
_GUARD_BITS = 64  # beyond the bits of the words read: enclosures are that much narrower than those
_SMOOTH = 25  # from this variance on, the sum and the integral agree to more than 100 digits
_ULPS = 2  # how far a correctly rounded exponential, with extra digits, can be off


@dataclass(frozen=True)
class DiscreteGaussian:
    """Integers k with probability proportional to exp(-k^2 / (2 variance)).

    Attributes:
        variance: sigma^2, rational; see `true_variance`.
    """

    variance: Fraction

    def __post_init__(self) -> None:
        """Refuse a variance that is not positive, or too large to be tabulated."""
        _check("variance", self.variance, MAX_DEVIATION**2)

    @property
    def true_variance(self) -> float:
        """Variance of the integers: a little less than sigma^2 (to 10^-6 of it from 1 on)."""
        if self.variance >= _SMOOTH:
            return float(self.variance)
        k = np.arange(1, 12 * math.isqrt(_SMOOTH))
        weights = np.exp(-(k**2) / (2 * float(self.variance)))
        return float(2 * math.fsum(k**2 * weights) / (1 + 2 * math.fsum(weights)))

    def sample(self, rngs: Sequence[Randomness], count: int) -> NDArray[np.int64]:
        """Draw `count` integers for each source from that source alone: [len(rngs), count]."""
        return _sample(Fraction(0), 1 / (2 * Fraction(self.variance)), rngs, count)

    def draw(self, words: Words, word_bits: int, more: MoreWords) -> NDArray[np.int64]:
        """Turn one first word a draw into integers: [count] words -> [count] int64.

        `more(i)` gives one further word for draw i, in the rare case that its words so far do
        not decide.
        """
        return _invert(Fraction(0), 1 / (2 * Fraction(self.variance)), words, word_bits, more)


@dataclass(frozen=True)
class DiscreteLaplace:
    """Integers k with probability proportional to exp(-|k| / scale).

    Added to an integer query of l1 sensitivity s it is (s / scale)-differentially private
    (Ghosh, Roughgarden & Sundararajan 2009).

    Attributes:
        scale: t, rational.
    """

    scale: Fraction

    def __post_init__(self) -> None:
        """Refuse a scale that is not positive, or too large to be tabulated."""
        _check("scale", self.scale, MAX_DEVIATION // 4)

    def sample(self, rngs: Sequence[Randomness], count: int) -> NDArray[np.int64]:
        """Draw `count` integers for each source from that source alone: [len(rngs), count]."""
        return _sample(1 / Fraction(self.scale), Fraction(0), rngs, count)

    def draw(self, words: Words, word_bits: int, more: MoreWords) -> NDArray[np.int64]:
        """Turn one first word a draw into integers; see `DiscreteGaussian.draw`."""
        return _invert(1 / Fraction(self.scale), Fraction(0), words, word_bits, more)


def _check(name: str, value: object, largest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | Fraction):
        raise PrivacyError(f"{name} must be a fraction or a whole number, got {value!r}")
    if not 0 < value <= largest:
        raise PrivacyError(f"{name} must be in (0, {largest}], got {float(value):g}")


def _sample(
    linear: Fraction, quadratic: Fraction, rngs: Sequence[Randomness], count: int
) -> NDArray[np.int64]:
    if not rngs or not count:
        return np.zeros((len(rngs), count), dtype=np.int64)

    def more(position: int) -> int:
        return int(rngs[position // count].words(1)[0])

    words = cohort_words(rngs, count).reshape(-1)
    drawn = _invert(linear, quadratic, words, rngs[0].word_bits, more)
    return drawn.reshape(len(rngs), count)


def _invert(
    linear: Fraction, quadratic: Fraction, words: Words, word_bits: int, more: MoreWords
) -> NDArray[np.int64]:
    table = _first_table(linear, quadratic, word_bits)
    place = np.searchsorted(table.upper, words, side="right")
    inside = (place > 0) & (place < len(table.lower))
    decided = inside & (words < table.lower[np.minimum(place, len(table.lower) - 1)])
    values = table.first + place.astype(np.int64)
    for index in np.flatnonzero(~decided):
        prefix, bits, found = int(words[index]), word_bits, None
        while found is None:
            prefix, bits = (prefix << word_bits) | more(int(index)), bits + word_bits
            found = _enclosures(linear, quadratic, bits).value(prefix)
        values[index] = found
    return values


@dataclass(frozen=True)
class _Enclosures:
    """Integers around F(k) 2^bits for the boundaries k = first, first + 1, ..., both sorted."""

    first: int
    lower: list[int]
    upper: list[int]

    def value(self, prefix: int) -> int | None:
        """The one integer that all expansions with this prefix mean; None where undecided."""
        place = bisect_right(self.upper, prefix)
        if 0 < place < len(self.lower) and prefix < self.lower[place]:
            return self.first + place
        return None


@dataclass(frozen=True)
class _FirstTable:
    """The enclosures for first words, as arrays."""

    first: int
    lower: Words
    upper: Words


@lru_cache(maxsize=32)
def _first_table(linear: Fraction, quadratic: Fraction, word_bits: int) -> _FirstTable:
    table = _enclosures(linear, quadratic, word_bits)
    # With few bits there may be no boundary at all: two that decide nothing stand in for them.
    lower, upper = table.lower or [0], table.upper or [2**word_bits - 1]
    return _FirstTable(
        table.first, np.array(lower, dtype=np.uint64), np.array(upper, dtype=np.uint64)
    )


@lru_cache(maxsize=64)
def _enclosures(linear: Fraction, quadratic: Fraction, bits: int) -> _Enclosures:
    """Enclose F at every boundary whose tail surely has at least 2^-bits of the mass."""
    low, high = _tails(linear, quadratic, bits)
    full = 1 << bits
    below = [(low[k], high[k]) for k in range(len(low) - 1, -1, -1)]  # F(-k-1) = P[X > k]
    above = [(full - high[k], full - low[k]) for k in range(len(low))]  # F(k) = 1 - P[X > k]
    lower, upper = ([pair[side] for pair in below + above] for side in (0, 1))
    return _Enclosures(-len(low), lower, upper)


def _tails(linear: Fraction, quadratic: Fraction, bits: int) -> tuple[list[int], list[int]]:
    """Enclose P[X > k] 2^bits for k = 0, 1, ... while its lower bound is at least 1."""
    precision = bits + _GUARD_BITS
    low, high, rest = _weights(linear, quadratic, bits, precision)
    beyond_low, beyond_high = [0], [rest]
    for below, above in zip(reversed(low[1:]), reversed(high[1:]), strict=True):
        beyond_low.append(beyond_low[-1] + below)
        beyond_high.append(beyond_high[-1] + above)
    total_low = low[0] + 2 * beyond_low[-1]
    total_high = high[0] + 2 * beyond_high[-1]
    beyond_low.reverse()  # beyond[k] encloses the weights above k
    beyond_high.reverse()
    tails_low, tails_high = [], []
    for below, above in zip(beyond_low, beyond_high, strict=True):
        least = (below << bits) // total_high
        if not least:
            break
        tails_low.append(least)
        tails_high.append(-((-above << bits) // total_low))
    return tails_low, tails_high


def _weights(
    linear: Fraction, quadratic: Fraction, bits: int, precision: int
) -> tuple[list[int], list[int], int]:
    """Enclose exp(-(a k + b k^2)) 2^precision for k = 0..K, and bound the sum of all beyond K.

    Weight k+1 is weight k times a ratio exp(-(a + b (2k + 1))), which itself falls by exp(-2b)
    from one k to the next; products of lower bounds rounded down, and of upper bounds rounded up,
    stay bounds. Ratios fall, so a geometric series bounds what is left out, less than 2^-bits.
    """
    one = 1 << precision
    ratio_low, ratio_high = _exponential(linear + quadratic, precision)
    fall_low, fall_high = _exponential(2 * quadratic, precision)
    low, high = [one], [one]
    while True:
        next_high = -((-high[-1] * ratio_high) >> precision)
        rest = next_high * one // (one - ratio_high) + 1
        if rest << bits < one:
            return low, high, rest
        low.append(low[-1] * ratio_low >> precision)
        high.append(next_high)
        ratio_low = ratio_low * fall_low >> precision
        ratio_high = -((-ratio_high * fall_high) >> precision)


def _exponential(exponent: Fraction, precision: int) -> tuple[int, int]:
    """Enclose exp(-exponent) 2^precision between two integers; exactly 1 at 0."""
    one = 1 << precision
    if not exponent:
        return one, one
    whole = int(exponent).bit_length()
    context = Context(prec=int((precision + whole) * 0.302) + 12, rounding=ROUND_FLOOR)
    argument = context.divide(Decimal(exponent.numerator), Decimal(exponent.denominator))
    # `exp` is correctly rounded; the argument's error is far below 2^-precision.
    value = context.exp(context.minus(argument))
    scaled = int(context.multiply(value, Decimal(one)))
    return max(0, scaled - _ULPS), min(scaled + _ULPS + 1, one - 1)
