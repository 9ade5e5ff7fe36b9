"""Do different clients draw independently?

Reports less their masks are noise that must be independent over clients, with one known law.
Streams that are shared, wholly or in part, by neighbours or at a distance, or read from shifted
places, make pairs of clients alike. Three families of statistics look for that:

- equal noise over all pairs of clients, in excess of the collisions that the law gives;
- equal noise in disjoint pairs of clients at a given distance, which is exactly binomial;
- joint agreement in such pairs: products of centred bits at the same and at shifted places of
  their blocks, and products of blocks and agreement counts, by Bernstein's inequality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fedprune.errors import PrivacyError
from fedprune.privacy.empirical.noise import Noise
from fedprune.privacy.empirical.outcome import TestOutcome
from fedprune.privacy.mechanisms.reports import Report
from fedprune.privacy.mechanisms.threshold_response import ThresholdResponse

_LAGS = (1, 2, 3, 4, 8)
_SHIFTS = 8

Values = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class _Look:
    """One statistic: its p-value, what was found, what was to be expected, and where."""

    p_value: float
    found: float
    claimed: float
    words: str


@dataclass(frozen=True)
class _Feature:
    """A centred function of one client's noise.

    Attributes:
        name: for messages.
        values: [n, width] float64.
        variance, covariance: of one column, and of two different ones.
        largest: absolute value that none exceeds.
    """

    name: str
    values: Values
    variance: float
    covariance: float
    largest: float


def independence_test(
    mechanism: ThresholdResponse,
    masks: ArrayLike,
    reports: Sequence[Report],
    *,
    lags: Sequence[int] = _LAGS,
    shifts: int = _SHIFTS,
    drawn_blocks: bool = True,
) -> TestOutcome:
    """Test that no two clients share randomness.

    The smallest p-value of all statistics is multiplied by their number (Bonferroni). To look
    for a stream that a client uses again in the next round, interleave the rounds' reports.

    Args:
        mechanism: that the reports are said to come from.
        masks: [n, num_units] bool, or one mask that all clients have.
        reports: of n clients, in the order in which streams might be shared.
        lags: distances at which pairs are looked at.
        shifts: by how many places, at most, one client's bits are shifted against another's.
        drawn_blocks: whether clients drew their blocks; assigned ones say nothing.

    Raises:
        ReportError: if a report is not one that the mechanism can send.
        PrivacyError: if there are fewer than four reports, or the masks do not fit.
    """
    if len(reports) < 4:
        raise PrivacyError(f"pairs of clients need at least 4 reports, got {len(reports)}")
    noise = Noise.of(mechanism, masks, reports, drawn_blocks=drawn_blocks)
    looks = [_over_all_pairs(noise), *_at_distances(noise, lags, shifts)]
    worst = min(looks, key=lambda look: look.p_value)
    return TestOutcome(
        test="independence",
        claim="no two clients share randomness",
        claimed=worst.claimed,
        found=worst.found,
        p_value=min(1.0, len(looks) * worst.p_value),
        draws=len(reports),
        detail=f"{worst.words}; the least likely of {len(looks)} statistics",
    )


def _over_all_pairs(noise: Noise) -> _Look:
    """Collisions in all pairs, less what popular outcomes of single clients explain.

    The centred count is a degenerate U-statistic, in the limit a weighted sum of centred
    chi-squared variables; its first three moments are matched (Pearson III). Where collisions are
    rare they are Poisson; the larger of the two p-values is taken.
    """
    repeats, n = np.bincount(noise.keys), len(noise.keys)
    pairs = math.comb(n, 2)
    second, third, fourth = (noise.power_sum(order) for order in (2, 3, 4))
    found, expected = float((repeats * (repeats - 1) / 2).sum()), float(pairs * second)
    p_value = float(stats.poisson.sf(found - 1, expected))
    if expected > 1:
        chances = np.array([float(p) for p in noise.outcome_chances])
        centred = found - (n - 1) * float(chances[noise.agreements].sum()) + expected
        spread = float(second - 2 * third + second**2)
        cubes = float(third - 3 * fourth + 3 * second * third - second**3)
        score = centred / math.sqrt(pairs * spread)
        skewness = math.sqrt(8.0) * cubes / spread**1.5
        p_value = max(p_value, float(stats.pearson3.sf(score, skewness)))
    return _Look(p_value, found, expected, f"equal noise in {found:,.0f} of all pairs")


def _at_distances(noise: Noise, lags: Sequence[int], shifts: int) -> Iterator[_Look]:
    """All looks at disjoint pairs; pairing in two ways misses no neighbours."""
    features, n = list(_features(noise)), len(noise.keys)
    collision = float(noise.power_sum(2))
    for lag in lags:
        starts = np.arange(n - lag)
        for parity in (0, 1):
            first = starts[(starts // lag) % 2 == parity]
            if len(first):
                yield _collisions(noise, first, lag, collision)
                yield from _products(features, first, lag, shifts)


def _collisions(noise: Noise, first: Places, lag: int, chance: float) -> _Look:
    found = int((noise.keys[first] == noise.keys[first + lag]).sum())
    p_value = float(stats.binom.sf(found - 1, len(first), chance))
    words = f"equal noise in {found:,} of {len(first):,} pairs at distance {lag}"
    return _Look(p_value, float(found), chance * len(first), words)


def _features(noise: Noise) -> Iterator[_Feature]:
    """Bits, and where they say more than those, agreement counts and blocks, all centred."""
    mechanism, size = noise.mechanism, noise.mechanism.block_units
    gain = float(mechanism.agreement_gain)
    squares = sum(p * (2 * a - size) ** 2 for a, p in enumerate(mechanism.agreement_probabilities))
    joint = float((squares - size) / (size * (size - 1))) if size > 1 else 0.0
    bits = np.where(noise.agree, 1.0, -1.0) - gain
    yield _Feature("bits", bits, 1.0 - gain**2, joint - gain**2, 1.0 + gain)
    blocks = noise.num_blocks
    if blocks > 1:
        counts = np.asarray(2.0 * noise.agreements - size * (1.0 + gain), dtype=np.float64)
        variance = float(squares) - (size * gain) ** 2
        yield _Feature("agreements", counts[:, None], variance, 0.0, size * (1.0 + gain))
        centre = (blocks - 1) / 2.0
        numbers = np.asarray(noise.blocks - centre, dtype=np.float64)
        yield _Feature("blocks", numbers[:, None], (blocks**2 - 1) / 12.0, 0.0, centre)


def _products(
    features: Sequence[_Feature], first: Places, lag: int, shifts: int
) -> Iterator[_Look]:
    bits, *others = features
    yield from _bits_at(bits, first, lag, shifts)
    for one, two in product(others, others):
        total = float(one.values[first, 0] @ two.values[first + lag, 0])
        words = f"{one.name} with {two.name} at distance {lag}"
        variance, largest = one.variance * two.variance, one.largest * two.largest
        yield _bernstein(total, len(first), variance, largest, words)


def _bits_at(bits: _Feature, first: Places, lag: int, shifts: int) -> Iterator[_Look]:
    """Products of bit u of one client and bit u + shift of another, summed over u and pairs."""
    early, late = bits.values[first], bits.values[first + lag]
    size = bits.values.shape[1]
    most = min(shifts, size - 1)
    for shift in range(-most, most + 1):
        width, one, two = size - abs(shift), max(-shift, 0), max(shift, 0)
        total = np.einsum("iu,iu->", early[:, one : one + width], late[:, two : two + width])
        variance = width * (bits.variance**2 + (width - 1) * bits.covariance**2)
        words = f"joint agreement at distance {lag}, shifted by {shift}"
        yield _bernstein(float(total), len(first), variance, width * bits.largest**2, words)


def _bernstein(total: float, pairs: int, variance: float, largest: float, words: str) -> _Look:
    """Bound the two-sided tail of a sum of independent, centred, bounded terms (Bernstein)."""
    spread = pairs * variance
    exponent = total**2 / 2 / (spread + largest * abs(total) / 3)
    score = total / math.sqrt(spread)
    return _Look(min(1.0, 2 * math.exp(-exponent)), score, 0.0, f"{words}, in standard errors")
